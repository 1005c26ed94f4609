"""Images in a folder: with or without class folders, with or without a folder for each split."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.data.arrays import SPELLINGS
from compressor.data.content import Content
from compressor.data.samples import UNLABELLED
from compressor.data.splits import SplitName
from compressor.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
GREY_MODES = ("1", "L", "LA", "La")
DEEP_GREY_MODES = ("I", "I;16", "I;16B", "I;16L")


class ImageFiles:
    """Image files that are read on access: uint8 `[channels, height, width]`, RGB unless grey; each with its label.

    `read(label, image)` makes the target where a label is no class number but, say, the file of a mask.
    """

    def __init__(
        self, files: Sequence[Path], labels: Sequence[Any], *, read: Callable[[Any, Tensor], Any] | None = None
    ) -> None:
        self.files, self.labels, self.read = files, labels, read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]:
        image, label = pixels_of(self.files[index]), self.labels[index]
        return image, label if self.read is None else self.read(label, image)


def pixels_of(file: Path) -> Tensor:
    """Return the image in `file`: uint8 `[channels, height, width]`. Refused: a file that cannot be read to its end."""
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    check_regular(file)
    try:
        with Image.open(file) as image:
            if image.mode in DEEP_GREY_MODES:  # 16 bits, which PIL would clip to 8
                deep = np.asarray(image).astype(np.int64).clip(0, 65535)
                return torch.from_numpy((deep // 257).astype(np.uint8)).unsqueeze(0)
            transparent = image.mode == "P" and "transparency" in image.info
            whole = image.convert("RGBA") if transparent else image
            pixels: Tensor = pil_to_tensor(whole.convert("L" if image.mode in GREY_MODES else "RGB"))
            return pixels
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # PIL raises one of these on a broken file, depending on the fault
        raise DataError(f"cannot read the image {file}: {error}", hint="remove or repair it") from error


def check_regular(file: Path) -> None:
    """Refuse a pipe, a device or a broken link: opening a pipe would block."""
    if not file.is_file():
        what = "is not a regular file" if file.exists() else "is not there"
        raise DataError(f"the image {file} {what}", hint="remove it, or replace it by the image itself")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFolders:
    """Files with their labels by split, or under `None` where the folder has no splits, with their classes."""

    splits: dict[SplitName | None, tuple[list[Path], list[int]]]
    classes: tuple[str, ...] | None


def read_folder(folder: Path) -> Content | None:
    """Return the image files below `folder`; `None` where there are none.

    Classes are the names of the class folders, sorted; an empty one counts too.

    Splits are folders called train; val, valid, validation or tune; test. Hidden files are ignored. Refused:
    images beside class folders, because they have no label.
    """
    read = read_class_folders(folder, SUFFIXES)
    if not read.splits:
        return None
    splits = {split: ImageFiles(files, labels) for split, (files, labels) in read.splits.items()}
    return Content(splits=splits, classes=read.classes, by_name=read.classes is not None)


def read_class_folders(folder: Path, suffixes: tuple[str, ...]) -> ClassFolders:
    """Return the files below `folder` with these suffixes, by split and class folder."""
    roots = split_folders(folder) or {None: folder}
    read = {split: _files_by_class(_only_images(root), suffixes) for split, root in roots.items()}
    classes = tuple(sorted({name for _, _, names in read.values() for name in names}))
    index = {name: i for i, name in enumerate(classes)}
    splits = {
        split: (files, [index.get(name, UNLABELLED) for name in owners])
        for split, (files, owners, _) in read.items()
        if files
    }
    return ClassFolders(splits=splits, classes=classes or None)


def split_folders(folder: Path) -> dict[SplitName | None, Path]:
    """Return the folders of the splits in `folder`, by their usual names."""
    below = {p.name.lower(): p for p in folder.iterdir() if p.is_dir()}
    roots: dict[SplitName | None, Path] = {}
    for split, names in SPELLINGS.items():
        place = next((below[name] for name in names if name in below), None)
        if place is not None:
            roots[split] = place
    return roots


def _only_images(root: Path) -> Path:
    """The folder `images` if it is the only one: its name is no class."""
    below = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))]
    return below[0] if [p.name.lower() for p in below] == ["images"] else root


def _identity(folder: Path) -> tuple[int, int]:
    """Device and inode of a folder, the same through any link."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files below a folder with one of these suffixes, in order; hidden ones are ignored."""
    files: list[Path] = []
    seen = {_identity(root)}
    for place, folders, names in os.walk(root, followlinks=True):
        visible = sorted(f for f in folders if not f.startswith((".", "__")))
        identities = {f: _identity(Path(place, f)) for f in visible}
        folders[:] = []
        for folder in visible:  # a link may lead back to a folder above
            if identities[folder] not in seen:
                seen.add(identities[folder])
                folders.append(folder)
        files += [Path(place, n) for n in names if not n.startswith(".") and n.lower().endswith(suffixes)]
    return sorted(files)


def _files_by_class(root: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[str], set[str]]:
    """Files in order, the class folder of each (or an empty name), and all class folders."""
    files = files_below(root, suffixes)
    owners = [f.relative_to(root).parts[0] if f.parent != root else "" for f in files]
    if len(set(owners)) > 1 and "" in owners:
        loose = files[owners.index("")]
        raise DataError(f"{loose} lies beside class folders and has no label", hint="move it into its class's folder")
    folders_of_classes = {p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))}
    return files, owners, folders_of_classes if any(owners) else set()
