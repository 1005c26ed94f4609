"""What was done to a network before any training: channels, single weights or rank that left, and the repair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from compressor.results.records import Pair, Plain, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class SurgeryProof(Record):
    """The small network's outputs beside the dense network's with the removed channels at zero."""

    dtype: str | None = None
    narrowest: str | None = None  # the narrowest precision that a part of the network computes in
    tolerance: float | None = None  # the largest difference that is rounding
    largest_relative_difference: float | None = None
    moved: float | None = None  # how far the removed channels move the outputs
    vacuous: bool = False
    inputs: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Achieved(Record):
    """What the dense and the small network count."""

    SPARE: ClassVar = frozenset({"channels", "params", "macs", "bytes"})

    channels: Pair | None = None
    params: Pair | None = None
    macs: Pair | None = None
    bytes: Pair | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Width(Record):
    """One layer's channels and MACs before and after."""

    KEYS: ClassVar = {"inputs": "in", "outputs": "out"}

    layer: str
    kind: str = ""
    inputs: Pair | None = None
    outputs: Pair
    macs: Pair | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftAlone(Record):
    """A layer that kept its channels, and why."""

    layer: str
    reason: str = "no reason was recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCurve(Record):
    """The output error of one channel group at each width that was tried."""

    root: str
    widths: tuple[int, ...] = ()
    rises: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning(Record):
    """What was asked for, what was done, and the proof that the surgery was right."""

    SPARE: ClassVar = frozenset({"takes", "data", "outputs"})

    requested: Plain = field(default_factory=dict)
    achieved: Achieved = field(default_factory=Achieved)
    caveats: tuple[str, ...] = ()
    criterion: str | None = None
    largest: bool | None = None
    scope: str | None = None
    align: int | str | None = None  # `auto`: a multiple that suits each layer
    levels: int | None = None
    seed: int | None = None
    kept_as: str | None = None  # `class` or `program`
    takes: str | None = None  # the only inputs that a program takes
    outputs: tuple[str, ...] = ()  # those that matter, where not all do
    proof: SurgeryProof | None = None
    widths: tuple[Width, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()
    emptied: tuple[str, ...] = ()  # groups of which nothing stays
    curves: tuple[ErrorCurve, ...] = ()
    data: Plain | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorizedLayer(Record):
    """A layer that became two: at which rank of how many, and the share of its energy that this keeps."""

    layer: str
    kind: str = ""
    rank: int
    full_rank: int
    energy: float
    macs: Pair
    params: Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Factorizing(Record):
    """Which layers became two, what that saves, and the proof that the surgery was right."""

    requested: Plain = field(default_factory=dict)
    achieved: Achieved = field(default_factory=Achieved)
    how: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    align: int | str | None = None
    layers: tuple[FactorizedLayer, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()
    proof: SurgeryProof | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor(Record):
    """One tensor of a masked network, and what storing it sparse takes."""

    name: str
    encoding: str = ""
    elements: int
    kept: int
    dense_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking(Record):
    """Which share of the weights is zero in place, and what that saves on disk."""

    SPARE: ClassVar = frozenset({"criterion", "dense_bytes", "stored_bytes", "file_bytes", "rows"})

    requested: float | None = None
    sparsity: float | None = None
    criterion: str | None = None
    scope: str | None = None
    weights: int | None = None
    zeros: int | None = None
    statement: str | None = None
    dense_bytes: int | None = None
    stored_bytes: int | None = None
    file_bytes: int | None = None
    rows: tuple[StoredTensor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRepair(Record):
    """One layer's fit: its output error before and after, over the output's variance."""

    layer: str
    before: float
    after: float
    ridge: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repairing(Record):
    """What was fitted before any retraining, and how far from the dense network that leaves the output.

    `rise` is the output's squared error over its variance before and after.
    """

    how: str = "repair"
    data: str | None = None
    images: int | None = None
    judged: int | None = None
    rise: tuple[float | None, ...] = ()
    kept: bool = True
    layers: tuple[LayerRepair, ...] = ()
    distilled: tuple[float, ...] = ()
