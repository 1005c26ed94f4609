"""How good a network is on one split of some data: by its task's score, or by its agreement with the dense network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.errors import DataError
from compressor.results.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality(Record, ABC):
    """What was read on the `total` samples of `split`: an `Accuracy` or an `Agreement` in counts, or a `Score`."""

    DERIVED: ClassVar[tuple[str, ...]] = ("low", "high")

    total: int
    split: str = ""

    @classmethod
    def kind_of(cls, plain: Mapping[str, Any]) -> type[Record]:
        """A score has a metric; an agreement counts `agreeing` samples, an accuracy `correct` ones."""
        if cls is not Quality:
            return cls
        if plain.get("metric") is not None:
            return Score
        return Accuracy if plain.get("agreeing") is None else Agreement

    @property
    @abstractmethod
    def value(self) -> float:
        """The reading: a share, or a number in the score's own unit."""

    @property
    @abstractmethod
    def interval(self) -> tuple[float, float]:
        """The reading's 95 % interval; it speaks of samples drawn anew, not of training anew."""

    @property
    def named(self) -> str:
        """What was read, in a table's words."""
        return "accuracy"

    @property
    def is_share(self) -> bool:
        """Whether the reading is a share, to be written in percent."""
        return True

    @property
    def is_better_high(self) -> bool:
        """Whether a higher reading is a better one."""
        return True

    @property
    def against_dense(self) -> bool:
        """Whether the dense network said what is right, and no label."""
        return False

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.interval[1]

    def lost_against(self, dense: Quality) -> float:
        """Return what this reading is worse than `dense`: percentage points of a share, else percent of `dense`."""
        if self.is_share:
            return 100 * (dense.value - self.value)
        change = 100 * (dense.value - self.value) / abs(dense.value) if dense.value else 0.0
        return change if self.is_better_high else -change


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted(Quality, ABC):
    """So many of `total` samples."""

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.total or not self.total:
            raise DataError(f"{self.count} out of {self.total} images is no share", hint="measure it again")

    @property
    @abstractmethod
    def count(self) -> int:
        """The samples that were answered as wanted."""

    @property
    def share(self) -> float:
        """The count over the total."""
        return self.count / self.total

    @property
    def value(self) -> float:
        """The share."""
        return self.share

    @property
    def interval(self) -> tuple[float, float]:
        """The share's 95 % interval (Wilson 1927)."""
        from scipy.stats import binomtest  # 0.7 seconds

        bounds = binomtest(self.count, self.total).proportion_ci(method="wilson")
        return float(bounds.low), float(bounds.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy(Counted):
    """Top-1 accuracy as two integers, and the split that it was counted on."""

    correct: int

    @property
    def count(self) -> int:
        """The samples whose label has the highest score."""
        return self.correct


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement(Counted):
    """How closely a network follows the dense one on samples without labels; it says nothing about being right.

    `agreeing`: samples with the same top-1 class. `relative_error`: ||scores - dense scores|| / ||dense scores||, over
    all samples together.
    """

    agreeing: int
    relative_error: float | None = None

    @property
    def count(self) -> int:
        """The samples of which both networks give the same class."""
        return self.agreeing

    @property
    def named(self) -> str:
        """What was read, in a table's words."""
        return "agreement"

    @property
    def against_dense(self) -> bool:
        """Always: labels are not read."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Score(Quality):
    """A task's score, called `metric`, a share or in `unit`; `bounds` are its 95 % interval, by bootstrap over samples.

    `dense`: the dense network's outputs were the targets.
    """

    metric: str
    score: float
    bounds: tuple[float, float]
    unit: str = ""
    percent: bool = True
    higher_is_better: bool = True
    dense: bool = False
    relative_error: float | None = None

    @property
    def value(self) -> float:
        """The score."""
        return self.score

    @property
    def interval(self) -> tuple[float, float]:
        """The bounds."""
        return self.bounds

    @property
    def named(self) -> str:
        """The metric."""
        return self.metric

    @property
    def is_share(self) -> bool:
        """Whether the score is a share."""
        return self.percent

    @property
    def is_better_high(self) -> bool:
        """Whether a higher score is a better one."""
        return self.higher_is_better

    @property
    def against_dense(self) -> bool:
        """Whether the dense network's outputs were the targets."""
        return self.dense
