"""Plans: exact counts, whatever the ties, alignments and budgets."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from compressor.channels.groups import ChannelGroup, Member, Role
from compressor.errors import PlanError
from compressor.surgery.plan import (
    ChannelBudget,
    CostBudget,
    Countable,
    PruningPlan,
    Scope,
    Scores,
    Sharing,
    plan_from_json,
    plan_pruning,
)
from compressor.surgery.rounding import kept, multiple_of

SHARED = [Scope.UNIFORM, Scope.GLOBAL, Scope.ISOMORPHIC]


def group(root: str, channels: int, size: int = 1) -> ChannelGroup:
    """A group whose channels have `size` positions each."""
    every = torch.arange(channels * size)
    member = Member(
        layer=root, tensor=f"{root}.weight", dim=0, role=Role.PRODUCES, positions=every, channels=every // size
    )
    return ChannelGroup(root=root, channels=channels, members=(member,))


def scores(groups: list[ChannelGroup], *, seed: int | None = 0, comparable: bool = True) -> Scores:
    generator = torch.Generator().manual_seed(seed or 0)
    draw = {g.root: torch.rand(g.channels, generator=generator).double() for g in groups}
    flat = {g.root: torch.ones(g.channels).double() for g in groups}
    return Scores(by_root=flat if seed is None else draw, comparable=comparable)


@pytest.mark.parametrize(
    ("channels", "ratio", "multiple", "stays"),
    [(16, 0.5, 8, 8), (16, 0.3, 8, 16), (10, 0.7, 1, 3), (10, 0.3, 1, 7), (6, 0.5, 8, 6), (64, 0.99, 1, 1),
     (3, 0.5, 1, 2), (64, 0.7, 8, 24), (100, 0.29, 1, 71), (50, 0.58, 1, 21), (90, 0.7, 1, 27)],
)  # fmt: skip
def test_kept_by_hand(channels: int, ratio: float, multiple: int, stays: int) -> None:
    assert kept(channels, channels * (1 - ratio), multiple=multiple) == stays


@pytest.mark.parametrize(("channels", "ratio"), [(10, 0.1), (5, 0.2), (100, 0.29)])
@pytest.mark.parametrize("scope", SHARED)
def test_rounding_takes_no_channel_from_the_ratio(channels: int, ratio: float, scope: Scope) -> None:
    """The last row is 28.999… as a product; in the others a ratio was one less what stays, and came back too small."""
    plan = plan_pruning([group("a", channels)], scores([group("a", channels)]), budget=ChannelBudget(ratio=ratio),
                        sharing=Sharing(scope=scope))  # fmt: skip
    assert plan.count == round(channels * ratio)


@given(st.integers(1, 512), st.floats(0.01, 0.99), st.integers(1, 32))
def test_never_more_removed_than_asked_and_never_all(channels: int, ratio: float, multiple: int) -> None:
    stays = kept(channels, channels * (1 - ratio), multiple=multiple)
    assert 1 <= stays <= channels
    assert channels - stays <= channels * ratio + 1e-6
    assert stays % multiple == 0 or stays == channels


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=6),
    st.floats(0.05, 0.95),
    st.booleans(),
    st.sampled_from(SHARED),
)
def test_ties_do_not_change_how_many_channels_go(widths: list[int], ratio: float, tied: bool, scope: Scope) -> None:
    groups = [group(f"l{i}", w) for i, w in enumerate(widths)]
    removable = sum(w - 1 for w in widths)
    whole = math.floor(sum(widths) * ratio + 1e-9)
    try:
        plan = plan_pruning(
            groups,
            scores(groups, seed=None if tied else 3),
            budget=ChannelBudget(ratio=ratio),
            sharing=Sharing(scope=scope),
        )
    except PlanError:
        assert whole == 0
        return
    if scope is Scope.UNIFORM and any(w * (1 - ratio) < 1 for w in widths):  # what one keeps, the others need not lose
        assert sum(min(w - 1, math.floor(w * ratio + 1e-9)) for w in widths) <= plan.count <= min(whole, removable)
    else:
        assert plan.count == min(whole, removable)
    assert all(len(plan.removed[g.root]) < g.channels for g in groups)


def test_ties_leave_by_index() -> None:
    groups = [group("a", 6)]
    assert plan_pruning(groups, scores(groups, seed=None), budget=ChannelBudget(ratio=0.5)).removed["a"] == (0, 1, 2)


def test_the_lowest_scores_leave_and_reversed_the_highest() -> None:
    groups = [group("a", 4)]
    given_scores = Scores(by_root={"a": torch.tensor([3.0, 1.0, 4.0, 2.0])}, comparable=True)
    assert plan_pruning(groups, given_scores, budget=ChannelBudget(ratio=0.5)).removed["a"] == (1, 3)
    assert plan_pruning(groups, given_scores.reversed(), budget=ChannelBudget(ratio=0.5)).removed["a"] == (0, 2)


def test_global_takes_from_the_group_with_the_low_scores() -> None:
    groups = [group("low", 8), group("high", 8)]
    by_root = {"low": torch.arange(8) * 0.1, "high": torch.arange(8) + 10.0}
    plan = plan_pruning(
        groups,
        Scores(by_root=by_root, comparable=True),
        budget=ChannelBudget(ratio=0.25),
        sharing=Sharing(scope=Scope.GLOBAL),
    )
    assert (len(plan.removed["low"]), len(plan.removed["high"])) == (4, 0)


def test_scores_that_are_not_comparable_are_divided_by_their_groups_mean() -> None:
    groups = [group("small", 8), group("large", 8)]
    shape = torch.arange(1, 9).double()
    given_scores = Scores(by_root={"small": shape * 1e-3, "large": shape * 1e3}, comparable=False)
    plan = plan_pruning(groups, given_scores, budget=ChannelBudget(ratio=0.5), sharing=Sharing(scope=Scope.GLOBAL))
    assert len(plan.removed["small"]) == len(plan.removed["large"]) == 4


def test_isomorphic_ranks_within_groups_of_one_structure() -> None:
    odd = ChannelGroup(root="odd", channels=8, members=(*group("odd", 8).members, *group("odd2", 8).members))
    groups = [group("a", 8), odd]
    by_root = {"a": torch.arange(8) * 1e-3, "odd": torch.arange(8) + 5.0}
    plan = plan_pruning(
        groups,
        Scores(by_root=by_root, comparable=True),
        budget=ChannelBudget(ratio=0.5),
        sharing=Sharing(scope=Scope.ISOMORPHIC),
    )
    assert len(plan.removed["a"]) == len(plan.removed["odd"]) == 4


def test_min_channels_holds() -> None:
    groups = [group("a", 8), group("b", 32)]
    plan = plan_pruning(groups, scores(groups), budget=ChannelBudget(ratio=0.9), sharing=Sharing(min_channels=6))
    assert 8 - len(plan.removed["a"]) >= 6
    assert 32 - len(plan.removed["b"]) >= 6


@given(
    st.integers(2, 40), st.sampled_from([1, 2, 3, 4, 24]), st.floats(0.1, 0.9), st.sampled_from([1, 2, 8]),
    st.sampled_from(SHARED),
)  # fmt: skip
def test_the_positions_that_stay_are_aligned_where_the_channels_suffice(
    channels: int, size: int, ratio: float, align: int, scope: Scope
) -> None:
    groups = [group("a", channels, size), group("b", 16, 2)]
    assert groups[0].size == size
    try:
        plan = plan_pruning(
            groups, scores(groups), budget=ChannelBudget(ratio=ratio), sharing=Sharing(align=align, scope=scope)
        )
    except PlanError:
        return
    plan.check(groups)
    for g in groups:
        stays = g.channels - len(plan.removed[g.root])
        fits = any(c * g.size % align == 0 for c in range(1, g.channels))
        assert stays == g.channels or stays * g.size % align == 0 or not fits
        step = multiple_of(g, align)
        assert scope is not Scope.UNIFORM or len(plan.removed[g.root]) < g.channels * ratio + step + 1e-6
    assert plan.count <= sum(g.channels for g in groups) * ratio + 1e-6


@given(
    st.lists(st.integers(8, 160), min_size=1, max_size=8), st.floats(0.05, 0.9),
    st.sampled_from([Scope.UNIFORM, Scope.GLOBAL]), st.sampled_from([None, None, 1, 2, 4, 8, 16]),
)  # fmt: skip
def test_the_total_is_what_was_asked_but_for_less_than_one_step(
    widths: list[int], ratio: float, scope: Scope, align: int | None
) -> None:
    """Whatever the multiples: what rounding up keeps in one group leaves another, or is less than a step of any."""
    groups = [group(f"l{i}", w) for i, w in enumerate(widths)]
    steps = [multiple_of(g, align) for g in groups]
    if scope is Scope.UNIFORM:
        assume(all(w * (1 - ratio) >= step for w, step in zip(widths, steps, strict=True)))  # none is emptied
    else:
        assume(ratio * sum(widths) < min(widths) - max(steps))
    plan = plan_pruning(
        groups,
        scores(groups),
        budget=ChannelBudget(ratio=ratio),
        sharing=Sharing(align=align, scope=scope),
        may_be_empty=True,
    )
    short = sum(widths) * ratio - plan.count
    assert -1e-6 <= short < max(steps) + 1
    for g, step in zip(groups, steps, strict=True):
        stays = g.channels - len(plan.removed[g.root])
        assert stays == g.channels or stays % step == 0


@pytest.mark.parametrize("widths", [(12,) * 5 + (64,), (16,) * 8, (16, 16, 32, 32, 64, 64), (24, 40, 24), (9, 10, 11)])
@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.5, 0.7])
def test_narrow_networks_lose_what_was_asked_without_an_alignment(widths: tuple[int, ...], ratio: float) -> None:
    groups = [group(f"l{i}", w) for i, w in enumerate(widths)]
    plan = plan_pruning(groups, scores(groups), budget=ChannelBudget(ratio=ratio), sharing=Sharing(align=None))
    assert plan.count / sum(widths) == pytest.approx(ratio, abs=0.05)
    for g in groups:  # and as evenly as two steps allow
        assert len(plan.removed[g.root]) / g.channels == pytest.approx(ratio, abs=0.35)


def test_what_rounding_kept_leaves_where_it_kept_most_and_costs_least() -> None:
    groups = [group("dear", 16), group("cheap", 16), group("exact", 32)]
    by_root = {"dear": torch.full((16,), 2.0), "cheap": torch.full((16,), 1.0), "exact": torch.ones(32)}
    plan = plan_pruning(
        groups, Scores(by_root=by_root, comparable=True), budget=ChannelBudget(ratio=0.25), sharing=Sharing(align=8)
    )  # 12, 12 and 24 channels are to stay: 16, 16 and 24 by rounding up
    assert {root: len(gone) for root, gone in plan.removed.items()} == {"dear": 0, "cheap": 8, "exact": 8}


@pytest.mark.parametrize(
    ("channels", "size", "multiple"),
    [(512, 1, 8), (32, 1, 8), (31, 1, 4), (24, 1, 4), (16, 1, 4), (15, 1, 2), (12, 1, 2), (8, 1, 2), (7, 1, 1),
     (3, 1, 1), (16, 4, 2), (3, 64, 1)],
)  # fmt: skip
def test_without_an_alignment_a_group_has_at_least_four_steps(channels: int, size: int, multiple: int) -> None:
    assert multiple_of(group("a", channels, size), None) == multiple


@pytest.mark.parametrize(
    ("channels", "size", "align", "multiple"),
    [(16, 1, 8, 8), (16, 2, 8, 4), (16, 24, 8, 1), (16, 3, 8, 8), (4, 4, 8, 2), (3, 2, 8, 1), (8, 1, 8, 1)],
)
def test_multiples_by_hand(channels: int, size: int, align: int, multiple: int) -> None:
    assert multiple_of(group("a", channels, size), align) == multiple


@given(st.floats(0.05, 0.95))
def test_a_cost_budget_is_met_from_below_and_closely(share: float) -> None:
    groups = [group(f"l{i}", w) for i, w in enumerate((64, 128, 256))]

    def cost(plan: PruningPlan) -> dict[Countable, float]:
        widths = [g.channels - len(plan.removed[g.root]) for g in groups]
        dense = 3 * 64 + 64 * 128 + 128 * 256
        return {
            Countable.MACS: (3 * widths[0] + widths[0] * widths[1] + widths[1] * widths[2]) / dense,
            Countable.PARAMS: 1.0,
        }

    budget = CostBudget(counted=Countable.MACS, stays=share)
    plan = plan_pruning(groups, scores(groups), budget=budget, cost_of=cost)
    assert share - 0.01 <= cost(plan)[Countable.MACS] <= share


def test_a_budget_out_of_reach_names_the_least() -> None:
    groups = [group("a", 8)]
    with pytest.raises(PlanError, match="keeps 60"):
        plan_pruning(
            groups,
            scores(groups),
            budget=CostBudget(counted=Countable.MACS, stays=0.5),
            cost_of=lambda _: {Countable.MACS: 0.6, Countable.PARAMS: 0.6},
        )


def test_a_ratio_that_rounds_to_nothing_is_refused() -> None:
    groups = [group("a", 4)]
    with pytest.raises(PlanError, match="nothing would be removed"):
        plan_pruning(groups, scores(groups), budget=ChannelBudget(ratio=0.1))
    with pytest.raises(PlanError, match="nothing would be removed"):
        plan_pruning(
            [group("a", 16)], scores([group("a", 16)]), budget=ChannelBudget(ratio=0.3), sharing=Sharing(align=8)
        )


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0, 1.5, float("nan")])
def test_a_ratio_outside_0_and_1_is_refused(ratio: float) -> None:
    with pytest.raises(PlanError, match="between 0 and 1"):
        ChannelBudget(ratio=ratio)
    with pytest.raises(PlanError, match="between 0 and 1"):
        CostBudget(counted=Countable.PARAMS, stays=ratio)


def test_scores_that_are_not_finite_cannot_exist() -> None:
    with pytest.raises(PlanError, match="not finite"):
        Scores(by_root={"a": torch.tensor([1.0, float("nan")])}, comparable=True)


def test_a_plan_survives_json_and_is_checked() -> None:
    groups = [group("a", 8)]
    plan = plan_pruning(groups, scores(groups), budget=ChannelBudget(ratio=0.5))
    assert plan_from_json(plan.to_json()) == plan
    for removed in ({"b": (0,)}, {"a": (8,)}, {"a": tuple(range(8))}):
        with pytest.raises(PlanError):
            PruningPlan(removed=removed).check(groups)
    with pytest.raises(PlanError):
        PruningPlan(removed={"a": (2, 1)})


def test_measured_widths_are_not_made_up_from_scores() -> None:
    groups = [group("a", 8)]
    with pytest.raises(PlanError, match="measured"):
        plan_pruning(groups, scores(groups), budget=ChannelBudget(ratio=0.5), sharing=Sharing(scope=Scope.MEASURED))
