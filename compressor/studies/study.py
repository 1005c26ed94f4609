"""What a study is made of: cells that run, the results they leave, claims, and the verdict that an interval decides.

A cell is one arm with one seed. It is named by its content, so that a finished one is never run again, and says which
cells must have finished before it (`needs`), whose weights it may read.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compressor.data.splits import Data
from compressor.errors import StudyError, named
from compressor.studies.interval import Interval

Value = str | int | float | bool | None


class Scale(enum.StrEnum):
    """How much a study runs: seconds, to see that it works; an hour on two cores; or as published, for a GPU."""

    SMOKE = "smoke"
    SMALL = "small"
    PAPER = "paper"


def scale_named(name: str) -> Scale:
    """The scale called `name`."""
    return named(Scale, name, one="scale", many="scales", refusal=StudyError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One arm of a study with one seed; `values` is all else that decides what it does."""

    study: str
    arm: str
    seed: int
    values: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    needs: tuple[Cell, ...] = ()

    @property
    def key(self) -> str:
        """A file name that is the same for the same content: what is needed is part of it."""
        told = json.dumps([self.study, self.arm, self.seed, dict(sorted(self.values.items())),
                           [cell.key for cell in self.needs]])  # fmt: skip
        arm = re.sub(r"[^\w.+-]+", "-", self.arm)
        return f"{arm}-{self.seed}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"

    def __hash__(self) -> int:
        return hash(self.key)

    def to_json(self) -> dict[str, object]:
        """Plain values; `needs` by their keys."""
        needs = [cell.key for cell in self.needs]
        return {"study": self.study, "arm": self.arm, "seed": self.seed, "values": dict(self.values), "needs": needs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What finished cells said: `rows` maps each to plain values."""

    rows: Mapping[Cell, Mapping[str, Any]]

    def where(self, arm: str | None = None, /, **values: Value) -> Results:
        """Those of this arm, and with these values."""
        return Results(
            rows={
                cell: row
                for cell, row in self.rows.items()
                if arm in (None, cell.arm) and all(cell.values.get(k) == v for k, v in values.items())
            }
        )

    def by_seed(self, name: str, arm: str | None = None, /, **values: Value) -> dict[int, float]:
        """The number called `name`, for every seed; refused (`ValueError`) where two cells share one."""
        found: dict[int, float] = {}
        for cell, row in self.where(arm, **values).rows.items():
            if cell.seed in found:
                raise ValueError(f"several cells of {arm} with {values} have the seed {cell.seed}")
            found[cell.seed] = float(row[name])
        return dict(sorted(found.items()))

    def values_of(self, name: str) -> tuple[Value, ...]:
        """What the cells have under `name`, each once, sorted."""
        found = {cell.values[name] for cell in self.rows if name in cell.values}
        return tuple(sorted(found, key=lambda v: (isinstance(v, str), v)))

    def arms(self) -> tuple[str, ...]:
        """The arms, in the order of the cells."""
        return tuple(dict.fromkeys(cell.arm for cell in self.rows))

    def __iter__(self) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
        return iter(self.rows.items())

    def __len__(self) -> int:
        return len(self.rows)


class Verdict(enum.StrEnum):
    """What an interval says of a claim."""

    REPRODUCED = "reproduced"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A quantity with its interval; the claim says that it is above `bound` (or, with `below`, under it)."""

    quantity: str
    interval: Interval | None
    bound: float = 0.0
    below: bool = False
    unit: str = "points"

    @property
    def verdict(self) -> Verdict:
        """Reproduced where the whole interval is on the claimed side, contradicted where it is on the other."""
        if self.interval is None:
            return Verdict.INCONCLUSIVE
        above, under = self.interval.low > self.bound, self.interval.high < self.bound
        if above or under:
            return Verdict.REPRODUCED if above != self.below else Verdict.CONTRADICTED
        return Verdict.INCONCLUSIVE

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        interval = None if self.interval is None else self.interval.to_json()
        return {
            "quantity": self.quantity, "unit": self.unit, "claimed": "below" if self.below else "above",
            "bound": self.bound, "interval": interval, "verdict": str(self.verdict),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a paper says, and the findings that it stands on: all of them must be reproduced.

    `why` says, where the verdict is not the paper's, why one would expect that.
    """

    text: str
    findings: tuple[Finding, ...]
    source: str = ""
    why: str = ""

    @property
    def verdict(self) -> Verdict:
        """Contradicted where one finding is, reproduced where all are."""
        found = {finding.verdict for finding in self.findings}
        if Verdict.CONTRADICTED in found:
            return Verdict.CONTRADICTED
        return Verdict.REPRODUCED if found == {Verdict.REPRODUCED} else Verdict.INCONCLUSIVE

    def explained(self, why: str) -> Claim:
        """The claim with why one would expect the opposite of it, where that came out; else as it was."""
        return dataclasses.replace(self, why=why) if self.verdict is Verdict.CONTRADICTED else self

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "claim": self.text, "source": self.source, "verdict": str(self.verdict), "why": self.why,
            "findings": [finding.to_json() for finding in self.findings],
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A mean over seeds at a place on the axis, with every seed's value."""

    x: float
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One arm's points, from left to right."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Curves over a common axis; `joined` draws lines between the points, `logarithmic` is the x axis."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    logarithmic: bool = False
    joined: bool = True

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return dataclasses.asdict(self)


def curve(name: str, results: Results, number: str, *, along: str, times: float = 1.0) -> Curve:
    """The curve of a number over the values called `along`, one value per seed."""
    places: dict[float, list[float]] = {}
    for cell, row in results:
        places.setdefault(float(cell.values[along] or 0.0), []).append(times * float(row[number]))
    return Curve(name=name, points=tuple(Point(x=x, values=tuple(v)) for x, v in sorted(places.items())))


class Workspace(Protocol):
    """What a running cell may use."""

    data: Data
    say: Any  # a call that takes what is being done, in words

    def state_of(self, cell: Cell) -> dict[str, Any]:
        """The tensors that a needed cell has kept."""
        ...

    def result_of(self, cell: Cell) -> Mapping[str, Any]:
        """What a needed cell said."""
        ...

    def keep(self, state: Mapping[str, Any]) -> None:
        """Keep these tensors for the cells that need this one."""
        ...

    @property
    def state_file(self) -> Path:
        """Where a training run of this cell may keep what it needs to go on after an interruption."""
        ...


class Study(Protocol):
    """A file of `compressor.studies`: its docstring's parts are the claim, the command, what is expected, the cost."""

    TITLE: str

    def cells(self, scale: Scale, /) -> Sequence[Cell]:
        """All that is to be run; every choice is a value of a cell."""
        ...

    def run(self, cell: Cell, workspace: Workspace, /) -> Mapping[str, Any]:
        """One cell, as plain values."""
        ...

    def verdict(self, results: Results, /) -> Sequence[Claim]:
        """The claims, with the intervals that decide them."""
        ...

    def plots(self, results: Results, /) -> Sequence[Plot]:
        """The pictures."""
        ...
