"""Pruning to a measured speed, on a clock that is made up: what it measures hangs on the weights' sizes alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import compressor.measuring.runtimes
import compressor.pruning.speed.planner
import compressor.pruning.speed.search
from compressor.errors import OutOfReach, PlanError
from compressor.jobs.requests import PruneOptions, goal_from, milliseconds, request_from
from compressor.measuring.machine import Conditions
from compressor.measuring.tables.measured import target_of
from compressor.measuring.tables.networks import Networks
from compressor.measuring.tables.skeletons import SHAPE
from compressor.measuring.tables.table import LatencyTable, Whole
from compressor.measuring.turns import Measurement
from compressor.pruning.request import Request
from compressor.pruning.speed.planner import Cache, Goal
from compressor.pruning.speed.search import prune_to_speed
from compressor.surgery.plan import LatencyBudget, Scope
from tests.pruning.test_masking import data
from tests.support.topologies import alive, checkpoint_of

BASE_NS = 2_000


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 128, 3), nn.Conv2d(128, 128, 3), nn.Conv2d(128, 96, 3)
        self.fc = nn.Linear(96, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c(self.b(self.a(x).relu()).relu()).relu()
        return self.fc(x.mean((2, 3)))


def weights_in(file: Path) -> float:
    """How many numbers the weights of an ONNX file hold, or of its skeleton."""
    proto = onnx.load(str(file))
    total = 0.0
    for one in proto.graph.initializer:
        if one.name.endswith(SHAPE) and not one.name.startswith("flat"):
            total += float(np.prod(onnx.numpy_helper.to_array(one)))
        elif one.data_type == 1:
            total += float(np.prod(list(one.dims)))
    return total


class Clock:
    """Times a file by its size; `scale` is what that is worth, `reads` how often it was read."""

    def __init__(self, cost: Callable[[float], float] = lambda w: BASE_NS + w) -> None:
        self.cost, self.reads = cost, 0

    def __call__(self, dense: Path, small: Path, *_: Any, batch: int, **__: Any) -> tuple[Measurement, Measurement]:
        self.reads += 1
        times = [round(self.cost(weights_in(f))) for f in (dense, small)]
        first, second = (
            Measurement(name=name, batch_size=batch, samples_ns=((t,),) * 8)
            for name, t in zip(("dense", "small"), times, strict=True)
        )
        return first, second


def table_of(networks: Networks, target: Any) -> LatencyTable:
    """A table that is right by this clock: an operator takes as long as its weight is large."""
    samples = {}
    for key, layer in zip(networks.keys, networks.layers, strict=True):
        shape = networks.sizes.shapes[layer.tensor]
        kernel = float(np.prod(shape[2:]))
        points = [(r, w) for r in (8.0, 32.0, 64.0, 128.0) for w in (8.0, 32.0, 64.0, 128.0)]
        samples[key] = tuple((r, w, r * w * kernel + BASE_NS / len(networks.keys)) for r, w in points)
    wholes = {networks.signature: Whole(factor=1.0, starts=1.0)}
    return LatencyTable(target=target, samples=samples, alignments=((8, 1.0),), wholes=wholes)


def clocked(monkeypatch: pytest.MonkeyPatch, made: Clock) -> None:
    """That clock for plans and for files."""
    monkeypatch.setattr(compressor.pruning.speed.planner, "timed_in_turns", made)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    clocked(monkeypatch, made)
    monkeypatch.setattr(
        compressor.pruning.speed.planner, "table_for", lambda networks, target, **_: table_of(networks, target)
    )
    return made


def asked(speedup: float | None = None, *, has_data: bool = False, **options: Any) -> tuple[Request, Goal]:
    request = request_from(PruneOptions(speedup=speedup or 2.0, **options), has_data=has_data)
    assert isinstance(request, Request)
    return request, Goal(budget=LatencyBudget(speedup=speedup or 2.0), threads=1)


def net() -> Any:
    return checkpoint_of(alive(Net()))


@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0])
def test_what_is_asked_for_is_what_the_clock_says(speedup: float, clock: Clock) -> None:
    request, goal = asked(speedup)
    fast = prune_to_speed(net(), request, goal)
    assert fast.met
    assert fast.measured is not None
    assert fast.measured.ratio == pytest.approx(speedup, rel=0.05)
    assert fast.error < 0.02  # the table is right here
    assert len(fast.trials) <= 2
    assert clock.reads == len(fast.trials) + 1  # plans without their weights, and the files that came out


@pytest.mark.parametrize("power", [0.8, 1.1])
def test_a_table_that_is_wrong_is_corrected_on_the_clock(
    power: float, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table says that time falls with the weights; on this clock it falls more slowly, or faster."""
    clocked(monkeypatch, Clock(lambda weights: BASE_NS + weights**power))
    request, goal = asked(2.5)
    fast = prune_to_speed(net(), request, goal)
    assert fast.met
    assert fast.error > 0.05
    assert len(fast.trials) > 1
    aims = [t.aim for t in fast.trials]
    assert aims[1] > aims[0] if fast.trials[0].measured.ratio < 2.5 else aims[1] < aims[0]  # type: ignore[union-attr]
    del clock


def test_widths_are_multiples_of_what_the_table_says(clock: Clock) -> None:
    request, goal = asked(2.0)
    fast = prune_to_speed(net(), request, goal)
    assert all(layer.outputs % 8 == 0 for layer in fast.pruned.small_layers if layer.layer != "fc")
    del clock


def test_a_latency_is_a_speed_up_over_what_the_dense_network_takes(clock: Clock) -> None:
    request, _ = asked()
    goal = Goal(budget=LatencyBudget(latency_ms=0.12), threads=1)
    fast = prune_to_speed(net(), request, goal)
    assert fast.small is not None
    assert fast.small.median_ms == pytest.approx(0.12, rel=0.05)
    with pytest.raises(PlanError, match="which is within 9 ms"):
        prune_to_speed(net(), request, Goal(budget=LatencyBudget(latency_ms=9.0), threads=1))
    del clock


def test_a_speed_out_of_reach_names_the_best_and_what_holds_it(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    slow = Clock(lambda weights: 150_000 + weights)  # most of the time is not the weights'
    clocked(monkeypatch, slow)
    request, goal = asked(4.0)
    with pytest.raises(PlanError, match=r"4\.00 times the speed cannot be reached .* ran [12]\.\d+ times as fast") as e:
        prune_to_speed(net(), request, goal)
    assert "starting all operators" in str(e.value.hint)
    del clock


class Torn(Clock):
    """Times a graph without weights as ever, and files by another rule."""

    def __init__(self, files: Callable[[float], float]) -> None:
        super().__init__()
        self.graphs, self.files = self.cost, files

    def __call__(self, dense: Path, small: Path, *_: Any, batch: int, **__: Any) -> tuple[Measurement, Measurement]:
        held = onnx.load(str(dense)).graph.initializer
        real = any(i.data_type == onnx.TensorProto.FLOAT for i in held)
        self.cost = self.files if real else self.graphs
        return super().__call__(dense, small, batch=batch)


def test_a_network_that_measures_slower_is_not_given_out(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    clocked(monkeypatch, Torn(lambda weights: 10_000 + 1e9 / weights))
    request, goal = asked(1.5)
    with pytest.raises(OutOfReach, match=r"measured 0\.\d+ times as fast as the dense one: that is kept"):
        prune_to_speed(net(), request, goal)
    del clock


def test_a_busy_machine_is_said_to_be_one(clock: Clock) -> None:
    request, goal = asked(2.0)
    seen = iter([0.0, 1.5])  # idle before, and busy while it was timed

    def look() -> Conditions:
        return Conditions(cores=2, busy_cores=next(seen), load_average=0.1, governor=None)

    fast = prune_to_speed(net(), request, goal, look=look)
    assert fast.result.to_json()["caveats"] == ["other processes took 1.5 of 2 cores while nothing was timed"]
    del clock


def test_before_a_speed_is_refused_it_is_measured_once_more(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """A busy moment: the first look at the fastest widths is far too slow."""
    looks: list[float] = []

    class Busy(Clock):
        def __call__(self, *arguments: Any, batch: int, **options: Any) -> tuple[Measurement, Measurement]:
            dense, small = super().__call__(*arguments, batch=batch, **options)
            looks.append(1.0)
            if len(looks) == 1:
                return dense, dense
            return dense, small

    clocked(monkeypatch, Busy())
    request, _ = asked(24.0)  # further than the table predicts of any widths, and not further than the clock says
    goal = Goal(budget=LatencyBudget(speedup=24.0), threads=1, tolerance=0.9)
    fast = prune_to_speed(net(), request, goal)
    assert len(looks) == 3  # twice the plan, once the files
    assert fast.measured is not None
    assert fast.measured.ratio > 5
    del clock


def test_what_is_known_is_not_measured_again(clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    request, goal = asked(2.0)
    cache = Cache(folder=tmp_path)
    prune_to_speed(net(), request, goal, cache=cache)
    networks = cache.networks

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the table was measured twice")

    monkeypatch.setattr(compressor.pruning.speed.planner, "table_for", never)
    prune_to_speed(net(), request, goal, cache=cache)
    assert cache.networks is networks
    del clock


def test_a_table_from_another_machine_predicts_and_measures_nothing(clock: Clock) -> None:
    checkpoint = net()
    request, goal = asked(2.0)
    first = prune_to_speed(checkpoint, request, goal)
    elsewhere = table_elsewhere(first.table)
    clock.reads = 0
    fast = prune_to_speed(checkpoint, request, Goal(budget=goal.budget, threads=1, table=elsewhere))
    assert clock.reads == 0
    assert fast.measured is None
    assert not fast.met
    assert fast.trials[0].predicted == pytest.approx(2.0, rel=0.05)
    assert fast.result.to_json()["hardware"] == "a phone"


def table_elsewhere(table: LatencyTable) -> LatencyTable:
    import dataclasses

    return dataclasses.replace(table, target=dataclasses.replace(table.target, hardware="a phone"))


def test_a_table_of_another_network_is_refused(clock: Clock) -> None:
    other = LatencyTable(
        target=target_of(compressor.measuring.runtimes.load("onnxruntime-cpu"), batch=1, threads=1), samples={},
        alignments=(), wholes={},
    )  # fmt: skip
    request, goal = asked(2.0)
    with pytest.raises(PlanError, match="lacks some operators"):
        prune_to_speed(net(), request, Goal(budget=goal.budget, threads=1, table=other))
    del clock


def test_uniform_pruning_reaches_a_speed_by_its_ratio(clock: Clock) -> None:
    request, goal = asked(2.0, scope="uniform", align="1")
    fast = prune_to_speed(net(), request, goal)
    assert fast.met
    shares = {
        layer.layer: small.outputs / layer.outputs
        for layer, small in zip(fast.pruned.dense_layers, fast.pruned.small_layers, strict=True)
        if layer.layer != "fc"
    }
    assert max(shares.values()) - min(shares.values()) < 0.05
    del clock


@pytest.mark.parametrize(
    ("text", "ms"), [("4ms", 4.0), ("800us", 0.8), ("0.004s", 4.0), (" 1.5 ms ", 1.5), ("12µs", 0.012)]
)
def test_latencies_have_units(text: str, ms: float) -> None:
    assert milliseconds(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["4", "ms", "-4ms", "4 minutes", ""])
def test_a_latency_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="a number with its unit") as caught:
        milliseconds(text)
    assert "4ms" in str(caught.value.hint)


def test_only_a_budget_of_latency_has_a_goal() -> None:
    options: dict[str, Any] = {
        "runtime": "onnxruntime-cpu", "batch": 1, "threads": None, "tolerance": 0.05, "table": None,
    }  # fmt: skip
    assert goal_from(request_from(PruneOptions(ratio=0.5)), **options) is None
    found = goal_from(request_from(PruneOptions(latency="4ms")), **options)
    assert found is not None
    assert found.budget == LatencyBudget(latency_ms=4.0)


def test_without_images_latency_is_shared_by_all_groups_scores_and_with_them_by_measurement() -> None:
    assert request_from(PruneOptions(speedup=2)).scope is Scope.GLOBAL  # type: ignore[union-attr]
    assert request_from(PruneOptions(speedup=2), has_data=True).scope is Scope.MEASURED  # type: ignore[union-attr]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("with_data", [False, True])
def test_the_librarys_request_gives_the_commands_network(with_data: bool) -> None:
    made = net()
    images = data(64) if with_data else None
    said, goal = asked(2.0, has_data=with_data)
    by_command = prune_to_speed(made, said, goal, data=images).pruned
    by_library = prune_to_speed(made, Request(budget=LatencyBudget(speedup=2.0)), goal, data=images).pruned
    assert by_library.request == by_command.request
    assert by_library.levels[0].plan == by_command.levels[0].plan


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LatencyBudget(), "a speed-up or a latency"),
        (lambda: LatencyBudget(speedup=1.0), "more than 1"),
        (lambda: LatencyBudget(latency_ms=0), "must be positive"),
        (lambda: Goal(budget=LatencyBudget(speedup=2), tolerance=0), "between 0 and 1"),
        (lambda: Goal(budget=LatencyBudget(speedup=2), batch=0), "batch size must be"),
        (lambda: request_from(PruneOptions(speedup=2, levels=3)), "one level"),
        (lambda: request_from(PruneOptions(speedup=2, ratio=0.5)), "several budgets"),
    ],
)
def test_goals_that_make_no_sense_are_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        make()


def test_what_the_files_measure_otherwise_than_the_plan_is_made_up_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files with their weights take longer here than graphs without, the more so the larger they are."""
    clocked(monkeypatch, Torn(lambda weights: BASE_NS + weights**1.1))
    request, goal = asked(2.5)
    fast = prune_to_speed(net(), request, goal)
    assert fast.met
    del clock
