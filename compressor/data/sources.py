"""Load data in all common forms: a folder, a file of arrays or texts, a Python function, a torchvision data set."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from compressor.data.arrays import SPELLINGS
from compressor.data.classes import with_labels_of
from compressor.data.expected import ANYTHING, Expected, Read, expected_by
from compressor.data.formats import read_path
from compressor.data.own_sets import Chosen, Items, returned_by, splits_of
from compressor.data.repeats import without_repeats
from compressor.data.samples import TUNE_AT_MOST, TUNE_SHARE, Samples, hold_out
from compressor.data.splits import Data, SplitName
from compressor.errors import DataError, TaskError, unknown
from compressor.tasks.finding import BUILT_IN
from compressor.tasks.task import Task

FORMS = (
    "a folder of images (with masks or boxes) or sounds, an .npz or .safetensors, a .csv or .txt of texts, "
    "file.py:function or a torchvision data set's name"
)
SAMPLE_FILE = "fashion_sample.npz"


class _Built(Protocol):
    @property
    def ref(self) -> str:
        """The reference of its factory, `package.module:factory`."""


class Network(Read, Protocol):
    """The part of a `Checkpoint` that is needed to find and read its data."""

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
    task: str | Task | None = None,
) -> Data:
    """Return the data that `source` names, or the default data, with the labels of the checkpoint's classes.

    Texts are tokenised as the checkpoint's folder says, arrays and sounds are read as its inputs need them.
    """
    if source is None:
        return default_data(checkpoint)
    expected = expected_by(checkpoint)
    data = load_data(source, root=root, download=download, seed=seed, task=task, expected=expected)
    return with_labels_of(data, checkpoint.classes)


def default_data(checkpoint: Network) -> Data:
    """Return the sample that is shipped with the sample models. Refused: any other network, whose data is unknown."""
    if not checkpoint.architecture.ref.startswith("sample_models."):
        raise DataError(f"{checkpoint.name} comes without data", hint=f"name it: `--data`, with {FORMS}")
    import sample_models

    return load_data(str(Path(str(sample_models.__file__)).parent / SAMPLE_FILE))


def load_data(
    source: str,
    *,
    root: Path | None = None,
    download: bool = False,
    seed: int = 0,
    task: str | Task | None = None,
    expected: Expected = ANYTHING,
) -> Data:
    """Return the data set that `source` names, in disjoint splits drawn by `seed` where it has none of its own.

    `source` is a path (folder, file, `file.py:function`) or the name of a torchvision data set below `root`, which is
    downloaded only with `download`. `task` is what it is for, by name, as `file.py:function` or itself; without one,
    items and outputs show it. `expected` is what the network reads, which texts cannot do without (`data_for` knows it
    from the checkpoint). Refused: data that is missing, has no images, or cannot be read.
    """
    if task is None:
        return _read(source, root=root, download=download, seed=seed, expected=expected)
    chosen = task_named(task) if isinstance(task, str) else task
    expected = replace(expected, task=chosen.name)
    return with_task(_read(source, root=root, download=download, seed=seed, expected=expected), chosen)


def with_task(data: Data, task: Task) -> Data:
    """Return the data for this task, which may choose what of an item is read."""
    splits = {name: getattr(data, name) for name in SplitName}
    if task.inputs is not None:
        splits = {name: None if one is None else Chosen(one, task.inputs) for name, one in splits.items()}
    return replace(data, task=task, **{str(name): one for name, one in splits.items()})


def task_named(name: str) -> Task:
    """Return the built-in task of this name, or what `file.py:function` returns. Refused: any other text."""
    file, _, function = name.rpartition(":")
    if file.endswith(".py"):
        made = returned_by(Path(file).expanduser(), function)
        if not isinstance(made, Task):
            raise TaskError(f"`{function}` in {file} returned a `{type(made).__name__}`", hint="return a `Task`")
        return made
    if name not in BUILT_IN:
        raise TaskError(f"there is no task called `{name}`", hint=unknown("tasks", name, BUILT_IN))
    return BUILT_IN[name]()


def _read(source: str, *, root: Path | None, download: bool, seed: int, expected: Expected) -> Data:
    """The data without a task."""
    file, _, function = source.rpartition(":")
    if file.endswith(".py"):
        return _from_function(Path(file).expanduser(), function, seed=seed)
    path = Path(source).expanduser()
    name = path.stem if path.is_file() else path.absolute().name
    try:
        content = read_path(path, expected=expected)
        if content is not None:
            return replace(
                assembled(
                    name,
                    content.splits,
                    source=str(path),
                    classes=content.classes,
                    by_name=content.by_name,
                    seed=seed,
                ),
                caveats=content.caveats,
            )
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
    """The data of `function()` in `file`: `Data`, or any form of `data.own_sets`."""
    result = returned_by(file, function)
    if isinstance(result, Data):
        return result
    sets = splits_of(result, name=f"`{function}`")
    several = result.values() if isinstance(result, Mapping) else result if isinstance(result, (list, tuple)) else ()
    classes = next((v for v in (getattr(one, "classes", None) for one in (result, *several)) if v), None)
    known = tuple(map(str, classes)) if classes else None
    return assembled(function, sets, source=f"{file}:{function}", classes=known, seed=seed)
