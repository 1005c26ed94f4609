"""Pictures with boxes as YOLO writes them: a text file for each, with a line `class x y width height` for each box.

Centre, width and height are shares of the picture's size. A line may hold a polygon in their place: `class x y x y …`.
"""

from __future__ import annotations

import importlib
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.data.image_files import ImageFiles
from compressor.data.paired_folders import beside, by_stem
from compressor.errors import DataError
from compressor.files.names import printable
from compressor.files.regular import check_regular

LARGEST = 10_000_000  # bytes of a label file or of a list of names
CLOSE = 1e-3  # by which rounding may leave the picture
FORM = "a line is `class x y width height`, the four as shares of the picture's size, from 0 to 1"


def boxed_images(files: list[Path], pictures: Path, place: Path, *, classes: tuple[str, ...] | None) -> ImageFiles:
    """Return the pictures, each with the boxes in the text file of its name below `place`; without one it has none."""
    labels = beside(files, pictures, by_stem(place, (".txt",)))
    if not any(labels):
        raise DataError(
            f"no text file in {place} has the name of a picture in {pictures}",
            hint="`images/a.jpg` belongs to `labels/a.txt`",
        )
    return ImageFiles(files, labels, read=partial(boxes_on, classes=None if classes is None else len(classes)))


def boxes_on(file: Path | None, image: Tensor, *, classes: int | None) -> dict[str, Tensor]:
    """Return the boxes in a text file in pixels of the image: float `[n, 4]` (x1, y1, x2, y2), and their classes."""
    rows = [] if file is None else [_row(file, number, text, classes) for number, text in _lines(file)]
    height, width = image.shape[-2:]
    boxes = torch.tensor([corners for _, corners in rows], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": boxes * torch.tensor([width, height, width, height]),
        "labels": torch.tensor([kind for kind, _ in rows], dtype=torch.int64),
    }


def _lines(file: Path) -> list[tuple[int, str]]:
    """The lines of a label file that are not empty, with their numbers."""
    return [(number, text) for number, text in enumerate(text_in(file).splitlines(), 1) if text.strip()]


def text_in(file: Path) -> str:
    """Return the text of a small file. Refused: a large one, bytes that are no text."""
    check_regular(file, refusal=DataError)
    if file.stat().st_size > LARGEST:
        raise DataError(f"{file} has more than {LARGEST:,} bytes", hint="it is not what its name says")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text: {error}", hint="save it as UTF-8") from error


def _row(file: Path, number: int, text: str, classes: int | None) -> tuple[int, list[float]]:
    """Class and corners of one line, in shares. Refused: other forms, places outside of the picture."""
    try:
        kind, *places = map(float, text.split())
    except ValueError:
        kind, places = math.nan, []
    polygon = len(places) >= 6 and len(places) % 2 == 0
    if not (polygon or len(places) == 4) or not kind.is_integer() or kind < 0:
        raise DataError(f"{file}, line {number}: `{printable(text)}` is no box", hint=FORM)
    if not all(-CLOSE <= place <= 1 + CLOSE for place in places):
        raise DataError(f"{file}, line {number}: `{printable(text)}` lies outside of the picture", hint=FORM)
    if classes is not None and kind >= classes:
        raise DataError(
            f"{file}, line {number}: class {int(kind)}, but `names` lists {classes}", hint="name every class"
        )
    if polygon:
        corners = [min(places[::2]), min(places[1::2]), max(places[::2]), max(places[1::2])]
    else:
        x, y, w, h = places
        corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    return int(kind), [min(1.0, max(0.0, corner)) for corner in corners]


def names_in(folder: Path) -> tuple[str, ...] | None:
    """Return the `names` in a YAML file of the folder, first in the one called data; `None` without one."""
    described = [
        file for pattern in ("data.yaml", "data.yml", "*.yaml", "*.yml") for file in sorted(folder.glob(pattern))
    ]
    for file in described:
        names = _mapping_in(file).get("names")
        if names is not None:
            return _as_names(names, file=file)
    return None


def _mapping_in(file: Path) -> dict[Any, Any]:
    """The mapping in a YAML file, read without any type of its own."""
    text = text_in(file)
    yaml = importlib.import_module("yaml")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = " ".join(str(error).split())[:200] or "nested too deep"
        raise DataError(f"cannot read {file}: {why}", hint="it holds `names: [first, second]`") from error
    return content if isinstance(content, dict) else {}


def _as_names(names: Any, *, file: Path) -> tuple[str, ...]:
    """A list of names, or a mapping of 0, 1, 2 … to names."""
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(one, (str, int)) for one in names):
        raise DataError(f"the `names` in {file} are no list of classes", hint="`names: [first, second]`, from class 0")
    return tuple(map(str, names))
