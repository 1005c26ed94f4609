"""Where labels and ticks stand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compressor.report.drawing import spread, ticks


@given(st.lists(st.floats(min_value=0, max_value=100), max_size=6))
def test_labels_keep_their_order_and_distance(positions: list[float]) -> None:
    placed = spread(positions, gap=13, low=0, high=100)
    in_order = [at for _, at in sorted(zip(positions, placed, strict=True), key=lambda pair: pair[0])]
    assert all(
        after - before >= 13 - 1e-9 for before, after in zip(sorted(in_order), sorted(in_order)[1:], strict=False)
    )
    assert all(at <= 100 for at in placed)


@given(st.floats(min_value=0, max_value=0.99), st.floats(min_value=1e-3, max_value=1e4))
def test_covering_ticks_reach_beyond_both_ends(low: float, span: float) -> None:
    found = ticks(low, low + span, about=5, cover=True)
    assert found[0] <= low + 1e-6 * span
    assert found[-1] >= low + span - 1e-6 * span
    assert 3 <= len(found) <= 12
