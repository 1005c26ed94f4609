"""Load data in all common forms: a torchvision data set, a folder, an `.npz`, IDX files, a Python function."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor

from compressor.data.arrays import SPELLINGS, splits_from_idx, splits_from_npz
from compressor.data.classes import with_labels_of
from compressor.data.image_files import ImageFiles, read_folder
from compressor.data.repeats import without_repeats
from compressor.data.samples import TUNE_AT_MOST, TUNE_SHARE, Images, Samples, hold_out
from compressor.data.splits import Data, SplitName
from compressor.errors import DataError, unknown

FORMS = "an image folder, an .npz, file.py:function or a torchvision data set's name"
SAMPLE_FILE = "fashion_sample.npz"


class _Built(Protocol):
    @property
    def ref(self) -> str:
        """The reference of its factory, `package.module:factory`."""


class Network(Protocol):
    """The part of a `Checkpoint` that is needed to find its data."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of its outputs, where known."""

    @property
    def architecture(self) -> _Built:
        """Its origin."""


def data_for(
    checkpoint: Network,
    source: str | None = None,
    *,
    root: Path | None = None,
    download: bool = False,
    seed: int = 0,
) -> Data:
    """Return the data that `source` names, or the default data, with the labels of the checkpoint's classes."""
    if source is None:
        return default_data(checkpoint)
    data = load_data(source, root=root, download=download, seed=seed)
    return with_labels_of(data, checkpoint.classes)


def default_data(checkpoint: Network) -> Data:
    """Return the sample that is shipped with the sample models. Refused: any other network, whose data is unknown."""
    if not checkpoint.architecture.ref.startswith("sample_models."):
        raise DataError(f"{checkpoint.name} comes without data", hint=f"name it: `--data`, with {FORMS}")
    import sample_models

    return load_data(str(Path(str(sample_models.__file__)).parent / SAMPLE_FILE))


def load_data(source: str, *, root: Path | None = None, download: bool = False, seed: int = 0) -> Data:
    """Return the data set that `source` names, in disjoint splits drawn by `seed` where it has none of its own.

    `source` is a path (folder, `.npz`, `file.py:function`) or the name of a torchvision data set below `root`, which is
    downloaded only with `download`. Refused: data that is missing, has no images, or cannot be read.
    """
    file, _, function = source.rpartition(":")
    if file.endswith(".py"):
        return _from_function(Path(file).expanduser(), function, seed=seed)
    path = Path(source).expanduser()
    name = path.stem if path.suffix == ".npz" else path.absolute().name
    try:
        if path.is_dir():
            if any(path.glob("*-ubyte*")):
                return assembled(name, splits_from_idx(path), source=str(path), seed=seed)
            folder = read_folder(path)
            return assembled(
                name,
                folder.splits,
                source=str(path),
                classes=folder.classes,
                by_name=folder.classes is not None,
                seed=seed,
            )
        if path.suffix == ".npz":
            splits, classes, named = splits_from_npz(path)
            every: Mapping[Any, Images | None] = {None: splits} if isinstance(splits, Images) else splits
            return assembled(name, every, source=str(path), classes=classes, by_name=named, seed=seed)
    except OSError as error:
        raise DataError(
            f"cannot read {source}: {error.strerror or error}", hint="check the path and its permissions"
        ) from error
    if path.suffix == ".py":
        raise DataError(f"{source} names no function", hint=f"add it: `{source}:function`")
    if path.exists() or "/" in source or "." in source:
        what = "is not data that can be read" if path.exists() else "is not there"
        raise DataError(f"{source} {what}", hint=f"use {FORMS}")
    return _from_torchvision(source, root=root, download=download, seed=seed)


def assembled(
    name: str,
    splits: Mapping[Any, Samples | None],
    *,
    source: str,
    classes: tuple[str, ...] | None = None,
    by_name: bool = False,
    seed: int = 0,
) -> Data:
    """Return data with the given splits, by `SplitName`; a missing tune split is drawn from train.

    One set without splits, under `None`, is split 8 : 1 : 1; fewer than three images are all for testing. An image in
    two splits stays in the split that is measured. Refused: two splits that are the same data set.
    """
    own, left_out = without_repeats({k: v for k, v in splits.items() if k is not None}, source=source)
    by_split: dict[SplitName | None, Samples | None] = {name: own[name] for name in own}  # a wider key type
    by_split[None] = splits.get(None)
    drawn: list[SplitName] = []
    whole = by_split.pop(None, None)
    if whole is not None and len(whole) < 3:
        by_split[SplitName.TEST] = whole
    elif whole is not None:
        by_split[SplitName.TRAIN], by_split[SplitName.TEST] = hold_out(whole, share=0.1, seed=seed)
        drawn.append(SplitName.TEST)
    train, tune = by_split.get(SplitName.TRAIN), by_split.get(SplitName.TUNE)
    if tune is None and train is not None and len(train) > 1:
        # a tenth of the whole set, or of the data's own train split
        share = 1 / 9 if whole is not None else TUNE_SHARE
        train, tune = hold_out(train, share=share, at_most=TUNE_AT_MOST, seed=seed + (whole is not None))
        drawn.append(SplitName.TUNE)
    ends = {SplitName.TRAIN: train, SplitName.TUNE: tune, SplitName.TEST: by_split.get(SplitName.TEST)}
    of_one_set = {SplitName.TRAIN, *drawn} if drawn else set()  # the data's own splits are already disjoint
    apart, repeated = without_repeats({k: v for k, v in ends.items() if k in of_one_set}, source=source)
    ends |= apart
    return Data(
        name=name,
        source=source,
        train=ends[SplitName.TRAIN],
        tune=ends[SplitName.TUNE],
        test=ends[SplitName.TEST],
        repeated=left_out + repeated,
        classes=classes,
        split_seed=seed,
        drawn=tuple(drawn),
        by_name=by_name,
    )


class Items:
    """A library's or a user's own data set: its images as tensors, its labels as integers."""

    def __init__(self, dataset: Any, *, name: str) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise DataError(
                f"{name} returns a `{type(dataset).__name__}`",
                hint="return data sets with a length and items (image, label)",
            )
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        from torchvision.transforms.v2.functional import pil_to_tensor

        item = self.dataset[index]
        try:
            image, label = item
            return (image if isinstance(image, Tensor) else pil_to_tensor(image)), int(label)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"item {index} of {self.name} is not an image with a label: {error}",
                hint="wrap it: `file.py:function` may return data sets whose items are (image, number)",
            ) from error


def _from_torchvision(name: str, *, root: Path | None, download: bool, seed: int) -> Data:
    """A torchvision data set by name, with the splits that its class has."""
    from torchvision import datasets

    titles = {n.lower(): n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))}
    plain = name.lower().replace("-", "").replace("_", "")
    if plain not in titles:
        raise DataError(f"there is no data called `{name}`", hint=unknown("torchvision data sets", plain, titles))
    title = titles[plain]
    kind = getattr(datasets, title)
    parameters = inspect.signature(kind).parameters
    wanted = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    more = [p for p in wanted if p not in ("root", "train", "split")]
    if "root" not in parameters or more:
        raise DataError(
            f"{title} takes more than a folder: {', '.join(more) or 'no root'}", hint="build it in `file.py:function`"
        )
    if root is None:
        raise DataError(f"where is {title}?", hint="give its folder: `--data-root DIR`, and `--download` to fetch it")
    options: dict[str, Any] = {"download": download} if "download" in parameters else {}

    def items(**choice: object) -> Items:
        try:
            return Items(kind(str(root), **options, **choice), name=title)
        except (RuntimeError, OSError, TypeError) as error:
            hint = "check the connection, or fetch it by hand" if download else "add `--download`, or give its folder"
            raise DataError(f"{title} is not in {root}: {error}", hint=hint) from error

    splits: dict[SplitName | None, Items] = {}
    if "train" in parameters:
        splits = {SplitName.TRAIN: items(train=True), SplitName.TEST: items(train=False)}
    elif "split" in parameters:
        for split, names in SPELLINGS.items():
            for spelling in names:
                with contextlib.suppress(ValueError):  # how torchvision refuses a split that a set does not have
                    splits.setdefault(split, items(split=spelling))
    else:
        splits = {None: items()}
    classes = getattr(next(iter(splits.values())).dataset, "classes", None) if splits else None
    names_of_classes = tuple(map(str, classes)) if classes else None
    return assembled(title, splits, source=f"{title} in {root}", classes=names_of_classes, seed=seed)


def _from_function(file: Path, function: str, *, seed: int) -> Data:
    """The data of `function()` in `file`: `Data`, one data set, (train, test), (train, tune, test), or a dict."""
    source = f"{file}:{function}"
    with _run(file) as module:
        make = getattr(module, function, None) if function else None
        if not callable(make):
            functions = [n for n in vars(module) if not n.startswith("_") and inspect.isfunction(getattr(module, n))]
            raise DataError(f"{file} has no function `{function}`", hint=unknown("functions", function, functions))
        result = make()
    if isinstance(result, Data):
        return result
    items = isinstance(result, list) and (
        not result or isinstance(result[0], tuple)
    )  # a list of (image, label) is one set
    if isinstance(result, (tuple, list)) and not items:
        if len(result) not in (2, 3):
            raise DataError(
                f"`{function}` returned {len(result)} values", hint="return (train, test) or a dict of splits"
            )
        result = dict(zip(("train", "test") if len(result) == 2 else ("train", "tune", "test"), result, strict=True))
    elif not isinstance(result, dict):
        result = {None: result}
    names = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}
    strangers = [str(key) for key in result if key is not None and key not in names]
    if strangers:
        raise DataError(
            f"`{function}` returned a split called `{strangers[0]}`", hint=unknown("splits", strangers[0], names)
        )
    splits: dict[SplitName | None, Samples] = {
        None if key is None else names[key]: v
        if isinstance(v, (Images, ImageFiles))
        else Items(v, name=f"`{function}`")
        for key, v in result.items()
        if v is not None or key is None
    }
    classes = next((v for v in (getattr(s, "classes", None) for s in result.values()) if v), None)
    return assembled(function, splits, source=source, classes=tuple(map(str, classes)) if classes else None, seed=seed)


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
