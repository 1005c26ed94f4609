"""What networks cost at any widths: against networks that are really that narrow."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from compressor.channels.groups import trace
from compressor.planning.costs import CostModel, count
from compressor.planning.widths import FEATURES, PRODUCT, ChannelCost, CountedCost, Layer, Sizes, WidthCost, features
from compressor.surgery.plan import Countable, PruningPlan
from compressor.surgery.shrinking import shrink
from tests.support.topologies import INPUT, Concatenated, Residual, alive, depthwise, flattened, grouped

NETWORKS = [Residual, Concatenated, depthwise, flattened, grouped]


@pytest.mark.parametrize("make", NETWORKS)
def test_lengths_are_those_of_the_network_that_is_shrunk_to_these_widths(make: type[nn.Module]) -> None:
    net, example = alive(make()), (torch.zeros(INPUT),)
    traced = trace(net, example)
    sizes, draw = Sizes(net, traced.groups), random.Random(0)
    for _ in range(4):
        widths = {g.root: draw.randint(1, g.channels) for g in traced.groups}
        plan = PruningPlan(removed={g.root: tuple(range(widths[g.root], g.channels)) for g in traced.groups})
        small, _ = shrink(net, traced, plan, example)
        row = sizes.row(widths)[None]
        for name, tensor in small.state_dict().items():
            assert [float(sizes.at(name, d, row)[0]) for d in range(tensor.ndim)] == list(tensor.shape), name


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("counted", list(Countable))
def test_counted_costs_are_what_the_narrow_network_counts(make: type[nn.Module], counted: Countable) -> None:
    net, example = alive(make()), (torch.zeros(INPUT),)
    traced = trace(net, example)
    sizes = Sizes(net, traced.groups)
    cost = CountedCost(CostModel(net, traced.groups, example), sizes, counted)
    widths = {g.root: max(1, g.channels // 2) for g in traced.groups}
    plan = PruningPlan(removed={g.root: tuple(range(widths[g.root], g.channels)) for g in traced.groups})
    small, _ = shrink(net, traced, plan, example)
    real = getattr(count(small, example), counted) / getattr(count(net, example), counted)
    assert float(cost.stays(sizes.row(widths)[None])[0]) == pytest.approx(real, rel=0.02)
    assert float(cost.stays(sizes.dense[None])[0]) == pytest.approx(1)


def test_many_rows_are_priced_as_each_alone() -> None:
    net, example = alive(Residual()), (torch.zeros(INPUT),)
    traced = trace(net, example)
    sizes = Sizes(net, traced.groups)
    weights = [n for n, p in net.named_parameters() if p.ndim == 4]
    layers = [Layer(tensor=name, reads=1, writes=0) for name in weights]
    prices = np.random.default_rng(0).uniform(0, 1, (len(layers), FEATURES))
    cost = WidthCost(sizes, layers, prices)
    rows = np.random.default_rng(1).integers(1, 4, (5, len(traced.groups))).astype(float)
    assert cost.total(rows) == pytest.approx([float(cost.total(row[None])[0]) for row in rows])
    assert cost.total(rows) == pytest.approx(cost.by_layer(rows).sum(axis=1))


def test_a_layer_that_reads_or_writes_nothing_costs_nothing() -> None:
    gone = features(np.array([0.0, 5.0]), np.array([7.0, 0.0]))
    assert not gone.any()
    there = features(np.array([5.0]), np.array([33.0]))[0]
    assert there[PRODUCT] == 5 * 33
    assert there[4:].tolist() == [16 * 48, 5 * 64]


def test_a_channel_costs_one_whichever_it_is() -> None:
    net, example = alive(Residual()), (torch.zeros(INPUT),)
    sizes = Sizes(net, trace(net, example).groups)
    half = sizes.dense / 2
    assert float(ChannelCost(sizes).stays(half[None])[0]) == pytest.approx(0.5)
