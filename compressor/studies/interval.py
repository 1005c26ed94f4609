"""Intervals of means, differences and correlations over a few replicates; all are scipy's.

The level is 95 % by default. With one replicate there is no interval: `None`.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with the interval that covers the true value in the share `level` of all repetitions.

    `n` is the number of replicates; `method` is the name of the formula.
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
    """Return the interval of the mean of independent replicates, by Student's t; `None` with fewer than two."""
    if len(values) < 2:
        return None
    from scipy.stats import ttest_1samp

    mean = statistics.fmean(values)
    low, high = _bounds(lambda: ttest_1samp(values, 0.0), mean, (values,), level=level)
    return Interval(estimate=mean, low=low, high=high, n=len(values), method="Student's t", level=level)


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], *, level: float = LEVEL
) -> Interval | None:
    """Return the interval of the mean of `first - second` over common seeds, by Student's t on the differences."""
    common = sorted(first.keys() & second.keys())
    interval = mean_interval([first[s] - second[s] for s in common], level=level)
    return None if interval is None else _with_method(interval, "paired t")


def difference(first: Sequence[float], second: Sequence[float], *, level: float = LEVEL) -> Interval | None:
    """Return the interval of `mean(first) - mean(second)` for independent replicates, by Welch's t.

    The variances may differ; `None` with fewer than two replicates of either.
    """
    if min(len(first), len(second)) < 2:
        return None
    from scipy.stats import ttest_ind

    estimate = statistics.fmean(first) - statistics.fmean(second)
    low, high = _bounds(lambda: ttest_ind(first, second, equal_var=False), estimate, (first, second), level=level)
    n = min(len(first), len(second))
    return Interval(estimate=estimate, low=low, high=high, n=n, method="Welch's t", level=level)


def correlation(x: Sequence[float], y: Sequence[float], *, level: float = LEVEL) -> Interval | None:
    """Return the interval of Pearson's correlation, by Fisher's transform.

    `None` with fewer than four pairs, or if all `x` or all `y` are equal.
    """
    from scipy.stats import pearsonr

    if len(x) != len(y):
        raise ValueError(f"{len(x)} values against {len(y)}")
    if len(x) < 4 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    pearson = pearsonr(x, y)
    bounds = pearson.confidence_interval(level)
    return Interval(
        estimate=float(pearson.statistic), low=float(bounds.low), high=float(bounds.high), n=len(x),
        method="Pearson, Fisher's transform", level=level,
    )  # fmt: skip


def pooled_deviation(*groups: Sequence[float]) -> float:
    """Return the standard deviation within groups of replicates; raises `ValueError` if no group has two."""
    squares = sum((len(g) - 1) * statistics.variance(g) for g in groups if len(g) > 1)
    freedom = sum(len(g) - 1 for g in groups if len(g) > 1)
    if not freedom:
        raise ValueError("no group of replicates has two")
    return math.sqrt(squares / freedom)


def _bounds(
    test: Callable[[], Any], estimate: float, groups: Sequence[Sequence[float]], *, level: float
) -> tuple[float, float]:
    """Return the interval of one of scipy's tests; if all values within each group are equal, the estimate alone."""
    if all(len(set(group)) == 1 for group in groups):
        return estimate, estimate  # scipy's variance of three times 0.1 is a rounding error, not 0
    with warnings.catch_warnings():
        # the variance of a group of almost equal values is a rounding error; next to another group's it has no effect
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        bounds = test().confidence_interval(level)
    return min(float(bounds.low), estimate), max(float(bounds.high), estimate)


def _with_method(interval: Interval, method: str) -> Interval:
    """Return the interval with another name of its method."""
    import dataclasses

    return dataclasses.replace(interval, method=method)
