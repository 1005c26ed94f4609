"""Pictures with a mask each: a palette or grey picture of class numbers, where 255 does not count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compressor.data.image_files import SUFFIXES, ImageFiles
from compressor.data.paired_folders import beside, by_stem
from compressor.errors import DataError
from compressor.files.regular import check_regular
from compressor.tasks.classes import VOID

NUMBERED = ("P", "L", "1", "I", "I;16", "I;16B", "I;16L")  # PIL's modes whose pixels are whole numbers
LOSSY = (".jpg", ".jpeg")
LOOKED_AT = 8  # masks, before any is used
COLOURS = "save class numbers: a palette or grey PNG with 0, 1, 2 …, and 255 where nothing counts"


def masked_images(files: list[Path], pictures: Path, place: Path) -> ImageFiles:
    """Return the pictures, each with the mask of its name below `place`.

    Refused: a picture without a mask, a mask in colours or in a lossy format, masks of 0 and 255 alone.
    """
    masks = beside(files, pictures, by_stem(place, SUFFIXES))
    missing = [file for file, mask in zip(files, masks, strict=True) if mask is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(files)} pictures have no mask, the first {missing[0]}",
            hint=f"put a mask of the same name into {place}, or move the pictures away",
        )
    known = [mask for mask in masks if mask is not None]
    _refuse_black_and_white(known[:: max(1, len(known) // LOOKED_AT)][:LOOKED_AT], place=place)
    return ImageFiles(files, known, read=mask_on)


def _refuse_black_and_white(masks: list[Path], *, place: Path) -> None:
    """Refuse masks that have two values of which 255 is one: with 255 left out they would show one class alone."""
    values = {int(value) for mask in masks for value in np.unique(numbers_in(mask).numpy())}
    if values == {0, VOID}:
        raise DataError(
            f"the masks in {place} are black and white, 0 and 255, and 255 is for pixels that do not count",
            hint="save 1 in place of 255, or save them with one bit a pixel",
        )


def mask_on(file: Path, image: Tensor) -> Tensor:
    """Return the class of every pixel of an image, int64 `[height, width]`. Refused: a mask of another size."""
    mask = numbers_in(file)
    if mask.shape != image.shape[-2:]:
        sizes = [f"{size[1]}x{size[0]}" for size in (mask.shape, image.shape[-2:])]
        raise DataError(
            f"the mask {file} is of {sizes[0]} pixels, its picture of {sizes[1]}",
            hint="resize the mask without blending, or fetch the pair again",
        )
    return mask


def numbers_in(file: Path) -> Tensor:
    """Return the whole numbers in a mask's pixels, int64 `[height, width]`."""
    from PIL import Image

    check_regular(file, refusal=DataError)
    if file.suffix.lower() in LOSSY:
        raise DataError(f"the mask {file} is a JPEG, which changes class numbers", hint=COLOURS)
    try:
        with Image.open(file) as mask:
            if mask.mode not in NUMBERED:
                raise DataError(f"the mask {file} is in colours ({mask.mode})", hint=COLOURS)
            numbers = np.asarray(mask).astype(np.int64)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # PIL raises one of these on a broken file, depending on the fault
        raise DataError(f"cannot read the mask {file}: {error}", hint="remove or repair it") from error
    return torch.from_numpy(numbers)
