"""Items of any structure: which parts a network reads, and by which it is judged.

A network with one input reads a bare item, the first of a pair, or the part of a mapping with the input's name or a
usual one. A network with several reads a tuple of as many parts, the first of a pair if that is a tuple or a mapping,
or the parts of a mapping with the inputs' names (a tuple with one part more holds the target last). What is left over
is the target; an item without one is unlabelled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from compressor.data.samples import UNLABELLED
from compressor.errors import DataError

INPUT_NAMES = ("image", "images", "pixel_values", "input", "inputs", "input_ids", "x", "audio", "data")
TARGET_NAMES = ("label", "labels", "target", "targets", "mask", "masks", "y")


class Sample(NamedTuple):
    """One item: what the network reads, in its inputs' order, and what it is judged by (-1: nothing)."""

    inputs: tuple[Tensor, ...]
    target: Any


class Batch(NamedTuple):
    """Some samples: what the network reads, each `[batch, ...]`, and what it is judged by.

    The target is a tensor `[batch, ...]` where the samples' can be stacked, else a list; without targets it is all -1.
    """

    inputs: tuple[Tensor, ...]
    target: Any

    def on(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(tuple(part.to(device) for part in self.inputs), _moved(self.target, device))

    @property
    def labelled(self) -> bool:
        """Whether there is anything to judge by."""
        target = self.target
        return not (isinstance(target, Tensor) and target.ndim == 1 and bool((target == UNLABELLED).all()))


def _moved(target: Any, device: torch.device) -> Any:
    """A target of any structure on a device."""
    if isinstance(target, Tensor):
        return target.to(device)
    if isinstance(target, Mapping):
        return {name: _moved(part, device) for name, part in target.items()}
    if isinstance(target, list):
        return [_moved(part, device) for part in target]
    return target


def sample_of(item: Any, takes: Sequence[str] = ()) -> Sample:
    """Return an item as a sample of a network whose inputs are called `takes` (none: one input of any name).

    Refused: an item that has not as many parts as the network has inputs, or parts that are no tensors.
    """
    count = max(1, len(takes))
    item = _plain(item)
    if isinstance(item, Mapping):
        return _of_mapping(item, takes)
    parts = list(item) if isinstance(item, (tuple, list)) else [item]
    if parts and isinstance(parts[0], (tuple, list, Mapping)) and len(parts) <= 2:
        inside = sample_of(parts[0], takes)
        return Sample(inside.inputs, _target(parts[1]) if len(parts) == 2 else inside.target)
    if len(parts) not in (count, count + 1):
        raise DataError(
            f"an item of {len(parts)} parts, but the network reads {count}",
            hint="give (inputs, target), a mapping with the inputs' names, or choose them: `--task file.py:task`",
        )
    target = _target(parts[count]) if len(parts) > count else UNLABELLED
    return Sample(tuple(as_tensor(part) for part in parts[:count]), target)


def collate_of(samples: Any) -> Callable[[list[Any]], Any] | None:
    """Return how the user's own loader makes a batch of items, if the samples, or the set that they are parts of, have
    one.
    """
    while isinstance(samples, Subset):
        samples = samples.dataset
    own: Callable[[list[Any]], Any] | None = getattr(samples, "collate", None)
    return own


def _of_mapping(item: Mapping[str, Any], takes: Sequence[str]) -> Sample:
    """The parts with the inputs' names, or for a single input a usual name; the rest is the target."""
    names = [name for name in takes if name in item]
    if len(names) < len(takes) or not names:
        usual = next((name for name in INPUT_NAMES if name in item), None)
        if len(takes) > 1 or usual is None:
            wanted = ", ".join(takes) or " or ".join(INPUT_NAMES[:3])
            raise DataError(
                f"an item with {', '.join(map(str, item)) or 'nothing in it'} for a network that reads {wanted}",
                hint="name the parts as the network's `forward` does",
            )
        names = [usual]
    rest = {name: part for name, part in item.items() if name not in names and part is not None}
    known = [name for name in rest if name in TARGET_NAMES]
    target: Any = UNLABELLED
    if "boxes" in rest:
        target = {name: _target(part) for name, part in rest.items() if name in ("boxes", *TARGET_NAMES)}
    elif known:
        target = _target(rest[known[0]]) if len(known) == 1 else {name: _target(rest[name]) for name in known}
    return Sample(tuple(as_tensor(item[name]) for name in names), target)


def _plain(item: Any) -> Any:
    """A data class as a mapping; anything else as it is."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return item


def _target(part: Any) -> Any:
    """A target with tensors where it has arrays or pictures; numbers and text stay."""
    if isinstance(part, Mapping):
        return {name: _target(one) for name, one in part.items()}
    if part is None:
        return UNLABELLED
    if isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, np.generic):
        return part.item()
    tensor = as_tensor(part)
    if not tensor.ndim:
        return tensor.item()
    if isinstance(part, (Tensor, np.ndarray)) or not hasattr(part, "mode"):
        return tensor
    return tensor[0].long()  # a picture: a map of classes


def as_tensor(part: Any) -> Tensor:
    """Return a part of an item as a tensor; a picture as `[channels, height, width]`. Refused: what is no tensor."""
    if isinstance(part, Tensor):
        return part
    if hasattr(part, "getbands"):  # a PIL picture
        from torchvision.transforms.v2.functional import pil_to_tensor

        picture: Tensor = pil_to_tensor(part)
        return picture
    try:
        array = np.asarray(part)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(array)) if array.ndim else torch.tensor(array.item())
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"a part of an item is a `{type(part).__name__}`, which is no tensor: {error}",
            hint="give tensors, arrays, pictures or numbers",
        ) from error


def stacked(samples: Sequence[Sample]) -> Batch:
    """Return samples as one batch. Refused: inputs of different sizes."""
    columns = list(zip(*(sample.inputs for sample in samples), strict=True))
    for number, column in enumerate(columns):
        shapes = sorted({tuple(part.shape) for part in column})
        if len(shapes) > 1:
            what = "images" if len(shapes[0]) == 3 else f"parts of input {number + 1}"
            raise DataError(
                f"the {what} have different sizes: {list(shapes[0])} and {list(shapes[-1])}",
                hint="set the network's input (`--input 1x3x224x224`), or give a `DataLoader` that pads them",
            )
    return Batch(tuple(torch.stack(column) for column in columns), _together([sample.target for sample in samples]))


def _together(targets: Sequence[Any]) -> Any:
    """The targets as one tensor, or as a mapping of tensors, where they can be stacked; else as a list."""
    first = targets[0]
    if all(isinstance(one, (bool, int, float)) for one in targets):
        floats = any(isinstance(one, float) for one in targets)
        return torch.tensor(targets, dtype=torch.float32 if floats else torch.int64)
    if all(isinstance(one, Tensor) for one in targets):
        return torch.stack(list(targets)) if len({one.shape for one in targets}) == 1 else list(targets)
    if isinstance(first, Mapping) and "boxes" not in first and all(one.keys() == first.keys() for one in targets):
        return {name: _together([one[name] for one in targets]) for name in first}
    return list(targets)
