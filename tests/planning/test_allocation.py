"""Widths from curves: the least rise within the budget."""

from __future__ import annotations

import itertools
import random
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compressor.channels.groups import ChannelGroup, Member, Role, trace
from compressor.errors import PlanError
from compressor.planning.allocation import Allocation, Share, allocate, orders_from, widths_to_probe
from compressor.planning.costs import CostModel, count
from compressor.planning.sensitivity import Curve
from compressor.planning.widths import CountedCost, Sizes
from compressor.surgery.plan import Countable, Scores
from compressor.surgery.rounding import multiple_of
from compressor.surgery.shrinking import shrink
from tests.support.topologies import INPUT, Residual, alive


def shared_by(*groups: ChannelGroup) -> Share:
    """The share of all channels that stays."""
    total = sum(g.channels for g in groups)
    return lambda rows: rows.sum(axis=1) / total


def group(root: str, channels: int, size: int = 1) -> ChannelGroup:
    """A group whose channels have `size` positions each."""
    every = torch.arange(channels * size)
    member = Member(
        layer=root, tensor=f"{root}.weight", dim=0, role=Role.PRODUCES, positions=every, channels=every // size
    )
    return ChannelGroup(root=root, channels=channels, members=(member,))


def in_order(*groups: ChannelGroup) -> dict[str, tuple[int, ...]]:
    scores = Scores(by_root={g.root: torch.arange(g.channels).double() for g in groups}, comparable=True)
    return orders_from(groups, scores)


def widths_of(found: Allocation, *groups: ChannelGroup) -> dict[str, int]:
    return {g.root: 0 if g.root in found.emptied else g.channels - len(found.plan.removed[g.root]) for g in groups}


def quadratic(root: str, channels: int, scale: float, *, lowest: int = 1) -> Curve:
    widths = tuple(range(channels, lowest - 1, -1))
    return Curve(root=root, widths=widths, measured=tuple(scale * (channels - w) ** 2 for w in widths))


# Oracle


@given(
    st.lists(st.lists(st.integers(1, 1000), min_size=1, max_size=5), min_size=1, max_size=3),
    st.floats(0.05, 0.95), st.booleans(),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_no_other_widths_within_the_budget_rise_less(
    increments: list[list[int]], ratio: float, to_nothing: bool
) -> None:
    """Where every channel saves the same and curves are convex, the greedy choice is the best of all choices."""
    curves, groups = [], []
    for i, steps in enumerate(increments):
        channels = len(steps) + (0 if to_nothing else 1)
        groups.append(group(str(i), channels))
        rises = [0.0, *itertools.accumulate(sorted(map(float, steps)))]
        curves.append(
            Curve(root=str(i), widths=tuple(range(channels, channels - len(rises), -1)), measured=tuple(rises))
        )
    total = sum(g.channels for g in groups)
    rise_of = [dict(zip(c.widths, c.measured, strict=True)) for c in curves]
    choices = [w for w in itertools.product(*rise_of) if sum(w) / total <= 1 - ratio]
    options: dict[str, Any] = {"target": 1 - ratio, "share": shared_by(*groups), "align": 1}
    if not choices:
        with pytest.raises(PlanError, match="cannot be met"):
            allocate(groups, in_order(*groups), curves, **options)
        return
    assume(any(g.channels > 1 for g in groups))
    try:
        found = widths_of(allocate(groups, in_order(*groups), curves, **options), *groups)
    except PlanError as error:
        assert "nothing would be removed" in str(error)  # noqa: PT017  # only groups of one channel were emptied
        assert to_nothing
        return
    mine = sum(r[found[str(i)]] for i, r in enumerate(rise_of))
    assert sum(found.values()) / total <= 1 - ratio
    # the greedy choice may stop a step later than the budget, never worse than the best at its own number of channels
    assert mine == min(
        sum(r[w] for r, w in zip(rise_of, ws, strict=True)) for ws in choices if sum(ws) == sum(found.values())
    )
    assert sum(found.values()) == max(map(sum, choices))


def chain_share(groups: list[ChannelGroup], block: int) -> Share:
    """The cost of a chain of layers: each is as dear as its width times the one before, in whole blocks of channels."""
    dense = np.array([[float(g.channels) for g in groups]])

    def cost(rows: Any) -> Any:
        ends = np.ones((len(rows), 1))
        widths = np.concatenate([3 * ends, rows, 5 * ends], axis=1)
        return (widths[:, :-1] * np.ceil(widths[:, 1:] / block)).sum(axis=1)

    return lambda rows: cost(rows) / cost(dense)[0]


def test_where_neighbours_are_coupled_and_time_falls_in_steps_it_is_near_the_best_of_all_choices() -> None:
    """Against every choice there is, over networks of three groups that are drawn at random."""
    draw = random.Random(0)
    excess = []
    for _ in range(60):
        groups = [group(str(i), draw.randint(4, 12)) for i in range(3)]
        curves = [quadratic(str(i), g.channels, draw.uniform(0.1, 10)) for i, g in enumerate(groups)]
        share = chain_share(groups, block=draw.choice([1, 4]))
        target = draw.uniform(0.3, 0.8)
        rows = np.array(list(itertools.product(*(range(1, g.channels + 1) for g in groups))), dtype=float)
        rises = sum(np.array([c.at(int(w)) for w in rows[:, i]]) for i, c in enumerate(curves))
        best = min(rises[share(rows) <= target])
        found = allocate(groups, in_order(*groups), curves, target=target, share=share, align=1)
        assert found.share <= target
        assert found.rise == pytest.approx(sum(c.at(found.widths[c.root]) for c in curves))
        assert found.rise >= best - 1e-9
        excess.append(found.rise / best - 1)
    assert statistics.mean(excess) < 0.01  # measured: 0.004; without exchanges 0.043
    assert max(excess) < 0.25


def test_a_width_between_two_steps_of_the_clock_is_not_chosen() -> None:
    a, b = group("a", 32), group("b", 32)
    curves = [quadratic("a", 32, 1.0), quadratic("b", 32, 1.0)]
    steps = lambda rows: (np.ceil(rows / 8) * 8).sum(axis=1) / 64  # noqa: E731
    found = allocate([a, b], in_order(a, b), curves, target=0.7, share=steps, align=1)
    assert sorted(found.widths.values()) == [16, 24]


def test_strictly_aligned_a_narrow_group_keeps_its_width() -> None:
    narrow, wide = group("narrow", 8), group("wide", 32)
    curves = [quadratic("narrow", 8, 1e-6), quadratic("wide", 32, 1.0)]
    options: dict[str, Any] = {"target": 0.7, "share": shared_by(narrow, wide), "align": 8}
    loose = allocate([narrow, wide], in_order(narrow, wide), curves, **options)
    strict = allocate([narrow, wide], in_order(narrow, wide), curves, strict=True, **options)
    assert loose.widths["narrow"] < 8
    assert strict.widths == {"narrow": 8, "wide": 16}


# Properties


@given(
    st.lists(st.tuples(st.integers(2, 28), st.sampled_from([1, 2, 4]), st.booleans()), min_size=1, max_size=4),
    st.sampled_from([1, 2, 4, 8]), st.integers(1, 6), st.floats(0.05, 0.9), st.randoms(use_true_random=False),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_a_budget_is_met_on_the_steps_that_there_are(
    shapes: list[tuple[int, int, bool]], align: int, min_channels: int, ratio: float, random: Any
) -> None:
    groups = [group(str(i), channels, size) for i, (channels, size, _) in enumerate(shapes)]
    curves = []
    for g, (_, _, may_empty) in zip(groups, shapes, strict=True):
        may_empty = may_empty and min_channels == 1
        widths = widths_to_probe(g, align=align, min_channels=min_channels, may_empty=may_empty)
        assert list(widths) == sorted(set(widths), reverse=True)
        assert all(w < g.channels and w % multiple_of(g, align) == 0 for w in widths)
        assert all(w >= min(min_channels, g.channels) or (w == 0 and may_empty) for w in widths)
        measured = tuple(itertools.accumulate((random.random() for _ in widths), initial=0.0))
        curves.append(Curve(root=g.root, widths=(g.channels, *widths), measured=measured))
    least = sum(c.widths[-1] for c in curves)
    total = sum(g.channels for g in groups)
    options: dict[str, Any] = {"target": 1 - ratio, "share": shared_by(*groups), "align": align}
    try:
        found = allocate(groups, in_order(*groups), curves, min_channels=min_channels, **options)
    except PlanError as error:
        assert least / total > 1 - ratio or "nothing would be removed" in str(error)  # noqa: PT017
        return
    widths_found = widths_of(found, *groups)
    assert sum(widths_found.values()) / total <= 1 - ratio
    for g, c in zip(groups, curves, strict=True):
        width = widths_found[g.root]
        assert width >= min(min_channels, g.channels) or (width == 0 and c.widths[-1] == 0)
        assert width == g.channels or width % multiple_of(g, align) == 0
        if g.root in found.emptied:
            assert g.channels - len(found.plan.removed[g.root]) == 1
    found.plan.check(groups)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.sampled_from([1, 2, 3]))
def test_an_order_is_that_of_the_scores_and_ties_leave_by_index(drawn: list[int], size: int) -> None:
    g = group("a", len(drawn), size)
    order = orders_from([g], Scores(by_root={"a": torch.tensor(drawn).double()}, comparable=True))["a"]
    assert sorted(order) == list(range(g.channels))
    assert [(drawn[c], c) for c in order] == sorted((s, c) for c, s in enumerate(drawn))


# Hand-made cases


def test_what_costs_nothing_leaves_first() -> None:
    flat, steep = group("flat", 8), group("steep", 8)
    curves = [
        Curve(root="flat", widths=(8, 6, 4, 2), measured=(0, 0, 0, 0)),
        Curve(root="steep", widths=(8, 6, 4, 2), measured=(0, 1, 2, 3)),
    ]
    found = allocate([flat, steep], in_order(flat, steep), curves, target=0.75, share=shared_by(flat, steep), align=2)
    assert found.plan.removed == {"flat": (0, 1, 2, 3), "steep": ()}
    further = allocate([flat, steep], in_order(flat, steep), curves, target=0.5, share=shared_by(flat, steep), align=2)
    assert widths_of(further, flat, steep) == {"flat": 2, "steep": 6}


def test_twice_as_dear_a_group_stays_wider() -> None:
    a, b = group("a", 12), group("b", 12)
    curves = [quadratic("a", 12, 1.0), quadratic("b", 12, 2.0)]
    found = allocate([a, b], in_order(a, b), curves, target=0.5, share=shared_by(a, b), align=1)
    assert widths_of(found, a, b) == {"a": 4, "b": 8}  # marginal rises 15 and 14


def test_a_useless_group_is_emptied_and_keeps_a_unit_in_the_plan() -> None:
    useless, used = group("useless", 6), group("used", 6)
    curves = [
        Curve(root="useless", widths=(6, 4, 2, 0), measured=(0, 0, 0, 0)),
        Curve(root="used", widths=(6, 4, 2), measured=(0, 1, 4)),
    ]
    found = allocate(
        [useless, used], in_order(useless, used), curves, target=0.5, share=shared_by(useless, used), align=2
    )
    assert found.emptied == ("useless",)
    assert found.plan.removed == {"useless": (0, 1, 2, 3, 4), "used": ()}


def test_a_group_without_a_curve_stays_as_it_is() -> None:
    a, b = group("a", 8), group("b", 8)
    found = allocate([a, b], in_order(a, b), [quadratic("a", 8, 1.0)], target=0.7, share=shared_by(a, b), align=1)
    assert widths_of(found, a, b) == {"a": 3, "b": 8}


def test_a_budget_out_of_reach_is_refused_with_what_stays() -> None:
    a = group("a", 8)
    with pytest.raises(PlanError, match=r"40\.0% cannot be met: .* 50\.0% stays") as caught:
        allocate(
            [a], in_order(a), [quadratic("a", 8, 1.0, lowest=4)], target=0.4, share=shared_by(a),
            align=4,
        )  # fmt: skip
    assert "--min-channels" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("align", "min_channels", "may_empty", "expected"),
    [
        (1, 1, False, (12, 8, 4, 2)),
        (8, 1, False, (8,)),
        (8, 1, True, (8, 0)),
        (4, 5, False, (12, 8)),
        (1, 16, False, ()),
        (1, 99, False, ()),
        (16, 1, True, (12, 8, 4, 2, 0)),
    ],
)
def test_widths_to_probe(align: int, min_channels: int, may_empty: bool, expected: tuple[int, ...]) -> None:
    assert widths_to_probe(group("a", 16), align=align, min_channels=min_channels, may_empty=may_empty) == expected


@pytest.mark.parametrize("counted", list(Countable))
@pytest.mark.parametrize("stays", [0.7, 0.4])
def test_a_cost_budget_is_met_by_the_network_that_comes_out(counted: Countable, stays: float) -> None:
    net, example = alive(Residual()), (torch.zeros(INPUT),)
    traced = trace(net, example)
    groups = traced.groups
    curves = [quadratic(g.root, g.channels, 1.0) for g in groups]
    found = allocate(
        groups, in_order(*groups), curves, target=stays,
        share=CountedCost(CostModel(net, groups, example), Sizes(net, groups), counted).stays, align=1,
    )  # fmt: skip
    small, _ = shrink(net, traced, found.plan, example)
    share = getattr(count(small, example), counted) / getattr(count(net, example), counted)
    assert stays - 0.15 < share <= stays + 1e-3
