"""The inputs of criteria: a network's weights, the statistics of a calibration pass, and a group's parts of them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup, Member, Role
from compressor.data.batches import batches
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Samples, first
from compressor.data.splits import Data, SplitName
from compressor.errors import CalibrationError
from compressor.planning.elimination import ReaderMoments

T = TypeVar("T")
Inputs = Tensor | Sequence[Tensor]
Batches = Iterable[tuple[Inputs, Any]]

CALIBRATION_BATCH, LEAST_BATCHES = 64, 8
ELEMENTS_AT_ONCE = 2**20  # elements of a weight in float64: eight megabytes


class Needs(enum.StrEnum):
    """What must be gathered before a criterion can score; everything but `NOTHING` needs data."""

    NOTHING = "nothing"
    ACTIVATIONS = "activations"
    GRADIENTS = "gradients"
    SQUARED_GRADIENTS = "squared-gradients"  # one backward pass per image, not per batch
    SECOND_MOMENTS = "second-moments"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A network's weights and the gathered statistics, on the CPU; what was not gathered is `None`.

    `weights` and the gradients are keyed by the tensor's name in `state_dict()`; `mean_absolute` and `zero_share` by a
    group's root, float64 `[channels]`; `readings` by the name of the reading layer's weight. `labelled`: the gradients
    used labels.
    """

    module: nn.Module
    weights: Mapping[str, Tensor]
    generator: torch.Generator
    gradients: Mapping[str, Tensor] | None = None
    squared_gradients: Mapping[str, Tensor] | None = None
    mean_absolute: Mapping[str, Tensor] | None = None
    zero_share: Mapping[str, Tensor] | None = None
    readings: Mapping[str, ReaderMoments] | None = None
    images: int = 0
    labelled: bool = False


def calibration_batches(
    images: Samples, count: int, *, preprocessing: Preprocessing, seed: int
) -> list[tuple[Tensor, ...]]:
    """Return up to `count` images drawn by `seed`, as inputs in batches of one size: at least eight where there are
    enough.
    """
    drawn = first(images, count, seed=seed)
    size = max(1, min(CALIBRATION_BATCH, len(drawn) // LEAST_BATCHES))
    stream = batches(drawn, batch_size=size, preprocessing=preprocessing)
    return [batch.inputs for batch in stream if len(batch.inputs[0]) == size]


def calibration_split(data: Data) -> Samples:
    """Return the images for decisions: the training split, else the tuning split, never the test split."""
    if data.train is None and data.tune is None:
        raise CalibrationError(
            f"{data.name} has only a test split, which must not decide anything",
            hint="add images for training or tuning: a folder of at least three images is split automatically",
        )
    return data.split(SplitName.TUNE if data.train is None else SplitName.TRAIN)


def required(gathered: T | None, needs: Needs) -> T:
    """Return what was gathered. Refused: it was not gathered."""
    if gathered is None:
        raise CalibrationError(
            f"this criterion scores by {needs.replace('-', ' ')}, which needs data",
            hint="add `--data`, or use a criterion that needs none: `--criterion l1-norm`",
        )
    return gathered


def rows(member: Member, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the member's slice of its tensor at each of its positions: float64 `[positions, elements]`."""
    return _at(member, tensors, member.positions)


def _at(member: Member, tensors: Mapping[str, Tensor], positions: Tensor) -> Tensor:
    """The slices of the member's tensor at some positions, flattened: float64 `[positions, elements]`."""
    return tensors[member.tensor].movedim(member.dim, 0)[positions].double().reshape(len(positions), -1)


def by_row(tensors: Mapping[str, Tensor], value: Callable[[Tensor], Tensor]) -> Callable[[Member], Tensor]:
    """Return a function of a member: `value` of its rows, computed in chunks.

    `value` maps float64 `[some, elements]` to `[some]`.
    """

    def of(member: Member) -> Tensor:
        length = max(1, tensors[member.tensor].numel() // tensors[member.tensor].shape[member.dim])
        some = max(1, ELEMENTS_AT_ONCE // length)
        return torch.cat([value(_at(member, tensors, positions)) for positions in torch.split(member.positions, some)])

    return of


def over_channels(group: ChannelGroup, members: Iterable[Member], value: Callable[[Member], Tensor]) -> Tensor:
    """Return the sum over members of `value(member)` `[positions]`, by the group's channel: float64 `[channels]`."""
    total = torch.zeros(group.channels, dtype=torch.float64)
    for member in members:
        total.index_add_(0, member.channels, value(member).double())
    return total


def producers(group: ChannelGroup) -> Iterator[Member]:
    """Return the members that produce the group's channels, whose filters a norm criterion measures."""
    return (m for m in group.members if m.role is Role.PRODUCES)
