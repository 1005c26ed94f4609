"""Accuracy against measured latency: a point for every speed that an arm was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from compressor.errors import ArtifactError
from compressor.results.latency import Trial
from compressor.results.quality import Quality
from compressor.results.records import Plain, Record
from compressor.results.timing import Speedup


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint(Record):
    """How fast an arm's network is at one speed that was asked for, and how good; or why there is none."""

    SPARE: ClassVar = frozenset(
        {
            "refused", "hint", "speedup", "dense_ms", "small_ms", "threads", "met", "trials", "table_error", "params",
            "macs", "quality",
        }
    )  # fmt: skip

    arm: str
    asked: float
    refused: str | None = None
    hint: str | None = None
    speedup: Speedup | None = None
    dense_ms: float | None = None
    small_ms: float | None = None
    threads: int | None = None
    met: bool | None = None
    trials: tuple[Trial, ...] = ()
    table_error: float | None = None
    params: int | None = None
    macs: int | None = None
    quality: Quality | None = None

    def __post_init__(self) -> None:
        if self.refused is None and (self.speedup is None or self.quality is None):
            raise ArtifactError(f"a point of {self.arm} has neither a measurement nor a reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier(Record):
    """The curves of every arm on one target, with the dense network; `split` is what the points were judged on."""

    schema: int = 1
    name: str
    target: Plain  # runtime, batch, threads
    split: str
    data: str
    labelled: bool
    dense: Quality
    points: tuple[FrontierPoint, ...] = ()
    environment: Plain = field(default_factory=dict)
