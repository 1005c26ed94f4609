"""Accuracy against measured latency: the whole curve, and the fastest network within an accuracy drop.

Each point is a network that is pruned to a speed (`pruning.speed.search`), repaired as requested, exported, timed in
turns with the dense one, and evaluated on the tuning split: accuracy with labels, agreement with the dense network
without. The test split is not read, because users choose points from this curve.

Each finished point is a file, so that an interrupted run continues where it stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.batches import is_labelled
from compressor.data.classes import with_labels_of
from compressor.data.samples import Samples
from compressor.data.splits import Data, SplitName
from compressor.environment import environment
from compressor.errors import DataError, OutOfReach, PlanError
from compressor.files.json_files import read_json, write_json
from compressor.files.leftovers import temporary
from compressor.measuring.quality import agreement, evaluate
from compressor.progress import Say, quiet
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request, budget_to_json
from compressor.pruning.speed.planner import Cache, Goal
from compressor.pruning.speed.search import Fast, prune_to_speed
from compressor.results.frontier import Frontier, FrontierPoint
from compressor.results.latency import DropSearch, MeetingLatency, Tried
from compressor.results.quality import Quality
from compressor.surgery.plan import LatencyBudget, Scope

SPEEDUPS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
FIRST, FASTEST, SEARCHES = 2.0, 16.0, 7
CLOSE = 1.05  # the search stops when its two bounds are within this factor


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierArm:
    """A way to prune to a speed; `name` is its name in the plot."""

    name: str
    request: Request
    by_ratio: bool


def arms_of(request: Request) -> tuple[FrontierArm, ...]:
    """Return the request, and two baselines by l1-norm with re-estimated batch norms: uniform and global magnitude."""
    plain = dataclasses.replace(
        request, criterion="l1-norm", repair=Repair.NONE if request.repair is Repair.NONE else Repair.BATCH_NORM
    )
    return (
        FrontierArm(name="compress", request=request, by_ratio=False),
        FrontierArm(name="uniform", request=dataclasses.replace(plain, scope=Scope.UNIFORM), by_ratio=True),
        # torch-pruning's usual setting: one ranking of all channels, and any resulting width
        FrontierArm(
            name="global magnitude", request=dataclasses.replace(plain, scope=Scope.GLOBAL, align=1), by_ratio=True
        ),
    )


class Judge:
    """Evaluates networks on the tuning split; `dense` is the dense network's result."""

    def __init__(self, checkpoint: Checkpoint, data: Data) -> None:
        """Evaluate the dense network; refused: data with a test split alone."""
        data = with_labels_of(data, checkpoint.classes)
        name = SplitName.TUNE if data.tune is not None else SplitName.TRAIN
        if getattr(data, name) is None:
            raise DataError(
                f"{data.name} has a test split alone, and points must not be chosen on it",
                hint="give images to tune on: a folder of at least three images is split automatically",
            )
        self.images: Samples = data.split(name)
        self.split, self.checkpoint, self.task = str(name), checkpoint, data.task
        self.labelled = is_labelled(self.images, preprocessing=checkpoint.preprocessing)
        self.dense = self(checkpoint.module)

    def __call__(self, module: nn.Module) -> Quality:
        """Return the accuracy with labels, or the agreement with the dense network without."""
        seen = self.checkpoint.preprocessing
        options: dict[str, Any] = {"split": self.split, "preprocessing": seen, "task": self.task}
        if self.labelled:
            return evaluate(module, self.images, **options)
        return agreement(module, self.checkpoint.module, self.images, **options)


def frontier(
    checkpoint: Checkpoint,
    request: Request,
    goal: Goal,
    data: Data,
    folder: Path,
    *,
    speedups: Sequence[float] = SPEEDUPS,
    baselines: bool = True,
    say: Say = quiet,
) -> Frontier:
    """Return the curves of all arms; points that `folder` already contains are not computed again.

    If an arm cannot reach a speed, the point holds the reason.
    """
    request = request.resolved(has_data=True)
    say("judging the dense network")
    judge = Judge(checkpoint, data)
    points: list[FrontierPoint] = []
    arms = arms_of(request)[: None if baselines else 1]
    with temporary("frontier") as scratch:
        cache = Cache(folder=Path(scratch))
        for arm in arms:
            for asked in speedups:
                file = folder / f"{_point_key(checkpoint, arm, goal, asked, data)}.json"
                if not file.exists():
                    say(f"{arm.name}, {asked:g} times the speed")
                    point = _point(checkpoint, arm, goal, asked, data, judge, cache, say)
                    folder.mkdir(parents=True, exist_ok=True)
                    write_json(file, point.to_json())
                points.append(FrontierPoint.from_json(read_json(file), place=str(file)))
    return Frontier(
        name=checkpoint.name,
        target={"runtime": goal.runtime, "batch": goal.batch, "threads": points[0].threads},
        split=judge.split,
        data=data.name,
        labelled=judge.labelled,
        dense=judge.dense,
        points=tuple(points),
        environment=environment(),
    )


def _point(
    checkpoint: Checkpoint, arm: FrontierArm, goal: Goal, asked: float, data: Data, judge: Judge, cache: Cache, say: Say
) -> FrontierPoint:
    """Return one point of an arm's curve: the network's speed, size and quality, or why the speed is out of reach."""
    budget = LatencyBudget(speedup=asked)
    request = dataclasses.replace(arm.request, budget=budget)
    mine = dataclasses.replace(goal, budget=budget, by_ratio=arm.by_ratio)
    try:
        fast = prune_to_speed(
            checkpoint, request, mine, data=data, cache=cache, say=lambda s: say(f"{arm.name}, {asked:g}×: {s}")
        )
    except OutOfReach as error:
        return FrontierPoint(arm=arm.name, asked=asked, refused=str(error), hint=error.hint)
    met, cost = fast.result, fast.pruned.small_cost
    return FrontierPoint(
        arm=arm.name,
        asked=asked,
        speedup=met.speedup,
        dense_ms=met.dense_ms,
        small_ms=met.small_ms,
        threads=met.threads,
        met=met.met,
        trials=met.trials,
        table_error=met.table_error,
        params=cost.params,
        macs=cost.macs,
        quality=judge(fast.pruned.checkpoint.module),
    )


def _point_key(checkpoint: Checkpoint, arm: FrontierArm, goal: Goal, asked: float, data: Data) -> str:
    """Return the point's file name; it is equal for equal network, request, target, speed and data."""
    request = dataclasses.replace(arm.request, budget=LatencyBudget(speedup=asked))
    identity = [
        checkpoint.sha256, list(checkpoint.lineage), repr(request), budget_to_json(request.budget), arm.by_ratio,
        goal.runtime, goal.batch, goal.threads, goal.tolerance, data.name,
    ]  # fmt: skip
    return f"{arm.name.replace(' ', '-')}-{asked:g}-" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fastest:
    """The fastest network within a drop, and the speed-up and drop of every network that was tried."""

    fast: Fast
    drop: float  # in percentage points, on the tuning split
    allowed: float
    tried: tuple[tuple[float, float], ...]  # measured speed-up, drop

    @property
    def result(self) -> MeetingLatency:
        """The `latency` section of an artifact's results, with the search."""
        tried = tuple(Tried(speedup=speedup, drop=drop) for speedup, drop in self.tried)
        search = DropSearch(allowed=self.allowed, drop=self.drop, tried=tried)
        return dataclasses.replace(self.fast.result, search=search)


def fastest_within(
    checkpoint: Checkpoint,
    request: Request,
    goal: Goal,
    data: Data,
    *,
    max_drop: float,
    say: Say = quiet,
) -> Fastest:
    """Return the fastest network that loses at most `max_drop` percentage points on the tuning split, by bisection.

    The search sets the budgets of `request` and `goal`. Refused: a drop that even a slightly faster network exceeds.
    """
    if not max_drop > 0:
        raise PlanError(f"a drop must be positive, not {max_drop:g}", hint="one percentage point: `--max-drop 1`")
    judge = Judge(checkpoint, data)
    low, high = 1.0, FASTEST  # the fastest speed-up within the drop, the slowest one beyond it
    asked, tried = FIRST, []
    best: tuple[float, float, Fast] | None = None  # speed-up, drop
    with temporary("drop") as scratch:
        cache = Cache(folder=Path(scratch))
        for _ in range(SEARCHES):
            budget = LatencyBudget(speedup=asked)
            words = f"{asked:.2f}×"
            try:
                fast = prune_to_speed(
                    checkpoint,
                    dataclasses.replace(request, budget=budget),
                    dataclasses.replace(goal, budget=budget),
                    data=data,
                    cache=cache,
                    say=lambda s, w=words: say(f"{w}: {s}"),  # type: ignore[misc]  # a default that is no parameter
                )
            except OutOfReach:
                high = asked
            else:
                assert fast.measured is not None
                drop = judge(fast.pruned.checkpoint.module).lost_against(judge.dense)
                tried.append((fast.measured.ratio, drop))
                say(f"{fast.measured.ratio:.2f} times as fast loses {drop:.2f} points")
                if drop <= max_drop:
                    low = max(low, asked)
                    if best is None or fast.measured.ratio > best[0]:
                        best = fast.measured.ratio, drop, fast
                else:
                    high = min(high, asked)
            if high / low < CLOSE:
                break
            asked = min(math.sqrt(low * high), 2 * low) if low > 1 else math.sqrt(high)
    if best is None:
        drops = ", ".join(f"{s:.2f}× loses {d:.2f}" for s, d in tried)
        raise PlanError(
            f"no faster network within {max_drop:g} points was found ({drops or 'no speed could be reached'})",
            hint="allow a larger drop, or use a stronger repair: `--repair distill`",
        )
    return Fastest(fast=best[2], drop=best[1], allowed=max_drop, tried=tuple(tried))
