"""Choose widths by measurement: narrow where the error per saved cost is lowest.

Every group has a curve of error against width (`planning.sensitivity`), and the network a cost at any widths
(`planning.widths`): channels, MACs, parameters or predicted latency.

Greedy: start dense. At each step consider, for every group, its next few narrower widths; take the step with the lowest
error increase per unit of cost saved, given the current widths of its neighbours. Stop when the budget is met. Several
widths ahead are considered because a runtime's time falls in steps, and between two steps a removed channel saves
nothing. The last step is the cheapest one that meets the budget. Then try swaps: widen one group (and, if needed,
narrow another) whenever the budget still holds and the total error falls.

Where every channel saves the same and curves are convex, this is optimal. It is the knapsack of HALP (Shen et al. 2022,
arXiv:2110.10811), with the coupling of neighbours included in the price.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.channels.groups import ChannelGroup
from compressor.errors import OutOfReach, PlanError
from compressor.planning.sensitivity import Curve
from compressor.surgery.plan import PruningPlan, Scores
from compressor.surgery.rounding import multiple_of

PROBED = (0.75, 0.5, 0.25, 0.125)  # shares of a group's channels whose error is measured, rounded to the alignment
AHEAD = (1, 2, 3, 4, 8)  # the distances of a step, in widths
CHOICES = 64  # at most so many widths per group; wider groups have larger steps
EXCHANGES = 400
WORTH = 1e-3  # a swap must lower the total rise by this share: less would bring back useless branches

Numbers = NDArray[np.float64]
Share = Callable[[Numbers], Numbers]  # widths `[rows, groups]` → the network's cost over the dense network's cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A plan, and the groups that become empty: the plan keeps their last unit, and repair empties them.

    `share`: the network's cost at these widths over the dense network's. `rise`: the sum of the curves at these widths.
    """

    plan: PruningPlan
    emptied: tuple[str, ...]
    widths: Mapping[str, int]
    share: float
    rise: float


def orders_from(groups: Sequence[ChannelGroup], scores: Scores) -> dict[str, tuple[int, ...]]:
    """Return each group's channels in the order of removal, ties by index."""
    orders = {}
    for group in groups:
        orders[group.root] = tuple(scores.by_root[group.root].double().sort(stable=True).indices.tolist())
    return orders


def widths_to_probe(
    group: ChannelGroup, *, align: int | None, min_channels: int, may_empty: bool, strict: bool = False
) -> tuple[int, ...]:
    """Return widths below the group's own, descending, on the steps that an allocation may take."""
    step = multiple_of(group, align, strict=strict)
    least = max(step, -(-min(min_channels, group.channels) // step) * step)
    shares = {max(least, -(-group.channels * share // step) * step) for share in PROBED}
    widths = {int(w) for w in shares if w < group.channels} | ({0} if may_empty else set())
    return tuple(sorted(widths, reverse=True))


def scored_curves(
    groups: Sequence[ChannelGroup], scores: Scores, *, align: int | None, min_channels: int, strict: bool = False
) -> list[Curve]:
    """Return curves from a criterion alone: the sum of the removed channels' scores, in units of the group's mean."""
    curves = []
    for group in groups:
        ranked = scores.by_root[group.root].double().sort(stable=True).values
        if not scores.comparable:
            ranked = ranked / (ranked.abs().mean() or 1.0)
        lost = np.concatenate([[0.0], np.cumsum(ranked.clamp(min=0).numpy())])
        step = multiple_of(group, align, strict=strict)
        least = max(step, -(-min(min_channels, group.channels) // step) * step)
        below = range(-(-group.channels // step) * step - step, least - 1, -step)
        widths = (group.channels, *below)
        rises = tuple(float(lost[group.channels - w]) for w in widths)
        curves.append(Curve(root=group.root, widths=widths, measured=rises))
    return curves


def allocate(
    groups: Sequence[ChannelGroup],
    orders: Mapping[str, Sequence[int]],
    curves: Sequence[Curve],
    *,
    target: float,
    share: Share,
    align: int | None,
    min_channels: int = 1,
    strict: bool = False,
) -> Allocation:
    """Return the widths with the least rise at which the network costs at most `target` of the dense one.

    With `strict`, every width is a multiple of `align`, or the group's own. Groups without a curve keep their width.
    Refused: a target that the groups with a curve cannot meet, or that removes nothing.
    """
    state = _Widths.of(groups, curves, align=align, min_channels=min_channels, strict=strict)
    remaining = float(share(state.row[None])[0])
    while remaining > target:
        number = state.best_step(share, remaining, target)
        if number is None:
            raise OutOfReach(
                f"{target:.1%} cannot be met: with the narrowest widths that were measured {remaining:.1%} stays",
                hint="ask for more, lower `--min-channels` or `--align`, or protect less",
            )
        remaining = state.take(number, share)
    for _ in range(EXCHANGES):
        if not state.exchange(share, target):
            break
    widths = {g.root: int(w) for g, w in zip(groups, state.row, strict=True)}
    plan = plan_of_widths(groups, orders, widths)
    if not plan.count:
        raise PlanError("nothing would be removed: the budget is met as it is", hint="ask for less to stay")
    plan.check(groups)
    return Allocation(
        plan=plan,
        emptied=tuple(root for root, width in widths.items() if not width),
        widths=widths,
        share=float(share(state.row[None])[0]),
        rise=float(sum(rises[at] for rises, at in zip(state.rises, state.at, strict=True))),
    )


def cheapest(
    groups: Sequence[ChannelGroup],
    curves: Sequence[Curve],
    *,
    share: Share,
    align: int | None,
    min_channels: int = 1,
    strict: bool = False,
) -> dict[str, int]:
    """Return the widths from which no step saves anything more, within the curves."""
    state = _Widths.of(groups, curves, align=align, min_channels=min_channels, strict=strict)
    remaining = float(share(state.row[None])[0])
    while (move := state.best_step(share, remaining, -math.inf)) is not None:
        remaining = state.take(move, share)
    return {g.root: int(w) for g, w in zip(groups, state.row, strict=True)}


def plan_of_widths(
    groups: Sequence[ChannelGroup], orders: Mapping[str, Sequence[int]], widths: Mapping[str, int]
) -> PruningPlan:
    """Return the plan with these widths; an emptied group keeps one channel in it."""
    return PruningPlan(
        removed={g.root: tuple(sorted(orders[g.root][: g.channels - max(widths[g.root], 1)])) for g in groups}
    )


@dataclass(slots=True, eq=False)
class _Widths:
    """Every group's possible widths, descending, with the rise at each, and the index of the current one."""

    choices: list[Numbers]
    rises: list[Numbers]
    at: list[int]

    @classmethod
    def of(
        cls,
        groups: Sequence[ChannelGroup],
        curves: Sequence[Curve],
        *,
        align: int | None,
        min_channels: int,
        strict: bool,
    ) -> _Widths:
        """The widths of all groups, each at its own full width."""
        curve_of = {c.root: c for c in curves}
        choices, rises = [], []
        for group in groups:
            curve = curve_of.get(group.root)
            widths = (group.channels,) if curve is None else _choices(group, curve, align, min_channels, strict=strict)
            choices.append(np.array(widths, dtype=np.float64))
            rises.append(np.array([0.0 if curve is None else curve.at(w) for w in widths]))
        return cls(choices, rises, [0] * len(choices))

    @property
    def row(self) -> Numbers:
        """The current widths `[groups]`."""
        return np.array([choices[at] for choices, at in zip(self.choices, self.at, strict=True)])

    def best_step(self, share: Share, remaining: float, target: float) -> tuple[int, int] | None:
        """The best step as (group, index of its new width).

        It is the step with the least rise per cost saved, or the one with the least rise if some steps meet the target.
        """
        moves = [(g, at + k) for g, at in enumerate(self.at) for k in AHEAD if at + k < len(self.choices[g])]
        if not moves:
            return None
        shares = share(self._rows(moves))
        rises = self._changes(moves)
        saved = remaining - shares
        with np.errstate(divide="ignore", invalid="ignore"):
            prices = np.where(saved > 0, rises / saved, np.inf)
        best = int(np.argmin(prices))
        if not np.isfinite(prices[best]):
            # every remaining step saves nothing or has an infinite rise: take the one that saves most, if any saves
            best = int(np.argmax(saved))
            return moves[best] if saved[best] > 0 else None
        if shares[best] <= target:
            enough = np.where(shares <= target, rises, np.inf)
            best = int(np.argmin(enough))
        return moves[best]

    def take(self, move: tuple[int, int], share: Share) -> float:
        """Take a step, and return the share of the cost that remains."""
        self.at[move[0]] = move[1]
        return float(share(self.row[None])[0])

    def exchange(self, share: Share, target: float) -> bool:
        """Widen one group, alone or with another narrowed, if the rise falls within the target; return whether a swap
        was made.
        """
        wider = [(g, at - k) for g, at in enumerate(self.at) for k in (1, 2) if at >= k]
        narrower = [(g, at + k) for g, at in enumerate(self.at) for k in (1, 2, 4) if at + k < len(self.choices[g])]
        gains, losses = self._changes(wider), self._changes(narrower)
        pairs: list[tuple[tuple[tuple[int, int], ...], float]]
        pairs = [((u,), float(gains[i])) for i, u in enumerate(wider)]
        pairs += [
            ((u, d), float(gains[i] + losses[j]))
            for i, u in enumerate(wider)
            for j, d in enumerate(narrower)
            if u[0] != d[0] and gains[i] + losses[j] < 0
        ]
        now = sum(float(rises[at]) for rises, at in zip(self.rises, self.at, strict=True))
        pairs = sorted((p for p in pairs if p[1] < -WORTH * now - 1e-12), key=lambda p: p[1])
        for start in range(0, len(pairs), 256):  # the largest gains first
            some = pairs[start : start + 256]
            rows = np.repeat(self.row[None], len(some), axis=0)
            for row, (moves, _) in zip(rows, some, strict=True):
                for g, to in moves:
                    row[g] = self.choices[g][to]
            fits = np.flatnonzero(share(rows) <= target)
            if len(fits):
                for g, to in some[int(fits[0])][0]:
                    self.at[g] = to
                return True
        return False

    def _rows(self, moves: Sequence[tuple[int, int]]) -> Numbers:
        """The current widths after each single move, `[moves, groups]`."""
        rows = np.repeat(self.row[None], len(moves), axis=0)
        for row, (g, to) in zip(rows, moves, strict=True):
            row[g] = self.choices[g][to]
        return rows

    def _changes(self, moves: Sequence[tuple[int, int]]) -> Numbers:
        """The change of the rise by each single move."""
        return np.array([self.rises[g][to] - self.rises[g][self.at[g]] for g, to in moves])


def _choices(
    group: ChannelGroup, curve: Curve, align: int | None, min_channels: int, *, strict: bool
) -> tuple[int, ...]:
    """The widths that the group may have: its own, multiples of its step, and 0 where the curve reaches it."""
    step = multiple_of(group, align, strict=strict)
    lowest = curve.widths[-1]
    least = max(step, min(min_channels, group.channels), lowest)
    below = list(range(-(-group.channels // step) * step - step, 0, -step))
    below = [w for w in below if w >= least]
    stride = -(-len(below) // CHOICES)
    if stride > 1:
        below = [*below[stride - 1 :: stride], *([] if len(below) % stride == 0 else below[-1:])]
    return (group.channels, *below, *((0,) if lowest == 0 else ()))
