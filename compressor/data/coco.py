"""Pictures with boxes as COCO writes them: a JSON file with `images`, `annotations` and `categories`, beside pictures.

A file is for the split in its name (`instances_train2017.json`) or that of its folder (`train/_annotations.coco.json`).
Boxes are `x, y, width, height` in pixels; categories become classes in the order of their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from compressor.data.content import Content
from compressor.data.image_files import ImageFiles
from compressor.data.paired_folders import split_named
from compressor.data.splits import SplitName
from compressor.errors import DataError
from compressor.files.json_files import parsed
from compressor.files.names import printable

PARTS = (b'"images"', b'"annotations"', b'"categories"')
EDIT = "write `images`, `annotations` and `categories` as COCO does"
Boxes = dict[str, Tensor]


def read_coco(folder: Path) -> Content | None:
    """Return the pictures with their boxes that JSON files in `folder` list; `None` where there is no such file.

    Refused: pictures that are not there or lie elsewhere, boxes of unknown pictures or categories.
    """
    tables: dict[SplitName | None, tuple[Path, dict[str, Any]]] = {}
    for file, content in _files_in(folder):
        split = _split_of(file, folder)
        if split in tables:
            raise DataError(
                f"{tables[split][0]} and {file} are for one split",
                hint="call them `train.json`, `val.json`, `test.json`",
            )
        tables[split] = (file, parsed(content, where=str(file), refusal=DataError, hint=EDIT))
    if not tables:
        return None
    if None in tables and len(tables) > 1:
        raise DataError(f"{tables[None][0]} names no split, other files do", hint="call it `train.json`, for example")
    names: dict[int, str] = {}
    for file, table in tables.values():
        names |= _categories(file, table)
    order = {number: place for place, number in enumerate(sorted(names))}
    return Content(
        splits={split: _pictures(file, table, folder, split, order) for split, (file, table) in tables.items()},
        classes=tuple(names[number] for number in order),
        by_name=True,
    )


def _files_in(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """The JSON files of boxes in a folder, in `annotations` and in the splits' folders; `instances_…` before others,
    which list the same pictures for another task.
    """
    annotated = []
    below = sorted(p for p in folder.iterdir() if p.is_dir())
    for place in (folder, *(p for p in below if p.name.lower() == "annotations" or split_named(p.name))):
        for file in (one for one in sorted(place.glob("*.json")) if one.is_file()):
            content = file.read_bytes()
            if all(part in content for part in PARTS):
                annotated.append((file, content))
    instances = [(file, content) for file, content in annotated if file.name.startswith("instances")]
    yield from instances or annotated


def _split_of(file: Path, folder: Path) -> SplitName | None:
    """The split in a file's name, or in that of its folder."""
    for word in re.split(r"[^A-Za-z0-9]+", file.stem):
        split = split_named(word)
        if split is not None:
            return split
    return split_named(file.parent.name) if file.parent != folder else None


def _rows(table: Mapping[str, Any], part: str, file: Path) -> list[Mapping[str, Any]]:
    """The entries of a part of the table. Refused: any that is no object."""
    rows = table.get(part)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"the `{part}` in {file} are no list of objects", hint=EDIT)
    return rows


def _categories(file: Path, table: Mapping[str, Any]) -> dict[int, str]:
    """The categories by number."""
    names = {}
    for row in _rows(table, "categories", file):
        number, name = row.get("id"), row.get("name")
        if not isinstance(number, int) or not isinstance(name, str):
            raise DataError(f"a category in {file} has no `id` and `name`", hint=EDIT)
        names[number] = name
    return names


def _pictures(
    file: Path, table: Mapping[str, Any], folder: Path, split: SplitName | None, order: Mapping[int, int]
) -> ImageFiles:
    """The pictures of one table, in its order, with their boxes."""
    entries: dict[object, Mapping[str, Any]] = {}
    for row in _rows(table, "images", file):
        if not isinstance(row.get("id"), (int, str)) or not isinstance(row.get("file_name"), str):
            raise DataError(f"a picture in {file} has no `id` and `file_name`", hint=EDIT)
        entries[row["id"]] = row
    boxes: dict[object, list[tuple[list[float], int]]] = {number: [] for number in entries}
    for row in _rows(table, "annotations", file):
        box = _box(row, file)
        picture: Any = row.get("image_id")
        category: Any = row.get("category_id")
        listed = isinstance(picture, (int, str)) and isinstance(category, int)
        if not listed or picture not in boxes or category not in order:
            raise DataError(
                f"an annotation in {file} is of picture {printable(row.get('image_id'))} and category "
                f"{printable(row.get('category_id'))}, of which one is not listed",
                hint=EDIT,
            )
        if not row.get("iscrowd") and box[2] > box[0] and box[3] > box[1]:
            boxes[picture].append((box, order[category]))
    places = _places(file, folder, split)
    files = [_picture(row["file_name"], places, file) for row in entries.values()]
    labels = [(_as_tensors(boxes[number]), _size(row)) for number, row in entries.items()]
    return ImageFiles(files, labels, read=boxes_on)


def _box(row: Mapping[str, Any], file: Path) -> list[float]:
    """The corners of an annotation's box."""
    box = row.get("bbox")
    numbers = isinstance(box, list) and all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in box)
    if not isinstance(box, list) or not numbers or len(box) != 4 or min(box[2:]) < 0:
        raise DataError(
            f"annotation {printable(row.get('id'))} in {file} has no `bbox` of four numbers",
            hint="a box is `[x, y, width, height]` in pixels",
        )
    x, y, width, height = map(float, box)
    return [x, y, x + width, y + height]


def _places(file: Path, folder: Path, split: SplitName | None) -> list[Path]:
    """The folders in which pictures of a split may lie: the file's own, the split's, `images`, and those in it."""
    below = [p for p in sorted(folder.iterdir()) if p.is_dir()]
    pictures = [p for p in below if p.name.lower() == "images"]
    inside = [p for one in pictures for p in sorted(one.iterdir()) if p.is_dir()]
    named = [p for p in (*below, *inside) if split is not None and split_named(p.name) is split]
    return [file.parent, folder, *named, *(p / "images" for p in named), *pictures]


def _picture(name: str, places: list[Path], file: Path) -> Path:
    """The file of a picture. Refused: a name that leads elsewhere, a picture that is not there."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.name:
        raise DataError(
            f"{file} names the picture `{printable(name)}`, which may lie elsewhere",
            hint="`file_name` is a name below the folder of the pictures",
        )
    try:
        picture = next((place / path for place in places if (place / path).is_file()), None)
    except OSError:
        picture = None
    if picture is None:
        raise DataError(
            f"the picture `{printable(name)}` of {file} is not there",
            hint=f"put it into one of: {', '.join(sorted({str(place) for place in places}))}",
        )
    return picture


def _size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width that the table gives a picture."""
    size = (row.get("height"), row.get("width"))
    return size if all(isinstance(n, int) for n in size) else None  # type: ignore[return-value]  # both are int


def _as_tensors(boxes: list[tuple[list[float], int]]) -> Boxes:
    return {
        "boxes": torch.tensor([box for box, _ in boxes], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([kind for _, kind in boxes], dtype=torch.int64),
    }


def boxes_on(label: tuple[Boxes, tuple[int, int] | None], image: Tensor) -> Boxes:
    """Return the boxes of an image. Refused: a table that gives the picture another size."""
    boxes, size = label
    if size is not None and size != tuple(image.shape[-2:]):
        raise DataError(
            f"a picture is of {image.shape[-1]}x{image.shape[-2]} pixels, and its table says {size[1]}x{size[0]}",
            hint="boxes are in pixels of the picture: scale them as the pictures were scaled",
        )
    return dict(boxes)
