"""What torch-pruning 1.6.1 does that we build around: when one of these fails, upstream has changed."""

from __future__ import annotations

import copy

import torch
import torch_pruning
from torch import Tensor, nn

from compressor.groups import Role, trace
from compressor.plan import ChannelBudget, Scores, kept, plan_pruning
from compressor.shrink import shrink
from tests.topologies import INPUT, TOPOLOGIES, Residual, alive, plain

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
    assert kept(16, 0.4, multiple=8) == 16


def test_layer_norm_weights_are_permuted_beyond_a_few_channels() -> None:
    """`keep_idxs.sort()` on a tensor is not in place, and a set's order is not the numbers'."""
    norm = nn.LayerNorm(2048)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(2048).float())
    gone = list(range(0, 2048, 2))
    kept = set(range(2048)) - set(gone)
    torch_pruning.prune_layernorm_out_channels(norm, gone)
    assert norm.weight.tolist() == [float(i) for i in kept]  # the set's own order, sorted or not


def test_their_groups_couple_the_layers_that_ours_do() -> None:
    """A cross-check where their graph is right: the same producers share channels."""
    for name in ("plain", "residual", "depthwise", "transposed", "flattened", "gated"):
        module = alive(TOPOLOGIES[name]())
        theirs = set()
        for group in their_groups(copy.deepcopy(module)):
            outs = {
                dep.target.module
                for dep, _ in group
                if dep.target.module is not None
                and isinstance(dep.target.module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)
                and group._DG.is_out_channel_pruning_fn(dep.handler)
            }
            theirs.add(tuple(sorted(str(m) for m in outs)))
        ours = set()
        for found in trace(module, (EXAMPLE,)).groups:
            layers = {m.layer: module.get_submodule(m.layer) for m in found.members if m.role is not Role.CONSUMES}
            kinds = nn.Conv2d | nn.Linear | nn.ConvTranspose2d
            ours.add(tuple(sorted(str(m) for m in layers.values() if isinstance(m, kinds))))
        assert ours <= theirs, name


def test_a_plan_is_applied_once_and_replays() -> None:
    """`group.prune(idxs)` records history twice, so that their own replay goes wrong; our surgery is a value."""
    module = alive(Residual())
    groups = trace(module, (EXAMPLE,)).groups
    scores = Scores(by_root={g.root: torch.arange(g.channels).double() for g in groups}, comparable=True)
    plan = plan_pruning(groups, scores, budget=ChannelBudget(ratio=0.5))
    once, surgery = shrink(module, groups, plan, (EXAMPLE,))
    again, _ = shrink(module, groups, plan, (EXAMPLE,))
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
    groups = trace(module, (EXAMPLE,)).groups
    scores = Scores(by_root={g.root: torch.arange(g.channels).double() for g in groups}, comparable=True)
    small, _ = shrink(module, groups, plan_pruning(groups, scores, budget=ChannelBudget(ratio=0.5)), (EXAMPLE,))
    assert small.bias.shape == (4, 1, 1)
