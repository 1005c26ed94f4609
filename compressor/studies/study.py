"""The parts of a study: cells that run, their results, claims, and verdicts by intervals.

A cell is one arm with one seed. Its name is a hash of its content, so that a finished cell never runs again. `needs`
are the cells that must finish before it, and whose weights it may read.
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
    """The size of a study: seconds, as a check; an hour on two cores; or as published, for a GPU."""

    SMOKE = "smoke"
    SMALL = "small"
    PAPER = "paper"


def scale_named(name: str) -> Scale:
    """Return the scale called `name`."""
    return named(Scale, name, one="scale", many="scales", refusal=StudyError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One arm of a study with one seed; `values` holds everything else that its result depends on."""

    study: str
    arm: str
    seed: int
    values: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    needs: tuple[Cell, ...] = ()

    @property
    def key(self) -> str:
        """The file name of the cell; it depends on the cell's content and on the cells that it needs."""
        content = json.dumps([self.study, self.arm, self.seed, dict(sorted(self.values.items())),
                              [cell.key for cell in self.needs]])  # fmt: skip
        arm = re.sub(r"[^\w.+-]+", "-", self.arm)
        return f"{arm}-{self.seed}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"

    def __hash__(self) -> int:
        return hash(self.key)

    def to_json(self) -> dict[str, object]:
        """Plain values; `needs` by their keys."""
        needs = [cell.key for cell in self.needs]
        return {"study": self.study, "arm": self.arm, "seed": self.seed, "values": dict(self.values), "needs": needs}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResults:
    """The results of finished cells: `rows` maps each cell to plain values."""

    rows: Mapping[Cell, Mapping[str, Any]]

    def where(self, arm: str | None = None, /, **values: Value) -> StudyResults:
        """Return the results of cells of this arm and with these values."""
        return StudyResults(
            rows={
                cell: row
                for cell, row in self.rows.items()
                if arm in (None, cell.arm) and all(cell.values.get(k) == v for k, v in values.items())
            }
        )

    def by_seed(self, name: str, arm: str | None = None, /, **values: Value) -> dict[int, float]:
        """Return the number called `name` for every seed; raises `ValueError` if two cells share a seed."""
        numbers: dict[int, float] = {}
        for cell, row in self.where(arm, **values).rows.items():
            if cell.seed in numbers:
                raise ValueError(f"several cells of {arm} with {values} have the seed {cell.seed}")
            numbers[cell.seed] = float(row[name])
        return dict(sorted(numbers.items()))

    def values_of(self, name: str) -> tuple[Value, ...]:
        """Return the cells' different values of `name`, sorted."""
        values = {cell.values[name] for cell in self.rows if name in cell.values}
        return tuple(sorted(values, key=lambda v: (isinstance(v, str), v)))

    def arms(self) -> tuple[str, ...]:
        """Return the arms, in the order of the cells."""
        return tuple(dict.fromkeys(cell.arm for cell in self.rows))

    def __iter__(self) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
        return iter(self.rows.items())

    def __len__(self) -> int:
        return len(self.rows)


class Verdict(enum.StrEnum):
    """The verdict of an interval on a claim."""

    REPRODUCED = "reproduced"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A quantity with its interval; the claim is that it is above `bound` (with `below`: under it)."""

    quantity: str
    interval: Interval | None
    bound: float = 0.0
    below: bool = False
    unit: str = "points"

    @property
    def verdict(self) -> Verdict:
        """Reproduced if the whole interval is on the claimed side, contradicted if it is on the other side."""
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
    """A paper's claim, and the findings that it depends on: all of them must be reproduced.

    If the verdict contradicts the paper, `why` is a possible reason.
    """

    text: str
    findings: tuple[Finding, ...]
    source: str = ""
    why: str = ""

    @property
    def verdict(self) -> Verdict:
        """Contradicted if one finding is, reproduced if all are."""
        verdicts = {finding.verdict for finding in self.findings}
        if Verdict.CONTRADICTED in verdicts:
            return Verdict.CONTRADICTED
        return Verdict.REPRODUCED if verdicts == {Verdict.REPRODUCED} else Verdict.INCONCLUSIVE

    def explained(self, why: str) -> Claim:
        """Return a contradicted claim with a possible reason; other claims stay as they are."""
        return dataclasses.replace(self, why=why) if self.verdict is Verdict.CONTRADICTED else self

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "claim": self.text, "source": self.source, "verdict": str(self.verdict), "why": self.why,
            "findings": [finding.to_json() for finding in self.findings],
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotPoint:
    """The values of all seeds at one position of the x axis."""

    x: float
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotLine:
    """One arm's points, from left to right."""

    name: str
    points: tuple[PlotPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Curves over a common axis; `joined` draws lines between the points, `logarithmic` is the x axis."""

    title: str
    x: str
    y: str
    curves: tuple[PlotLine, ...]
    logarithmic: bool = False
    joined: bool = True

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return dataclasses.asdict(self)


def curve(name: str, results: StudyResults, number: str, *, along: str, times: float = 1.0) -> PlotLine:
    """Return the curve of a number over the cells' values of `along`, with one value per seed."""
    places: dict[float, list[float]] = {}
    for cell, row in results:
        places.setdefault(float(cell.values[along] or 0.0), []).append(times * float(row[number]))
    return PlotLine(name=name, points=tuple(PlotPoint(x=x, values=tuple(v)) for x, v in sorted(places.items())))


class Workspace(Protocol):
    """The data and files of a running cell."""

    data: Data
    say: Any  # a function that takes a progress message

    def state_of(self, cell: Cell) -> dict[str, Any]:
        """Return the tensors that a needed cell has kept."""
        ...

    def result_of(self, cell: Cell) -> Mapping[str, Any]:
        """Return the result of a needed cell."""
        ...

    def keep(self, state: Mapping[str, Any]) -> None:
        """Keep these tensors for the cells that need this one."""
        ...

    @property
    def state_file(self) -> Path:
        """The file for the state of this cell's training, to continue after an interruption."""
        ...


class Study(Protocol):
    """A module of `compressor.studies.papers`; its docstring has claim, command, expected result and cost."""

    TITLE: str

    def cells(self, scale: Scale, /) -> Sequence[Cell]:
        """Return all cells to run; every choice is a value of a cell."""
        ...

    def run(self, cell: Cell, workspace: Workspace, /) -> Mapping[str, Any]:
        """Run one cell and return its result as plain values."""
        ...

    def verdict(self, results: StudyResults, /) -> Sequence[Claim]:
        """Return the claims, with the intervals that decide them."""
        ...

    def plots(self, results: StudyResults, /) -> Sequence[Plot]:
        """Return the plots of the results."""
        ...
