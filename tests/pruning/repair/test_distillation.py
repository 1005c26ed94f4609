"""The small network follows the dense one: never to a worse place, and by the seed alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.channels.groups import trace
from compressor.errors import RepairError
from compressor.graph.outputs import outputs_of
from compressor.planning.sensitivity import rise
from compressor.planning.walk import aten, operator, program_of
from compressor.pruning.repair import distillation as module_distil
from compressor.pruning.repair.distillation import Distilled, distil
from compressor.surgery.plan import ChannelBudget, Scores, plan_pruning
from compressor.surgery.shrinking import shrink
from compressor.surgery.surgery import Surgery
from tests.support.topologies import INPUT, TOPOLOGIES, Residual, alive, head, plain

EXAMPLE = (torch.zeros(INPUT),)


def batches(seed: int, *, count: int = 3, size: int = 8) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, *INPUT[1:], generator=generator),) for _ in range(count)]


def cut(net: nn.Module, ratio: float = 0.4) -> tuple[nn.Module, Surgery]:
    traced = trace(net, EXAMPLE)
    scores = {g.root: torch.arange(g.channels, dtype=torch.float64) for g in traced.groups}
    plan = plan_pruning(traced.groups, Scores(by_root=scores, comparable=True), budget=ChannelBudget(ratio=ratio))
    return shrink(net, traced, plan, EXAMPLE)


@pytest.fixture(autouse=True)
def _often_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_distil, "JUDGED_EVERY", 2)
    monkeypatch.setattr(module_distil, "WARMUP", 1)


def distilled(net: nn.Module, small: nn.Module, surgery: Surgery, **options: Any) -> Distilled:
    return distil(net, small, surgery, batches(0), batches(1, count=1), **{"steps": 8, **options})


def held_out_rise(net: nn.Module, other: nn.Module) -> float:
    x = batches(1, count=1)[0]
    return rise(outputs_of(net, x)[0], outputs_of(copy.deepcopy(other).eval(), x)[0])


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_what_comes_back_is_the_best_that_was_judged(name: str) -> None:
    net = alive(TOPOLOGIES[name]())
    small, surgery = cut(net)
    found = distilled(net, small, surgery, steps=4, rate=3e-3)
    assert len(found.errors) == 3
    assert found.errors[found.best] == min(found.errors)
    assert held_out_rise(net, found.module) == pytest.approx(min(found.errors), rel=1e-3)
    assert found.errors[0] == pytest.approx(held_out_rise(net, small), rel=1e-3)


def test_a_network_follows_the_dense_one() -> None:
    net = alive(plain())
    small, surgery = cut(net)
    found = distilled(net, small, surgery, steps=40, rate=1e-2)
    assert held_out_rise(net, found.module) < 0.2 * held_out_rise(net, small)


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_steps_that_ruin_the_network_end_early_and_give_back_the_start(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_distil, "PATIENCE", 3)
    net = alive(Residual())
    small = copy.deepcopy(net)
    found = distilled(net, small, Surgery(), steps=100, rate=rate)
    assert found.best == 0
    assert len(found.errors) == 4
    assert found.errors[0] == pytest.approx(0, abs=1e-9)
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in found.module.state_dict().items())


def test_frozen_parameters_stay_and_others_move() -> None:
    net = alive(Residual())
    small, surgery = cut(net)
    found = distilled(net, small, surgery, frozen=frozenset({"conv2.weight"}), rate=1e-2)
    assert found.best > 0
    before, after = dict(small.named_parameters()), dict(found.module.named_parameters())
    assert {n for n, p in after.items() if torch.equal(p, before[n])} == {"conv2.weight"}
    assert all(p.requires_grad and p.grad is None for p in after.values())


def test_the_running_statistics_are_those_of_the_small_network() -> None:
    net = alive(plain())
    small, surgery = cut(net)
    found = distilled(net, small, surgery, rate=1e-2)
    assert not torch.equal(found.module[1].running_mean, small[1].running_mean)  # type: ignore[index]


def test_a_seed_gives_the_same_bytes_and_another_one_does_not() -> None:
    net = alive(plain())
    small, surgery = cut(net)
    states = [distilled(net, small, surgery, seed=s, rate=1e-2).module.state_dict() for s in (1, 1, 2)]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert any(not torch.equal(v, states[2][k]) for k, v in states[0].items())


def test_the_callers_networks_and_images_stay() -> None:
    net = alive(Residual())
    small, surgery = cut(net)
    net.train()
    small.requires_grad_(False)
    given, held_out = batches(0), batches(1, count=1)
    states = [copy.deepcopy(m.state_dict()) for m in (net, small)]
    found = distil(net, small, surgery, given, held_out, steps=3)
    for module, state in zip((net, small), states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert net.training
    assert not small.training
    assert not any(p.requires_grad for p in found.module.parameters())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(given, batches(0), strict=True))


def test_images_move_by_whole_pixels_and_repeat_their_edge() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 8)
    assert torch.equal(module_distil._moved(images, generator), images)
    rows = torch.arange(16.0).view(1, 1, 16, 1).expand(64, 3, 16, 8)
    moved = module_distil._moved(rows, generator)
    assert moved.shape == rows.shape
    assert set(moved.unique().tolist()) <= set(range(16))
    assert bool((moved[..., 1:, :] >= moved[..., :-1, :]).all())
    columns = torch.arange(8.0).expand(64, 3, 16, 8)
    flipped = module_distil._moved(columns, generator)[:, 0, 0]
    rising = (flipped[:, 1:] >= flipped[:, :-1]).all(dim=1)
    assert 10 < int(rising.sum()) < 54
    assert bool((flipped[~rising][:, 1:] <= flipped[~rising][:, :-1]).all())


def test_blocks_are_compared_at_their_sums_with_the_channels_that_stayed() -> None:
    net = alive(Residual())
    small, surgery = cut(net)
    program = program_of(small, EXAMPLE, batch=2)
    ((index, kept),) = module_distil._points(program, surgery)
    assert operator(program.nodes[index]) is aten.add.Tensor
    assert kept is not None
    assert torch.equal(kept, surgery.slices["conv2.weight"][0])


def test_a_transposed_convolution_is_compared_at_its_own_channels() -> None:
    """Its weight is `[in, out, ...]`, and as many of both stay."""
    net = alive(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ReLU(), head(8)))
    traced = trace(net, EXAMPLE)
    scores = {"0": torch.arange(8).double(), "2": -torch.arange(8).double()}
    plan = plan_pruning(traced.groups, Scores(by_root=scores, comparable=True), budget=ChannelBudget(ratio=0.5))
    small, surgery = shrink(net, traced, plan, EXAMPLE)
    points = module_distil._points(program_of(small, EXAMPLE, batch=2), surgery)
    assert [None if kept is None else kept.tolist() for _, kept in points] == [[4, 5, 6, 7], [0, 1, 2, 3], None]


def test_networks_that_take_other_steps_are_refused() -> None:
    with pytest.raises(RepairError, match="other steps"):
        distilled(alive(plain()), alive(Residual()), Surgery())
