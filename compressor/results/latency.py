"""A latency as the budget: what was asked of the clock, what each trial gave, and the network that was kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.results.records import Plain, Record
from compressor.results.timing import Speedup, TimedRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Record):
    """What was aimed at, predicted and measured: speed-ups."""

    aim: float
    predicted: float
    measured: Speedup | None = None
    channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried(Record):
    """A speed-up that was measured, and what its network loses on the tuning split, in points of a hundred."""

    speedup: float
    drop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSearch(Record):
    """The search for the fastest network within a drop on the tuning split, in points of a hundred."""

    allowed: float
    drop: float
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingLatency(Record):
    """How a budget of latency was met: on which target, what was asked, measured and tried.

    `rows` are the dense and the small network in turns; empty where another machine is the target.
    """

    DERIVED: ClassVar = ("speedup", "dense_ms", "small_ms")
    SPARE: ClassVar = frozenset({"search"})

    runtime: str
    batch: int
    threads: int
    hardware: str | None = None
    version: str | None = None
    wanted: float  # the speed-up
    tolerance: float | None = None
    met: bool = False
    rows: tuple[TimedRow, ...] = ()
    caveats: tuple[str, ...] = ()
    align: int | None = None
    alignments: tuple[Plain, ...] = ()  # multiple, excess
    table_error: float | None = None  # of the table on the whole network, before any correction; relative
    trials: tuple[Trial, ...] = ()
    search: DropSearch | None = None

    @classmethod
    def prepared(cls, plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of schema 1: its latencies as rows."""
        if "rows" in plain or plain.get("speedup") is None:
            return plain
        samples = plain.get("samples_ns") or {}
        rows = [
            {
                "runtime": plain.get("runtime"), "batch": plain.get("batch"), "candidate": name,
                "median_ms": plain.get(f"{name}_ms"), "speedup": speedup, "samples_ns": samples.get(name),
            }
            for name, speedup in (("dense", None), ("small", plain["speedup"]))
        ]  # fmt: skip
        return {key: value for key, value in plain.items() if key != "samples_ns"} | {"rows": rows}

    @property
    def speedup(self) -> Speedup | None:
        """As measured at last; `None` where nothing was."""
        return self.rows[-1].speedup if self.rows else None

    @property
    def dense_ms(self) -> float | None:
        """The dense network's median latency."""
        return self.rows[0].median_ms if self.rows else None

    @property
    def small_ms(self) -> float | None:
        """The small network's median latency."""
        return self.rows[-1].median_ms if self.rows else None
