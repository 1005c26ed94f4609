"""Channel groups: what is coupled, what is protected, what is left alone and why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressor.channels.groups import Role, Traced, trace, without
from compressor.errors import GroupError
from compressor.surgery.plan import ChannelBudget, PruningPlan, Scores, plan_pruning
from compressor.surgery.proved import shrink_proved
from compressor.surgery.shrinking import surgery_of
from tests.support.topologies import INPUT, TOPOLOGIES, Attention, Concatenated, Residual, alive, head, plain

EXAMPLE = (torch.randn(INPUT, generator=torch.Generator().manual_seed(1)),)


def roots(traced: Traced) -> set[str]:
    return {g.root for g in traced.groups}


def reasons(traced: Traced) -> dict[str, str]:
    return {a.layer: a.reason for a in traced.left_alone}


def test_a_residual_sum_couples_everything_that_writes_into_it() -> None:
    traced = trace(alive(Residual()), EXAMPLE)
    together = next(g for g in traced.groups if "conv2" in g.layers and g.channels == 16)
    producers = {m.layer for m in together.members if m.role is Role.PRODUCES}
    consumers = {m.layer for m in together.members if m.role is Role.CONSUMES}
    assert producers == {"stem", "conv2"}
    assert consumers == {"conv1", "head.2"}


def test_concatenated_channels_are_read_at_their_offset() -> None:
    traced = trace(alive(Concatenated()), EXAMPLE)
    group = next(g for g in traced.groups if any(m.layer == "b" and m.role is Role.PRODUCES for m in g.members))
    reader = next(m for m in group.members if m.layer == "c")
    assert reader.positions.tolist() == list(range(16, 28))
    assert reader.channels.tolist() == list(range(12))


def test_flattened_channels_are_read_once_per_pixel() -> None:
    traced = trace(alive(TOPOLOGIES["flattened"]()), EXAMPLE)
    group = next(g for g in traced.groups if g.root == "0")
    reader = next(m for m in group.members if m.layer == "3")
    assert reader.channels.tolist() == [channel for channel in range(8) for _ in range(25)]


def test_the_output_layer_is_protected_by_itself() -> None:
    for name, make in TOPOLOGIES.items():
        module = alive(make())
        last = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)][-1]
        traced = trace(module, EXAMPLE)
        assert reasons(traced) == {last: "its channels are the network's output"}, name


def test_an_inner_tensor_that_is_returned_too_is_protected() -> None:
    class TwoOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            inner = torch.relu(self.a(x))
            return self.c(torch.relu(self.b(inner))), inner

    traced = trace(alive(TwoOutputs()), EXAMPLE)
    assert roots(traced) == {"b"}
    assert set(reasons(traced)) == {"a", "c"}


def test_a_frozen_network_gives_the_groups_of_a_live_one() -> None:
    live = alive(Residual())
    frozen = alive(Residual()).requires_grad_(False)
    with torch.no_grad():
        found = trace(frozen, EXAMPLE)
    for a, b in zip(trace(live, EXAMPLE).groups, found.groups, strict=True):
        assert (a.root, a.channels, a.layers) == (b.root, b.channels, b.layers)


def test_a_layer_that_is_used_twice_is_left_alone_or_grouped_whole() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.again = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.inner, self.fc = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.again(torch.relu(self.stem(x))))
            x = torch.relu(self.again(x))
            return self.fc(torch.relu(self.inner(x)))

    module = alive(Twice())
    traced = trace(module, EXAMPLE)
    assert "inner" in roots(traced)


def test_tied_weights_lose_the_same_channels_in_both_layers_and_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(12, 12) for _ in range(4))
            self.c.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))

    module, example = alive(Tied()), (torch.randn(1, 12),)
    traced = trace(module, example)
    (group,) = traced.groups  # what `b` makes `c` reads with the same weight, and so all three are one
    assert group.channels == 12
    assert {m.layer for m in group.members if m.tensor.endswith("bias")} == {"a", "b", "c"}
    small, _, proof = shrink_proved(module, traced, PruningPlan(removed={group.root: (1, 4, 5, 9)}), example)
    assert proof.holds
    assert {name: tuple(t.shape) for name, t in small.state_dict().items() if name.endswith("weight")} == {
        "a.weight": (8, 12), "b.weight": (8, 8), "c.weight": (8, 8), "d.weight": (12, 8),
    }  # fmt: skip
    assert small.c.weight is small.b.weight  # type: ignore[union-attr]


def test_protect_keeps_a_layers_channels_and_says_so() -> None:
    traced = trace(alive(plain()), EXAMPLE, protect=("0",))
    assert roots(traced) == {"3"}
    assert "protected" in reasons(traced)["0"]


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(GroupError, match="matches no layer"):
        trace(alive(plain()), EXAMPLE, protect=("backbone.*",))


def test_a_network_with_nothing_prunable_is_refused() -> None:
    with pytest.raises(GroupError, match="nothing in this network can be pruned"):
        trace(nn.Sequential(nn.Flatten(), nn.Linear(432, 5)), EXAMPLE)
    with pytest.raises(GroupError, match="nothing in this network can be pruned"):
        trace(nn.Sequential(nn.AvgPool2d(2), nn.ReLU()), EXAMPLE)


def test_dropping_a_group_keeps_the_others_and_the_reason() -> None:
    traced = trace(alive(plain()), EXAMPLE)
    less = without(traced, {"0": "because"})
    assert roots(less) == {"3"}
    assert reasons(less)["0"] == "because"


def test_whole_heads_are_channels_or_else_the_same_features_of_every_head() -> None:
    heads = next(g for g in trace(alive(Attention()), EXAMPLE).groups if "attention" in g.root)
    assert (heads.channels, heads.size, heads.heads) == (2, 24, True)  # queries, keys and values of 8 features
    rows, read = heads.members[0], next(m for m in heads.members if m.role is Role.CONSUMES)
    assert rows.positions[rows.channels == 1].tolist() == [*range(8, 16), *range(24, 32), *range(40, 48)]
    assert read.positions[read.channels == 1].tolist() == list(range(8, 16))
    features = next(g for g in trace(alive(Attention()), EXAMPLE, heads=False).groups if "attention" in g.root)
    assert (features.channels, features.size, features.heads) == (8, 6, False)
    rows = features.members[0]
    assert rows.positions[rows.channels == 3].tolist() == [3, 11, 19, 27, 35, 43]


def test_a_grouped_convolution_loses_the_same_channel_of_every_group_or_whole_groups() -> None:
    """Whichever are more units."""
    same = trace(alive(TOPOLOGIES["grouped"]()), EXAMPLE)
    assert {g.root: (g.channels, g.size) for g in same.groups} == {"0": (4, 4), "2": (6, 4), "5": (8, 1)}
    first = same.groups[0].members[0]
    assert first.positions[first.channels == 1].tolist() == [1, 5, 9, 13]
    many = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=8), nn.Conv2d(16, 8, 1), head(8))
    whole = trace(alive(many), EXAMPLE)
    assert [(g.members[0].layer, g.channels, g.size) for g in whole.groups] == [("0", 8, 2), ("3", 8, 1)]
    first = whole.groups[0].members[0]
    assert first.positions[first.channels == 1].tolist() == [2, 3]


def test_equal_numbers_leave_every_group_of_a_convolution() -> None:
    module = alive(TOPOLOGIES["grouped"]())
    traced = trace(module, EXAMPLE)
    rising = {g.root: torch.arange(g.channels).double() for g in traced.groups}
    plan = plan_pruning(traced.groups, Scores(by_root=rising, comparable=True), budget=ChannelBudget(ratio=0.5))
    assert plan.removed["0"] == (0, 1)
    kept = surgery_of(module, traced.groups, plan).slices["0.weight"][0]
    assert kept.tolist() == [2, 3, 6, 7, 10, 11, 14, 15]


def test_integer_inputs_trace() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up, self.out = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(torch.relu(self.up(self.embed(tokens).mean(1))))

    assert "up" in roots(trace(alive(Bag()), (torch.zeros(1, 4, dtype=torch.int64),)))
