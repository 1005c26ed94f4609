"""A plan for a speed: widths chosen by a latency table, tried on the clock without their weights, and chosen again.

    table      what each operator takes at what widths on the target (`measuring.tables.measured`), measured or known
    allocate   the widths whose predicted latency meets the budget at the least loss (`planning.allocation`)
    measure    the network at those widths, as the runtime runs it, against the dense one in turns
    correct    where the clock says otherwise than the table did, aim further or nearer (`pruning.speed.aim`), and again

The trials cost no export: they run a graph without weights (`measuring.tables.skeletons`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.errors import OutOfReach, PlanError
from compressor.measuring.pairs import timed_in_turns
from compressor.measuring.runtimes import Runtime
from compressor.measuring.tables.measured import table_for
from compressor.measuring.tables.networks import Networks
from compressor.measuring.tables.table import LatencyTable, Target
from compressor.measuring.turns import Measurement, Speedup, speedup
from compressor.planning.allocation import Allocation, allocate, cheapest, orders_from, plan_of_widths, scored_curves
from compressor.planning.sensitivity import Curve
from compressor.planning.widths import START, WidthCost
from compressor.progress import Say
from compressor.pruning.level_plan import Planned, Scored
from compressor.pruning.probing import measured_curves, probing_of
from compressor.pruning.request import Request
from compressor.pruning.speed.aim import Aim
from compressor.surgery.plan import ChannelBudget, LatencyBudget, PruningPlan, Scope, Sharing, plan_pruning

TOLERANCE = 0.05
TRIALS = 9  # plans before anything is shrunk; one that was measured before is not measured again
TRIAL_SECONDS = 4.0
MARGIN = 0.25  # of the tolerance: aimed at beyond what was asked, for short of it is worse than beyond it
RATIOS = 400


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
            raise PlanError(
                f"a tolerance lies between 0 and 1, and {self.tolerance:g} does not", hint="5 %: `--tolerance 0.05`"
            )
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


@dataclass(slots=True, eq=False)
class Known:
    """What one run found out that the next one on the same network and target needs again; the folder is the caller's.

    Curves are of a criterion, an alignment and the groups that there are.
    """

    folder: Path
    table: LatencyTable | None = None
    networks: Networks | None = None
    curves: dict[tuple[object, ...], tuple[Curve, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Everything that widths are chosen by: what they cost, and what they lose.

    With `scope` it is that scope's plan at the ratio that suffices, as ratios are tried by hand; else the solver's.
    """

    scored: Scored
    cost: WidthCost
    curves: tuple[Curve, ...]
    align: int
    min_channels: int
    scope: Scope | None

    def allocated(self, target: float) -> Allocation:
        """The plan of the least loss whose predicted share of the dense latency is at most `target`; else refused."""
        if self.scope is not None:
            return self._by_ratio(target, self.scope)
        return allocate(
            self.scored.traced.groups, self._orders(), self.curves, target=target, share=self.cost.stays,
            align=self.align, min_channels=self.min_channels, strict=True,
        )  # fmt: skip

    def cheapest(self) -> Allocation:
        """The plan that is predicted to be the fastest of all."""
        groups = self.scored.traced.groups
        widths = cheapest(
            groups, self.curves, share=self.cost.stays, align=self.align, min_channels=self.min_channels, strict=True
        )
        return self._allocation(plan_of_widths(groups, self._orders(), widths), widths)

    def _orders(self) -> dict[str, tuple[int, ...]]:
        return orders_from(self.scored.traced.groups, self.scored.scores)

    def _by_ratio(self, target: float, scope: Scope) -> Allocation:
        """The plan of the least ratio that is predicted to suffice."""
        groups = self.scored.traced.groups
        low, high, best = 0, RATIOS, None
        while low < high:
            middle = (low + high) // 2
            plan = plan_pruning(
                groups, self.scored.scores, budget=ChannelBudget(ratio=max(1, middle) / (RATIOS + 1)),
                sharing=Sharing(scope=scope, align=self.align, min_channels=self.min_channels), may_be_empty=True,
            )  # fmt: skip
            found = self._allocation(plan, {g.root: g.channels - len(plan.removed.get(g.root, ())) for g in groups})
            if found.share <= target and plan.count:
                best, high = found, middle
            else:
                low = middle + 1
        if best is None:
            raise OutOfReach(f"{target:.1%} cannot be met by any ratio")
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
    """Makes plans, measures what they are worth, and remembers what the table got wrong."""

    checkpoint: Checkpoint
    request: Request
    goal: Goal
    runtime: Runtime
    target: Target
    known: Known
    say: Say
    measures: bool
    wanted: float = 0.0  # the speed-up; 0 before it is known
    aim: Aim = field(default_factory=lambda: Aim(wished=1.0))
    trials: list[Trial] = field(default_factory=list)
    ratios: dict[tuple[tuple[str, int], ...], float] = field(default_factory=dict)  # by widths, as measured
    best: tuple[float, Allocation, float] | None = None  # how far off on the clock, the plan, and its aim
    bias: float = 1.0  # what came out measured, over what the plan had
    exhausted: bool = False

    def __call__(self, scored: Scored) -> Planned:
        """The plan whose network measures as fast as wanted, or comes closest of those that were tried."""
        choice = self._choice(scored)
        if not self.wanted:
            self.wanted = self._speedup_of(choice.cost)
            self.aim = Aim(wished=self.wanted * (1 + MARGIN * self.goal.tolerance))
        best, fresh = self.best, False
        for number in range(TRIALS):
            self.say(f"planning for {self.wanted:.2f} times the speed, trial {number + 1}")
            last = False
            try:
                found = choice.allocated(1 / self.aim.at)
            except OutOfReach:
                found, last = choice.cheapest(), True
            told = _told(found)
            if told in self.ratios:  # between two speeds there may be no plan: nothing to measure again
                self.aim.hear(self.ratios[told])
                continue
            trial = self._tried(found, choice.cost)
            if trial.measured is None:
                return Planned(plan=found.plan, curves=choice.curves, emptied=found.emptied)
            ratio = self.ratios[told] = trial.measured.ratio * self.bias
            fresh = True
            judged = abs(ratio / self.aim.wished - 1)
            if best is None or judged < best[0]:
                best = (judged, found, self.aim.at)
            if judged <= self.goal.tolerance / 2:
                break
            if ratio < self.wanted and last:
                self._check_reach(ratio, found, choice.cost)
                break
            self.aim.hear(ratio)
        self.exhausted = not fresh
        self.best = best or self.best
        assert self.best is not None
        found = self.best[1]
        return Planned(plan=found.plan, curves=choice.curves, emptied=found.emptied)

    def correct(self, ratio: float) -> None:
        """The files that came out measured otherwise than the best plan did: by as much all plans did.

        A graph without weights is not quite the file; what came out is what counts.
        """
        assert self.best is not None
        _, found, self.aim.at = self.best
        self.best = math.inf, found, self.aim.at
        off = ratio / self.ratios[_told(found)]
        self.bias *= off
        self.ratios = {widths: r * off for widths, r in self.ratios.items()}
        self.aim.hear_again(ratio, off=off)

    def _check_reach(self, ratio: float, found: Allocation, cost: WidthCost) -> None:
        """Refuse what even the fastest widths do not reach, measured once more: a busy moment slows any network."""
        enough = self.wanted * (1 - self.goal.tolerance)
        if ratio >= enough:
            return
        again = self._tried(found, cost)
        assert again.measured is not None
        if again.measured.ratio * self.bias < enough:
            raise self._unreachable(max(ratio, again.measured.ratio * self.bias), found, cost)

    def _choice(self, scored: Scored) -> Choice:
        networks, table = self._ready(scored)
        align = table.align if self.request.align is None else self.request.align
        return Choice(
            scored=scored,
            cost=table.cost(networks.sizes, networks.layers, networks.keys, signature=networks.signature),
            curves=self._curves(scored, align),
            align=align,
            min_channels=self.request.min_channels,
            scope=self.request.scope if self.goal.by_ratio or self.request.scope is Scope.UNIFORM else None,
        )

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

    def _speedup_of(self, cost: WidthCost) -> float:
        """The budget as a speed-up; a latency over what the dense network takes."""
        budget = self.goal.budget
        if budget.speedup is not None:
            return budget.speedup
        assert budget.latency_ms is not None
        dense_ms = cost.dense / 1e6
        if self.measures:
            assert self.known.networks is not None
            model = self.known.networks.at(self.known.networks.sizes.dense)
            dense, _ = self.in_turns(model, model, seconds=TRIAL_SECONDS)
            dense_ms = dense.median_ms
        if dense_ms <= budget.latency_ms:
            raise PlanError(
                f"the dense network takes {dense_ms:.3g} ms there, which is within {budget.latency_ms:g} ms",
                hint="nothing has to leave; ask for less time",
            )
        return dense_ms / budget.latency_ms

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
            aim=self.aim.at, predicted=1 / found.share, measured=measured, channels=int(sum(found.widths.values()))
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

    def _unreachable(self, ratio: float, found: Allocation, cost: WidthCost) -> OutOfReach:
        assert self.known.networks is not None
        operators = self.known.networks.operators
        by_layer = cost.by_layer(cost.sizes.row(found.widths)[None])[0]
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


def _told(found: Allocation) -> tuple[tuple[str, int], ...]:
    """A plan's widths, to know it again."""
    return tuple(sorted(found.widths.items()))
