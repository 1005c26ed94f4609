"""Which form of data a path holds: found by what lies there, never by running anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from compressor.data.arrays import splits_from_idx
from compressor.data.coco import read_coco
from compressor.data.columns import read_arrays
from compressor.data.content import Content
from compressor.data.expected import Expected
from compressor.data.image_files import SUFFIXES, ImageFiles, files_below, read_folder
from compressor.data.masks import masked_images
from compressor.data.paired_folders import kind_of, paired_folders, split_named
from compressor.data.samples import UNLABELLED, Samples
from compressor.data.sounds import read_sounds
from compressor.data.splits import SplitName
from compressor.data.texts import read_texts
from compressor.data.yolo import boxed_images, names_in
from compressor.errors import DataError

LOOKED_FOR = f"looked for files called {' '.join('*' + suffix for suffix in (*SUFFIXES, '.wav'))}, and train.csv"


class _Reader(Protocol):
    """Reads files of one form, by the split that each is for."""

    def __call__(self, files: Mapping[SplitName | None, Path], *, expected: Expected) -> Content: ...


READERS: Mapping[str, _Reader] = {
    ".npz": read_arrays,
    ".safetensors": read_arrays,
    ".csv": read_texts,
    ".tsv": read_texts,
    ".txt": read_texts,
}


def read_path(path: Path, *, expected: Expected) -> Content | None:
    """Return what a file or folder contains; `None` for a path that is not there or is no form of data.

    `expected` is what the network reads: files of arrays and texts depend on it.
    """
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        path = path.parent  # YOLO's list of names, in the folder of its pictures
    if path.is_dir():
        return _read_folder(path, expected=expected)
    reader = READERS.get(path.suffix.lower())
    return None if reader is None or not path.exists() else reader({None: path}, expected=expected)


def _read_folder(folder: Path, *, expected: Expected) -> Content:
    """What a folder contains."""
    if any(folder.glob("*-ubyte*")):
        return Content(splits={name: split for name, split in splits_from_idx(folder).items()})  # noqa: C416  # wider
    content = read_coco(folder) or _pairs_in(folder) or read_folder(folder) or read_sounds(folder, expected=expected)
    if content is not None:
        return content
    files = _files_of_splits(folder)
    if not files:
        raise DataError(f"no images in {folder}", hint=LOOKED_FOR)
    return READERS[next(iter(files.values())).suffix.lower()](files, expected=expected)


def _files_of_splits(folder: Path) -> dict[SplitName | None, Path]:
    """The files that are named as splits are: `train.csv`, `test.csv`. Refused: two for one split, two forms."""
    files: dict[SplitName | None, Path] = {}
    for file in sorted(folder.iterdir()):
        split = split_named(file.stem)
        if split is None or file.suffix.lower() not in READERS:
            continue
        if split in files or any(READERS[file.suffix.lower()] is not READERS[f.suffix.lower()] for f in files.values()):
            raise DataError(
                f"{next(iter(files.values()))} and {file} are for one split or of two forms",
                hint="keep one file for each split, all of one form",
            )
        files[split] = file
    return files


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
            raise DataError(f"no images in {pictures}", hint=LOOKED_FOR)
        if targets is None:
            splits[split] = ImageFiles(files, [UNLABELLED] * len(files))
        elif kind == "boxes":
            splits[split] = boxed_images(files, pictures, targets, classes=classes)
        else:
            splits[split] = masked_images(files, pictures, targets)
    return Content(splits=splits, classes=classes, by_name=classes is not None)
