"""What was found out about an artifact, as values; `report.results` reads them."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.errors import ArtifactError

Facts = tuple[tuple[str, object], ...]
Pair = tuple[int, int]  # of the dense network, of the small one


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """So many of so many: images classified as labelled or, without labels, as the dense network does."""

    count: int
    total: int
    split: str | None
    low: float | None
    high: float | None
    against_dense: bool
    relative_error: float | None

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.total or self.total == 0:
            raise ArtifactError(f"an accuracy of {self.count} out of {self.total}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """A ratio of latencies and its interval, as measured."""

    ratio: float
    low: float
    high: float

    @property
    def resolved(self) -> bool:
        """Whether 1 lies outside the interval."""
        return not self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One candidate on one runtime at one batch size."""

    runtime: str
    provider: str | None
    batch: int
    candidate: str
    median_ms: float
    p90_ms: float | None
    p99_ms: float | None
    throughput: float | None
    peak_memory_bytes: int | None
    file_bytes: int | None
    params: int | None
    macs: int | None
    accuracy: Share | None
    speedup: Speedup | None
    theoretical_speedup: float | None
    samples_ns: tuple[tuple[int, ...], ...]  # per block


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """All timings of one run of the bench."""

    rows: tuple[Row, ...]
    caveats: tuple[str, ...]
    threads: int | None
    blocks: int | None
    environment: Facts
    why: Facts | None
    rest: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """One layer before and after."""

    layer: str
    kind: str
    inputs: Pair | None
    outputs: Pair
    macs: Pair | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What was asked for, what was done, and the proof that the surgery was right."""

    requested: Facts
    achieved: tuple[tuple[str, Pair], ...]
    settings: Facts
    proof: Facts
    widths: tuple[Width, ...]
    left_alone: tuple[tuple[str, str], ...]  # layer, reason
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorizedLayer:
    """A layer that became two: at which rank of how many, and the share of its energy that this keeps."""

    layer: str
    kind: str
    rank: int
    full_rank: int
    energy: float
    macs: Pair
    params: Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Factorizing:
    """Which layers became two, what that saves, and the proof that the surgery was right."""

    requested: Facts
    achieved: tuple[tuple[str, Pair], ...]
    settings: Facts
    proof: Facts
    layers: tuple[FactorizedLayer, ...]
    left_alone: tuple[tuple[str, str], ...]  # layer, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a masked network, and what storing it sparse takes."""

    name: str
    encoding: str
    elements: int
    kept: int
    dense_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """Which share of the weights is zero in place, and what that saves on disk."""

    facts: Facts
    statement: str | None
    tensors: tuple[StoredTensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repairing:
    """What was fitted before any retraining, and how far from the dense network that leaves the output.

    `rise` is the output's squared error over its variance before and after, `layers` each layer's likewise.
    """

    how: str
    rise: tuple[float, float] | None
    layers: tuple[tuple[str, float, float], ...]
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What one epoch of retraining did."""

    epoch: int
    rate: float | None
    train_loss: float | None
    tune_correct: int | None
    tune_total: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraining:
    """One run of training after shrinking."""

    how: str
    facts: Facts
    history: tuple[Epoch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningEvent:
    """How many channels one event during training chose, and the tuning split's correct answers around it."""

    epoch: int
    channels: int
    before: int
    after: int
    total: int
    instability: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WhileTraining:
    """The training during which channels left, and the events at which they did."""

    training: Retraining
    events: tuple[PruningEvent, ...]
    stability: float | None  # in per cent, their mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizing:
    """The int8 file against the float one: bytes, latencies by batch size, and how closely it follows the network."""

    bytes: Pair
    rows: tuple[tuple[int, float, float, Speedup], ...]  # batch, float ms, int8 ms
    agreement: Share | None
    accuracy: tuple[Share, Share] | None
    caveats: tuple[str, ...]
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One reading of a data split by one network."""

    model: str
    data: str | None
    share: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything; a part that nobody has measured is `None` or empty."""

    name: str
    command: str | None
    environment: Facts
    pruning: Pruning | None
    masking: Masking | None
    factorizing: Factorizing | None
    repairing: Repairing | None
    while_training: WhileTraining | None
    retrainings: tuple[Retraining, ...]
    export: Facts
    latency: Facts | None
    bench: Bench | None
    quantizing: Quantizing | None
    evaluations: tuple[Evaluation, ...]
    lineage: tuple[Facts, ...]
    rest: Facts

    def achieved(self, quantity: str) -> Pair | None:
        """The dense and the small network's channels, params or macs."""
        change = self.pruning or self.factorizing
        return dict(change.achieved).get(quantity) if change else None
