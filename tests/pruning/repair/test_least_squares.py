"""Layers fitted behind a cut: where what left can be made up for exactly, it is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup, Role, trace
from compressor.graph.outputs import outputs_of, relative_difference
from compressor.planning import moments
from compressor.planning.branches import residual_sum
from compressor.planning.sensitivity import rise
from compressor.planning.walk import program_of, readers
from compressor.pruning.repair import least_squares as reconstruct
from compressor.pruning.repair.least_squares import Reconstruction
from compressor.surgery.plan import ChannelBudget, PruningPlan, Scores, plan_pruning
from compressor.surgery.shrinking import shrink
from compressor.surgery.surgery import Surgery
from tests.support.topologies import INPUT, TOPOLOGIES, Residual, alive, head, plain

EXAMPLE = (torch.zeros(INPUT),)


def batches(
    seed: int = 0, *, count: int = 8, size: int = 4, shape: tuple[int, ...] = INPUT[1:]
) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, *shape, generator=generator),) for _ in range(count)]


def error(dense: nn.Module, other: nn.Module, seed: int = 99) -> float:
    """On images that nothing was fitted on."""
    x = batches(seed, count=1, size=32)[0]
    return relative_difference(outputs_of(other.eval(), x)[0], outputs_of(dense.eval(), x)[0])


def cut(net: nn.Module, removed: dict[str, tuple[int, ...]]) -> tuple[nn.Module, Surgery]:
    return shrink(net, trace(net, EXAMPLE), PruningPlan(removed=removed), EXAMPLE)


def random_cut(net: nn.Module, ratio: float) -> tuple[nn.Module, Surgery]:
    traced = trace(net, EXAMPLE)
    generator = torch.Generator().manual_seed(0)
    scores = {g.root: torch.rand(g.channels, generator=generator, dtype=torch.float64) for g in traced.groups}
    plan = plan_pruning(traced.groups, Scores(by_root=scores, comparable=True), budget=ChannelBudget(ratio=ratio))
    return shrink(net, traced, plan, EXAMPLE)


def repeat_(net: nn.Module, group: ChannelGroup) -> tuple[int, ...]:
    """Make the second half of the channels repeat the first, up to where they are read; which they are."""
    half = group.channels // 2
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    with torch.no_grad():
        for member in group.members:
            if member.role is Role.CONSUMES:
                continue
            rows = tensors[member.tensor].movedim(member.dim, 0)
            for channel in range(half):
                rows[member.positions[member.channels == half + channel]] = rows[
                    member.positions[member.channels == channel]
                ]
    return tuple(range(half, 2 * half))


# Oracles


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_channels_that_repeat_others_are_made_up_for_exactly(name: str) -> None:
    dense = alive(TOPOLOGIES[name]())
    for group in trace(dense, EXAMPLE).groups:
        if any("in_proj" in m.tensor for m in group.members):
            continue  # the products of queries and keys add up over channels: twins are more than one
        net = copy.deepcopy(dense)
        small, surgery = cut(net, {group.root: repeat_(net, group)})
        size = 32 if name == "flattened" else 4  # its linear layer reads 100 features, and an image is one row of them
        found = reconstruct.reconstruct(net, small, surgery, batches(size=size))
        assert error(net, small) > 1e-2, group.root
        assert error(net, found.module) < 1e-3, group.root
        assert found.images == 8 * size
        assert all(layer.after <= layer.before for layer in found.layers), group.root


class Mixed(nn.Module):
    """A channel that is a mixture of two others where it is read, without a bend between."""

    def __init__(self, *, bias: bool, norm: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3, bias=bias, stride=2)
        self.norm: nn.Module = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.b(self.a(x)))))


@pytest.mark.parametrize(("bias", "norm"), [(True, True), (True, False), (False, True), (False, False)])
def test_mixtures_are_made_up_for_with_a_constant_in_the_bias_or_the_norm(bias: bool, norm: bool) -> None:
    net = alive(Mixed(bias=bias, norm=norm))
    with torch.no_grad():
        net.a.weight[5] = 0.5 * net.a.weight[0] - 2 * net.a.weight[3]
        net.a.bias[5] = 0.5 * net.a.bias[0] - 2 * net.a.bias[3] + (3.0 if bias or norm else 0.0)
    small, surgery = cut(net, {"a": (5,)})
    found = reconstruct.reconstruct(net, small, surgery, batches())
    assert error(net, small) > 1e-2
    assert error(net, found.module) < 1e-3
    moved = (found.module.b.weight[:, 3] - small.b.weight[:, 3]).flatten()  # type: ignore[union-attr,index]
    torch.testing.assert_close(moved, (-2 * net.b.weight[:, 5]).flatten(), rtol=1e-2, atol=1e-3)
    if norm and not bias:
        assert not torch.allclose(found.module.norm.running_mean, small.norm.running_mean)  # type: ignore[union-attr,arg-type]
    elif norm:
        assert torch.equal(found.module.norm.running_mean, small.norm.running_mean)  # type: ignore[union-attr,arg-type]


class Summed(nn.Module):
    """Two ways into one sum; the second can read all that the first does."""

    def __init__(self, after: str) -> None:
        super().__init__()
        self.a, self.p = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1)
        self.b = nn.Conv2d(3, 6, 3)
        self.q: nn.Module = nn.Linear(6, 6) if after == "linear" else nn.Conv2d(6, 6, 1, bias=after != "norm")
        self.norm: nn.Module = nn.BatchNorm2d(6) if after == "norm" else nn.Identity()
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.after, self.head = after, head(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.p(torch.relu(self.a(x)))
        z = torch.relu(self.b(x))
        z = self.q(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.after == "linear" else self.norm(self.q(z))
        return self.head(torch.relu(y + z * self.scale if self.after == "scale" else z + y))


@pytest.mark.parametrize("after", ["nothing", "norm", "scale", "linear"])
def test_the_last_layer_of_a_branch_makes_up_for_what_its_stream_is_off_by(
    after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = alive(Summed(after))
    with torch.no_grad():
        for tensor, source in ((net.b.weight, net.a.weight), (net.b.bias, net.a.bias)):
            tensor[1], tensor[2:] = tensor[0], source  # type: ignore[index]
    small, surgery = cut(net, {"a": (3,), "b": (1,)})
    corrected = reconstruct.reconstruct(net, small, surgery, batches())
    assert error(net, corrected.module) < 1e-3
    monkeypatch.setattr(reconstruct, "residual_sum", lambda *_: None)
    assert error(net, reconstruct.reconstruct(net, small, surgery, batches()).module) > 1e-2


def test_the_mean_alone_makes_the_mean_output_the_dense_networks() -> None:
    net = alive(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    given, example = batches(shape=(4,), size=64), (torch.zeros(1, 4),)
    small, surgery = shrink(net, trace(net, example), PruningPlan(removed={"0": (1, 2, 6)}), example)
    found = reconstruct.reconstruct(net, small, surgery, given, mean_only=True)
    every = torch.cat([b[0] for b in given])
    said, wanted, before = (outputs_of(m, [every])[0].mean(0) for m in (found.module, net, small))
    torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, wanted, rtol=1e-2)
    assert torch.equal(found.module[2].weight, small[2].weight)  # type: ignore[index]


def test_a_silent_layer_gives_the_mean_and_reads_nothing() -> None:
    net = alive(Residual())
    removed = tuple(range(1, 24))
    small, surgery = cut(net, {"conv1": removed})
    found = reconstruct.reconstruct(net, small, surgery, batches(), silent=frozenset({"conv2.weight"}))
    assert not bool(found.module.conv2.weight.any())  # type: ignore[union-attr,operator]
    with torch.no_grad():
        every = torch.relu(net.stem(torch.cat([b[0] for b in batches()])))
        mean = net.conv2(torch.relu(net.bn1(net.conv1(every)))).mean((0, 2, 3))
    torch.testing.assert_close(found.module.conv2.bias, mean, rtol=1e-3, atol=1e-3)


# Properties


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_repaired_network_is_nearer_to_the_dense_one_and_the_callers_stay(name: str) -> None:
    net = alive(TOPOLOGIES[name]())
    small, surgery = random_cut(net, 0.4)
    net.train()
    states = [copy.deepcopy(m.state_dict()) for m in (net, small)]
    found = reconstruct.reconstruct(net, small, surgery, batches())
    for module, state in zip((net, small), states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert net.training
    assert {k: v.shape for k, v in found.module.state_dict().items()} == {k: v.shape for k, v in states[1].items()}
    x = batches(99, count=1, size=32)[0]
    dense = outputs_of(net.eval(), x)[0]
    assert rise(dense, outputs_of(found.module, x)[0]) < rise(dense, outputs_of(small, x)[0])


def test_a_seed_draws_the_positions_and_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "LEAST_ROWS", 64)
    monkeypatch.setattr(moments, "ROWS_PER_FEATURE", 2)
    net = alive(plain())
    small, surgery = random_cut(net, 0.5)
    states = [
        reconstruct.reconstruct(net, small, surgery, batches(), seed=seed).module.state_dict() for seed in (1, 1, 2)
    ]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert any(not torch.equal(v, states[2][k]) for k, v in states[0].items())


def test_where_nothing_was_cut_nothing_is_fitted() -> None:
    net = alive(Residual())
    found = reconstruct.reconstruct(net, copy.deepcopy(net), Surgery(), batches())
    assert found == Reconstruction(module=found.module, layers=(), images=32)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in found.module.state_dict().items())


def test_layers_that_are_right_already_stay() -> None:
    """Channels that nobody read: the layers behind them are looked at, and left."""
    net = alive(plain())
    with torch.no_grad():
        net[3].weight[:, :4] = 0
    small, surgery = cut(net, {"0": (0, 1, 2, 3)})
    found = reconstruct.reconstruct(net, small, surgery, batches())
    assert [layer.layer for layer in found.layers] == ["3", "5.2"]
    for name, tensor in found.module.state_dict().items():
        torch.testing.assert_close(tensor, small.state_dict()[name], rtol=1e-5, atol=1e-6)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(3, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).permute(0, 2, 1)[:, ::12])
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).flatten(0, 1))


def test_queries_keep_the_scale_that_the_cut_gave_them() -> None:
    """Heads are narrower and scores divided by less: the dense network's queries are not what is to be fitted."""
    net = alive(Attending())
    traced = trace(net, EXAMPLE, heads=False)
    dead = {"embed": (1, 2, 5, 7), "attention": (1, 3)}
    tensors = dict(net.named_parameters())
    with torch.no_grad():
        net.attention.in_proj_weight.mul_(4)
        for group in traced.groups:
            for member in group.members:
                leaving = torch.isin(member.channels, torch.tensor(dead[group.layers[0]]))
                tensors[member.tensor].index_fill_(member.dim, member.positions[leaving], 0)
    plan = PruningPlan(removed={g.root: dead[g.layers[0]] for g in traced.groups})
    small, surgery = shrink(net, traced, plan, EXAMPLE)
    assert small.attention.in_proj_weight.shape == (12, 4)  # type: ignore[union-attr]  # 2 of each head's 4 features
    found = reconstruct.reconstruct(net, small, surgery, batches())
    assert "attention" in [layer.layer for layer in found.layers]
    assert error(net, found.module) < 1e-4
    torch.testing.assert_close(
        found.module.attention.in_proj_weight,
        small.attention.in_proj_weight,
        rtol=1e-4,
        atol=1e-5,  # type: ignore[union-attr]
    )


def test_a_layer_too_wide_to_fit_takes_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "WIDEST", 12)
    net = alive(plain())
    small, surgery = cut(net, {"0": (0, 1, 2, 3)})
    found = reconstruct.reconstruct(net, small, surgery, batches())
    assert torch.equal(found.module[3].weight, small[3].weight)  # type: ignore[index]
    assert not torch.equal(found.module[3].bias, small[3].bias)  # type: ignore[index]
    assert not torch.equal(found.module[5][2].weight, small[5][2].weight)  # type: ignore[index]
    assert error(net, found.module) < error(net, small)


# Hand-made cases


def test_without_a_bias_and_a_norm_the_mean_has_nowhere_to_go() -> None:
    net = alive(Mixed(bias=False, norm=False))
    small, surgery = cut(net, {"a": (5,)})
    found = reconstruct.reconstruct(net, small, surgery, batches(), mean_only=True)
    assert torch.equal(found.module.b.weight, small.b.weight)  # type: ignore[union-attr,arg-type]
    assert [layer.layer for layer in found.layers] == ["head.2"]


class Spread(nn.Module):
    """A sum whose other side is one value per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x.mean((2, 3), keepdim=True) + self.a(x)))


@pytest.mark.parametrize(("count", "size"), [(8, 4), (3, 2), (2, 4), (1, 4), (1, 1)])
@pytest.mark.parametrize("make", [Spread, plain])
def test_few_images_and_sums_that_spread_are_no_obstacle(make: Callable[[], nn.Module], count: int, size: int) -> None:
    net = alive(make())
    small, surgery = random_cut(net, 0.3)
    given = batches(count=count, size=size)
    found = reconstruct.reconstruct(net, small, surgery, given)
    x = torch.cat([b[0] for b in given])
    dense = outputs_of(net, [x])[0]
    assert rise(dense, outputs_of(found.module, [x])[0]) < rise(dense, outputs_of(small, [x])[0])


def test_the_sum_behind_a_branch_is_found_through_norms_and_scales_only() -> None:
    def sums(net: nn.Module) -> dict[str | None, bool]:
        program = program_of(net, batches()[0], batch=4)
        return {program.tensor_name(n.args[1]): residual_sum(program, n) is not None for _, n in readers(program)}

    assert sums(alive(Residual())) == {
        "stem.weight": False, "conv1.weight": False, "conv2.weight": True, "head.2.weight": False,
    }  # fmt: skip
    assert sums(alive(TOPOLOGIES["layer norm"]()))["down.weight"]
    assert {n for n, found in sums(alive(TOPOLOGIES["attention"]())).items() if found} == {
        "attention.out_proj.weight",
        "mlp.2.weight",
    }


def test_what_is_said_names_the_layers() -> None:
    net, said = alive(plain()), list[str]()
    small, surgery = random_cut(net, 0.5)
    reconstruct.reconstruct(net, small, surgery, batches(), say=said.append)
    assert said == ["repairing 3.weight", "repairing 5.2.weight"]
