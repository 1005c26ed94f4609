"""Data sets of a library's or a user's own: what a function returns, as splits of items of any structure."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import itertools
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from compressor.data.arrays import SPELLINGS
from compressor.data.image_files import ImageFiles
from compressor.data.items import as_tensor
from compressor.data.samples import Images, Samples
from compressor.data.splits import SplitName
from compressor.errors import DataError, unknown

STREAMED = 20_000  # items of a set without a length
NAMED = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}


class Items:
    """A library's or a user's own data set, of items of any structure (`data.items`).

    `collate` is how its own loader makes a batch of items. A stream without a length is read once, at most `STREAMED`
    items of it, and kept.
    """

    def __init__(self, dataset: Any, *, name: str) -> None:
        loader = isinstance(dataset, DataLoader)
        own = dataset.collate_fn if loader else None
        self.collate = None if own is default_collate else own
        self.dataset = dataset.dataset if loader else dataset
        self.name = name
        if isinstance(self.dataset, (str, bytes, Mapping)) or not (
            _has_places(self.dataset) or isinstance(self.dataset, Iterable)
        ):
            raise DataError(
                f"{name} returns a `{type(self.dataset).__name__}`",
                hint="return data sets, loaders, tensors or lists of items: inputs, or (inputs, target)",
            )
        if not _has_places(self.dataset):
            self.dataset = list(itertools.islice(self.dataset, STREAMED))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> Any:
        try:
            item = self.dataset[index]
            if isinstance(item, tuple) and item and hasattr(item[0], "getbands"):  # a picture, as torchvision's sets
                return (as_tensor(item[0]), *item[1:])
            return item
        except (TypeError, ValueError, RuntimeError, KeyError, OSError) as error:
            # a user's own code may fail in any of these ways
            raise DataError(
                f"item {index} of {self.name} cannot be read: {type(error).__name__}: {error}",
                hint="run the data set on its own and repair it",
            ) from error


def _has_places(dataset: Any) -> bool:
    """True for what has a length and an item for every index."""
    if isinstance(dataset, IterableDataset):
        return False
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


class Columns:
    """Arrays of one length by name; an item is the mapping of their rows."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.arrays = dict(arrays)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return {name: array[index] for name, array in self.arrays.items()}


class Chosen:
    """Samples of which a user's function chooses what is read: it returns (inputs, target) of an item."""

    def __init__(self, samples: Samples, choose: Callable[[Any], Any]) -> None:
        self.samples, self.choose = samples, choose

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Any:
        return self.choose(self.samples[index])


def returned_by(file: Path, function: str) -> Any:
    """Return what `function()` in `file` returns. Refused: no such function, and errors of its code, with the line."""
    with _run(file) as module:
        make = getattr(module, function, None) if function else None
        if not callable(make):
            functions = [n for n in vars(module) if not n.startswith("_") and inspect.isfunction(getattr(module, n))]
            raise DataError(f"{file} has no function `{function}`", hint=unknown("functions", function, functions))
        return make()


def splits_of(result: Any, *, name: str) -> dict[SplitName | None, Samples]:
    """Return the sets in what a function returned, by split, or one under `None`.

    One set: a data set, a loader, a stream, a tensor or array of items, a list of items, a mapping of arrays of one
    length. Several: a tuple or list (train, test) or (train, tune, test), a mapping by the splits' names.
    """
    sets: Mapping[Any, Any]
    if isinstance(result, Mapping):
        sets = {None: Columns(result)} if _is_columns(result) else result
    elif isinstance(result, tuple) or (isinstance(result, list) and _is_several(result)):
        if len(result) not in (2, 3):
            raise DataError(f"{name} returned {len(result)} values", hint="return (train, test) or a dict of splits")
        _refuse_pair_of_arrays(result, name=name)
        sets = dict(zip(("train", "test") if len(result) == 2 else ("train", "tune", "test"), result, strict=True))
    else:
        sets = {None: result}
    strangers = [str(key) for key in sets if key is not None and key not in NAMED]
    if strangers:
        raise DataError(f"{name} returned a split called `{strangers[0]}`", hint=unknown("splits", strangers[0], NAMED))
    return {
        None if key is None else NAMED[key]: one if isinstance(one, (Images, ImageFiles)) else Items(one, name=name)
        for key, one in sets.items()
        if one is not None or key is None
    }


def _is_columns(result: Mapping[Any, Any]) -> bool:
    """True for arrays of one length by name, none of which is a split's."""
    arrays = list(result.values())
    return (
        bool(arrays)
        and all(isinstance(one, (Tensor, np.ndarray)) and one.ndim for one in arrays)
        and not any(str(key) in NAMED for key in result)
        and len({len(one) for one in arrays}) == 1
    )


def _is_several(result: list[Any]) -> bool:
    """True for a list of data sets; a list of tuples, mappings, tensors or arrays is a list of items."""
    return bool(result) and not isinstance(result[0], (tuple, Mapping, Tensor, np.ndarray))


def _refuse_pair_of_arrays(result: Iterable[Any], *, name: str) -> None:
    """Refuse two arrays of one length: they may be two splits, or inputs and targets."""
    arrays = [one for one in result if isinstance(one, (Tensor, np.ndarray))]
    if len(arrays) == 2 and arrays[0].shape[:1] == arrays[1].shape[:1]:
        raise DataError(
            f"{name} returned two arrays of {len(arrays[0])}: two splits, or inputs and targets?",
            hint="return `TensorDataset(inputs, targets)`, or a dict: {'train': …, 'test': …}",
        )


@contextlib.contextmanager
def _run(file: Path) -> Iterator[ModuleType]:
    """Yield the module in `file`, whose folder is importable meanwhile; errors of its code become `DataError`."""
    if not file.is_file():
        raise DataError(f"{file} is not there", hint="check the path: `--data file.py:function`")
    name = f"compressor_data_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look up their module
    sys.path.insert(0, str(file.absolute().parent))
    try:
        spec.loader.exec_module(module)
        yield module
    except DataError:
        raise
    except Exception as error:
        # an error of the user's own code: report it with its place
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file.absolute()]
        where = f"{file}, line {frames[-1].lineno}" if frames else str(file)
        raise DataError(f"{where}: {type(error).__name__}: {error}", hint="run it on its own and repair it") from error
    finally:
        sys.path.remove(str(file.absolute().parent))
