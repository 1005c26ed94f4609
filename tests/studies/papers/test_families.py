"""The study of five families: its cells, its page on made-up numbers, and a small run of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compressor.data.sources import SAMPLE_FILE, load_data
from compressor.studies.papers import families
from compressor.studies.runner import in_order, run_study
from compressor.studies.study import Cell, Scale, StudyResults, Verdict


def results(speeds: Mapping[str, float], accuracies: Mapping[str, float] | None = None) -> StudyResults:
    """Every cell of the small scale; latencies scatter by a percent around what is asked for, accuracies by a tenth."""
    rows: dict[Cell, dict[str, Any]] = {}
    for cell in families.cells(Scale.SMALL):
        if cell.arm == families.CLOCK:
            arms = [*dict.fromkeys(c.arm for c in rows)]
            medians = {
                a: [1e6 / speeds.get(a, 1.0) * (1 + 0.01 * ((7 * i + 3 * len(a)) % 5 - 2)) for i in range(20)]
                for a in arms
            }
            times = {f"{a} times": speeds.get(a, 1.0) for a in arms}
            rows[cell] = {"block_medians_ns": medians, **times}
        else:
            accuracy = (accuracies or {}).get(cell.arm, 93.0) + 0.1 * (cell.seed - 1)
            rows[cell] = {"accuracy": accuracy, "bytes": 1000, "macs": 500, "params": 10}
    return StudyResults(rows=rows)


def verdicts(found: StudyResults) -> dict[str, Verdict]:
    return {claim.text.split()[0]: claim.verdict for claim in families.verdict(found)}


def test_every_arm_starts_from_one_dense_network_and_the_clock_waits_for_all() -> None:
    for scale in Scale:
        cells = families.cells(scale)
        (dense,) = [c for c in cells if c.arm == families.DENSE]
        (clock,) = [c for c in cells if c.arm == families.CLOCK]
        assert {c.arm for c in clock.needs} == {c.arm for c in cells} - {families.CLOCK}
        assert all(c.seed == 0 and c.values["files"] for c in clock.needs)
        for cell in cells:
            assert cell in (dense, clock) or in_order([cell])[0] == dense
        keys = [c.key for c in cells]
        assert len(keys) == len(set(keys))


def test_arms_of_a_kind_differ_in_one_value() -> None:
    cells = [c for c in families.cells(Scale.SMALL) if c.seed == 1]
    plain, taught = ({**c.values} for arm in (families.STRUCTURED, families.DISTILLED) for c in cells if c.arm == arm)
    assert taught.pop("temperature") == 4.0
    assert plain | {"files": True} == taught
    epochs = {c.values["epochs"] for c in cells}
    assert len(epochs) == 1


def test_masks_that_are_not_faster_and_channels_that_are() -> None:
    speeds = {families.STRUCTURED: 1.4}
    assert verdicts(results(speeds))["Masked"] is Verdict.REPRODUCED
    assert verdicts(results(speeds | {"masked 0.9": 1.2}))["Masked"] is Verdict.CONTRADICTED
    assert verdicts(results({families.STRUCTURED: 1.0}))["Masked"] is Verdict.CONTRADICTED
    assert verdicts(results({families.STRUCTURED: 1.05}))["Masked"] is Verdict.INCONCLUSIVE


def test_a_teacher_is_judged_seed_by_seed() -> None:
    taught = dict.fromkeys((families.DISTILLED,), 93.2)
    assert verdicts(results({}, taught))["At"] is Verdict.REPRODUCED
    assert verdicts(results({}, {families.DISTILLED: 92.9}))["At"] is Verdict.CONTRADICTED


@pytest.mark.parametrize(
    ("arm", "claim", "speed", "accuracy", "expected"),
    [
        (families.SEPARABLE, "Depthwise-separable", 3.0, 92.0, Verdict.REPRODUCED),
        (families.SEPARABLE, "Depthwise-separable", 3.0, 90.0, Verdict.CONTRADICTED),
        (families.SEPARABLE, "Depthwise-separable", 0.9, 92.0, Verdict.CONTRADICTED),
        (families.ALL_THREE, "Channels,", 3.0, 92.0, Verdict.REPRODUCED),
        (families.ALL_THREE, "Channels,", 0.8, 92.0, Verdict.CONTRADICTED),
    ],
)
def test_what_is_promised_is_both_accuracy_and_the_clock(
    arm: str, claim: str, speed: float, accuracy: float, expected: Verdict
) -> None:
    assert verdicts(results({arm: speed}, {arm: accuracy}))[claim] is expected


def test_what_is_combined_is_compared_with_its_parts_and_not_with_dense() -> None:
    parts = {families.DISTILLED: 1.5, families.INT8: 2.0}
    assert verdicts(results(parts | {families.ALL_THREE: 3.0}))["Channels,"] is Verdict.REPRODUCED
    assert verdicts(results(parts | {families.ALL_THREE: 1.7}))["Channels,"] is Verdict.CONTRADICTED


def test_the_interval_of_a_speed_is_the_sign_tests_over_the_rounds() -> None:
    found = results({families.INT8: 2.0})
    findings = [f for claim in families.verdict(found) for f in claim.findings]
    (interval,) = (f.interval for f in findings if f.quantity == "int8, latency of dense over its own")
    ((_, row),) = found.where(families.CLOCK)
    medians = row["block_medians_ns"]
    ratios = sorted(d / i for d, i in zip(medians[families.DENSE], medians[families.INT8], strict=True))
    assert interval is not None
    # of 20 rounds the 6th and the 15th bound the median's interval: 2 P(Binomial(20, 1/2) < 6) = 0.041
    assert (interval.low, interval.high) == pytest.approx((ratios[5], ratios[14]), rel=1e-5)
    assert (interval.n, interval.level) == (20, 0.95)


def test_every_arm_has_its_place_on_every_picture() -> None:
    found = results({families.STRUCTURED: 1.4})
    arms = set(found.arms()) - {families.CLOCK}
    for plot in families.plots(found):
        assert {c.name for c in plot.curves} == arms
    speed = {c.name: c.points[0].x for c in families.plots(found)[0].curves}
    assert speed[families.STRUCTURED] == 1.4


def check(found: StudyResults) -> None:
    """What every run must say."""
    for cell, row in found:
        if cell.arm == families.CLOCK:
            assert {len(v) for v in row["block_medians_ns"].values()} == {cell.values["rounds"]}
            assert set(row["block_medians_ns"]) == {c.arm for c in cell.needs} | {families.AGAIN}
        else:
            assert 0 <= row["accuracy"] <= 100
            assert row["params"] > 0
            assert row["macs"] > 0
            assert ("bytes" in row) or not cell.values["files"]
    by_arm = {arm: next(iter(found.where(arm)))[1] for arm in found.arms()}
    dense = by_arm[families.DENSE]
    assert by_arm["masked 0.9"]["macs"] == dense["macs"]
    assert by_arm["masked 0.9"]["nonzero"] < 0.2 * dense["params"]
    assert by_arm["masked 0.9"]["stored"] < dense["bytes"]
    small = by_arm.get(families.STRUCTURED) or by_arm[families.SEPARABLE]
    assert small["macs"] <= 0.5 * dense["macs"]
    assert by_arm[families.INT8]["bytes"] < dense["bytes"]
    assert len(families.verdict(found)) == 8


def sample(samples: Path) -> Any:
    return lambda: load_data(str(samples / SAMPLE_FILE))


def test_a_small_run_says_all_of_every_arm(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = (families.DENSE, "masked 0.9", families.INT8, families.SEPARABLE, "early exit 90")
    *every, clock = families.cells(Scale.SMOKE)
    few = [c for c in every if c.arm in arms and c.seed == 0]
    monkeypatch.setattr(families, "cells", lambda _: [*few, dataclasses.replace(clock, needs=tuple(few))])
    check(run_study("families", Scale.SMOKE, sample(samples), tmp_path))


@pytest.mark.slow
def test_the_smoke_scale_runs(samples: Path, tmp_path: Path) -> None:
    check(run_study("families", Scale.SMOKE, sample(samples), tmp_path))
