"""Aiming: whatever the clock makes of an aim, as long as it grows with it, what is wished is found."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.pruning.speed.aim import LEAST, Aim


@given(st.floats(1.2, 6), st.floats(0.5, 2), st.floats(0.6, 1.6))
@settings(max_examples=200, deadline=None)
def test_what_is_wished_is_heard_after_a_few_aims(wished: float, power: float, factor: float) -> None:
    """The clock says factor · aim ** power, where a table is off by both."""
    aim = Aim(target=wished)
    if factor * LEAST**power > wished:
        return  # the least aim is too fast already
    for _ in range(9):
        heard = factor * aim.at**power
        if abs(heard / wished - 1) < 0.02:
            break
        aim.update(heard)
    assert factor * aim.at**power == pytest.approx(wished, rel=0.05)


def test_where_there_is_no_plan_between_two_it_ends_between_them() -> None:
    aim = Aim(target=2.0)
    for _ in range(12):
        aim.update(1.5 if aim.at < 1.9 else 2.6)
    assert aim.at == pytest.approx(1.9, rel=0.05)


def test_an_aim_is_never_below_the_dense_network() -> None:
    aim = Aim(target=1.5)
    aim.update(40.0)
    assert aim.at == LEAST


def test_what_is_heard_otherwise_counts_for_all_aims() -> None:
    aim = Aim(target=2.0)
    aim.update(1.6)
    aim.update(2.0)
    at = aim.at = aim.pairs[-1][0]
    aim.correct(2.4, off=1.2)
    assert [ratio for _, ratio in aim.pairs] == pytest.approx([1.92, 2.4])
    assert aim.pairs[0][0] < aim.at < at
