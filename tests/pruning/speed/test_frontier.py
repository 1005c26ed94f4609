"""The curve and the search: on networks whose speed and loss are made up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import compressor.pruning.speed.frontier
from compressor.data.sources import load_data
from compressor.errors import DataError, OutOfReach, PlanError
from compressor.jobs.requests import PruneOptions, request_from
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request
from compressor.pruning.speed.frontier import Judge, arms_of, fastest_within, frontier
from compressor.pruning.speed.planner import Goal
from compressor.report.plots.frontiers import picture
from compressor.results.latency import MeetingLatency
from compressor.results.quality import Accuracy
from compressor.results.timing import Speedup, TimedRow
from compressor.surgery.plan import LatencyBudget, Scope
from tests.support.command_line import make_inputs
from tests.support.picture import Picture
from tests.support.topologies import alive, checkpoint_of, plain

GOAL = Goal(budget=LatencyBudget(speedup=2), threads=1)


def request() -> Request:
    made = request_from(PruneOptions(speedup=2), has_data=True)
    assert isinstance(made, Request)
    return made


class Pruner:
    """Reaches any speed up to `fastest` exactly; what it makes is a module that says its speed."""

    def __init__(self, *, fastest: float = 8.0) -> None:
        self.fastest, self.asked = fastest, list[tuple[str, float]]()

    def __call__(self, _: Any, request: Request, goal: Goal, **__: Any) -> Any:
        asked = goal.budget.speedup
        assert asked is not None
        self.asked.append((str(request.scope), asked))
        if asked > self.fastest:
            raise OutOfReach(f"{asked} cannot be reached", hint="less")
        measured = Speedup(ratio=asked, low=asked * 0.99, high=asked * 1.01)
        small = SimpleNamespace(checkpoint=SimpleNamespace(module=asked), small_cost=SimpleNamespace(params=9, macs=8))
        row = TimedRow(runtime="onnxruntime-cpu", batch=1, candidate="dense", median_ms=2.0)
        fast = dataclasses.replace(row, candidate="small", median_ms=2.0 / asked, speedup=measured)
        met = MeetingLatency(
            runtime=row.runtime, batch=1, threads=1, wanted=asked, met=True, table_error=0.01, rows=(row, fast)
        )
        return SimpleNamespace(pruned=small, measured=measured, result=met)


class FakeJudge:
    """A network loses five points for each time that it is faster."""

    split, labelled = "tune", True

    def __init__(self, *_: Any) -> None:
        self.dense = self(1.0)

    def __call__(self, module: Any) -> Accuracy:
        speed = module if isinstance(module, float) else 1.0
        correct = round(1000 - 50 * (speed - 1))
        return Accuracy(correct=correct, total=1000, split="tune")


@pytest.fixture
def pruner(monkeypatch: pytest.MonkeyPatch) -> Pruner:
    made = Pruner()
    monkeypatch.setattr(compressor.pruning.speed.frontier, "prune_to_speed", made)
    monkeypatch.setattr(compressor.pruning.speed.frontier, "Judge", FakeJudge)
    return made


DATA: Any = SimpleNamespace(name="some images")


def test_finished_points_are_not_made_again(pruner: Pruner, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(alive(plain()))
    first = frontier(checkpoint, request(), GOAL, DATA, tmp_path, speedups=(1.5, 2.0))
    assert len(pruner.asked) == 6
    assert len(first.points) == 6
    next(iter(tmp_path.glob("uniform-2-*"))).unlink()
    again = frontier(checkpoint, request(), GOAL, DATA, tmp_path, speedups=(1.5, 2.0))
    assert pruner.asked[6:] == [("uniform", 2.0)]
    assert again.points == first.points
    frontier(checkpoint, dataclasses.replace(request(), seed=1), GOAL, DATA, tmp_path, speedups=(1.5,), baselines=False)
    assert len(pruner.asked) == 8  # another seed is another point


def test_the_librarys_request_makes_the_commands_points(pruner: Pruner, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(alive(plain()))
    said = frontier(checkpoint, request(), GOAL, DATA, tmp_path, speedups=(1.5,))
    by_library = Request(budget=LatencyBudget(speedup=2))
    again = frontier(checkpoint, by_library, GOAL, DATA, tmp_path, speedups=(1.5,))
    assert len(pruner.asked) == 3  # the points of the first are those of the second
    assert again.points == said.points


def test_a_speed_that_cannot_be_reached_is_a_point_with_its_reason(pruner: Pruner, tmp_path: Path) -> None:
    pruner.fastest = 1.7
    found = frontier(checkpoint_of(alive(plain())), request(), GOAL, DATA, tmp_path, speedups=(1.5, 2.0))
    refused = [p for p in found.points if p.refused]
    assert [p.asked for p in refused] == [2.0, 2.0, 2.0]
    assert list(Picture(picture(found)).lines) == [arm.name for arm in arms_of(request())]


def test_the_picture_has_a_line_for_every_arm_and_the_dense_network(pruner: Pruner, tmp_path: Path) -> None:
    found = frontier(checkpoint_of(alive(plain())), request(), GOAL, DATA, tmp_path, speedups=(1.5, 2.0, 4.0))
    drawn = Picture(picture(found))
    arms = list(drawn.lines)
    assert arms == list(dict.fromkeys(p.arm for p in found.points))
    assert [len(line) for line in drawn.lines.values()] == [3, 3, 3]
    assert len(drawn.titled) == 1 + 3 * 3
    x, y = drawn.scale("x"), drawn.scale("y")
    shift = abs(y(4) - y(0))  # a label's base line stands some 4 pixels below its tick
    points = sorted(found.points, key=lambda p: (arms.index(p.arm), p.speedup.ratio))
    for dot, point in zip(drawn.titled[1:], points, strict=True):
        assert x(dot.x) == pytest.approx(1 / point.speedup.ratio, abs=0.01)
        assert y(dot.y) == pytest.approx(100 * point.quality.share, abs=shift + 0.1)
    assert {"uniform", "global magnitude", "dense"} <= set(drawn.texts)
    assert any("tune split" in text for text in drawn.texts)
    del pruner


def test_baselines_are_ratios_by_l1_norm_with_norms_re_estimated() -> None:
    mine, uniform, everywhere = arms_of(request())
    assert not mine.by_ratio
    assert (uniform.request.scope, everywhere.request.scope) == (Scope.UNIFORM, Scope.GLOBAL)
    for arm in (uniform, everywhere):
        assert arm.by_ratio
        assert arm.request.criterion == "l1-norm"
        assert arm.request.repair is Repair.BATCH_NORM
    assert everywhere.request.align == 1


@pytest.mark.parametrize(("allowed", "fastest"), [(1.0, 1.2), (5.0, 2.0), (12.0, 3.4)])
def test_the_search_comes_close_to_the_fastest_within_the_drop(allowed: float, fastest: float, pruner: Pruner) -> None:
    found = fastest_within(checkpoint_of(alive(plain())), request(), GOAL, DATA, max_drop=allowed)
    assert found.drop <= allowed
    assert found.fast.measured is not None
    assert fastest / 1.12 <= found.fast.measured.ratio <= fastest * 1.001
    assert len(pruner.asked) <= compressor.pruning.speed.frontier.SEARCHES
    assert found.result.to_json()["search"]["tried"]


def test_speeds_out_of_reach_bound_the_search_from_above(pruner: Pruner) -> None:
    pruner.fastest = 1.6
    found = fastest_within(checkpoint_of(alive(plain())), request(), GOAL, DATA, max_drop=50)
    assert found.fast.measured is not None
    assert 1.4 <= found.fast.measured.ratio <= 1.6


def test_a_drop_that_every_faster_network_exceeds_is_refused_with_what_was_tried(pruner: Pruner) -> None:
    with pytest.raises(PlanError, match=r"within 0\.01 points was found \(2\.00× loses 5\.00"):
        fastest_within(checkpoint_of(alive(plain())), request(), GOAL, DATA, max_drop=0.01)
    with pytest.raises(PlanError, match="must be positive"):
        fastest_within(checkpoint_of(alive(plain())), request(), GOAL, DATA, max_drop=0)
    del pruner


class Dark(nn.Module):
    """Two classes, by how light an image is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        light = x.flatten(1).mean(1)
        return torch.stack([-light, light], dim=1)


def test_the_test_split_is_not_looked_at(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    data = load_data(str(tmp_path / "data.npz"))
    assert data.tune is not None
    checkpoint = checkpoint_of(Dark(), (1, 1, 16, 16))
    judge = Judge(checkpoint, dataclasses.replace(data, test=None))
    assert judge.split == "tune"
    assert judge.labelled
    assert judge.dense.total == len(data.tune)
    assert judge.dense.share > 0.5


def test_data_with_a_test_split_alone_is_refused(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    data = dataclasses.replace(load_data(str(tmp_path / "data.npz")), train=None, tune=None)
    assert data.test is not None
    with pytest.raises(DataError, match="test split alone"):
        Judge(checkpoint_of(alive(plain())), data)
