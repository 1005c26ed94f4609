"""Latency tables: prices that are found again, alignments by evidence, files that come back."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import ArtifactError
from compressor.measuring.tables.measured import Drawn, table_of
from compressor.measuring.tables.table import (
    ENOUGH,
    LatencyTable,
    Target,
    Whole,
    fit_prices,
    fit_whole,
    nonnegative,
    read_table,
    table_from_json,
    write_table,
)
from compressor.planning.widths import FEATURES, features

TARGET = Target(runtime="onnxruntime-cpu", batch=1, threads=2, hardware="a processor", version="1.0")


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_fit_is_the_best_of_all_that_are_not_negative(seed: int) -> None:
    """Karush, Kuhn and Tucker: no gradient where a price is positive, none downwards where it is zero."""
    draw = np.random.default_rng(seed)
    matrix, wanted = draw.uniform(0, 1, (12, 4)), draw.normal(0, 1, 12)
    x = nonnegative(matrix, wanted)
    gradient = matrix.T @ (matrix @ x - wanted)
    assert (x >= 0).all()
    assert np.abs(gradient[x > 1e-6]).max(initial=0) < 1e-3
    assert gradient[x <= 1e-6].min(initial=0) > -1e-3


@pytest.mark.parametrize("seed", range(3))
def test_prices_of_wide_layers_are_the_best_of_all_that_are_not_negative(seed: int) -> None:
    """At 512 channels the features are nearly collinear; against every choice of prices that are zero."""
    draw = np.random.default_rng(seed)
    reads, writes = draw.integers(1, 65, (2, 40)) * 8.0
    times = features(reads, writes) @ draw.uniform(0, 1, FEATURES) * draw.normal(1, 0.04, 40)
    relative, ones = features(reads, writes) / times[:, None], np.ones(40)
    best = np.inf
    for columns in map(list, itertools.product([False, True], repeat=FEATURES)):
        some = np.linalg.lstsq(relative[:, columns], ones, rcond=None)[0]
        if (some >= 0).all():
            best = min(best, float(np.linalg.norm(relative[:, columns] @ some - ones)))
    fitted = fit_prices(list(zip(reads.tolist(), writes.tolist(), times.tolist(), strict=True)))
    assert np.linalg.norm(relative @ fitted - ones) < 1.001 * best


def test_prices_predict_between_the_widths_that_were_measured() -> None:
    draw = np.random.default_rng(0)
    prices = np.array([500.0, 2.0, 3.0, 0.5, 1.0, 0.0])
    reads, writes = draw.integers(1, 20, 30) * 8.0, draw.integers(1, 20, 30) * 8.0
    times = features(reads, writes) @ prices * draw.normal(1, 0.01, 30)
    found = fit_prices(list(zip(reads.tolist(), writes.tolist(), times.tolist(), strict=True)))
    fresh = features(np.array([20.0, 100.0]), np.array([100.0, 30.0]))
    assert fresh @ found == pytest.approx(fresh @ prices, rel=0.05)


def test_whole_networks_follow_by_two_factors_and_are_predicted_without_themselves() -> None:
    starts, rest = [50.0, 50.0, 50.0, 40.0], [100.0, 200.0, 400.0, 700.0]
    whole = fit_whole(starts, rest, [1.5 * r + 0.4 * s for r, s in zip(rest, starts, strict=True)])
    assert whole.factor == pytest.approx(1.5, rel=1e-3)
    assert whole.starts == pytest.approx(0.4, rel=2e-2)
    assert whole.error < 1e-3
    spoilt = fit_whole(starts, rest, [170.0, 320.0, 620.0, 5000.0])
    assert spoilt.networks[-1][0] < 2000  # without itself nobody could know


def drawn(aligns: tuple[int, ...], seed: int = 0) -> Drawn:
    draw = np.random.default_rng(seed)
    multiples = np.array([a or 16 for a in aligns])[:, None]
    reads, writes = (multiples * (2 * draw.integers(1, 40 // np.minimum(multiples, 8), (len(aligns), 3)) + 1)
                     for _ in range(2))  # fmt: skip
    return Drawn(
        aligns=aligns, reads=reads.astype(float), writes=writes.astype(float), keys=("a", "b", "a"), signature="s"
    )


def taken_of(made: Drawn, misaligned: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Times of a runtime on which widths that are no multiples of 8 take longer by a factor."""
    prices = np.array([300.0, 1.0, 1.0, 0.4, 0.0, 0.0])
    off = np.where(np.array([a % 8 for a in made.aligns]) > 0, misaligned, 1.0)
    return (features(made.reads, made.writes) @ prices) * off[:, None]


ALIGNS = (0, *(8,) * 12, *(16,) * 6, *(1,) * 3, *(2,) * 3, *(4,) * 3)


@pytest.mark.parametrize(("misaligned", "align"), [(1.6, 8), (1.0, 1)])
def test_the_alignment_is_what_the_clock_says(misaligned: float, align: int) -> None:
    made = drawn(ALIGNS)
    taken = taken_of(made, misaligned)
    walls = {k: float(taken[k].sum()) * 1.1 - 500 for k in range(0, len(ALIGNS), 2)}
    table = table_of(made, TARGET, taken, walls)
    assert table.align == align
    found = dict(table.alignments)
    assert found[2] == pytest.approx(misaligned, rel=0.05)
    assert table.wholes["s"].error < 0.02
    assert table.wholes["s"].factor == pytest.approx(1.1, rel=0.02)
    points = sum(a == 0 or a >= align for a in ALIGNS)
    assert len(table.samples["a"]) == 2 * points  # two operators with one key share their samples


def some_table() -> LatencyTable:
    return LatencyTable(
        target=TARGET,
        samples={"a": tuple((float(k), 8.0, 100.0 + k) for k in range(1, ENOUGH + 1))},
        alignments=((1, 1.5), (8, 1.0)),
        wholes={"s": Whole(factor=1.1, starts=0.5, networks=((10.0, 11.0), (20.0, 19.0)))},
        environment={"cpu": "a processor"},
    )


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    table = some_table()
    write_table(tmp_path / "deep" / "t.json", table)
    assert read_table(tmp_path / "deep" / "t.json") == table
    assert table_from_json(json.loads(json.dumps(table.to_json()))) == table


def test_it_says_what_it_knows() -> None:
    table = some_table()
    assert table.knows(["a"])
    assert not table.knows(["a", "b"])
    assert table.describes(["a"], "s")
    assert not table.describes(["a"], "t")
    assert table.with_samples({"b": [(1.0, 1.0, 1.0)] * ENOUGH}).knows(["a", "b"])
    assert table.prices([]).shape == (0, FEATURES)


@pytest.mark.parametrize("broken", [{}, {"target": {}}, {"target": 3, "samples": {}}])
def test_what_is_no_table_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="no latency table") as caught:
        table_from_json(broken)
    assert "measure-table" in str(caught.value.hint)


def test_a_table_of_another_version_is_refused() -> None:
    with pytest.raises(ArtifactError, match="of schema 1, and this version reads 2"):
        table_from_json({**some_table().to_json(), "schema": 1})
