"""Latency as it was measured: speed-ups with their intervals, a row for every candidate, and the whole bench."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from compressor.results.quality import Quality
from compressor.results.records import Pair, Plain, Record

Samples = tuple[tuple[int, ...], ...]
"""Nanoseconds of every call, by block, in the order of the rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup(Record):
    """How many times as fast a candidate is as the reference, with its interval; above 1 is faster."""

    ratio: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.ratio <= self.high:
            raise ValueError(f"{self.ratio} does not lie in [{self.low}, {self.high}]")

    @property
    def resolved(self) -> bool:
        """Whether a difference was found: 1 lies outside the interval."""
        return not self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRow(Record):
    """One candidate on one runtime at one batch size; what was not measured is `None`."""

    runtime: str
    provider: str | None = None
    batch: int
    candidate: str
    median_ms: float
    p90_ms: float | None = None
    p99_ms: float | None = None
    throughput: float | None = None  # samples per second
    peak_memory_bytes: int | None = None
    file_bytes: int | None = None
    params: int | None = None
    macs: int | None = None
    accuracy: Quality | None = None
    speedup: Speedup | None = None  # over the first candidate, which has none
    theoretical_speedup: float | None = None  # by MACs alone
    blocks: int | None = None
    calls_per_block: int | None = None
    samples_ns: Samples = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShare(Record):
    """What one network's operators took with one layer, and the ceiling that it sits under."""

    us: float = 0.0
    operators: int | None = None
    macs: int | None = None
    bytes: int | None = None
    intensity: float | None = None  # MACs per byte moved
    ceiling: str = ""
    of_ceiling: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime(Record):
    """One layer before and after; a side is `None` where the network has no such layer."""

    KEYS: ClassVar = {"inputs": "in", "outputs": "out"}

    layer: str = ""
    kind: str = ""
    inputs: Pair | None = None
    outputs: Pair | None = None
    dense: LayerShare | None = None
    small: LayerShare | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes(Record):
    """Where the time goes, layer by layer, and what the machine can do at most."""

    runtime: str
    batch: int
    threads: int
    ceilings: Plain = field(default_factory=dict)  # gmacs_per_s, gbytes_per_s, launch_us
    total_us: tuple[float, ...] = ()
    rows: tuple[LayerTime, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench(Record):
    """All timings of one run of the bench, on one machine."""

    SPARE: ClassVar = frozenset({"why"})

    rows: tuple[TimedRow, ...] = ()
    caveats: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    threads: int | None = None
    blocks: int | None = None
    batches: tuple[int, ...] = ()
    confidence: float | None = None
    seed: int | None = None
    environment: Plain = field(default_factory=dict)
    machine_before: Plain | None = None
    machine_after: Plain | None = None
    why: LayerTimes | None = None
