"""How good a network is on one split of some images: with labels its accuracy, without them its agreement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.errors import DataError
from compressor.results.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality(Record, ABC):
    """So many of `total` images, counted on `split`: an `Accuracy` or an `Agreement`."""

    DERIVED: ClassVar[tuple[str, ...]] = ("low", "high")

    total: int
    split: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.total or not self.total:
            raise DataError(f"{self.count} out of {self.total} images is no share", hint="measure it again")

    @classmethod
    def kind_of(cls, plain: Mapping[str, Any]) -> type[Record]:
        """An agreement counts `agreeing` images, an accuracy `correct` ones."""
        if cls is not Quality:
            return cls
        return Accuracy if plain.get("agreeing") is None else Agreement

    @property
    @abstractmethod
    def count(self) -> int:
        """The images that were classified as wanted."""

    @property
    def against_dense(self) -> bool:
        """Whether the dense network said what is right, and no label."""
        return isinstance(self, Agreement)

    @property
    def share(self) -> float:
        """The count over the total."""
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The share's 95 % interval (Wilson 1927); it speaks of images drawn anew, not of training anew."""
        from scipy.stats import binomtest  # 0.7 seconds

        bounds = binomtest(self.count, self.total).proportion_ci(method="wilson")
        return float(bounds.low), float(bounds.high)

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.interval[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy(Quality):
    """Top-1 accuracy as two integers, and the split that it was counted on."""

    correct: int

    @property
    def count(self) -> int:
        """The images whose label has the highest score."""
        return self.correct


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement(Quality):
    """How closely a network follows the dense one on images without labels; it says nothing about being right.

    `agreeing`: images with the same top-1 class. `relative_error`: ||scores - dense scores|| / ||dense scores||, over
    all images together.
    """

    agreeing: int
    relative_error: float | None = None

    @property
    def count(self) -> int:
        """The images of which both networks give the same class."""
        return self.agreeing
