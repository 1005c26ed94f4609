"""Networks that reach their layers by hooks, functions, lists and second names: followed and proved, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.channels.groups import trace
from compressor.graph.copies import copy_of
from compressor.graph.outputs import outputs_of
from compressor.surgery.plan import PruningPlan
from compressor.surgery.proved import shrink_proved
from tests.support.follows import FOLLOWED, Hooked
from tests.support.topologies import INPUT, alive
from tests.support.versions import refusal_of_kept_features

EXAMPLE = (torch.randn(INPUT, generator=torch.Generator().manual_seed(1)),)


@pytest.mark.parametrize("name", FOLLOWED)
def test_it_is_followed_and_its_small_network_stands_alone(name: str) -> None:
    torch.manual_seed(0)
    module = alive(FOLLOWED[name]())
    outputs_of(module, EXAMPLE)  # as whoever checks a shape does
    traced = trace(module, EXAMPLE)
    removed = {g.root: tuple(range(1, g.channels, 2)) for g in traced.groups}
    small, _, proof = shrink_proved(module, traced, PruningPlan(removed=removed), EXAMPLE)
    assert {"a", "b"} <= set(removed) or {"body.0", "body.3"} <= set(removed)
    assert proof.holds
    assert proof.moved > 1e-3
    assert {id(p) for p in small.parameters()}.isdisjoint(id(p) for p in module.parameters())
    inputs = torch.randn(3, *INPUT[1:], generator=torch.Generator().manual_seed(2))
    before = outputs_of(small, [inputs])[0]
    assert before.shape == (3, 5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(outputs_of(small, [inputs])[0], before)  # none of the dense network's weights is reached
    again = copy_of(small)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert torch.equal(outputs_of(again, [inputs])[0], before)
    assert not outputs_of(small, [inputs])[0].any()  # and all its outputs depend on its own


@pytest.mark.parametrize("name", FOLLOWED)
def test_every_parameter_of_the_small_network_learns(name: str) -> None:
    torch.manual_seed(0)
    module = alive(FOLLOWED[name]())
    outputs_of(module, EXAMPLE)
    traced = trace(module, EXAMPLE)
    removed = {g.root: tuple(range(1, g.channels, 2)) for g in traced.groups}
    small, _, _ = shrink_proved(module, traced, PruningPlan(removed=removed), EXAMPLE)
    small.train().requires_grad_(True)
    output: torch.Tensor = small(torch.randn(3, *INPUT[1:], generator=torch.Generator().manual_seed(2)))
    output.square().sum().backward()
    idle = [name for name, p in small.named_parameters() if p.grad is None]
    assert idle == (["b.bias"] if name == "Property" else [])  # it reads the weight alone


def test_the_dense_network_stays_as_it_was() -> None:
    module: nn.Module = alive(Hooked())
    before = outputs_of(module, EXAMPLE)[0]
    with refusal_of_kept_features():
        trace(module, EXAMPLE)
    assert isinstance(module.seen["a"], torch.Tensor)  # no exporter's stand-in
    assert torch.equal(outputs_of(module, EXAMPLE)[0], before)
