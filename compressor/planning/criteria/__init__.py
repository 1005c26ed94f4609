"""Criteria: one file each; the file name is the criterion's name.

The first line of a criterion's docstring is its help text. Its `NEEDS` are what must be gathered for it, `COMPARABLE`
is true if its scores compare across groups without normalising, and it has

    def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor  # float64 [channels], higher = keep
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from compressor.errors import CalibrationError
from compressor.plugins import help_of, plugin_named, plugin_names

if TYPE_CHECKING:  # naming the criteria, as `--help` does, must not import torch
    from torch import Tensor

    from compressor.channels.groups import ChannelGroup
    from compressor.planning.calibration import Calibration, Needs


class Score(Protocol):
    """The function of a criterion: it scores the channels of one group, float64 `[channels]`, higher = keep."""

    def __call__(self, group: ChannelGroup, *, calibration: Calibration) -> Tensor:
        """Return one number for every channel."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """A criterion's module as a value; `comparable` scores need no normalising across groups."""

    name: str
    help: str
    needs: Needs
    comparable: bool
    score: Score


def names() -> tuple[str, ...]:
    """Return the names of all criteria, sorted, without importing them."""
    return plugin_names(__path__)


def load(name: str) -> Criterion:
    """Return the criterion called `name`. Refused: an unknown name."""
    module = plugin_named(
        name, package=__name__, names=names(), one="criterion", many="criteria", refusal=CalibrationError
    )
    return Criterion(
        name=name,
        help=help_of(module),
        needs=module.NEEDS,
        comparable=module.COMPARABLE,
        score=module.score,
    )
