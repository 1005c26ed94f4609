"""Plan which channels are removed: scores and a budget in, exact indices out.

A group's channels are removed in the order of their scores, ties by index. `uniform` removes the same ratio from every
group, `global` ranks the channels of all groups, `isomorphic` those of groups with the same structure (Fang et al.
2024, arXiv:2407.04616). `measured` is in `planning.allocation`; `random` draws the widths (`planning.random_widths`).
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.channels.groups import ChannelGroup, Role
from compressor.errors import PlanError
from compressor.surgery.rounding import kept, met_in_all, multiple_of, rounded, whole


class Scope(enum.StrEnum):
    """How a ratio is shared among the groups."""

    AUTO = "auto"  # chosen by budget and data: `pruning.request`
    UNIFORM = "uniform"
    GLOBAL = "global"
    ISOMORPHIC = "isomorphic"
    MEASURED = "measured"  # by the error at the output: `planning.allocation`
    RANDOM = "random"  # drawn, as a control: `planning.random_widths`


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelBudget:
    """Remove a share of the channels."""

    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise PlanError(
                f"a pruning ratio must lie between 0 and 1, and {self.ratio:g} does not",
                hint="it is the share of channels to remove: `--ratio 0.5`",
            )

    @property
    def stays(self) -> float:
        """The share of the channels that stays, as every other budget counts."""
        return 1 - self.ratio


class Countable(enum.StrEnum):
    """What a cost budget counts."""

    MACS = "macs"
    PARAMS = "params"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostBudget:
    """Keep at most a share of the MACs or parameters."""

    counted: Countable
    stays: float

    def __post_init__(self) -> None:
        if not 0 < self.stays < 1:
            raise PlanError(
                f"the share of {self.counted} that may stay must lie between 0 and 1, and {self.stays:g} does not",
                hint=f"for half of them: `--{self.counted} 0.5`",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyBudget:
    """Reach a speed-up or a latency in milliseconds; exactly one of the two is set."""

    speedup: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        if (self.speedup is None) == (self.latency_ms is None):
            raise PlanError("a latency budget is a speed-up or a latency", hint="`--speedup 2` or `--latency 4ms`")
        if self.speedup is not None and not self.speedup > 1:
            raise PlanError(
                f"a speed-up must be more than 1, and {self.speedup:g} is not", hint="twice as fast: `--speedup 2`"
            )
        if self.latency_ms is not None and not self.latency_ms > 0:
            raise PlanError(f"a latency must be positive, and {self.latency_ms:g} ms is not", hint="`--latency 4ms`")


Budget = ChannelBudget | CostBudget | LatencyBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How a budget is shared among the groups, and the widths that they may have.

    Widths are multiples of `align` where a group is wide enough; `None` chooses the multiple for each group
    (`surgery.rounding`). Every group keeps `min_channels`.
    """

    scope: Scope = Scope.UNIFORM
    align: int | None = 1
    min_channels: int = 1

    def __post_init__(self) -> None:
        if (self.align is not None and self.align < 1) or self.min_channels < 1:
            raise PlanError(f"alignment {self.align} and least width {self.min_channels} must be at least 1")


EVENLY = Sharing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A number for every channel of every group, float64 `[channels]` by the group's root; the lowest are removed
    first.
    """

    by_root: Mapping[str, Tensor]
    comparable: bool  # across groups; if not, scores are divided by their group's mean first

    def __post_init__(self) -> None:
        for root, scores in self.by_root.items():
            if not torch.isfinite(scores).all():
                raise PlanError(f"the scores of `{root}` are not finite", hint="check the weights and the data for NaN")

    def reversed(self) -> Scores:
        """Return scores of the opposite sign: the highest are removed first."""
        return Scores(by_root={r: -s for r, s in self.by_root.items()}, comparable=self.comparable)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningPlan:
    """The removed channels of each group, by the group's root; sorted and unique."""

    removed: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        for root, indices in self.removed.items():
            if list(indices) != sorted(set(indices)) or (indices and indices[0] < 0):
                raise PlanError(f"the removed channels of `{root}` are not sorted, unique and non-negative")

    def check(self, groups: Sequence[ChannelGroup]) -> None:
        """Refuse a plan that does not fit `groups`, or removes all channels of one."""
        by_root = {g.root: g for g in groups}
        for root, indices in self.removed.items():
            group = by_root.get(root)
            if group is None:
                raise PlanError(f"the plan names a group `{root}` that this network does not have")
            if indices and indices[-1] >= group.channels:
                raise PlanError(f"the plan removes channel {indices[-1]} of the {group.channels} of `{root}`")
            if len(indices) >= group.channels:
                raise PlanError(f"the plan removes all {group.channels} channels of `{root}`")

    @property
    def count(self) -> int:
        """The number of removed channels in all groups."""
        return sum(map(len, self.removed.values()))

    def to_json(self) -> dict[str, list[int]]:
        """Return root → removed indices."""
        return {root: list(indices) for root, indices in self.removed.items()}


def plan_from_json(plain: Mapping[str, Sequence[int]]) -> PruningPlan:
    """Return the plan that `to_json` wrote."""
    return PruningPlan(removed={root: tuple(int(i) for i in indices) for root, indices in plain.items()})


CostOf = Callable[[PruningPlan], Mapping[Countable, float]]


def plan_pruning(
    groups: Sequence[ChannelGroup],
    scores: Scores,
    *,
    budget: ChannelBudget | CostBudget,
    sharing: Sharing = EVENLY,
    cost_of: CostOf | None = None,
    dense_widths: Mapping[str, int] | None = None,
    may_be_empty: bool = False,
) -> PruningPlan:
    """Return the plan that meets the budget, shared among the groups as `sharing` says.

    The total removed is as near to the request as the multiples of the widths allow, and never more. `cost_of` returns
    the share that stays under a plan (a cost budget needs it). At a later level of iterative pruning a ratio still
    counts the dense network's channels: `dense_widths` has them by root, and the level `may_be_empty`. Refused: a
    budget that removes nothing, or that cannot be met with the least width in every group.
    """
    ranking = _Ranking(
        groups, scores, dense_widths=dense_widths or {g.root: g.channels for g in groups}, sharing=sharing
    )
    if isinstance(budget, ChannelBudget):
        plan = ranking.at(budget.stays)
    else:
        assert cost_of is not None
        plan = _within_budget(ranking, budget, cost_of)
    if not plan.count and not may_be_empty:
        widest = max(g.channels for g in groups)
        finer = "" if sharing.align == 1 else ", or for `--align 1`"
        raise PlanError(
            "nothing would be removed: the budget rounds to no channel at all",
            hint=f"ask for more{finer}: the widest group has {widest} channels",
        )
    plan.check(groups)
    return plan


class _Ranking:
    """The order in which each group's channels are removed, and how many at a share that stays."""

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        scores: Scores,
        *,
        dense_widths: Mapping[str, int],
        sharing: Sharing,
    ) -> None:
        self.groups, self.dense_widths, self.sharing = groups, dense_widths, sharing
        self.orders: dict[str, Tensor] = {}  # root → channels, in the order of removal
        self.rising: dict[str, Tensor] = {}  # root → their scores
        for group in groups:
            of_group = scores.by_root[group.root].double()
            if of_group.shape != (group.channels,):
                raise PlanError(f"{list(of_group.shape)} scores for the {group.channels} channels of `{group.root}`")
            mean = float(of_group.abs().mean())
            if not scores.comparable and mean > 0:
                of_group = of_group / mean
            self.rising[group.root], self.orders[group.root] = of_group.sort(stable=True)

    def multiple(self, group: ChannelGroup) -> int:
        """Return the multiple that the group's width is rounded up to."""
        return multiple_of(group, self.sharing.align)

    def plan(self, widths: Mapping[str, int]) -> PruningPlan:
        """Return the plan with the given width for each group."""
        removed = {}
        for group in self.groups:
            leaving = group.channels - widths[group.root]
            removed[group.root] = tuple(sorted(self.orders[group.root][:leaving].tolist()))
        return PruningPlan(removed=removed)

    def least_width(self, group: ChannelGroup) -> int:
        """Return the smallest width that the group may have."""
        at_least = min(self.sharing.min_channels, group.channels)
        return kept(group.channels, 0, multiple=self.multiple(group), at_least=at_least)

    def at(self, stays: float) -> PruningPlan:
        """Return the plan that keeps this share of the dense network's channels, shared by the scope."""
        exact, total = self._exact(stays)
        widths = {
            g.root: rounded(
                g.channels, exact[g.root], step=self.multiple(g), at_least=self.sharing.min_channels,
                rising=self.rising[g.root].tolist(),
            )
            for g in self.groups
        }  # fmt: skip
        return self.plan(met_in_all(widths, least={g.root: self.least_width(g) for g in self.groups}, total=total))

    def _exact(self, stays: float) -> tuple[dict[str, float], int]:
        """Return the width of every group before any rounding, and the whole number of channels that stay in all."""
        scope = self.sharing.scope
        if scope is Scope.AUTO:
            raise PlanError("the scope `auto` is not resolved yet", hint="`Request.resolved` chooses one")
        if scope is Scope.MEASURED:
            raise PlanError(
                "measured widths do not come from scores",
                hint="`compressor.planning.allocation` computes them from curves",
            )
        if scope is Scope.RANDOM:
            raise PlanError(
                "random widths do not come from scores", hint="`compressor.planning.random_widths` draws them"
            )
        total = whole(sum(self.dense_widths[g.root] for g in self.groups) * stays)
        if scope is Scope.UNIFORM:
            return {g.root: min(g.channels, self.dense_widths[g.root] * stays) for g in self.groups}, total
        classes: dict[object, list[ChannelGroup]] = defaultdict(list)
        for group in self.groups:
            classes[None if scope is Scope.GLOBAL else _structure(group)].append(group)
        gone = {root: count for some in classes.values() for root, count in self._ranked(some, stays).items()}
        exact = {g.root: float(g.channels - gone[g.root]) for g in self.groups}
        return exact, max(total, round(sum(exact.values())))  # each class has rounded its own up

    def _ranked(self, groups: Sequence[ChannelGroup], stays: float) -> dict[str, int]:
        """The number of channels removed from each group when the lowest of all groups are removed; exact, ties by
        position.
        """
        wanted = sum(g.channels for g in groups) - whole(sum(self.dense_widths[g.root] for g in groups) * stays)
        candidates: list[tuple[float, int, int]] = []
        for index, group in enumerate(groups):
            free = group.channels - max(1, min(self.sharing.min_channels, group.channels))
            candidates += [(s, index, c) for c, s in enumerate(self.rising[group.root][:free].tolist())]
        candidates.sort()
        gone = [0] * len(groups)
        for _, index, _ in candidates[:wanted]:
            gone[index] += 1
        return {g.root: gone[i] for i, g in enumerate(groups)}


def _structure(group: ChannelGroup) -> object:
    """The key of isomorphic groups: their members' roles, dimensions and kinds of tensor, not their sizes."""
    return tuple((m.role, m.dim, m.tensor.rpartition(".")[2]) for m in group.members if m.role is not Role.CARRIES)


def _within_budget(ranking: _Ranking, budget: CostBudget, cost_of: CostOf) -> PruningPlan:
    """The widest plan within the budget: bisection on the share of channels, then single groups are widened."""

    def stays(plan: PruningPlan) -> float:
        return cost_of(plan)[budget.counted]

    least = ranking.plan({g.root: ranking.least_width(g) for g in ranking.groups})
    if stays(least) > budget.stays:
        raise PlanError(
            f"{budget.stays:.1%} of the {budget.counted} cannot be met: the narrowest network keeps {stays(least):.1%}",
            hint="ask for more, lower `--min-channels` or `--align`, or protect less",
        )
    fits, too_wide, plan = 0.0, 1.0, least
    for _ in range(24):
        middle = (fits + too_wide) / 2
        candidate = ranking.at(middle)
        if stays(candidate) > budget.stays:
            too_wide = middle
        else:
            fits, plan = middle, candidate
    widths = {g.root: g.channels - len(plan.removed[g.root]) for g in ranking.groups}
    for _ in range(4):  # each pass widens every group by one step at most
        before = dict(widths)
        for group in sorted(ranking.groups, key=lambda g: -g.channels):
            wider = {**widths, group.root: min(group.channels, widths[group.root] + ranking.multiple(group))}
            if wider != widths and stays(ranking.plan(wider)) <= budget.stays:
                widths = wider
        if widths == before or stays(ranking.plan(widths)) > budget.stays * 0.995:
            break
    return ranking.plan(widths)


def gone_mask(group: ChannelGroup, plan: PruningPlan) -> Tensor:
    """Return the mask of the group's removed channels: bool `[channels]`."""
    gone = torch.zeros(group.channels, dtype=torch.bool)
    gone[list(plan.removed.get(group.root, ()))] = True
    return gone


def gone_labels(groups: Sequence[ChannelGroup], plan: PruningPlan) -> set[int]:
    """Return the labels of all removed channels."""
    return {group.labels[c] for group in groups for c in plan.removed.get(group.root, ())}
