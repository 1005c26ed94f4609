"""Layers that are called several times: what they read is summed over all calls, and no run is refused for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressor.channels.groups import trace
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.planning.elimination import readings_of
from compressor.planning.sensitivity import narrowed
from compressor.planning.walk import calls, program_of, readers
from compressor.pruning.pipeline import prune
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget, CostBudget, Countable, Scope
from tests.support.topologies import INPUT, alive, checkpoint_of


class TwoScales(nn.Module):
    """The output convolutions are called on both scales."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.fine, self.coarse = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.out, self.score = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a = self.stem(x)
        p, q = self.fine(a).relu(), self.coarse(self.down(a)).relu()
        return self.out(p), self.score(p), self.out(q), self.score(q)


def batches(seed: int = 0) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(8, *INPUT[1:], generator=generator),) for _ in range(3)]


def test_moments_are_those_of_all_calls() -> None:
    net = alive(TwoScales())
    program = program_of(net, batches()[0], batch=8)
    found = readings_of(program, batches(), {"out.weight", "fine.weight"})
    with torch.no_grad():
        seen = []
        for (x,) in batches():
            a = net.stem(x)  # type: ignore[operator]
            both = net.fine(a).relu(), net.coarse(net.down(a)).relu()  # type: ignore[operator]
            seen += [v.movedim(1, 3).reshape(-1, 8) for v in both]
    rows = torch.cat(seen).double()
    reading = found["out.weight"]
    assert (reading.called, found["fine.weight"].called) == (2, 1)
    assert reading.moments.rows == len(rows)
    torch.testing.assert_close(reading.covariance()[0], torch.cov(rows.T, correction=0), rtol=1e-4, atol=1e-5)


def test_calls_are_readers_and_the_layers_that_are_called_again() -> None:
    program = program_of(alive(TwoScales()), batches()[0], batch=8)
    once = {program.tensor_name(node.args[1]) for _, node in readers(program)}
    named = [program.tensor_name(node.args[1]) for _, node in calls(program)]
    assert once == {"stem.0.weight", "down.0.weight", "fine.weight", "coarse.weight"}
    assert set(named) == once | {"out.weight", "score.weight"}
    assert [named.count(name) for name in ("out.weight", "score.weight", "fine.weight")] == [2, 2, 1]


class TwoStrides(nn.Module):
    """The same weight with two strides is no one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x).relu()
        return self.second(x), nn.functional.conv2d(x, self.second.weight, stride=2)


def test_calls_of_two_kinds_are_not_summed() -> None:
    program = program_of(alive(TwoStrides()), batches()[0], batch=8)
    assert not readings_of(program, batches(), {"second.weight"})


@pytest.mark.parametrize("scope", [Scope.UNIFORM, Scope.MEASURED])
@pytest.mark.parametrize("criterion", ["obs", "activation"])
def test_channels_that_they_read_are_judged_and_pruned(criterion: str, scope: Scope) -> None:
    said: list[str] = []
    images = torch.rand(96, *INPUT[1:], generator=torch.Generator().manual_seed(0))
    budget = CostBudget(counted=Countable.MACS, stays=0.5) if scope is Scope.MEASURED else ChannelBudget(ratio=0.5)
    request = Request(
        budget=budget, criterion=criterion, scope=scope, align=1, images=96, repair=Repair.LEAST_SQUARES,
    )  # fmt: skip
    data = Data(name="noise", source="noise", train=Images(images), tune=None, test=None)
    found = prune(checkpoint_of(alive(TwoScales())), request, data=data, say=said.append)
    assert found.small_cost.macs < 0.55 * found.dense_cost.macs
    assert found.checkpoint.module.out.weight.shape[1] < 8  # type: ignore[union-attr,index]
    assert not any("cannot judge" in line for line in said)
    assert said.count("out.weight is called several times: it is not repaired") == 1


def test_measuring_counts_on_no_repair_of_them() -> None:
    net = alive(TwoScales())
    program = program_of(net, batches()[0], batch=8)
    group = next(g for g in trace(net, batches()[0]).groups if "out.weight" in {m.tensor for m in g.members})
    gone = torch.arange(group.channels) < 3
    changed = narrowed(program, group, readings_of(program, batches(), {"out.weight"}), {}, gone)
    weight, before = changed["out.weight"], net.out.weight  # type: ignore[union-attr]
    assert not bool(weight[:, gone].any())
    assert torch.equal(weight[:, ~gone], before[:, ~gone])  # type: ignore[index]
    assert torch.equal(changed["out.bias"], net.out.bias)  # type: ignore[union-attr,arg-type]
