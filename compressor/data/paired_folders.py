"""Folders of pictures and of what belongs to each, by split: `images` beside `masks`, or beside `labels`.

The splits' folders lie above (`train/images`, `train/masks`) or below (`images/train`, `masks/train`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from compressor.data.arrays import SPELLINGS
from compressor.data.image_files import SUFFIXES, files_below
from compressor.data.splits import SplitName
from compressor.errors import DataError

PICTURES = ("images", "image", "imgs", "img")
TARGETS = ("masks", "mask", "labels", "annotations")

Pair = tuple[Path, Path | None]
"""A folder of pictures, and the folder of what belongs to them, if any."""


def paired_folders(folder: Path) -> dict[SplitName | None, Pair] | None:
    """Return the folders of pictures and targets in `folder`, by split; `None` where no folder of targets is there."""
    pairs: dict[SplitName | None, Pair] = {}
    own = _pair_in(folder)
    if own is not None:
        pictures, targets = own
        visible = [p for p in pictures.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))]
        inside = _splits_in(pictures) if all(split_named(p.name) for p in visible) else []
        below = _splits_in(targets) if targets is not None else []
        pairs = {split: (place, dict(below).get(split)) for split, place in inside} or {None: own}
        _refuse_twice(inside)
    else:
        there = [(split, place, _pair_in(place)) for split, place in _splits_in(folder)]
        pairs = {split: pair for split, _, pair in there if pair is not None}
        _refuse_twice([(split, place) for split, place, pair in there if pair is not None])
    return pairs if any(targets is not None for _, targets in pairs.values()) else None


def _pair_in(folder: Path) -> Pair | None:
    """The folders of pictures and targets that lie in a folder."""
    below = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()}
    pictures = next((below[name] for name in PICTURES if name in below), None)
    return None if pictures is None else (pictures, next((below[name] for name in TARGETS if name in below), None))


def _splits_in(folder: Path) -> list[tuple[SplitName, Path]]:
    """The folders in a folder that are named as splits are: `train`, `val2017`."""
    named = [(split_named(place.name), place) for place in sorted(folder.iterdir()) if place.is_dir()]
    return [(split, place) for split, place in named if split is not None]


def _refuse_twice(places: Sequence[tuple[SplitName, Path]]) -> None:
    """Refuse two folders for one split."""
    first: dict[SplitName, Path] = {}
    for split, place in places:
        if split in first:
            raise DataError(f"{first[split]} and {place} are both for {split}", hint="keep one of them")
        first[split] = place


def split_named(name: str) -> SplitName | None:
    """Return the split that a folder or file is named for, a year behind its name aside."""
    plain = re.sub(r"[-_]?\d*$", "", name.lower())
    return next((split for split, spellings in SPELLINGS.items() if plain in spellings), None)


def kind_of(pairs: Mapping[SplitName | None, Pair], *, where: Path) -> str | None:
    """Return what the folders of targets hold, `masks` or `boxes`; `None` for neither. Refused: both, XML."""
    kinds = {_kind(place) for _, place in pairs.values() if place is not None} - {None}
    if len(kinds) > 1:
        raise DataError(f"{where} has masks and boxes", hint="keep one kind of them: a network is for one task")
    return next(iter(kinds), None)


def _kind(place: Path) -> str | None:
    """`boxes` for text files, `masks` for pictures; `None` for neither."""
    kinds = {"boxes": (".txt",), "masks": SUFFIXES}
    for kind in kinds if place.name.lower() == "labels" else reversed(kinds):
        if files_below(place, kinds[kind]):
            return kind
    if files_below(place, (".xml",)):
        raise DataError(
            f"{place} holds annotations in XML, which are not read",
            hint="convert them to YOLO's text files or to COCO's JSON",
        )
    return None


def beside(files: list[Path], pictures: Path, targets: Mapping[str, Path]) -> list[Path | None]:
    """Return for each picture the target with its path below `pictures`, the suffix aside."""
    return [targets.get(str(file.relative_to(pictures).with_suffix(""))) for file in files]


def by_stem(place: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return the files below a folder by their path without the suffix. Refused: two files of one name."""
    targets: dict[str, Path] = {}
    for file in files_below(place, suffixes):
        stem = str(file.relative_to(place).with_suffix(""))
        if stem in targets:
            raise DataError(f"{targets[stem]} and {file} belong to one picture", hint="keep one file for each picture")
        targets[stem] = file
    return targets
