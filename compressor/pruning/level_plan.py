"""The plan of one level of pruning: shares a request's budget among the scored channel groups of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from compressor.channels.groups import Traced
from compressor.errors import PlanError, SurgeryError
from compressor.planning.calibration import Calibration
from compressor.planning.costs import Cost, CostModel, count
from compressor.planning.sensitivity import Curve
from compressor.progress import Say, quiet
from compressor.pruning.probing import allocated, drawn, probing_of
from compressor.pruning.request import Request
from compressor.surgery.plan import (
    ChannelBudget,
    CostBudget,
    LatencyBudget,
    PruningPlan,
    Scope,
    Scores,
    Sharing,
    plan_pruning,
)
from compressor.surgery.shrinking import shrink


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A network with everything a plan depends on: groups, scores, and images to measure on (empty without data)."""

    module: nn.Module
    traced: Traced
    scores: Scores
    calibration: Calibration
    images: list[tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, the curves it depends on (with measured widths), and the roots of the groups that lose all channels."""

    plan: PruningPlan
    curves: tuple[Curve, ...] = ()
    emptied: tuple[str, ...] = ()


Planner = Callable[[Scored], Planned]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """The dense network's widths by root and its cost, of which a budget is a share; and inputs to run it on."""

    widths: Mapping[str, int]
    cost: Cost
    inputs: tuple[Tensor, ...]


def planned_level(
    scored: Scored,
    request: Request,
    dense: Dense,
    *,
    level: int,
    say: Say,
    curves: tuple[Curve, ...] | None = None,
) -> Planned:
    """Return the plan of the request's level number `level`; existing `curves` replace a new measurement of widths.

    Refused: what `plan_pruning` refuses, and for measured and random widths what their planners refuse.
    """
    module, traced, scores = scored.module, scored.traced, scored.scores
    budget = _budget_at(request, level, module, dense)
    say("planning")
    if request.scope is Scope.MEASURED:
        probing = probing_of(module, traced.groups, scores, scored.calibration, scored.images)
        allocation, curves = allocated(probing, budget, request, dense.inputs, say=say, curves=curves)
        return Planned(plan=allocation.plan, curves=curves, emptied=allocation.emptied)
    if request.scope is Scope.RANDOM:
        return Planned(plan=drawn(module, traced.groups, scores, budget, request, dense.inputs))
    already_smaller = sum(p.numel() for p in module.parameters()) < dense.cost.params
    may_be_empty = request.levels > 1 and (level < request.levels or already_smaller)
    return Planned(plan=_plan(scored, budget, request.sharing, dense, may_be_empty=may_be_empty))


def finer_share(scored: Scored, planned: Planned, request: Request, dense: Dense) -> float | None:
    """Return the predicted share of the counted cost that stays with `--align 1`; `None` if there is no such plan."""
    try:
        finer = planned_level(
            scored, dataclasses.replace(request, align=1), dense, level=1, say=quiet,
            curves=planned.curves or None,
        )  # fmt: skip
    except PlanError:
        return None
    if isinstance(request.budget, CostBudget):
        model = CostModel(scored.module, scored.traced.groups, dense.inputs)
        return model.stays(finer.plan)[request.budget.counted]
    return 1 - (finer.plan.count + len(finer.emptied)) / sum(g.channels for g in scored.traced.groups)


def _plan(
    scored: Scored, budget: ChannelBudget | CostBudget, sharing: Sharing, dense: Dense, *, may_be_empty: bool
) -> PruningPlan:
    """Return the plan within the budget; a cost budget is corrected by the measured cost of the small network."""
    module, traced, inputs = scored.module, scored.traced, dense.inputs
    groups = traced.groups
    if isinstance(budget, ChannelBudget):
        return plan_pruning(
            groups, scored.scores, budget=budget, sharing=sharing, dense_widths=dense.widths, may_be_empty=may_be_empty
        )
    model = CostModel(module, groups, inputs)
    aim = budget.stays
    for _ in range(4):
        aimed = dataclasses.replace(budget, stays=aim)
        plan = plan_pruning(
            groups, scored.scores, budget=aimed, sharing=sharing, cost_of=model.stays, dense_widths=dense.widths,
            may_be_empty=may_be_empty,
        )  # fmt: skip
        try:
            cost = count(shrink(module, traced, plan, inputs)[0], inputs)
        except SurgeryError:
            break  # the caller finds the group that cannot be cut
        real = {"macs": cost.macs / model.dense.macs, "params": cost.params / model.dense.params}[str(budget.counted)]
        predicted = model.stays(plan)[budget.counted]
        if real <= budget.stays * 1.0001 and abs(real - predicted) < 0.005:
            break
        aim = min(0.999, budget.stays * predicted / real)
    return plan


def _budget_at(request: Request, level: int, module: nn.Module, dense: Dense) -> ChannelBudget | CostBudget:
    """Return the level's budget: the share that stays falls by the same factor at each level.

    A budget of channels is relative to the dense network, a budget of costs to the network before the level.
    """
    share, budget = level / request.levels, request.budget
    if isinstance(budget, LatencyBudget):
        raise PlanError(
            "a budget of latency needs time measurements",
            hint="call `compressor.pruning.speed.search.prune_to_speed`, which makes them",
        )
    if isinstance(budget, ChannelBudget):
        return ChannelBudget(ratio=1 - budget.stays**share)
    if request.levels == 1:
        return budget
    counted = str(budget.counted)
    stays = budget.stays**share * getattr(dense.cost, counted)
    return CostBudget(counted=budget.counted, stays=min(0.9999, stays / getattr(count(module, dense.inputs), counted)))
