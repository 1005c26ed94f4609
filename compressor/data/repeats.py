"""Images that lie in two splits at once: told by their bytes, and left out of the split that is trained on.

What is measured on an image that was trained on says nothing. A copy in `test` counts, so the one in `tune` or `train`
goes; of `tune` and `train`, the one in `train`. Images in memory are told by their pixels, files by their content: only
those whose size occurs in several splits are read. A library's or a user's own data set is taken as it is: to look at
all of its images may cost minutes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch.utils.data import Subset

from compressor.data.image_files import ImageFiles, check_regular
from compressor.data.splits import Images, ImageSet, SplitName, subset
from compressor.errors import DataError

ORDER = (SplitName.TEST, SplitName.TUNE, SplitName.TRAIN)  # what stays before what goes
T = TypeVar("T")


def without_repeats(
    splits: Mapping[SplitName, ImageSet | None], *, source: str
) -> tuple[dict[SplitName, ImageSet | None], int]:
    """The splits without the images that another one holds, and how many were left out.

    Refused: a split of which nothing is left, as where `train` and `test` are the same images.
    """
    found: dict[SplitName, ImageSet | None] = dict(splits)
    there = {name: images for name in ORDER if (images := splits.get(name)) is not None}
    for name, images in there.items():
        twin = next((n for n, other in there.items() if n != name and _same(images, other)), None)
        if twin is not None:
            raise DataError(
                f"{source} gives the same data as {twin} and as {name}", hint="give splits that share no image"
            )
    dropped = 0
    for kept in (_of_memory(there), _of_files(there)):
        for name, indices in kept.items():
            images = there[name]
            if len(indices) == len(images):
                continue
            if not indices:
                raise DataError(
                    f"every {name} image of {source} lies in another split too",
                    hint="give splits that share no image, or one set: it is split here",
                )
            dropped += len(images) - len(indices)
            found[name] = subset(images, indices)
    return found, dropped


def _same(one: ImageSet, other: ImageSet) -> bool:
    """Whether two splits are one data set, which is not looked into; parts of one set are drawn apart."""
    if isinstance(one, Subset) or isinstance(other, Subset):
        return one is other
    return getattr(one, "dataset", one) is getattr(other, "dataset", other)


def _of_memory(splits: Mapping[SplitName, ImageSet]) -> dict[SplitName, list[int]]:
    """The images to keep of each split in memory."""
    return _apart({name: _pixels(images) for name, images in splits.items() if isinstance(images, Images)})


def _pixels(images: Images) -> list[bytes]:
    array = images.images.contiguous().numpy()
    return [hashlib.blake2b(memoryview(image).cast("B"), digest_size=16).digest() for image in array]


def _of_files(splits: Mapping[SplitName, ImageSet]) -> dict[SplitName, list[int]]:
    """The images to keep of each split of files."""
    files = {name: found for name, images in splits.items() if (found := files_of(images)) is not None}
    sizes = {name: [_size(file) for file in some] for name, some in files.items()}
    several = [set(some) for some in sizes.values()]
    common = {size for i, some in enumerate(several) for other in several[i + 1 :] for size in some & other}
    told: dict[SplitName, list[Hashable]] = {
        name: [
            _content(file) if size in common else (str(name), index)
            for index, (file, size) in enumerate(zip(some, sizes[name], strict=True))
        ]
        for name, some in files.items()
    }
    return _apart(told)


def files_of(images: ImageSet) -> Sequence[Path] | None:
    """The files that the images are read from, in order; `None` where they are no files."""
    if isinstance(images, ImageFiles):
        return images.files
    if isinstance(images, Subset):
        files = files_of(images.dataset)  # type: ignore[arg-type]  # as `subset` made it
        return None if files is None else [files[index] for index in images.indices]
    return None


def _size(file: Path) -> int:
    check_regular(file)
    return file.stat().st_size


def _content(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _apart(told: Mapping[SplitName, Sequence[T]]) -> dict[SplitName, list[int]]:
    """By split, the indices of what no split before it in `ORDER` holds."""
    seen: set[T] = set()
    kept: dict[SplitName, list[int]] = {}
    for name in ORDER:
        if name in told:
            kept[name] = [index for index, one in enumerate(told[name]) if one not in seen]
            seen.update(told[name])
    return kept
