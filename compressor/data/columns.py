"""Arrays of one length, named as a network's inputs are, with a target or without: `ids`, `mask`, `label`.

Names may hold a split: `train_ids`, `val_ids`. A file whose arrays are images is read as images (`data.arrays`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.data.arrays import SPELLINGS, Array, arrays_in, images_in, pixels_in
from compressor.data.content import Content
from compressor.data.expected import Expected
from compressor.data.items import INPUT_NAMES, TARGET_NAMES
from compressor.data.own_sets import Columns
from compressor.data.samples import UNLABELLED
from compressor.data.splits import SplitName
from compressor.errors import DataError
from compressor.files.names import printable
from compressor.graph.input_spec import InputSpec

OF_IMAGES = ("labels", "y")  # the targets that `data.arrays` reads
Table = dict[str, Array]


def read_arrays(files: Mapping[SplitName | None, Path], *, expected: Expected) -> Content:
    """Return the images, or the columns that the network reads, in one file or in one for each split.

    Refused: arrays that are neither, columns of different lengths, numbers that are not finite.
    """
    arrays: Table = {}
    for split, path in files.items():
        arrays |= {name if split is None else f"{split}_{name}": array for name, array in arrays_in(path).items()}
    where = next(iter(files.values())) if len(files) == 1 else next(iter(files.values())).parent
    tables = _tables(arrays, {*expected.takes, *INPUT_NAMES, *TARGET_NAMES})
    if len(expected.takes) > 1:
        _check_names(tables, expected.takes, arrays, where=where)
    elif _are_images(tables) or not _are_read(tables, expected.takes):
        return images_in(where, arrays)
    names = _names(arrays, tables)
    return Content(
        splits={split: _columns(table, expected, names, where=where) for split, table in tables.items()},
        classes=names,
        by_name=names is not None and "classes" not in arrays,
    )


def _tables(arrays: Table, known: set[str]) -> dict[SplitName | None, Table]:
    """The arrays with known names, by the split in their names, or under `None`."""
    split_by_name = {
        form.format(spelling, name): (split, name)
        for split, spellings in SPELLINGS.items()
        for spelling in spellings
        for name in known
        for form in ("{0}_{1}", "{1}_{0}")
    }
    tables: dict[SplitName | None, Table] = {}
    for key, array in arrays.items():
        split, name = (None, key) if key in known else split_by_name.get(key, (None, None))
        if name is not None:
            tables.setdefault(split, {})[name] = array
    if len(tables) > 1:
        tables.pop(None, None)
    return tables


def _check_names(
    tables: Mapping[SplitName | None, Table], takes: tuple[str, ...], arrays: Table, *, where: Path
) -> None:
    """Refuse a file without an array for every input."""
    missing = [name for name in takes if not tables or any(name not in table for table in tables.values())]
    if missing:
        there = ", ".join(printable(name) for name in arrays) or "nothing"
        raise DataError(
            f"{where} has no array called {', '.join(f'`{name}`' for name in missing)} but: {there}",
            hint=f"name the arrays as the network's inputs: {', '.join(takes)}, and `label`",
        )


def _are_images(tables: Mapping[SplitName | None, Table]) -> bool:
    """True for images with a class each, or alone."""
    return any(
        (name == "images" or (name == "x" and array.ndim in (3, 4)))
        and (any(table[of].ndim < 3 for of in OF_IMAGES if of in table) or not table.keys() & {*TARGET_NAMES})
        for table in tables.values()
        for name, array in table.items()
    )


def _are_read(tables: Mapping[SplitName | None, Table], takes: tuple[str, ...]) -> bool:
    """True if every split has the network's input, or where no network is known a usual one or a target."""
    usual = {*takes, *INPUT_NAMES} if takes else {*INPUT_NAMES, *TARGET_NAMES}
    return bool(tables) and all(usual & table.keys() for table in tables.values())


def _names(arrays: Table, tables: Mapping[SplitName | None, Table]) -> tuple[str, ...] | None:
    """The names of the classes: those in `classes`, or the labels themselves where they are texts."""
    if "classes" in arrays:
        return tuple(str(name) for name in arrays["classes"].flatten())
    texts = [a for table in tables.values() for n, a in table.items() if n in TARGET_NAMES and a.dtype.kind in "SU"]
    return tuple(sorted({text for array in texts for text in array.astype(str).flatten().tolist()})) or None


def _columns(table: Table, expected: Expected, names: tuple[str, ...] | None, *, where: Path) -> Columns:
    """The columns of one split."""
    lengths = {name: len(array) if array.ndim else 0 for name, array in table.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        listed = ", ".join(f"{name} {lengths[name]}" for name in sorted(lengths))
        raise DataError(
            f"the arrays in {where} have different lengths: {listed}",
            hint="a row of each array makes an item",
        )
    specs = {str(spec.name): spec for spec in expected.specs}
    if len(specs) == 1 and not specs.keys() & table.keys():  # a usual name in the place of the network's
        usual = next(name for name in INPUT_NAMES if name in table)
        specs = {usual: next(iter(specs.values()))}
    columns = {}
    for name, array in table.items():
        if name in specs or name not in TARGET_NAMES:
            columns[name] = _input(name, array, specs.get(name), where=where)
        else:
            columns[name] = _target(name, array, names, where=where)
    return Columns(columns)


def _input(name: str, array: Array, spec: InputSpec | None, *, where: Path) -> Tensor:
    """An input in the type that the network reads; pictures are `[n, channels, height, width]`."""
    rank = array.ndim if spec is None else len(spec.shape)
    if rank == 4 and array.ndim in (3, 4):
        try:
            pictures = pixels_in(array)
        except DataError as error:
            raise DataError(f"`{name}` in {where}: {error}", hint=error.hint) from error
        return pictures if pictures.ndim == 4 else pictures[:, None]
    if array.ndim != rank:
        raise DataError(
            f"`{name}` in {where} is of shape {list(array.shape)}, and the network reads {rank - 1} sizes a row",
            hint=f"for example {['n', *spec.shape[1:]] if spec is not None else 'one row a sample'}",
        )
    column = _numbers(name, array, where=where)
    if spec is None or spec.dtype is None:
        return column
    if column.is_floating_point() and not spec.dtype.is_floating_point and bool((column != column.round()).any()):
        raise DataError(f"`{name}` in {where} holds fractions, and the network reads whole numbers", hint="round them")
    low, high = float(column.min()), float(column.max())
    if spec.below is not None and not spec.dtype.is_floating_point and (low < 0 or high >= spec.below):
        raise DataError(
            f"`{name}` in {where} holds {low if low < 0 else high:g}, and the network reads numbers from 0 to below "
            f"{spec.below:g}",
            hint="use the vocabulary that the network was trained with",
        )
    return column.to(spec.dtype)


def _numbers(name: str, array: Array, *, where: Path) -> Tensor:
    """Floats as float32, whole numbers as int64, truth values as they are. Refused: other types, infinities."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"`{name}` in {where} is of type {array.dtype}", hint="give numbers")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise DataError(f"`{name}` in {where} holds values that are not finite", hint="remove those rows")
        array = array.astype(np.float32)
    elif array.dtype.kind in "iu":
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array))


def _target(name: str, array: Array, names: tuple[str, ...] | None, *, where: Path) -> Tensor:
    """A target: whole numbers, floats, or texts as the positions of their classes."""
    if array.dtype.kind in "SU":
        index: dict[str, int] = {text: i for i, text in enumerate(names or ())}
        texts: list[Any] = array.astype(str).flatten().tolist()
        stranger = next((text for text in texts if text not in index), None)
        if stranger is not None:
            raise DataError(f"the label `{printable(stranger)}` in {where} is not among its classes", hint="name it")
        return torch.tensor([index[text] for text in texts]).reshape(array.shape)
    column = _numbers(name, array, where=where)
    column = column.long() if column.dtype is torch.bool else column
    if column.ndim == 2 and column.shape[1] == 1 and not column.is_floating_point():
        column = column[:, 0]
    if not column.is_floating_point() and names is not None and column.ndim == 1:
        _check_classes(column, names, where=where)
    return column


def _check_classes(labels: Tensor, names: tuple[str, ...], *, where: Path) -> None:
    """Refuse labels beyond the classes that the file names."""
    low, high = int(labels.min()), int(labels.max())
    if low < UNLABELLED or high >= len(names):
        raise DataError(f"{where} has labels from {low} to {high} but {len(names)} classes", hint="name every class")
