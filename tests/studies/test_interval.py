"""Intervals against their definition: how often they cover what is true, and hand-worked cases."""

from __future__ import annotations

import random
import statistics

import pytest

from compressor.studies.interval import (
    Interval,
    correlation,
    difference,
    mean_interval,
    paired_difference,
    pooled_deviation,
)


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    assert found is not None
    assert found.estimate == 2.0
    assert found.high - 2 == pytest.approx(4.3027 * 1 / 3**0.5, rel=1e-4)  # t(0.975, 2) = 4.3027


def test_values_that_never_vary_have_an_interval_too() -> None:
    """The variances of the first two are rounding errors in scipy, which warns of all."""
    for found in (mean_interval([0.1] * 3), difference([0.1] * 3, [0.3] * 5)):
        assert found is not None
        assert found.low == found.estimate == found.high
    # Welch's freedom is that of the group that varies: t(0.975, 2) = 4.3027
    low, high = ends(difference([0.1] * 3, [1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((-1.9 - 4.3027 / 3**0.5, -1.9 + 4.3027 / 3**0.5), rel=1e-4)
    assert ends(mean_interval([0.3, 0.1 + 0.2])) == pytest.approx((0.3, 0.3))


def ends(found: Interval | None) -> tuple[float, float]:
    assert found is not None
    return found.low, found.high


def test_an_interval_covers_what_is_true_as_often_as_it_says() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(2000):
        a = [draw.gauss(1, 1) for _ in range(4)]
        b = [draw.gauss(0, 3) for _ in range(7)]
        found = difference(a, b, level=0.9)
        assert found is not None
        covered += found.low <= 1 <= found.high
    assert 0.88 < covered / 2000 < 0.92


def test_pairs_are_formed_by_seed() -> None:
    found = paired_difference({0: 5.0, 1: 7.0, 3: 100.0}, {1: 6.0, 0: 4.0, 2: -9.0})
    assert found is not None
    assert (found.estimate, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 2)


def test_a_correlation_that_is_there_is_found_and_one_that_is_not_is_not() -> None:
    draw = random.Random(1)
    x = [draw.gauss(0, 1) for _ in range(60)]
    tied = correlation(x, [v + draw.gauss(0, 0.5) for v in x])
    loose = correlation(x, [draw.gauss(0, 1) for _ in x])
    assert tied is not None
    assert loose is not None
    assert tied.low > 0.7
    assert loose.low < 0 < loose.high


@pytest.mark.parametrize(
    "found",
    [
        mean_interval([3.0]),
        difference([1.0], [2.0, 3.0]),
        correlation([1, 2, 3], [3, 2, 1]),
        correlation([1, 1, 1, 1], [1, 2, 3, 4]),
        paired_difference({0: 1.0}, {0: 2.0}),
    ],
)
def test_too_few_replicates_have_no_interval(found: Interval | None) -> None:
    assert found is None


def test_the_pooled_deviation_is_that_within_the_groups() -> None:
    a, b = [1.0, 3.0], [10.0, 14.0, 12.0]
    expected = ((statistics.variance(a) + 2 * statistics.variance(b)) / 3) ** 0.5
    assert pooled_deviation(a, b, [7.0]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no group"):
        pooled_deviation([1.0], [2.0])
