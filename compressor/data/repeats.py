"""Find images that are in two splits at once, by their bytes, and remove them from the split that is trained on.

A measurement on a training image is worthless. So a copy in `test` stays and the one in `tune` or `train` is removed;
of `tune` and `train`, the one in `train`. Images in memory are compared by their pixels, texts by their words, files by
their content: only files whose size occurs in several splits are read. A library's or a user's own data set is not
checked: reading all of its images may take minutes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch.utils.data import Subset

from compressor.data.image_files import ImageFiles, check_regular
from compressor.data.samples import Images, Samples, subset
from compressor.data.sounds import Sounds
from compressor.data.splits import SplitName
from compressor.data.texts import Texts
from compressor.errors import DataError

ORDER = (SplitName.TEST, SplitName.TUNE, SplitName.TRAIN)  # an image stays in the first of its splits
T = TypeVar("T")


def without_repeats(
    splits: Mapping[SplitName, Samples | None], *, source: str
) -> tuple[dict[SplitName, Samples | None], int]:
    """Return the splits without images that another split has, and the number of removed images.

    Refused: a split that would be empty, for example because `train` and `test` are the same images.
    """
    apart: dict[SplitName, Samples | None] = dict(splits)
    there = {name: images for name in ORDER if (images := splits.get(name)) is not None}
    for name, images in there.items():
        twin = next((n for n, other in there.items() if n != name and _same(images, other)), None)
        if twin is not None:
            raise DataError(
                f"{source} has the same data as {twin} and as {name}", hint="use splits that share no image"
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
                    hint="use splits that share no image, or a single set, which is then split",
                )
            dropped += len(images) - len(indices)
            apart[name] = subset(images, indices)
    return apart, dropped


def _same(one: Samples, other: Samples) -> bool:
    """True if two splits are one data set whose images are not compared; parts of one set are disjoint."""
    if isinstance(one, Subset) or isinstance(other, Subset):
        return one is other
    return getattr(one, "dataset", one) is getattr(other, "dataset", other)


def _of_memory(splits: Mapping[SplitName, Samples]) -> dict[SplitName, list[int]]:
    """The indices of the images to keep, of each split in memory."""
    digests = {name: _digests(images) for name, images in splits.items()}
    return _apart({name: some for name, some in digests.items() if some is not None})


def _digests(images: Samples) -> list[bytes] | None:
    """A digest of each image or text in memory; `None` for other samples."""
    if isinstance(images, Images):
        return _pixels(images)
    if isinstance(images, Texts):
        return images.digests
    if isinstance(images, Subset):
        digests = _digests(images.dataset)  # type: ignore[arg-type]  # as `subset` made it
        return None if digests is None else [digests[index] for index in images.indices]
    return None


def _pixels(images: Images) -> list[bytes]:
    """A digest of each image."""
    array = images.images.contiguous().numpy()
    return [hashlib.blake2b(memoryview(image).cast("B"), digest_size=16).digest() for image in array]


def _of_files(splits: Mapping[SplitName, Samples]) -> dict[SplitName, list[int]]:
    """The indices of the images to keep, of each split of files."""
    files = {name: paths for name, images in splits.items() if (paths := files_of(images)) is not None}
    sizes = {name: [_size(file) for file in some] for name, some in files.items()}
    several = [set(some) for some in sizes.values()]
    common = {size for i, some in enumerate(several) for other in several[i + 1 :] for size in some & other}
    keys: dict[SplitName, list[Hashable]] = {
        name: [
            _content(file) if size in common else (str(name), index)
            for index, (file, size) in enumerate(zip(some, sizes[name], strict=True))
        ]
        for name, some in files.items()
    }
    return _apart(keys)


def files_of(images: Samples) -> Sequence[Path] | None:
    """Return the files that the images are read from, in order; `None` where they are not files."""
    if isinstance(images, (ImageFiles, Sounds)):
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


def _apart(keys: Mapping[SplitName, Sequence[T]]) -> dict[SplitName, list[int]]:
    """By split, the indices whose key occurs in no earlier split in `ORDER`."""
    seen: set[T] = set()
    kept: dict[SplitName, list[int]] = {}
    for name in ORDER:
        if name in keys:
            kept[name] = [index for index, one in enumerate(keys[name]) if one not in seen]
            seen.update(keys[name])
    return kept
