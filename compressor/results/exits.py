"""A network with early exits: who leaves where and how right they are, and the latency on images that leave alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from compressor.results.parity import Parity
from compressor.results.quality import Accuracy
from compressor.results.records import Plain, Record
from compressor.results.timing import Speedup


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit(Record):
    """Statistics of one exit: how many images leave, how many of those are correct, and how many of all would be.

    `correct_of_all` counts the images of the whole split that this exit classifies correctly. `after` is the layer,
    `None` for the end of the network; `macs` are those of an image that leaves here.
    """

    after: str | None = None
    leaving: int
    correct: int
    correct_of_all: int
    macs: int

    @classmethod
    def prepared(cls, plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without what follows from the counts."""
        return {key: value for key, value in plain.items() if key != "share"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitAccuracy(Record):
    """The accuracy at one threshold, that of the full network, and each exit's statistics.

    `threshold` is `None` if no image leaves early.
    """

    DERIVED: ClassVar = ("mean_macs",)

    threshold: float | None = None
    accuracy: Accuracy
    full: Accuracy
    exits: tuple[Exit, ...]

    def finished(self, plain: dict[str, Any]) -> dict[str, Any]:
        """With each exit's share of the images, for other readers."""
        exits = zip(plain["exits"], self.shares, strict=True)
        return plain | {"exits": [one | {"share": share} for one, share in exits]}

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the images that leave at each exit."""
        return tuple(e.leaving / self.accuracy.total for e in self.exits)

    @property
    def mean_macs(self) -> float:
        """The mean MACs of an image."""
        return sum(e.leaving * e.macs for e in self.exits) / self.accuracy.total


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitSplits(Record):
    """The tuning split, on which the threshold was chosen, and the test split, which was read once."""

    tune: ExitAccuracy
    test: ExitAccuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitLatency(Record):
    """Mean milliseconds per image of the dense network and of the file with exits, in turns on the same images."""

    runtime: str
    threads: int
    images: int
    dense_ms: float
    early_ms: float
    speedup: Speedup
    blocks: int
    caveats: tuple[str, ...] = ()
    samples_ns: Plain = field(default_factory=dict)  # by name: nanoseconds of every pass over the images, by block


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyExitResults(Record):
    """The `results.json` of a folder with early exits."""

    schema: int = 1
    name: str
    after: tuple[str, ...]
    certainty: str
    joint: bool
    max_drop: float
    recipe: Plain
    data: Plain
    params: tuple[int, ...]  # dense, with the branches
    macs: tuple[int, ...]  # dense, then at each exit
    splits: ExitSplits
    export: Parity
    latency: ExitLatency
    environment: Plain = field(default_factory=dict)
    command: str = ""
