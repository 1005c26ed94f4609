"""Costs: counted by hand, and predicted as they come out."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from compressor.channels.groups import trace
from compressor.planning.costs import CostModel, count, layer_costs
from compressor.surgery.plan import ChannelBudget, Countable, Scores, plan_pruning
from compressor.surgery.shrinking import shrink
from tests.support.topologies import INPUT, TOPOLOGIES, alive

EXAMPLE = (torch.randn(INPUT),)


def test_a_convolution_and_a_linear_layer_by_hand() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(800, 5))
    cost = count(module, EXAMPLE)
    assert cost.params == 3 * 8 * 9 + 800 * 5 + 5
    assert cost.macs == 10 * 10 * 8 * 3 * 9 + 800 * 5
    assert cost.bytes == 4 * cost.params


def test_attentions_own_products_count() -> None:
    module = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True).eval()
    weights = 7 * (12 * 36 + 12 * 12 + 12 * 20 * 2)
    assert count(module, (torch.randn(1, 7, 12),)).macs == weights + 2 * 7 * 7 * 12


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(14, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(self.lstm(x)[0])[0]  # type: ignore[no-any-return]  # torch's layers are untyped


def test_recurrent_layers_by_hand() -> None:
    module, steps = Recurrent().eval(), 11
    found = {layer.weight: layer.macs for layer in layer_costs(module, (torch.randn(1, steps, 5),))}
    assert found == {n: steps * p.numel() for n, p in module.named_parameters() if p.ndim == 2}
    assert sum(found.values()) == count(module, (torch.randn(1, steps, 5),)).macs


class Looking(nn.Module):
    """Remembers whether there were values; it cannot do without where it `decides` by them, or looks up a `table`."""

    ran: ClassVar[list[bool]] = []

    def __init__(self, asks: str) -> None:
        super().__init__()
        self.conv, self.asks = nn.Conv2d(3, 8, 3), asks
        self.table = torch.arange(100)  # no buffer: `Module.to` leaves it where it is

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        if self.asks == "decides" and y.sum() > 1e9:
            y = y.flip(1)
        if self.asks == "table" and self.table[y.flatten(2).argmax(2)].sum() < 0:
            y = y.flip(1)
        self.ran.append(not y.is_meta)
        tokens = y.flatten(2)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


@pytest.mark.parametrize("asks", ["", "decides", "table"])
def test_values_are_computed_only_where_the_network_asks_for_them(asks: str) -> None:
    Looking.ran.clear()
    module = Looking(asks)
    assert count(module, EXAMPLE).macs == 10 * 10 * 8 * 3 * 9 + 2 * 8 * 8 * 100
    assert [layer.macs for layer in layer_costs(module, EXAMPLE)] == [10 * 10 * 8 * 3 * 9]
    assert Looking.ran == [bool(asks)] * 2
    assert module.training
    assert not module.conv.weight.is_meta


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
