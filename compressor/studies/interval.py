"""Intervals of means, differences and correlations over a few replicates; the formulas are scipy's.

Everything here is at 95 % unless another level is asked for. With one replicate there is no interval: `None`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with the interval that covers the true value in `level` of all repetitions.

    `n` replicates were seen; `method` says by what formula.
    """

    estimate: float
    low: float
    high: float
    n: int
    method: str
    level: float = LEVEL

    def __post_init__(self) -> None:
        if not self.low <= self.estimate <= self.high:
            raise ValueError(f"an estimate of {self.estimate} outside its interval {self.low} to {self.high}")

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "estimate": self.estimate, "low": self.low, "high": self.high, "n": self.n, "method": self.method,
            "level": self.level,
        }  # fmt: skip


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> Interval | None:
    """Of the mean of independent replicates, by Student's t; `None` with fewer than two."""
    if len(values) < 2:
        return None
    mean, half = statistics.fmean(values), _quantile(len(values) - 1, level) * _error(values)
    return Interval(estimate=mean, low=mean - half, high=mean + half, n=len(values), method="Student's t", level=level)


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], *, level: float = LEVEL
) -> Interval | None:
    """Of the mean of `first - second` over the seeds that both have, by Student's t on the differences."""
    common = sorted(first.keys() & second.keys())
    found = mean_interval([first[s] - second[s] for s in common], level=level)
    return None if found is None else _named(found, "paired t")


def difference(first: Sequence[float], second: Sequence[float], *, level: float = LEVEL) -> Interval | None:
    """Of `mean(first) - mean(second)`, of independent replicates with unequal variances, by Welch's t."""
    if min(len(first), len(second)) < 2:
        return None
    estimate = statistics.fmean(first) - statistics.fmean(second)
    a, b = _error(first) ** 2, _error(second) ** 2
    half = 0.0
    if a + b > 0:
        freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
        half = _quantile(freedom, level) * math.sqrt(a + b)
    return Interval(
        estimate=estimate, low=estimate - half, high=estimate + half, n=min(len(first), len(second)),
        method="Welch's t", level=level,
    )  # fmt: skip


def correlation(x: Sequence[float], y: Sequence[float], *, level: float = LEVEL) -> Interval | None:
    """Of Pearson's correlation, by Fisher's transform; `None` with fewer than four pairs, or where one never varies."""
    from scipy.stats import pearsonr

    if len(x) != len(y):
        raise ValueError(f"{len(x)} values against {len(y)}")
    if len(x) < 4 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    found = pearsonr(x, y)
    bounds = found.confidence_interval(level)
    return Interval(
        estimate=float(found.statistic), low=float(bounds.low), high=float(bounds.high), n=len(x),
        method="Pearson, Fisher's transform", level=level,
    )  # fmt: skip


def pooled_deviation(*groups: Sequence[float]) -> float:
    """The standard deviation within groups of replicates; refused (`ValueError`) where none has two."""
    squares = sum((len(g) - 1) * statistics.variance(g) for g in groups if len(g) > 1)
    freedom = sum(len(g) - 1 for g in groups if len(g) > 1)
    if not freedom:
        raise ValueError("no group of replicates has two")
    return math.sqrt(squares / freedom)


def _quantile(freedom: float, level: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, freedom))


def _error(values: Sequence[float]) -> float:
    """The standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def _named(found: Interval, method: str) -> Interval:
    import dataclasses

    return dataclasses.replace(found, method=method)
