"""Random widths: the cost of networks that really are that narrow, chance, and the edges."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.channels.groups import trace
from compressor.errors import PlanError
from compressor.planning.costs import CostModel, count
from compressor.planning.random_widths import random_widths
from compressor.planning.widths import ChannelCost, CountedCost, Sizes
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget, CostBudget, Countable, LatencyBudget, Scope
from compressor.surgery.rounding import multiple_of
from sample_models.networks import resnet8, small_cnn
from tests.support.command_line import ARCH, done
from tests.support.topologies import INPUT, Concatenated, Residual, alive, checkpoint_of, depthwise, grouped

RATIOS = st.floats(0.05, 0.95)
GREY = (1, 1, 28, 28)


def of_chance(stays: float, *, seed: int = 0, **options: object) -> Request:
    budget = CostBudget(counted=Countable.MACS, stays=stays)
    return Request(budget=budget, scope=Scope.RANDOM, align=1, seed=seed, **options)  # type: ignore[arg-type]  # as given


@pytest.mark.parametrize(("stays", "seed", "make"), [(0.7, 0, resnet8), (0.2, 1, resnet8), (0.3, 2, small_cnn)])
def test_the_network_that_is_left_really_has_the_macs_asked_for(
    stays: float, seed: int, make: Callable[[], nn.Module]
) -> None:
    pruned = prune(checkpoint_of(alive(make()), GREY), of_chance(stays, seed=seed))
    real = count(pruned.checkpoint.module, pruned.checkpoint.example_inputs).macs / pruned.dense_cost.macs
    assert stays * 0.97 <= real <= stays * 1.0001
    gone = {r: len(i) for r, i in pruned.levels[0].plan.removed.items()}
    shares = {round(gone[g.root] / g.channels, 2) for g in pruned.traced.groups}
    assert len(shares) > 1  # uniform widths would be no draw


@pytest.fixture(scope="module", params=[Residual, Concatenated, depthwise, grouped, resnet8])
def costed(request: pytest.FixtureRequest) -> tuple[Sizes, CountedCost]:
    net = alive(request.param())
    example = (torch.zeros(GREY if request.param is resnet8 else INPUT),)
    groups = trace(net, example).groups
    sizes = Sizes(net, groups)
    return sizes, CountedCost(CostModel(net, groups, example), sizes, Countable.MACS)


@settings(max_examples=12, deadline=None)
@given(ratio=RATIOS, seed=st.integers(0, 10**6), align=st.sampled_from([1, 4]), least=st.sampled_from([1, 2]))
def test_never_more_than_asked_never_wider_than_dense_never_narrower_than_allowed(
    costed: tuple[Sizes, CountedCost], ratio: float, seed: int, align: int, least: int
) -> None:
    sizes, cost = costed
    try:
        widths = random_widths(sizes.groups, target=ratio, share=cost.stays, seed=seed, align=align, min_channels=least)
    except PlanError:
        steps = [multiple_of(g, align) for g in sizes.groups]
        narrow = {g.root: min(g.channels, -(-least // s) * s) for g, s in zip(sizes.groups, steps, strict=True)}
        assert float(cost.stays(sizes.row(narrow)[None])[0]) > ratio
        return
    assert float(cost.stays(sizes.row(widths)[None])[0]) <= ratio
    assert all(min(least, g.channels) <= widths[g.root] <= g.channels for g in sizes.groups)


def test_chance_is_the_seeds_alone() -> None:
    net = alive(resnet8())
    sizes = Sizes(net, trace(net, (torch.zeros(GREY),)).groups)

    def draw(seed: int) -> dict[str, int]:
        return random_widths(sizes.groups, target=0.4, share=ChannelCost(sizes).stays, seed=seed)

    first = draw(0)
    torch.manual_seed(7)
    assert draw(0) == first
    assert len({tuple(draw(seed).values()) for seed in range(10)}) == 10


def test_every_group_is_wide_in_some_draws_and_narrow_in_others() -> None:
    """A draw that favoured the first or the cheap groups would be an opinion."""
    net = alive(resnet8())
    sizes = Sizes(net, trace(net, (torch.zeros(GREY),)).groups)
    share = ChannelCost(sizes).stays
    draws = [sizes.row(random_widths(sizes.groups, target=0.4, share=share, seed=s)) / sizes.dense for s in range(40)]
    rows = np.array(draws)
    assert (rows.max(axis=0) > 0.6).all()
    assert (rows.min(axis=0) < 0.25).all()


def test_a_ratio_is_one_of_channels() -> None:
    dense = checkpoint_of(alive(small_cnn()), GREY)
    pruned = prune(dense, Request(budget=ChannelBudget(ratio=0.5), scope=Scope.RANDOM, align=1, seed=3))
    before, after = pruned.levels[0].channels
    assert 0.49 * before <= after <= 0.5 * before
    assert pruned.result.to_json()["scope"] == "random"


def test_which_channels_leave_is_the_criterions_choice() -> None:
    net = alive(small_cnn())
    with torch.no_grad():
        net[0].weight[torch.arange(16) % 2 == 0] *= 1e-3
    pruned = prune(checkpoint_of(net, GREY), of_chance(0.5, seed=1, criterion="l1-norm"))
    removed = pruned.levels[0].plan.removed["0"]
    assert removed
    assert set(removed[:8]) <= set(range(0, 16, 2)) or len(removed) > 8


def test_a_target_out_of_reach_is_refused() -> None:
    with pytest.raises(PlanError, match=r"cannot be met: the narrowest network keeps"):
        prune(checkpoint_of(alive(resnet8()), GREY), of_chance(1e-4))


def test_a_target_that_removes_nothing_is_refused() -> None:
    net = alive(resnet8())
    sizes = Sizes(net, trace(net, (torch.zeros(GREY),)).groups)
    with pytest.raises(PlanError, match="nothing would be removed"):
        random_widths(sizes.groups, target=1.0, share=ChannelCost(sizes).stays, seed=0)


@pytest.mark.parametrize(
    "asked", [{"budget": LatencyBudget(speedup=2)}, {"budget": ChannelBudget(ratio=0.5), "levels": 2}]
)
def test_what_random_widths_do_not_go_with_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="takes one level"):
        Request(scope=Scope.RANDOM, **asked)  # type: ignore[arg-type]  # as given


@pytest.mark.usefixtures("inputs")
def test_the_command_line_draws_by_its_seed() -> None:
    def widths(seed: int) -> list[list[int]]:
        asked = ("--macs", 0.4, "--scope", "random", "--align", 1, "--seed", seed, "--dry-run", "--json")
        found = json.loads(done("prune", "tiny.pt", *ARCH, *asked).stdout)
        assert found["prune"]["scope"] == "random"
        return [row["out"] for row in found["prune"]["widths"]]

    assert widths(0) == widths(0)
    assert widths(0) != widths(1)
