"""Ways that channels take between layers: which units they have, and that half of them can go, twice, with proof."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup, Role, Traced, trace
from compressor.channels.rules import rule_of
from compressor.channels.tracing import Tracer, ValuesNeeded
from compressor.errors import GroupError
from compressor.graph.exported_program import Exported, exported
from compressor.graph.outputs import tensors_in
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget, PruningPlan, Scores, plan_pruning
from compressor.surgery.proved import shrink_proved
from tests.support.brought import BROUGHT
from tests.support.topologies import INPUT, WAYS, FusedAttention, Tied, alive, checkpoint_of, head

EXAMPLE = (torch.randn(INPUT, generator=torch.Generator().manual_seed(1)),)

# the first layer that makes them, how many channels, how many of that layer's positions each has
UNITS: dict[str, list[tuple[str, int, int]]] = {
    # 18 channels of `first`: 3 groups that it writes in, times 2, times 3 groups that `second` reads in
    "channel shuffle": [("stem", 4, 3), ("first", 2, 9), ("second", 4, 3)],
    "channel shuffle across": [("stem", 4, 3), ("second", 4, 3)],  # 24 are 3 * 8 here and 8 * 3 there
    "halves": [("stem", 8, 1), ("stem", 8, 1), ("inner", 4, 1), ("inner", 8, 1), ("outer", 8, 1), ("last", 8, 1)],
    "padded skip": [("stem", 8, 1), ("conv1", 16, 1), ("conv2", 8, 1)],  # 8 of `conv2` meet nothing but zeros
    "pixel shuffle": [("0", 12, 1), ("2", 6, 4), ("5", 8, 1)],
    "dense concatenation": [("stem", 8, 1), ("convs.0", 6, 1), ("convs.1", 6, 1), ("convs.2", 6, 1)],
    "channels fastest": [("conv", 8, 1), ("fc", 12, 1)],
    "norm after activation": [("0", 16, 1), ("3", 8, 1)],
    "fused attention": [("patches", 10, 1), ("qkv", 3, 12)],
    "bias table": [("patches", 10, 1), ("qkv", 3, 12)],
    "einsum attention": [("patches", 10, 1), ("q", 3, 4)],
    "tied": [("conv", 12, 1), ("up", 20, 1)],
    "gated together": [("stem", 12, 1), ("gate", 10, 1)],
    "without a rule": [("stem", 8, 1), ("last", 8, 1)],
    "unpooled": [("a", 12, 1)],
    "pooled over channels": [("a", 8, 2), ("b", 12, 1)],
    "pooled by turns": [("b", 12, 1)],
    "written out": [("a", 16, 1), ("b", 24, 1)],
    "shared head": [("a", 12, 1), ("tower", 10, 1)],
    # 4 of 16 become a channel of 4 pixels; 16 channels of `a` go round `b`
    "split and shuffled": [("a", 16, 1), ("a", 4, 4), ("b", 4, 4)],
    "grouped recurrent": [("a", 8, 1), ("a", 8, 1), ("parts.0", 8, 3), ("parts.1", 8, 3)],
    "recurrent": [("a", 16, 1), ("b", 8, 1), ("rnn", 12, 1)],
    "gated recurrent": [("a", 16, 1), ("b", 8, 1), ("rnn", 12, 3)],
    "long short-term": [("a", 16, 1), ("b", 8, 1), ("rnn", 12, 4)],
    "bilinear": [("a", 8, 1), ("b", 6, 1), ("both", 10, 1)],
    "weight norm": [("b.parametrizations.weight", 8, 1)],
    "shadowing": [("a", 12, 1), ("b", 8, 1)],
    "in single precision": [("a", 12, 1), ("b", 8, 1)],
    "tiled": [("a", 12, 1), ("b", 8, 1)],
    "standardised weights": [("a", 12, 1), ("b", 8, 1)],
    "no prefix": [("a", 12, 1), ("b", 8, 1)],
    "windowed attention": [("a", 12, 1), ("qkv", 4, 12), ("out", 12, 1)],
}
EVERY_WAY = WAYS | BROUGHT


def half(groups: tuple[ChannelGroup, ...], *, seed: int = 0) -> PruningPlan:
    generator = torch.Generator().manual_seed(seed)
    by_root = {g.root: torch.rand(g.channels, generator=generator, dtype=torch.float64) for g in groups}
    return plan_pruning(groups, Scores(by_root=by_root, comparable=True), budget=ChannelBudget(ratio=0.5))


def reasons(traced: Traced) -> dict[str, str]:
    return {a.layer: a.reason for a in traced.left_alone}


def check_that_half_goes_twice(module: nn.Module, *, heads: bool = True) -> nn.Module:
    """Shrunk with proof, trained one pass backwards, shrunk again with proof; the first of the two."""
    traced = trace(module, EXAMPLE, heads=heads)
    plan = half(traced.groups)
    small, surgery, proof = shrink_proved(module, traced, plan, EXAMPLE)
    assert proof.largest_relative_difference <= 1e-10
    assert proof.dtype is torch.float64
    for group in traced.groups:
        gone = len(plan.removed[group.root])
        assert gone == group.channels // 2
        for member in group.members:
            cut = surgery.cut(member.tensor, dict(module.state_dict())[member.tensor])
            assert cut.shape[member.dim] <= dict(module.state_dict())[member.tensor].shape[member.dim] - gone
    trained = copy.deepcopy(small).train()
    outputs = tensors_in(trained(torch.cat([*EXAMPLE] * 4)))
    torch.stack([t.square().mean() for t in outputs]).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in trained.parameters())
    again = trace(small, EXAMPLE, heads=heads)
    assert {g.channels for g in again.groups} >= {g.channels - g.channels // 2 for g in traced.groups if g.channels > 3}
    smaller, _, second = shrink_proved(small, again, half(again.groups, seed=1), EXAMPLE)
    assert second.largest_relative_difference <= 1e-10
    counts = [sum(p.numel() for p in m.parameters()) for m in (module, small, smaller)]
    assert counts == sorted(set(counts), reverse=True)
    return small


@pytest.mark.parametrize("name", EVERY_WAY)
def test_the_units_are_those_that_were_counted_by_hand(name: str) -> None:
    traced = trace(alive(EVERY_WAY[name]()), EXAMPLE)
    assert [(g.members[0].layer, g.channels, g.size) for g in traced.groups] == UNITS[name]


@pytest.mark.parametrize("name", EVERY_WAY)
def test_half_of_the_channels_go_twice(name: str) -> None:
    check_that_half_goes_twice(alive(EVERY_WAY[name]()))


@pytest.mark.parametrize("name", ["grouped recurrent", "long short-term", "shadowing"])
def test_what_people_bring_goes_through_the_whole_pipeline(name: str) -> None:
    dense = checkpoint_of(alive(BROUGHT[name]()))
    pruned = prune(dense, Request(budget=ChannelBudget(ratio=0.5), align=1))
    assert pruned.proof.holds
    assert pruned.small_cost.params < 0.5 * pruned.dense_cost.params


def told(traced: Traced) -> list[object]:
    """All that tracing says, as plain values."""
    groups = [
        (g, [(m.tensor, m.dim, m.role, m.positions.tolist(), m.channels.tolist()) for m in g.members])
        for g in traced.groups
    ]
    return [*((g.root, g.channels, g.heads, g.bare_norms, members) for g, members in groups), *traced.left_alone]


@functools.cache  # two walks of one module need one graph
def cached_export(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> Exported:
    return exported(module, example_inputs)


def told_by(monkeypatch: pytest.MonkeyPatch, module: nn.Module, *, values: bool | None) -> tuple[list[object], bool]:
    """What tracing says, made to run with `values` or left to itself; and whether it had them in the end."""
    walks: list[Tracer] = []

    class Noted(Tracer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options if values is None else options | {"values": values}))
            walks.append(self)

    monkeypatch.setattr("compressor.channels.groups.Tracer", Noted)
    monkeypatch.setattr("compressor.channels.groups.exported", cached_export)
    found = told(trace(module, EXAMPLE))
    return found, walks[-1].values


@pytest.mark.parametrize("name", EVERY_WAY)
def test_shapes_alone_say_what_values_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = alive(EVERY_WAY[name]())
    found, had_values = told_by(monkeypatch, module, values=None)
    assert found == told_by(monkeypatch, module, values=True)[0]
    assert not had_values


class Sorting(nn.Module):
    """Takes positions in an order that depends on values, which it computes or writes into a constant."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.stem, self.last, self.writes = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3), writes

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if self.writes:
            order = torch.zeros(12, dtype=torch.int64)
            order[2:] = torch.arange(10) + 0 * y[0, 0, 0, 2:].long()
        else:
            order = y.mean((0, 1, 2)).argsort()
        last: Tensor = self.last(y[..., order])
        return last


@pytest.mark.parametrize("writes", [False, True])
def test_where_shapes_do_not_do_the_walk_has_values(writes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = alive(Sorting(writes=writes))
    found, had_values = told_by(monkeypatch, module, values=None)
    assert had_values
    with pytest.raises(ValuesNeeded) as noticed:
        Tracer(exported(module, EXAMPLE), rule_of, values=False).walk(EXAMPLE)
    assert noticed.value.__cause__ is None  # seen, not stumbled over: an index without values reads anything
    assert found == told_by(monkeypatch, module, values=True)[0]
    assert [g.root for g in trace(module, EXAMPLE).groups] == ["stem"]


def test_a_class_with_a_precision_written_into_it_stays_a_class() -> None:
    module = alive(EVERY_WAY["in single precision"]())
    traced = trace(module, EXAMPLE)
    _, surgery, proof = shrink_proved(module, traced, half(traced.groups), EXAMPLE)
    assert surgery.program is None
    assert proof.dtype == torch.float64


def test_steps_in_a_lower_precision_are_refused() -> None:
    class Lower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.a(x)
            return self.b(x.float())

    with pytest.raises(GroupError, match="bfloat16"):
        trace(Lower().eval(), EXAMPLE)


def test_a_recurrent_layer_knows_its_new_sizes() -> None:
    module = alive(BROUGHT["long short-term"]())
    traced = trace(module, EXAMPLE)
    small, _, _ = shrink_proved(module, traced, half(traced.groups), EXAMPLE)
    rnn = small.get_submodule("rnn")
    assert isinstance(rnn, torch.nn.LSTM)
    assert (rnn.input_size, rnn.hidden_size) == (8, 6)


@pytest.mark.parametrize("name", ["fused attention", "bias table", "einsum attention"])
def test_half_of_the_features_of_every_head_go_twice(name: str) -> None:
    module = alive(WAYS[name]())
    traced = trace(module, EXAMPLE, heads=False)
    assert not any(g.heads for g in traced.groups)
    assert {g.channels for g in traced.groups} == {10, 4}
    check_that_half_goes_twice(module, heads=False)


def test_a_head_leaves_with_its_column_of_the_bias_table() -> None:
    module = alive(FusedAttention(table=True))
    traced = trace(module, EXAMPLE)
    heads = next(g for g in traced.groups if g.root == "qkv")
    assert heads.heads
    at = {m.tensor: m.positions[m.channels == 1].tolist() for m in heads.members}
    assert at["table"] == [1]
    assert at["qkv.weight"] == [*range(4, 8), *range(16, 20), *range(28, 32)]
    assert at["proj.weight"] == [4, 5, 6, 7]
    small, _, _ = shrink_proved(module, traced, PruningPlan(removed={"qkv": (1,)}), EXAMPLE)
    assert torch.equal(small.table, module.table[:, [0, 2]])  # type: ignore[index]
    assert small.index.tolist() == module.index.tolist()  # type: ignore[operator]


def test_features_of_heads_that_are_more_than_features_can_go_too() -> None:
    class Many(nn.Module):
        """6 heads of 2 features."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.qkv, self.proj, self.head = (nn.Linear(*n) for n in ((3, 8), (8, 36), (12, 8), (8, 5)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x.flatten(2).transpose(1, 2)[:, ::16])
            q, k, v = self.qkv(x).reshape(-1, 9, 3, 6, 2).permute(2, 0, 3, 1, 4).unbind(0)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.head((x + self.proj(y.transpose(1, 2).reshape(-1, 9, 12))).mean(1))

    module = alive(Many())
    whole, features = (trace(module, EXAMPLE, heads=heads) for heads in (True, False))
    assert [(g.channels, g.size, g.heads) for g in whole.groups] == [(8, 1, False), (6, 6, True)]
    assert [(g.channels, g.size, g.heads) for g in features.groups] == [(8, 1, False), (2, 18, False)]
    check_that_half_goes_twice(module, heads=False)


def test_a_tied_weight_is_cut_once_and_stays_tied() -> None:
    module = alive(Tied())
    traced = trace(module, EXAMPLE)
    small, _, _ = shrink_proved(module, traced, half(traced.groups), EXAMPLE)
    assert {name: tuple(t.shape) for name, t in small.state_dict().items() if t.ndim == 2} == {
        "a.weight": (6, 6), "b.weight": (6, 6), "up.weight": (10, 6), "head.2.weight": (5, 6),
    }  # fmt: skip
    assert small.get_parameter("a.weight") is small.get_parameter("b.weight")


def test_channels_under_zeros_of_a_padding_leave_by_themselves() -> None:
    """Those of the stem arrive in the middle of 16; the outer 8 of the second convolution meet nothing but zeros."""
    traced = trace(alive(WAYS["padded skip"]()), EXAMPLE)
    groups = {g.root: g for g in traced.groups}
    stem = next(m for m in groups["stem"].members if m.tensor == "conv2.weight")
    outer = next(m for m in groups["conv2"].members if m.tensor == "conv2.weight")
    assert stem.positions.tolist() == list(range(4, 12))
    assert outer.positions.tolist() == [*range(4), *range(12, 16)]


def test_channels_that_come_fastest_are_read_at_every_pixel() -> None:
    traced = trace(alive(WAYS["channels fastest"]()), EXAMPLE)
    reader = next(m for m in traced.groups[0].members if m.tensor == "fc.weight")
    assert reader.channels.tolist() == list(range(8)) * 25


def test_an_operator_without_a_rule_is_named_and_holds_its_channels_alone() -> None:
    traced = trace(alive(WAYS["without a rule"]()), EXAMPLE)
    assert reasons(traced) == {
        "odd": "`fft_rfft` runs along it", "head.2": "its channels are the network's output"
    }  # fmt: skip
    odd = {m.layer for g in traced.groups for m in g.members if m.role is Role.PRODUCES}
    assert odd == {"stem", "last"}


def test_an_inverse_of_what_the_channels_make_holds_them() -> None:
    class Inverted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 1), head(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            flat = x.flatten(2)
            mixed = torch.linalg.inv(flat @ flat.transpose(1, 2)) @ flat
            return self.head(torch.relu(self.b(mixed.view_as(x))))

    module = alive(Inverted())
    traced = trace(module, EXAMPLE)
    assert "linalg_inv" in reasons(traced)["a"]
    assert {g.root for g in traced.groups} == {"b"}
    check_that_half_goes_twice(module)


class Partly(nn.Module):
    """A split holds the first of six channels, which a grouped convolution sees as two times three."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.grouped = nn.Conv2d(6, 2, 1, groups=2, bias=False)
        self.heads = nn.ModuleList(nn.Linear(n, 5) for n in (6, 1, 5, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        given = [self.deep(x), *x.split([1, 5], dim=1), self.grouped(x)]
        return torch.stack([h(y.mean((2, 3))) for h, y in zip(self.heads, given, strict=True)]).sum(0)


def test_a_channel_that_is_known_in_two_ways_is_one_channel() -> None:
    module = alive(Partly())
    traced = trace(module, EXAMPLE)
    for group in traced.groups:
        assert len(set(group.labels)) == group.channels
        assert set(group.members[0].channels.tolist()) == set(range(group.channels))
    small, _, proof = shrink_proved(module, traced, half(traced.groups), EXAMPLE)
    assert proof.holds
    assert small.get_parameter("conv.weight").shape == (4, 3, 1, 1)  # one of three in either half


def test_a_batch_that_is_counted_with_len_is_traced_and_shrunk() -> None:
    """`torch.export` fixes it to the number of the example's images."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(800, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.conv(x)).view(len(x), -1))

    module = alive(Counting())
    traced = trace(module, EXAMPLE)
    small, surgery, proof = shrink_proved(module, traced, half(traced.groups), EXAMPLE)
    assert proof.holds
    assert surgery.program is None
    assert small(torch.cat([*EXAMPLE] * 3)).shape == (3, 5)
