"""Costs: counted by hand, and predicted as they come out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.costs import CostModel, count, layer_costs
from compressor.groups import trace
from compressor.plan import ChannelBudget, Countable, Scores, plan_pruning
from compressor.shrink import shrink
from tests.topologies import INPUT, TOPOLOGIES, alive

EXAMPLE = (torch.randn(INPUT),)


def test_a_convolution_and_a_linear_layer_by_hand() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(800, 5))
    cost = count(module, EXAMPLE)
    assert cost.params == 3 * 8 * 9 + 800 * 5 + 5
    assert cost.macs == 10 * 10 * 8 * 3 * 9 + 800 * 5
    assert cost.bytes == 4 * cost.params


def test_the_batch_size_does_not_count() -> None:
    module = alive(TOPOLOGIES["plain"]())
    assert count(module, (torch.randn(7, 3, 12, 12),)) == count(module, EXAMPLE)


@pytest.mark.parametrize("name", [n for n in TOPOLOGIES if n != "attention"])
def test_the_layers_add_up_to_the_network(name: str) -> None:
    module = alive(TOPOLOGIES[name]())
    assert sum(layer.macs for layer in layer_costs(module, EXAMPLE)) == count(module, EXAMPLE).macs


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_prediction_is_what_the_small_network_costs(name: str) -> None:
    module = alive(TOPOLOGIES[name]())
    traced = trace(module, EXAMPLE)
    groups = traced.groups
    scores = Scores(by_root={g.root: torch.arange(g.channels).double() for g in groups}, comparable=True)
    plan = plan_pruning(groups, scores, budget=ChannelBudget(ratio=0.5))
    model = CostModel(module, groups, EXAMPLE)
    small = count(shrink(module, traced, plan, EXAMPLE)[0], EXAMPLE)
    predicted = model.stays(plan)
    assert predicted[Countable.PARAMS] == pytest.approx(small.params / model.dense.params)
    tolerance = 0.03 if name == "attention" else 1e-9  # attention's own products are estimated
    assert predicted[Countable.MACS] == pytest.approx(small.macs / model.dense.macs, abs=tolerance)
