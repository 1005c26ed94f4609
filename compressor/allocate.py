"""Widths by measurement: where narrowing costs the output least for what it saves.

Every group has a measured curve of error against width (`compressor.sensitivity`). Starting from the dense widths, the
step of one group that costs the least rise for what it saves is taken, until the budget is met. A step goes from a
width to the next lower multiple of the alignment, or to none at all where the group may be emptied. As every curve is
convex, the greedy choice is the one of a knapsack's relaxation; what a step saves is counted with the neighbours at the
widths that they have by then.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.costs import CostModel
from compressor.errors import PlanError
from compressor.groups import ChannelGroup
from compressor.plan import Budget, ChannelBudget, PruningPlan, Scores, multiple_of
from compressor.sensitivity import Curve

PROBED = (0.75, 0.5, 0.25, 0.125)  # shares of a group's channels whose error is measured, rounded to the alignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A plan, and the groups of which nothing is to stay: the plan leaves them their last unit, repair empties them."""

    plan: PruningPlan
    emptied: tuple[str, ...]


def orders_from(groups: Sequence[ChannelGroup], scores: Scores) -> dict[str, tuple[int, ...]]:
    """The channels of each group in the order they leave, ties by index."""
    orders = {}
    for group in groups:
        orders[group.root] = tuple(scores.by_root[group.root].double().sort(stable=True).indices.tolist())
    return orders


def widths_to_probe(group: ChannelGroup, *, align: int, min_channels: int, may_empty: bool) -> tuple[int, ...]:
    """Falling widths below the group's own, on the steps that an allocation may take."""
    step = multiple_of(group, align)
    least = max(step, -(-min(min_channels, group.channels) // step) * step)
    shares = {max(least, -(-group.channels * share // step) * step) for share in PROBED}
    widths = {int(w) for w in shares if w < group.channels} | ({0} if may_empty else set())
    return tuple(sorted(widths, reverse=True))


def allocate(
    groups: Sequence[ChannelGroup],
    orders: Mapping[str, Sequence[int]],
    curves: Sequence[Curve],
    *,
    budget: Budget,
    costs: CostModel,
    align: int,
    min_channels: int = 1,
) -> Allocation:
    """The widths that meet the budget at the least measured rise; groups without a curve stay as they are.

    Refused: a budget that cannot be met by the groups that have a curve, or that removes nothing.
    """
    by_root = {g.root: g for g in groups}
    curve_of = {c.root: c for c in curves}
    widths = {g.root: g.channels for g in groups}
    channels = sum(widths.values())

    def stays(wanted: Mapping[str, int]) -> float:
        if isinstance(budget, ChannelBudget):
            return sum(wanted.values()) / channels
        return costs.stays(_plan(by_root, orders, wanted))[budget.counted]

    def step_of(root: str) -> tuple[float, str, int] | None:
        """What the group's next step costs for what it saves, now; `None` where there is none."""
        narrower = _next(by_root[root], widths[root], curve_of[root], align=align, min_channels=min_channels)
        saved = 0.0 if narrower is None else left - stays({**widths, root: narrower})
        if narrower is None or saved <= 0:
            return None
        return (curve_of[root].at(narrower) - curve_of[root].at(widths[root])) / saved, root, narrower

    target = 1 - budget.ratio if isinstance(budget, ChannelBudget) else budget.stays
    left = stays(widths)
    # a step never becomes cheaper: curves are convex, and a layer saves less the narrower its neighbours are; so only
    # the cheapest by its last price has to be priced again
    priced = [step for root in curve_of if (step := step_of(root)) is not None]
    heapq.heapify(priced)
    while left > target:
        if not priced:
            raise PlanError(
                f"{target:.1%} cannot be met: with the narrowest widths that were measured {left:.1%} stays",
                hint="ask for more, lower `--min-channels` or `--align`, or protect less",
            )
        _, root, _ = heapq.heappop(priced)
        now = step_of(root)
        if now is None:
            continue
        if priced and now > priced[0]:
            heapq.heappush(priced, now)
            continue
        widths[root] = now[2]
        left = stays(widths)
        following = step_of(root)
        if following is not None:
            heapq.heappush(priced, following)
    emptied = tuple(root for root, width in widths.items() if not width)
    least = {root: max(width, 1) for root, width in widths.items()}
    plan = _plan(by_root, orders, least)
    if not plan.count:
        raise PlanError("nothing would be removed: the budget is met as it is", hint="ask for less to stay")
    plan.check(groups)
    return Allocation(plan=plan, emptied=emptied)


def _next(group: ChannelGroup, width: int, curve: Curve, *, align: int, min_channels: int) -> int | None:
    """The next lower width that the group may have."""
    step = multiple_of(group, align)
    narrower = -(-width // step) * step - step
    lowest = curve.widths[-1]
    if narrower >= max(step, min(min_channels, group.channels)) and narrower >= lowest:
        return narrower
    return 0 if lowest == 0 and width > 0 else None


def _plan(
    by_root: Mapping[str, ChannelGroup], orders: Mapping[str, Sequence[int]], widths: Mapping[str, int]
) -> PruningPlan:
    removed = {root: tuple(sorted(orders[root][: by_root[root].channels - width])) for root, width in widths.items()}
    return PruningPlan(removed=removed)
