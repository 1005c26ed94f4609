"""Training as it went: epoch by epoch, and event by event where channels left meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from compressor.results.records import Plain, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord(Record):
    """One epoch: the rate of its last iteration, its mean loss, and what was read on the tuning split.

    That is `tune_correct` of `tune_total` samples where answers are counted, else the score `tune_score`, called
    `metric`.
    """

    epoch: int
    rate: float
    train_loss: float
    tune_correct: int | None = None
    tune_total: int
    tune_score: float | None = None
    metric: str | None = None

    @property
    def tuned(self) -> float:
        """The reading: a share of the samples, or the score."""
        if self.tune_correct is not None:
            return self.tune_correct / self.tune_total
        return self.tune_score or 0.0

    @property
    def correct(self) -> int:
        """The correct answers, of a task that counts them; 0 of any other."""
        return self.tune_correct or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Record):
    """The channels that one event chose, by group root, and the correct answers on the tuning split around it."""

    epoch: int
    chosen: Mapping[str, tuple[int, ...]]
    before: int
    after: int
    total: int

    @classmethod
    def prepared(cls, plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without what follows from the counts."""
        return {key: value for key, value in plain.items() if key != "instability"}

    @property
    def instability(self) -> float | None:
        """The relative loss of accuracy; negative if the accuracy rose, `None` if it was 0 before."""
        return (self.before - self.after) / self.before if self.before else None

    @property
    def channels(self) -> int:
        """How many channels the event chose."""
        return sum(map(len, self.chosen.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrained(Record):
    """One run of training after shrinking; the rest of its entry is the step of the lineage."""

    SPARE: ClassVar = frozenset({"step", "epochs", "data", "images", "notes", "command"})

    step: str | None = None
    how: str = "retraining"
    epochs: int | None = None
    data: str | None = None
    images: int | None = None
    notes: tuple[str, ...] = ()
    command: str | None = None
    history: tuple[EpochRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WhileTraining(Record):
    """The training during which channels left, and the events at which they did; stability in per cent."""

    start: int | None = None
    end: int | None = None
    every: int | None = None
    regrow: bool = False
    epochs: int | None = None
    notes: tuple[str, ...] = ()
    mean_stability: float | None = None
    events: tuple[Event, ...] = ()
    history: tuple[EpochRecord, ...] = ()

    def finished(self, plain: dict[str, Any]) -> dict[str, Any]:
        """With each event's instability, for other readers."""
        events = zip(plain["events"], self.events, strict=True)
        return plain | {"events": [one | {"instability": event.instability} for one, event in events]}


@dataclass(frozen=True, slots=True, kw_only=True)
class LotteryRound(Record):
    """One round of the search for a lottery ticket: the weights left, and the answers on the tuning split."""

    round: int
    sparsity: float
    weights: int
    zeros: int
    train_loss: float
    tune_correct: int
    tune_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LotterySearch(Record):
    """A search for a winning ticket, round by round, and the weights that every round started from."""

    KEYS: ClassVar = {"history": "told"}

    rounds: int | None = None
    rate: float | None = None
    rates: Plain = field(default_factory=dict)
    scope: str | None = None
    rewound_to: str
    rewind_step: int | None = None
    data: str
    epochs: int
    history: tuple[LotteryRound, ...] = ()
    command: str | None = None
