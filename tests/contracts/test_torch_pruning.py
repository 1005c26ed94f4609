"""What torch-pruning 1.6.1 does that we build around: when one of these fails, upstream has changed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from compressor.channels.groups import Role, trace
from compressor.surgery.plan import ChannelBudget, Scores, plan_pruning
from compressor.surgery.rounding import kept
from compressor.surgery.shrinking import shrink
from tests.support.topologies import INPUT, TOPOLOGIES, Residual, alive, plain

EXAMPLE = torch.randn(INPUT, generator=torch.Generator().manual_seed(1))


def their_groups(module: nn.Module) -> list[torch_pruning.Group]:
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=EXAMPLE, verbose=False)
    return list(graph.get_all_groups())


def test_a_frozen_network_loses_its_couplings_without_an_error() -> None:
    live, frozen = their_groups(alive(plain())), their_groups(alive(plain()).requires_grad_(False))
    assert sum(map(len, frozen)) < sum(map(len, live))
    ours = [trace(alive(plain()).requires_grad_(flag), (EXAMPLE,)).groups for flag in (True, False)]
    assert [g.layers for g in ours[0]] == [g.layers for g in ours[1]]


def test_tracing_leaves_the_network_in_eval_mode() -> None:
    module = alive(plain()).train()
    their_groups(module)
    assert not module.training
    module.train()
    trace(module, (EXAMPLE,))
    assert module.training


def test_widths_are_rounded_down() -> None:
    module = alive(plain())
    pruner = torch_pruning.pruner.MagnitudePruner(
        module, EXAMPLE, importance=torch_pruning.importance.MagnitudeImportance(), pruning_ratio=0.4, round_to=8,
        ignored_layers=[module[5][2]],
    )  # fmt: skip
    pruner.step()
    assert module[0].out_channels == 8  # 16 * 0.6 = 9.6 asked for
    assert kept(16, 16 * 0.6, multiple=8) == 16


def test_layer_norm_weights_are_permuted_beyond_a_few_channels() -> None:
    """`keep_idxs.sort()` on a tensor is not in place, and a set's order is not the numbers'."""
    norm = nn.LayerNorm(2048)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(2048).float())
    gone = list(range(0, 2048, 2))
    kept = set(range(2048)) - set(gone)
    torch_pruning.prune_layernorm_out_channels(norm, gone)
    assert norm.weight.tolist() == [float(i) for i in kept]  # the set's own order, sorted or not


CONVOLUTIONAL = sorted(set(TOPOLOGIES) - {"attention"})


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_their_coupled_layers_are_those_of_our_groups(name: str) -> None:
    """A cross-check where their graph is right: who makes, carries, normalises and reads the same channels.

    Their groups are one more: that of the last layer, whose channels are the network's output.
    """
    module = alive(TOPOLOGIES[name]())
    twin = copy.deepcopy(module)
    named = {layer: layer_name for layer_name, layer in twin.named_modules()}
    theirs = {frozenset(named[d.target.module] for d, _ in g if d.target.module in named) for g in their_groups(twin)}
    traced = trace(module, (EXAMPLE,))
    ours = {
        frozenset([*(layer for layer in g.layers if layer), *(n.layer for n in g.bare_norms)]) for g in traced.groups
    }
    (last,) = (a.layer for a in traced.left_alone)
    assert theirs == ours | {frozenset([last])}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_their_coupled_producers_are_those_of_our_groups(name: str) -> None:
    module = alive(TOPOLOGIES[name]())
    twin = copy.deepcopy(module)
    named = {layer: layer_name for layer_name, layer in twin.named_modules()}
    making = nn.Conv2d | nn.Linear | nn.ConvTranspose2d
    theirs = {
        frozenset(
            named[d.target.module]
            for d, _ in group
            if isinstance(d.target.module, making) and group._DG.is_out_channel_pruning_fn(d.handler)
        )
        for group in their_groups(twin)
    }
    traced = trace(module, (EXAMPLE,))
    ours = {
        frozenset(
            m.layer
            for m in group.members
            if m.role is not Role.CONSUMES and m.layer and isinstance(module.get_submodule(m.layer), making)
        )
        for group in traced.groups
    }
    assert ours == theirs - {frozenset(a.layer for a in traced.left_alone)}


def test_a_plan_is_applied_once_and_replays() -> None:
    """`group.prune(idxs)` records history twice, so that their own replay goes wrong; our surgery is a value."""
    module = alive(Residual())
    traced = trace(module, (EXAMPLE,))
    scores = Scores(by_root={g.root: torch.arange(g.channels).double() for g in traced.groups}, comparable=True)
    plan = plan_pruning(traced.groups, scores, budget=ChannelBudget(ratio=0.5))
    once, surgery = shrink(module, traced, plan, (EXAMPLE,))
    again, _ = shrink(module, traced, plan, (EXAMPLE,))
    assert [p.shape for p in once.parameters()] == [p.shape for p in again.parameters()]
    graph = torch_pruning.DependencyGraph().build_dependency(
        copy.deepcopy(module), example_inputs=EXAMPLE, verbose=False
    )
    group = graph.get_pruning_group(graph.model.conv1, torch_pruning.prune_conv_out_channels, [0, 1])
    group.prune([0, 1])
    assert len(graph.pruning_history()) == 2
    assert surgery.slices


class Free(nn.Module):
    """A parameter outside any layer, pruned by upstream in its last dimension with only a warning."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.bias = nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(x) + self.bias))


def test_a_free_parameter_is_cut_in_the_dimension_of_the_channels() -> None:
    module = alive(Free())
    traced = trace(module, (EXAMPLE,))
    scores = Scores(by_root={g.root: torch.arange(g.channels).double() for g in traced.groups}, comparable=True)
    small, _ = shrink(module, traced, plan_pruning(traced.groups, scores, budget=ChannelBudget(ratio=0.5)), (EXAMPLE,))
    assert small.bias.shape == (4, 1, 1)
