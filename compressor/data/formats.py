"""Which form of data a path holds: found by what lies there, never by running anything."""

from __future__ import annotations

from pathlib import Path

from compressor.data.arrays import splits_from_idx
from compressor.data.coco import read_coco
from compressor.data.content import Content
from compressor.data.image_files import SUFFIXES, ImageFiles, files_below, read_folder
from compressor.data.masks import masked_images
from compressor.data.paired_folders import kind_of, paired_folders
from compressor.data.samples import UNLABELLED, Samples
from compressor.data.splits import SplitName
from compressor.data.yolo import boxed_images, names_in
from compressor.errors import DataError


def read_path(path: Path) -> Content | None:
    """Return what a file or folder contains; `None` for a path that is not there or is no form of data."""
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        path = path.parent  # YOLO's list of names, in the folder of its pictures
    if path.is_dir():
        return _read_folder(path)
    return None


def _read_folder(folder: Path) -> Content:
    """What a folder contains."""
    if any(folder.glob("*-ubyte*")):
        return Content(splits={name: split for name, split in splits_from_idx(folder).items()})  # noqa: C416  # wider
    return read_coco(folder) or _pairs_in(folder) or read_folder(folder)


def _pairs_in(folder: Path) -> Content | None:
    """Pictures with masks or boxes; `None` for a folder of another kind."""
    pairs = paired_folders(folder)
    kind = None if pairs is None else kind_of(pairs, where=folder)
    if pairs is None or kind is None:
        return None
    classes = names_in(folder) if kind == "boxes" else None
    splits: dict[SplitName | None, Samples | None] = {}
    for split, (pictures, targets) in pairs.items():
        files = files_below(pictures, SUFFIXES)
        if not files:
            raise DataError(
                f"no images in {pictures}", hint=f"looked for files called {' '.join('*' + s for s in SUFFIXES)}"
            )
        if targets is None:
            splits[split] = ImageFiles(files, [UNLABELLED] * len(files))
        elif kind == "boxes":
            splits[split] = boxed_images(files, pictures, targets, classes=classes)
        else:
            splits[split] = masked_images(files, pictures, targets)
    return Content(splits=splits, classes=classes, by_name=classes is not None)
