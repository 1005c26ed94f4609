"""Prune to a measured speed: latency is the budget, and the clock has the last word.

    table      what each operator takes at what widths on the target (`compressor.tabulating`), measured or known
    allocate   the widths whose predicted latency meets the budget at the least loss (`compressor.allocate`)
    measure    the network at those widths, as the runtime runs it, against the dense one in turns
    correct    where the clock says otherwise than the table did, aim by as much further or nearer, and again
    prune      shrink, prove, repair; export, and measure the real small network against the dense one

The trials in the middle cost no export: they run a graph without weights (`compressor.skeletons`). What is said of the
speed-up in the end is measured on the files that come out.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from compressor.allocate import Allocation, allocate, cheapest, orders_from, plan_of_widths, scored_curves
from compressor.checkpoint import Checkpoint
from compressor.data import Data
from compressor.environment import cores
from compressor.errors import PlanError
from compressor.export import export_onnx
from compressor.latency_table import LatencyTable, Target
from compressor.measure import Call, Measurement, Speedup, Turn, pace, speedup, take_turns
from compressor.pipeline import Planned, Pruned, Scored, prune
from compressor.plan import ChannelBudget, LatencyBudget, PruningPlan, Scope, plan_pruning
from compressor.probing import measured_curves, probing_of
from compressor.proof import random_like
from compressor.request import Request
from compressor.runtimes import Reads, Runtime, usable
from compressor.sensitivity import Curve
from compressor.tabulating import Networks, table_for, target_of
from compressor.widths import START, Numbers, WidthCost

Say = Callable[[str], None]

TOLERANCE = 0.05
TRIALS = 9  # plans before anything is shrunk; one that was measured before is not measured again
RETURNS = 2  # times that the real network may send the plan back
TRIAL_SECONDS, FINAL_SECONDS = 4.0, 8.0
MARGIN = 0.25  # of the tolerance: aimed at beyond what was asked, for the clock scatters
RATIOS = 400
LEAST_AIM = 1.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A speed on a runtime; `table` is one that was measured elsewhere, and then nothing can be measured here."""

    budget: LatencyBudget
    runtime: str = "onnxruntime-cpu"
    batch: int = 1
    threads: int | None = None
    tolerance: float = TOLERANCE
    table: LatencyTable | None = None
    by_ratio: bool = False  # the scope's plan at the ratio that suffices, as ratios are tried by hand; no knapsack

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise PlanError(f"a tolerance lies between 0 and 1, and {self.tolerance:g} does not")
        if self.batch < 1:
            raise PlanError(f"a batch of {self.batch}", hint="for example `--batch 1`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What was aimed at, predicted and measured: speed-ups."""

    aim: float
    predicted: float
    measured: Speedup | None
    channels: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        seen = None if self.measured is None else self.measured.to_json()
        return {"aim": self.aim, "predicted": self.predicted, "measured": seen, "channels": self.channels}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fast:
    """A pruned network with what the clock says of it."""

    pruned: Pruned
    goal: Goal
    target: Target
    table: LatencyTable
    error: float  # of the table on the network, before any correction; relative
    trials: tuple[Trial, ...]
    wanted: float  # the speed-up
    measured: Speedup | None
    dense: Measurement | None
    small: Measurement | None

    @property
    def met(self) -> bool:
        """Whether what was measured lies within the tolerance."""
        return self.measured is not None and abs(self.measured.ratio / self.wanted - 1) <= self.goal.tolerance

    def to_json(self) -> dict[str, Any]:
        """The `latency` section of an artifact's results."""
        return {
            "runtime": self.target.runtime,
            "batch": self.target.batch,
            "threads": self.target.threads,
            "hardware": self.target.hardware,
            "version": self.target.version,
            "wanted": self.wanted,
            "tolerance": self.goal.tolerance,
            "met": self.met,
            "speedup": None if self.measured is None else self.measured.to_json(),
            "dense_ms": None if self.dense is None else self.dense.median_ms,
            "small_ms": None if self.small is None else self.small.median_ms,
            "samples_ns": {
                name: [list(block) for block in m.samples_ns]
                for name, m in (("dense", self.dense), ("small", self.small))
                if m is not None
            },
            "align": self.table.align,
            "alignments": [{"multiple": a, "excess": e} for a, e in self.table.alignments],
            "table_error": self.error,
            "trials": [trial.to_json() for trial in self.trials],
        }


@dataclass(slots=True, eq=False)
class Known:
    """What one run found out that the next one on the same network and target needs again; the folder is the caller's.

    Curves are of a criterion, an alignment and the groups that there are.
    """

    folder: Path
    table: LatencyTable | None = None
    networks: Networks | None = None
    curves: dict[tuple[object, ...], tuple[Curve, ...]] = field(default_factory=dict)


def prune_to_speed(
    checkpoint: Checkpoint,
    request: Request,
    goal: Goal,
    *,
    data: Data | None = None,
    say: Say | None = None,
    known: Known | None = None,
) -> Fast:
    """The network that is as fast as `goal` says, at the least loss; the checkpoint stays as it was.

    With `known`, what an earlier run with the same goal but for its speed found out is not measured again. Refused: a
    speed that cannot be reached, with the best that can and what holds it; a small network that measures slower than
    the dense one; a runtime that is not here.
    """
    say = say or (lambda _: None)
    (runtime,) = usable((goal.runtime,))
    threads = goal.threads or cores()
    here = target_of(runtime, batch=goal.batch, threads=threads)
    elsewhere = goal.table is not None and goal.table.target != here
    with tempfile.TemporaryDirectory(prefix="compress-speed-") as folder:
        planner = _Planner(
            checkpoint=checkpoint,
            request=request,
            goal=goal,
            runtime=runtime,
            target=here if goal.table is None else goal.table.target,
            known=known or Known(folder=Path(folder)),
            say=say,
            measures=not elsewhere,
        )
        again = 0
        while True:
            pruned = prune(checkpoint, request, data=data, say=say, planner=planner)
            if elsewhere:
                return planner.fast(pruned, None, None)
            say("exporting the small network, and timing it against the dense one")
            dense, small = _timed_files(checkpoint, pruned.checkpoint, planner)
            fast = planner.fast(pruned, dense, small)
            ratio = speedup(dense, small).ratio
            if ratio <= 1 and (again == RETURNS or planner.exhausted):
                raise PlanError(
                    f"the small network measured {ratio:.2f} times as fast as the dense one: that is kept",
                    hint="ask for more, or on another runtime or batch: `--on`, `--batch`",
                )
            if fast.met or again == RETURNS or planner.exhausted:
                return fast
            planner.correct(ratio)
            again += 1


def timed_in_turns(
    dense: nn.Module | Path,
    small: nn.Module | Path,
    example_inputs: Sequence[Tensor],
    *,
    runtime: str,
    batch: int,
    threads: int,
    seconds: float,
    seed: int = 0,
) -> tuple[Measurement, Measurement]:
    """Both networks on a runtime in turns, for about so many seconds."""
    (taken,) = usable((runtime,))
    inputs = tuple(random_like(example_inputs, batch=batch, seed=0))

    def turn(model: nn.Module | Path) -> Turn:
        @contextmanager
        def ready() -> Iterator[Call]:
            with taken.prepare(model, inputs, threads=threads) as prepared:
                yield prepared.run

        return ready

    turns = {"dense": turn(dense), "small": turn(small)}
    rhythm = pace(turns["dense"], candidates=2, seconds=seconds, blocks=None)
    found = take_turns(
        turns, blocks=rhythm.blocks, calls_per_block=rhythm.calls_per_block, warmup=rhythm.warmup, batch_size=batch,
        seed=seed,
    )  # fmt: skip
    return found["dense"], found["small"]


def _timed_files(checkpoint: Checkpoint, small: Checkpoint, planner: _Planner) -> tuple[Measurement, Measurement]:
    """The dense and the small network as they come out, in turns."""
    if planner.runtime.reads is Reads.MODULE:
        return planner.in_turns(checkpoint.module, small.module, seconds=FINAL_SECONDS)
    files = planner.known.folder / "dense.onnx", planner.known.folder / "small.onnx"
    if not files[0].exists():
        export_onnx(checkpoint, files[0])
    export_onnx(small, files[1])
    return planner.in_turns(*files, seconds=FINAL_SECONDS)


@dataclass(slots=True, eq=False)
class _Planner:
    """Makes plans, measures what they are worth, and remembers what the table got wrong."""

    checkpoint: Checkpoint
    request: Request
    goal: Goal
    runtime: Runtime
    target: Target
    known: Known
    say: Say
    measures: bool
    aim: float = 0.0  # the predicted speed-up to plan for; 0 before the first
    wanted: float = 0.0
    trials: list[Trial] = field(default_factory=list)
    dense_ms: float | None = None
    ratios: dict[tuple[tuple[str, int], ...], float] = field(default_factory=dict)  # by widths, as measured
    heard: list[tuple[float, float]] = field(default_factory=list)  # aim, and what the clock said
    best: tuple[float, Allocation, float] | None = None  # how far off on the clock, the plan, and its aim
    bias: float = 1.0  # what came out measured, over what the plan had
    exhausted: bool = False

    def __call__(self, scored: Scored) -> Planned:
        networks, table = self._ready(scored)
        cost = table.cost(networks.sizes, networks.layers, networks.keys, signature=networks.signature)
        align = table.align if self.request.align is None else self.request.align
        curves = self._curves(scored, align)
        orders = orders_from(scored.traced.groups, scored.scores)
        self.wanted = self.wanted or self._wanted(cost)
        self.aim = self.aim or self.wanted * (1 + MARGIN * self.goal.tolerance)
        best, fresh = self.best, False
        for number in range(TRIALS):
            self.say(f"planning for {self.wanted:.2f} times the speed, trial {number + 1}")
            last = False
            try:
                found = self._allocated(scored, orders, curves, cost, align)
            except PlanError as error:
                if "cannot be met" not in str(error):
                    raise
                found, last = self._cheapest(scored, orders, curves, cost, align), True
            told = _told(found)
            if told in self.ratios:  # between two speeds there may be no plan: nothing to measure again
                self._heard(self.ratios[told])
                continue
            trial = self._tried(found, cost)
            if trial.measured is None:
                return Planned(plan=found.plan, curves=curves, emptied=found.emptied)
            ratio = self.ratios[told] = trial.measured.ratio * self.bias
            fresh = True
            # short of what was asked is worse than beyond it
            judged = abs(ratio / self.wanted - 1 - MARGIN * self.goal.tolerance)
            if best is None or judged < best[0]:
                best = (judged, found, self.aim)
            if judged <= self.goal.tolerance / 2:
                break
            if ratio < self.wanted and last:
                if ratio < self.wanted * (1 - self.goal.tolerance):
                    # before it is refused it is measured once more: a busy moment can make any network slow
                    trial = self._tried(found, cost)
                    assert trial.measured is not None
                    if trial.measured.ratio < self.wanted * (1 - self.goal.tolerance):
                        raise self._unreachable(trial, found, cost, networks)
                break
            self._heard(ratio)
        self.exhausted = not fresh
        self.best = best or self.best
        assert self.best is not None
        found = self.best[1]
        return Planned(plan=found.plan, curves=curves, emptied=found.emptied)

    def correct(self, ratio: float) -> None:
        """The files that came out measured otherwise than the best plan did: by as much all plans did.

        A graph without weights is not quite the file; what came out is what counts.
        """
        assert self.best is not None
        _, found, self.aim = self.best
        self.best = math.inf, found, self.aim
        off = ratio / self.ratios[_told(found)]
        self.bias *= off
        self.ratios = {widths: r * off for widths, r in self.ratios.items()}
        self.heard = [(aim, r * off) for aim, r in self.heard if aim != self.aim]
        self._heard(ratio)

    def _heard(self, ratio: float) -> None:
        """Aim anew, after what the clock said of the last aim.

        By as much further or nearer as the clock said otherwise; once there are aims on both sides, between them: where
        a straight line through both has it (on logarithms), or in the middle where that was tried.
        """
        wished = self.wanted * (1 + MARGIN * self.goal.tolerance)
        self.heard.append((self.aim, ratio))
        short = max((pair for pair in self.heard if pair[1] < wished), default=None, key=lambda p: (p[1], p[0]))
        beyond = min((pair for pair in self.heard if pair[1] >= wished), default=None, key=lambda p: (p[1], -p[0]))
        if short is None or beyond is None or short[0] >= beyond[0]:
            self.aim = max(LEAST_AIM, self.aim * wished / ratio)
            return
        part = math.log(wished / short[1]) / math.log(beyond[1] / short[1])
        narrowing = sum(r in (short[1], beyond[1]) for _, r in self.heard) > 2  # a plan came out twice
        part = 0.5 if narrowing else min(0.9, max(0.1, part))
        self.aim = short[0] * (beyond[0] / short[0]) ** part

    def _ready(self, scored: Scored) -> tuple[Networks, LatencyTable]:
        """The network at any widths, and the table; both made once, for a plan may be asked for again."""
        if self.known.networks is None or len(self.known.networks.traced.groups) != len(scored.traced.groups):
            self.say(f"writing the network for {self.runtime.name}")
            self.known.networks = Networks(
                self.checkpoint.module, scored.traced, self.checkpoint.example_inputs, self.runtime, self.known.folder,
                batch=self.target.batch,
            )  # fmt: skip
        if self.known.table is None:
            self.known.table = self.goal.table
            if self.known.table is None:
                self.known.table = table_for(self.known.networks, self.target, seed=self.request.seed, say=self.say)
            elif not self.known.table.describes(self.known.networks.keys, self.known.networks.signature):
                raise PlanError(
                    "this latency table does not know all operators of this network",
                    hint="measure it on the target, for this network: `compress measure-table MODEL`",
                )
        return self.known.networks, self.known.table

    def _wanted(self, cost: WidthCost) -> float:
        budget = self.goal.budget
        if budget.speedup is not None:
            return budget.speedup
        assert budget.latency_ms is not None
        self.dense_ms = cost.dense / 1e6
        if self.measures:
            assert self.known.networks is not None
            model = self.known.networks.at(self.known.networks.sizes.dense)
            dense, _ = self.in_turns(model, model, seconds=TRIAL_SECONDS)
            self.dense_ms = dense.median_ms
        if self.dense_ms <= budget.latency_ms:
            raise PlanError(
                f"the dense network takes {self.dense_ms:.3g} ms there, which is within {budget.latency_ms:g} ms",
                hint="nothing has to leave; ask for less time",
            )
        return self.dense_ms / budget.latency_ms

    def _curves(self, scored: Scored, align: int) -> tuple[Curve, ...]:
        roots = (self.request.criterion, self.request.scope, align, *(g.root for g in scored.traced.groups))
        if roots not in self.known.curves:
            if self.request.scope is Scope.MEASURED:
                probing = probing_of(
                    scored.module, scored.traced.groups, scored.scores, scored.calibration, scored.images
                )
                self.known.curves[roots] = measured_curves(
                    probing, self.request, say=self.say, align=align, strict=True
                )
            else:
                self.known.curves[roots] = tuple(
                    scored_curves(
                        scored.traced.groups,
                        scored.scores,
                        align=align,
                        min_channels=self.request.min_channels,
                        strict=True,
                    )
                )
        return self.known.curves[roots]

    def _allocated(
        self,
        scored: Scored,
        orders: Mapping[str, Sequence[int]],
        curves: tuple[Curve, ...],
        cost: WidthCost,
        align: int,
    ) -> Allocation:
        target = 1 / self.aim
        if self.goal.by_ratio or self.request.scope is Scope.UNIFORM:
            return self._by_ratio(scored, cost, align, target)
        return allocate(
            scored.traced.groups, orders, curves, target=target, share=cost.stays, align=align,
            min_channels=self.request.min_channels, strict=True,
        )  # fmt: skip

    def _by_ratio(self, scored: Scored, cost: WidthCost, align: int, target: float) -> Allocation:
        """The plan of the least ratio that is predicted to suffice."""
        low, high, best = 0, RATIOS, None
        while low < high:
            middle = (low + high) // 2
            plan = plan_pruning(
                scored.traced.groups, scored.scores, budget=ChannelBudget(ratio=max(1, middle) / (RATIOS + 1)),
                scope=self.request.scope, align=align, min_channels=self.request.min_channels,
                dense_widths={g.root: g.channels for g in scored.traced.groups}, may_be_empty=True,
            )  # fmt: skip
            found = _priced(scored, plan, cost)
            if found.share <= target and plan.count:
                best, high = found, middle
            else:
                low = middle + 1
        if best is None:
            raise PlanError(f"{target:.1%} cannot be met by any ratio")
        return best

    def _cheapest(
        self,
        scored: Scored,
        orders: Mapping[str, Sequence[int]],
        curves: tuple[Curve, ...],
        cost: WidthCost,
        align: int,
    ) -> Allocation:
        """The plan that is predicted to be the fastest of all."""
        groups = scored.traced.groups
        widths = cheapest(
            groups, curves, share=cost.stays, align=align, min_channels=self.request.min_channels, strict=True
        )
        return Allocation(
            plan=plan_of_widths(groups, orders, widths),
            emptied=tuple(root for root, width in widths.items() if not width),
            widths=widths,
            share=float(cost.stays(cost.sizes.row(widths)[None])[0]),
            rise=0.0,
        )

    def _tried(self, found: Allocation, cost: WidthCost) -> Trial:
        """The plan on the clock, where it can be."""
        networks = self.known.networks
        assert networks is not None
        measured = None
        if self.measures:
            row = cost.sizes.row(found.widths)
            dense, small = self.in_turns(networks.at(networks.sizes.dense), networks.at(row), seconds=TRIAL_SECONDS)
            measured = speedup(dense, small)
        trial = Trial(
            aim=self.aim, predicted=1 / found.share, measured=measured, channels=int(sum(found.widths.values()))
        )
        self.trials.append(trial)
        return trial

    def in_turns(
        self, dense: nn.Module | Path, small: nn.Module | Path, *, seconds: float
    ) -> tuple[Measurement, Measurement]:
        """Both on the target's runtime, batch and threads."""
        target = self.target
        return timed_in_turns(
            dense, small, self.checkpoint.example_inputs, runtime=target.runtime, batch=target.batch,
            threads=target.threads, seconds=seconds, seed=self.request.seed,
        )  # fmt: skip

    def _unreachable(self, trial: Trial, found: Allocation, cost: WidthCost, networks: Networks) -> PlanError:
        row = cost.sizes.row(found.widths)[None]
        by_layer = cost.by_layer(row)[0]
        total, starts = float(by_layer.sum()), float(cost.prices[:, START].sum())
        holding = [
            f"{networks.operators[k].tensor.rpartition('.')[0]} ({by_layer[k] / total:.0%})"
            for k in np.argsort(-by_layer)[:3]
        ]
        assert trial.measured is not None
        return PlanError(
            f"{self.wanted:.2f} times the speed cannot be reached on {self.target}: with the fastest widths that may "
            f"be, the network ran {trial.measured.ratio:.2f} times as fast",
            hint=f"what is left of its time: {', '.join(holding)}, and starting all operators {starts / total:.0%}; "
            "protect less, lower `--min-channels`, or ask for less",
        )

    def fast(self, pruned: Pruned, dense: Measurement | None, small: Measurement | None) -> Fast:
        """What came out."""
        assert self.known.table is not None
        assert self.known.networks is not None
        first = self.trials[0]
        error = 0.0 if first.measured is None else abs(first.predicted / first.measured.ratio - 1)
        return Fast(
            pruned=pruned,
            goal=self.goal,
            target=self.target,
            table=self.known.table,
            error=error,
            trials=tuple(self.trials),
            wanted=self.wanted,
            measured=None if dense is None or small is None else speedup(dense, small),
            dense=dense,
            small=small,
        )


def _told(found: Allocation) -> tuple[tuple[str, int], ...]:
    """A plan's widths, to know it again."""
    return tuple(sorted(found.widths.items()))


def _priced(scored: Scored, plan: PruningPlan, cost: WidthCost) -> Allocation:
    """A plan that was made otherwise, with its predicted share."""
    widths = {g.root: g.channels - len(plan.removed.get(g.root, ())) for g in scored.traced.groups}
    row: Numbers = cost.sizes.row(widths)
    return Allocation(plan=plan, emptied=(), widths=widths, share=float(cost.stays(row[None])[0]), rise=0.0)
