"""Numbers in words: three digits, never scientific."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.words import digits, percent


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0437, "0.0437"),
        (1.8421, "1.84"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.4, "1,234"),
        (0, "0"),
        (0.000110, "0.000110"),
    ],
)
def test_digits_are_three_and_never_scientific(value: float, said: str) -> None:
    assert digits(value) == said


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_digits_are_within_half_a_unit_of_the_last_one(value: float) -> None:
    assert float(digits(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


def test_percent_has_the_sign() -> None:
    assert percent(0.9218).split() == ["92.18", "%"]
