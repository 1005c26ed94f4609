"""Plan widths for a speed: choose them by a latency table, time a network of these widths, correct, and repeat.

    table      the latency of each operator at any width on the target (`measuring.tables.measured`), or a table's file
    allocate   the widths whose predicted latency meets the budget with the lowest error (`planning.allocation`)
    measure    time the network at these widths in the runtime, in turns with the dense one
    correct    if measurement and prediction differ, change the predicted speed-up to plan for (`pruning.speed.aim`)

The trials need no export: they run a graph without weights (`measuring.tables.skeletons`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.errors import OutOfReach, PlanError
from compressor.measuring.pairs import timed_in_turns
from compressor.measuring.runtimes import Runtime
from compressor.measuring.tables.measured import table_for
from compressor.measuring.tables.networks import Networks
from compressor.measuring.tables.table import LatencyTable, Target
from compressor.measuring.turns import Measurement, speedup
from compressor.planning.allocation import Allocation, allocate, cheapest, orders_from, plan_of_widths, scored_curves
from compressor.planning.sensitivity import Curve
from compressor.planning.widths import START, WidthCost
from compressor.progress import Say
from compressor.pruning.level_plan import Planned, Scored
from compressor.pruning.probing import measured_curves, probing_of
from compressor.pruning.request import Request
from compressor.pruning.speed.aim import Aim
from compressor.results.latency import Trial
from compressor.surgery.plan import ChannelBudget, LatencyBudget, PruningPlan, Scope, Sharing, plan_pruning

TOLERANCE = 0.05
TRIALS = 9  # plans before the network is shrunk; equal plans are measured once
TRIAL_SECONDS = 4.0
MARGIN = 0.25  # of the tolerance: the target lies this much above the request, because too slow is worse than too fast
RATIOS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A speed on a runtime; with a `table` of another machine, nothing is measured on this one."""

    budget: LatencyBudget
    runtime: str = "onnxruntime-cpu"
    batch: int = 1
    threads: int | None = None
    tolerance: float = TOLERANCE
    table: LatencyTable | None = None
    by_ratio: bool = False  # plan by the scope at the lowest sufficient pruning ratio, not by `allocate`

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise PlanError(
                f"a tolerance must lie between 0 and 1, not at {self.tolerance:g}", hint="5 %: `--tolerance 0.05`"
            )
        if self.batch < 1:
            raise PlanError(f"a batch size must be at least 1, not {self.batch}", hint="for example `--batch 1`")


@dataclass(slots=True, eq=False)
class Cache:
    """Measurements that later runs on the same network and target use again; the caller owns the folder.

    The keys of `curves` hold criterion, scope, alignment and group roots.
    """

    folder: Path
    table: LatencyTable | None = None
    networks: Networks | None = None
    curves: dict[tuple[object, ...], tuple[Curve, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthChoice:
    """Everything the choice of widths depends on: the latency of each width, and the error it causes.

    With `scope`, the plan is that scope's at the lowest sufficient pruning ratio; otherwise `allocate` makes it.
    """

    scored: Scored
    cost: WidthCost
    curves: tuple[Curve, ...]
    align: int
    min_channels: int
    scope: Scope | None

    def allocated(self, target: float) -> Allocation:
        """Return the plan with the lowest error whose predicted share of the dense latency is at most `target`.

        Refused: a target that no plan meets.
        """
        if self.scope is not None:
            return self._by_ratio(target, self.scope)
        return allocate(
            self.scored.traced.groups, self._orders(), self.curves, target=target, share=self.cost.stays,
            align=self.align, min_channels=self.min_channels, strict=True,
        )  # fmt: skip

    def cheapest(self) -> Allocation:
        """Return the plan with the lowest predicted latency of all."""
        groups = self.scored.traced.groups
        widths = cheapest(
            groups, self.curves, share=self.cost.stays, align=self.align, min_channels=self.min_channels, strict=True
        )
        return self._allocation(plan_of_widths(groups, self._orders(), widths), widths)

    def _orders(self) -> dict[str, tuple[int, ...]]:
        return orders_from(self.scored.traced.groups, self.scored.scores)

    def _by_ratio(self, target: float, scope: Scope) -> Allocation:
        """Return the plan with the lowest pruning ratio whose predicted share is at most `target`."""
        groups = self.scored.traced.groups
        low, high, best = 0, RATIOS, None
        while low < high:
            middle = (low + high) // 2
            plan = plan_pruning(
                groups, self.scored.scores, budget=ChannelBudget(ratio=max(1, middle) / (RATIOS + 1)),
                sharing=Sharing(scope=scope, align=self.align, min_channels=self.min_channels), may_be_empty=True,
            )  # fmt: skip
            tried = self._allocation(plan, {g.root: g.channels - len(plan.removed.get(g.root, ())) for g in groups})
            if tried.share <= target and plan.count:
                best, high = tried, middle
            else:
                low = middle + 1
        if best is None:
            raise OutOfReach(f"no pruning ratio meets {target:.1%} of the latency")
        return best

    def _allocation(self, plan: PruningPlan, widths: Mapping[str, int]) -> Allocation:
        return Allocation(
            plan=plan,
            emptied=tuple(root for root, width in widths.items() if not width),
            widths=widths,
            share=float(self.cost.stays(self.cost.sizes.row(widths)[None])[0]),
            rise=0.0,
        )


@dataclass(slots=True, eq=False)
class Planner:
    """Makes plans, measures their speed-ups, and corrects the table's predictions by the measurements."""

    checkpoint: Checkpoint
    request: Request
    goal: Goal
    runtime: Runtime
    target: Target
    cache: Cache
    say: Say
    measures: bool
    wanted: float = 0.0  # the requested speed-up; 0 before the first plan
    aim: Aim = field(default_factory=lambda: Aim(target=1.0))
    trials: list[Trial] = field(default_factory=list)
    ratios: dict[tuple[tuple[str, int], ...], float] = field(default_factory=dict)  # measured speed-ups, by widths
    best: tuple[float, Allocation, float] | None = None  # the relative error of the speed-up, the plan, and its aim
    bias: float = 1.0  # measured speed-up of the exported network, over that of the plan's graph without weights
    exhausted: bool = False

    def __call__(self, scored: Scored) -> Planned:
        """Return the plan whose measured speed-up meets the request, or the closest of all tried plans."""
        choice = self._choice(scored)
        if not self.wanted:
            self.wanted = self._speedup_of(choice.cost)
            self.aim = Aim(target=self.wanted * (1 + MARGIN * self.goal.tolerance))
        best, fresh = self.best, False
        for number in range(TRIALS):
            self.say(f"planning for {self.wanted:.2f} times the speed, trial {number + 1}")
            last = False
            try:
                allocation = choice.allocated(1 / self.aim.at)
            except OutOfReach:
                allocation, last = choice.cheapest(), True
            widths = _widths_of(allocation)
            if widths in self.ratios:  # neighbouring aims can have the same plan, which is measured once
                self.aim.update(self.ratios[widths])
                continue
            trial = self._tried(allocation, choice.cost)
            if trial.measured is None:
                return Planned(plan=allocation.plan, curves=choice.curves, emptied=allocation.emptied)
            ratio = self.ratios[widths] = trial.measured.ratio * self.bias
            fresh = True
            off = abs(ratio / self.aim.target - 1)
            if best is None or off < best[0]:
                best = (off, allocation, self.aim.at)
            if off <= self.goal.tolerance / 2:
                break
            if ratio < self.wanted and last:
                self._check_reach(ratio, allocation, choice.cost)
                break
            self.aim.update(ratio)
        self.exhausted = not fresh
        self.best = best or self.best
        assert self.best is not None
        allocation = self.best[1]
        return Planned(plan=allocation.plan, curves=choice.curves, emptied=allocation.emptied)

    def correct(self, ratio: float) -> None:
        """Correct all plans' measurements by the speed-up `ratio` of the best plan's exported network.

        A graph without weights is not exactly as fast as the exported file, and the file's speed-up counts.
        """
        assert self.best is not None
        _, allocation, self.aim.at = self.best
        self.best = math.inf, allocation, self.aim.at
        off = ratio / self.ratios[_widths_of(allocation)]
        self.bias *= off
        self.ratios = {widths: r * off for widths, r in self.ratios.items()}
        self.aim.correct(ratio, off=off)

    def _check_reach(self, ratio: float, allocation: Allocation, cost: WidthCost) -> None:
        """Raise if even the fastest widths are too slow; they are timed again first, as the machine may be busy."""
        enough = self.wanted * (1 - self.goal.tolerance)
        if ratio >= enough:
            return
        again = self._tried(allocation, cost)
        assert again.measured is not None
        if again.measured.ratio * self.bias < enough:
            raise self._unreachable(max(ratio, again.measured.ratio * self.bias), allocation, cost)

    def _choice(self, scored: Scored) -> WidthChoice:
        """Return the choice of widths: their latency by the table, and their error by the curves."""
        networks, table = self._ready(scored)
        align = table.align if self.request.align is None else self.request.align
        return WidthChoice(
            scored=scored,
            cost=table.cost(networks.sizes, networks.layers, networks.keys, signature=networks.signature),
            curves=self._curves(scored, align),
            align=align,
            min_channels=self.request.min_channels,
            scope=self.request.scope if self.goal.by_ratio or self.request.scope is Scope.UNIFORM else None,
        )

    def _ready(self, scored: Scored) -> tuple[Networks, LatencyTable]:
        """Return the network at any widths and the latency table; both are made once and cached."""
        if self.cache.networks is None or len(self.cache.networks.traced.groups) != len(scored.traced.groups):
            self.say(f"writing the network for {self.runtime.name}")
            self.cache.networks = Networks(
                self.checkpoint.module, scored.traced, self.checkpoint.example_inputs, self.runtime, self.cache.folder,
                batch=self.target.batch,
            )  # fmt: skip
        if self.cache.table is None:
            self.cache.table = self.goal.table
            if self.cache.table is None:
                self.cache.table = table_for(self.cache.networks, self.target, seed=self.request.seed, say=self.say)
            elif not self.cache.table.describes(self.cache.networks.keys, self.cache.networks.signature):
                raise PlanError(
                    "this latency table lacks some operators of this network",
                    hint="measure it on the target, for this network: `compress measure-table MODEL`",
                )
        return self.cache.networks, self.cache.table

    def _speedup_of(self, cost: WidthCost) -> float:
        """Return the budget as a speed-up; a latency is compared with the dense network's."""
        budget = self.goal.budget
        if budget.speedup is not None:
            return budget.speedup
        assert budget.latency_ms is not None
        dense_ms = cost.dense / 1e6
        if self.measures:
            assert self.cache.networks is not None
            model = self.cache.networks.at(self.cache.networks.sizes.dense)
            dense, _ = self.in_turns(model, model, seconds=TRIAL_SECONDS)
            dense_ms = dense.median_ms
        if dense_ms <= budget.latency_ms:
            raise PlanError(
                f"the dense network takes {dense_ms:.3g} ms there, which is within {budget.latency_ms:g} ms",
                hint="no channel has to leave; choose a lower latency",
            )
        return dense_ms / budget.latency_ms

    def _curves(self, scored: Scored, align: int) -> tuple[Curve, ...]:
        """Return the curves of error against width: measured, or from scores; cached by request and groups."""
        roots = (self.request.criterion, self.request.scope, align, *(g.root for g in scored.traced.groups))
        if roots not in self.cache.curves:
            if self.request.scope is Scope.MEASURED:
                probing = probing_of(
                    scored.module, scored.traced.groups, scored.scores, scored.calibration, scored.images
                )
                self.cache.curves[roots] = measured_curves(
                    probing, self.request, say=self.say, align=align, strict=True
                )
            else:
                self.cache.curves[roots] = tuple(
                    scored_curves(
                        scored.traced.groups,
                        scored.scores,
                        align=align,
                        min_channels=self.request.min_channels,
                        strict=True,
                    )
                )
        return self.cache.curves[roots]

    def _tried(self, allocation: Allocation, cost: WidthCost) -> Trial:
        """Time the plan's network, if this machine is the target, and record the trial."""
        networks = self.cache.networks
        assert networks is not None
        measured = None
        if self.measures:
            row = cost.sizes.row(allocation.widths)
            dense, small = self.in_turns(networks.at(networks.sizes.dense), networks.at(row), seconds=TRIAL_SECONDS)
            measured = speedup(dense, small)
        trial = Trial(
            aim=self.aim.at,
            predicted=1 / allocation.share,
            measured=measured,
            channels=int(sum(allocation.widths.values())),
        )
        self.trials.append(trial)
        return trial

    def in_turns(
        self, dense: nn.Module | Path, small: nn.Module | Path, *, seconds: float
    ) -> tuple[Measurement, Measurement]:
        """Time both networks in turns on the target's runtime, batch size and threads."""
        target = self.target
        return timed_in_turns(
            dense, small, self.checkpoint.example_inputs, runtime=target.runtime, batch=target.batch,
            threads=target.threads, seconds=seconds, seed=self.request.seed,
        )  # fmt: skip

    def _unreachable(self, ratio: float, allocation: Allocation, cost: WidthCost) -> OutOfReach:
        """Return the error for a speed out of reach; its hint names the layers that take most of the time."""
        assert self.cache.networks is not None
        operators = self.cache.networks.operators
        by_layer = cost.by_layer(cost.sizes.row(allocation.widths)[None])[0]
        total, starts = float(by_layer.sum()), float(cost.prices[:, START].sum())
        holding = [
            f"{operators[k].tensor.rpartition('.')[0]} ({by_layer[k] / total:.0%})" for k in np.argsort(-by_layer)[:3]
        ]
        return OutOfReach(
            f"{self.wanted:.2f} times the speed cannot be reached on {self.target}: with the fastest widths that may "
            f"be, the network ran {ratio:.2f} times as fast",
            hint=f"what is left of its time: {', '.join(holding)}, and starting all operators {starts / total:.0%}; "
            "protect less, lower `--min-channels`, or ask for less",
        )


def _widths_of(allocation: Allocation) -> tuple[tuple[str, int], ...]:
    """Return the widths by root, as a hashable value."""
    return tuple(sorted(allocation.widths.items()))
