"""Channels held at zero say nothing, and cutting them changes nothing, or the group is found out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compressor.channels.groups import Role, Traced, trace
from compressor.graph.input_spec import random_like
from compressor.graph.outputs import outputs_of
from compressor.surgery.plan import PruningPlan
from compressor.surgery.shrinking import shrink
from compressor.surgery.zeroed import (
    PRODUCERS,
    Holder,
    add_noise_,
    difference_beyond_rounding,
    slices_of,
    speaking,
    zeroed_copy,
)
from tests.support.topologies import INPUT, Concatenated, Residual, alive, norm_after_activation, plain

EXAMPLE = (torch.zeros(INPUT),)


class Normed(nn.Module):
    """A layer norm counts the channels that it sees; the sigmoid behind `b` gives ½ for a channel of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 10), nn.Linear(10, 8), nn.Linear(8, 5)
        self.norm = nn.LayerNorm(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.sigmoid(self.b(self.norm(self.a(x))))).mean((1, 2))


def half(traced: Traced) -> PruningPlan:
    return PruningPlan(removed={g.root: tuple(range(g.channels // 2)) for g in traced.groups})


@pytest.mark.parametrize("make", [plain, norm_after_activation, Residual, Concatenated])
def test_cutting_what_is_held_changes_nothing(make: Callable[[], nn.Module]) -> None:
    module = alive(make())
    traced = trace(module, EXAMPLE)
    plan = half(traced)
    held = zeroed_copy(module, traced.groups, plan)
    small, _ = shrink(held, traced, plan, EXAMPLE)
    inputs = random_like(EXAMPLE)
    torch.testing.assert_close(outputs_of(small, inputs), outputs_of(held, inputs))
    assert difference_beyond_rounding(held, small, traced, EXAMPLE) is None
    assert speaking(module, traced, plan, EXAMPLE) == ()


def test_a_cut_of_what_is_not_held_is_seen() -> None:
    module = alive(plain())
    traced = trace(module, EXAMPLE)
    plan = half(traced)
    small, _ = shrink(module, traced, plan, EXAMPLE)
    assert difference_beyond_rounding(module, small, traced, EXAMPLE) is not None
    held = zeroed_copy(module, traced.groups, plan)
    with torch.no_grad():
        held.get_parameter("1.bias")[0] = 1.0  # a batch norm's shift makes its channel speak again
        held.get_parameter("3.weight")[:, 0] = 1.0
    assert difference_beyond_rounding(held, small, traced, EXAMPLE) is not None


def test_a_group_that_is_normalised_together_is_found_and_the_others_are_not() -> None:
    module = alive(Normed())
    traced = trace(module, EXAMPLE)
    assert {g.root for g in traced.groups} == {"a", "b"}
    assert speaking(module, traced, half(traced), EXAMPLE) == ("a",)


def test_a_module_is_lent_and_what_is_left_keeps_its_bytes() -> None:
    module = alive(Residual())
    before = copy.deepcopy(module.state_dict())
    traced = trace(module, EXAMPLE)
    held = zeroed_copy(module, traced.groups, half(traced))
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    kept, mine = held.get_parameter("bn1.weight"), module.get_parameter("bn1.weight")
    assert torch.equal(kept[12:], mine[12:])
    assert not kept[:12].any()
    assert not held.get_parameter("conv2.weight")[:, :12].any()


def test_only_the_weights_that_make_channels_are_zeroed_where_that_is_asked() -> None:
    module = alive(plain())
    traced = trace(module, EXAMPLE)
    slices = slices_of(traced.groups, {"0": (3, 5)}, roles=PRODUCERS)
    assert [(s.tensor, s.dim, s.positions.tolist()) for s in slices] == [("0.weight", 0, [3, 5])]
    before = copy.deepcopy(module.state_dict())
    Holder(module, slices)()
    changed = [n for n, t in module.state_dict().items() if not torch.equal(t, before[n])]
    assert changed == ["0.weight"]


def test_noise_has_the_deviation_of_the_spared_channels_and_touches_nothing_else() -> None:
    module = nn.Sequential(nn.Conv2d(3, 64, 9), nn.ReLU(), nn.Conv2d(64, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    traced = trace(module, EXAMPLE)
    (group,) = traced.groups
    assert any(m.role is Role.PRODUCES for m in group.members)
    with torch.no_grad():
        module[0].weight.normal_(0, 0.5)
        module[0].weight[:32].zero_()
    before = copy.deepcopy(module.state_dict())
    hit, spared = {"0": tuple(range(32))}, {"0": tuple(range(32, 64))}
    add_noise_(module, traced.groups, hit, spared=spared, seed=1)
    weight = module[0].weight.detach()
    assert float(weight[:32].std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(weight[32:], before["0.weight"][32:])
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items() if n != "0.weight")
    again = copy.deepcopy(module)
    again.load_state_dict(before)
    add_noise_(again, traced.groups, hit, spared=spared, seed=1)
    assert torch.equal(again[0].weight, module[0].weight)
