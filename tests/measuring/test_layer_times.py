"""Where the time goes: every layer's, before and after, and what holds it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import compressor.measuring.layer_times
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.cli.result_tables import show_latency
from compressor.errors import RuntimeUnavailable
from compressor.measuring.ceilings import Ceiling, Ceilings, ceilings
from compressor.measuring.layer_times import why
from compressor.measuring.runtimes import NodeTime, load
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.report.speeds import latency_section, why_section
from compressor.results.artifact import Results
from compressor.surgery.plan import ChannelBudget
from tests.support.topologies import Residual, alive, checkpoint_of

PEAKS = Ceilings(macs_per_ns=10.0, bytes_per_ns=5.0, launch_ns=100.0)


@pytest.mark.parametrize(
    ("macs", "moved", "operators", "held", "least"),
    [
        (10_000, 100, 1, Ceiling.COMPUTE, 1000.0),
        (100, 10_000, 1, Ceiling.MEMORY, 2000.0),
        (100, 100, 3, Ceiling.LAUNCH, 300.0),
    ],
)
def test_what_takes_longest_at_the_least_holds_an_operator(
    macs: float, moved: float, operators: int, held: Ceiling, least: float
) -> None:
    assert PEAKS.over(macs=macs, moved=moved, operators=operators) == (held, pytest.approx(least))


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "torch-eager"])
def test_ceilings_are_measured_on_the_runtime(name: str) -> None:
    found = ceilings(load(name), threads=1)
    assert found.macs_per_ns > 0.5  # no processor of this century multiplies more slowly
    assert found.bytes_per_ns > 0.2
    assert 10 < found.launch_ns < 1e6


def pair() -> tuple[Checkpoint, Checkpoint]:
    dense = checkpoint_of(alive(Residual()))
    small = prune(dense, Request(budget=ChannelBudget(ratio=0.5), align=1)).checkpoint
    return dense, small


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "torch-eager"])
def test_every_layer_has_its_time_before_and_after(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressor.measuring.layer_times, "ceilings", lambda *_, **__: PEAKS)
    dense, small = pair()
    found = why(small, dense, load(name), batch=2, threads=1).to_json()
    weights = [n.removesuffix(".weight") for n, p in dense.module.named_parameters() if p.ndim > 1]
    assert sorted(row["layer"] for row in found["rows"]) == sorted(weights)
    for row in found["rows"]:
        assert row["dense"]["us"] > 0
        assert row["small"]["us"] > 0
        assert row["dense"]["macs"] >= row["small"]["macs"] > 0
        assert row["out"][0] >= row["out"][1] > 0
        assert row["dense"]["bytes"] > 0
    assert any(row["out"][0] > row["out"][1] for row in found["rows"])
    totals = [sum(row[which]["us"] for row in found["rows"]) for which in ("dense", "small")]
    assert found["total_us"] == pytest.approx(totals)


def test_an_operator_s_time_is_that_of_its_quickest_round_and_counts_with_its_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compressor.measuring.layer_times, "ceilings", lambda *_, **__: PEAKS)
    dense, small = pair()
    layer = next(n for n, p in dense.module.named_parameters() if p.ndim > 1)
    rounds = iter(range(1000))

    def profile(*_: Any, **__: Any) -> list[NodeTime]:
        slow = 1000 * (1 + next(rounds))
        return [
            NodeTime(name=layer.removesuffix(".weight"), kind="Conv", samples_ns=(slow,) * 4, bytes=8),
            NodeTime(name="nobody's", kind="Add", samples_ns=(500,) * 4, bytes=4),
        ]

    runtime = dataclasses.replace(load("torch-eager"), profile=profile)
    found = why(small, dense, runtime, batch=1, threads=1).to_json()
    row = next(r for r in found["rows"] if r["layer"] == layer.removesuffix(".weight"))
    assert {row["dense"]["us"], row["small"]["us"]} == {1.5, 2.5}  # rounds 1 and 2 were the first of each
    assert row["dense"]["operators"] == 2
    assert row["dense"]["bytes"] == 12


def test_a_runtime_without_a_profiler_is_refused() -> None:
    dense, small = pair()
    runtime = dataclasses.replace(load("torch-eager"), profile=None)
    with pytest.raises(RuntimeUnavailable, match="does not say what its operators take"):
        why(small, dense, runtime, batch=1, threads=1)


LATENCY = {
    "runtime": "onnxruntime-cpu", "batch": 1, "threads": 2, "wanted": 2.0, "tolerance": 0.05, "met": True,
    "speedup": {"ratio": 2.02, "low": 2.0, "high": 2.04}, "dense_ms": 2.0, "small_ms": 0.99, "align": 8,
    "alignments": [{"multiple": 8, "excess": 1.02}], "table_error": 0.03, "samples_ns": {},
    "trials": [{"aim": 2.03, "predicted": 2.05, "measured": None, "channels": 40}],
    "search": {"allowed": 1.0, "drop": 0.4, "tried": [{"speedup": 2.02, "drop": 0.4}]},
}  # fmt: skip


def test_the_report_says_how_the_budget_was_met_and_where_the_time_goes() -> None:
    side = {"us": 5.0, "operators": 1, "macs": 4, "bytes": 8, "intensity": 0.5, "ceiling": "memory", "of_ceiling": 0.7}
    reasons = {
        "runtime": "onnxruntime-cpu", "batch": 1, "threads": 2, "total_us": [5.0, 0.0],
        "ceilings": {"gmacs_per_s": 50.0, "gbytes_per_s": 20.0, "launch_us": 0.3},
        "rows": [{"layer": "body.0", "kind": "Conv2d", "in": [3, 3], "out": [8, 0], "dense": side, "small": None}],
    }  # fmt: skip
    findings = Results.from_json({"schema": 1, "latency": LATENCY, "bench": {"rows": [], "why": reasons}})
    latency, reason = latency_section(findings), why_section(findings)
    assert latency is not None
    assert reason is not None
    told = str(latency) + str(reason)
    assert all(word in told for word in ("2.00×", "2.02×", "0.40 lost", "body.0", "8 → 0", "gone", "memory", "70"))
    bare = Results.from_json({"schema": 1})
    assert latency_section(bare) is None
    assert why_section(bare) is None


def test_a_busy_machine_is_said_in_the_report_and_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    busy = {**LATENCY, "caveats": ["other processes took 1.5 of 2 cores while nothing was timed"]}
    assert "1.5 of 2 cores" in str(latency_section(Results.from_json({"schema": 1, "latency": busy})))
    show_latency(Results.from_json({"latency": busy}).latency)
    assert "caveat: other processes took 1.5 of 2 cores" in " ".join(capsys.readouterr().err.split())


def test_what_was_only_predicted_is_said_to_be() -> None:
    findings = Results.from_json({"schema": 1, "latency": {**LATENCY, "speedup": None}})
    assert "not measured here" in str(latency_section(findings))
