"""Criteria: one file each; the file name is the criterion's name.

A criterion's module says its help in its docstring's first line, what it takes in `NEEDS`, whether its scores compare
across groups as they are in `COMPARABLE`, and has

    def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor  # float64 [channels], higher = keep
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from compressor.errors import CalibrationError, unknown

if TYPE_CHECKING:  # naming the criteria, as `--help` does, must not import torch
    from torch import Tensor

    from compressor.channels.groups import ChannelGroup
    from compressor.planning.calibration import Calibration, Needs


class Score(Protocol):
    """How a criterion judges the channels of one group: float64 `[channels]`, higher = keep."""

    def __call__(self, group: ChannelGroup, *, calibration: Calibration) -> Tensor:
        """One number for every channel."""
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
    """The names of all criteria, sorted; nothing of theirs is imported."""
    return tuple(sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if m.name[0] != "_"))


def load(name: str) -> Criterion:
    """The criterion called `name`; refused where there is none."""
    if name not in names():
        raise CalibrationError(f"there is no criterion called `{name}`", hint=unknown("criteria", name, names()))
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return Criterion(
        name=name,
        help=(module.__doc__ or "").strip().splitlines()[0],
        needs=module.NEEDS,
        comparable=module.COMPARABLE,
        score=module.score,
    )
