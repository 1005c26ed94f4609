"""The oracle says yes to what is right and no to each kind of wrong network; and what the surgery makes is right."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.pruning.pipeline import Pruned, prune
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget
from tests.support.cases import CASES, Inputs, floats
from tests.support.oracle import EXACT, Verdict, distinct_, judged
from tests.support.reasons import internal_in
from tests.support.topologies import INPUT, TOPOLOGIES, WAYS, checkpoint_of

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    **{name: (make, floats(*INPUT[1:])) for name, make in {**TOPOLOGIES, **WAYS}.items()},
    **CASES,
}
EVERY = {"attention", "flattened", "grouped", "layer norm", "tied", "halves"}  # the others run under `slow`


def pruned_of(module: nn.Module, inputs: Inputs, *, ratio: float = 0.5) -> Pruned:
    checkpoint = dataclasses.replace(checkpoint_of(module), example_inputs=inputs(1))
    return prune(checkpoint, Request(budget=ChannelBudget(ratio=ratio), align=1, repair=Repair.NONE))


def told(name: str) -> Any:
    return name if name in EVERY else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [told(name) for name in NETWORKS])
def test_what_the_surgery_makes_is_right(name: str) -> None:
    make, inputs = NETWORKS[name]
    dense = distinct_(make())
    pruned = pruned_of(dense, inputs)
    small = pruned.checkpoint.module
    verdict = judged(dense, small, inputs, rounded=pruned.kept_as == "program")
    assert verdict.right, verdict
    assert verdict.unjudged is None
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dense.parameters())
    reasons = [alone.reason for alone in pruned.traced.left_alone]
    assert not any(map(internal_in, reasons)), reasons
    if name in CASES:
        assert all("output" in r or "complex" in r or "fft" in r for r in reasons), reasons


# By hand, and wrong by hand


class Plain(nn.Module):
    """Two layers and a norm over the channels between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Linear(5, width), nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        return self.b(functional.gelu(self.n(self.a(x))))


KEPT = [0, 2, 3, 6]


def by_hand() -> tuple[nn.Module, nn.Module]:
    dense, small = distinct_(Plain(8)), Plain(4).eval()
    state = {n: t[KEPT] if n[0] in "an" else t for n, t in dense.state_dict().items()}
    small.load_state_dict({**state, "b.weight": dense.state_dict()["b.weight"][:, KEPT]})
    return dense, small


def verdict_on(change: Callable[[nn.Module], Any] = lambda _: None) -> Verdict:
    dense, small = by_hand()
    change(small)
    return judged(dense, small, floats(5))


def test_channels_taken_out_by_hand_are_right() -> None:
    verdict = verdict_on()
    assert verdict.right
    assert verdict.outputs < 1e-12
    assert verdict.allowed == EXACT


def swapped(small: nn.Module) -> None:
    weight = small.get_parameter("b.weight")
    weight.data = weight.data.flip(1)


def other(small: nn.Module) -> None:
    small.get_parameter("a.bias").data[0] += 1e-3


def frozen(small: nn.Module) -> None:
    small.get_parameter("a.weight").requires_grad_(False)


def detached(small: nn.Module) -> None:
    small.get_submodule("a").register_forward_hook(lambda _m, _x, y: y.detach())


def seen_before(small: nn.Module) -> None:
    seen: list[Tensor] = []
    small.get_submodule("n").register_forward_hook(lambda _m, _x, y: seen.append(y) or seen[0])  # type: ignore[func-returns-value]


def of_a_batch(small: nn.Module) -> None:
    small.register_forward_hook(lambda _m, _x, y: y.view(2, 3))


def named(small: nn.Module) -> None:
    small.register_forward_hook(lambda _m, _x, y: {"logits": y})


def eps(small: nn.Module) -> None:
    small.get_submodule("n").eps = 1e-3  # type: ignore[assignment]  # a number


def activation(small: nn.Module) -> None:
    small.get_submodule("n").register_forward_hook(lambda _m, _x, y: y * 1.0001)


@pytest.mark.parametrize(
    "change",
    [swapped, other, frozen, detached, seen_before, of_a_batch, named, eps, activation],
    ids=lambda c: c.__name__,
)
def test_what_is_wrong_is_seen(change: Callable[[nn.Module], Any]) -> None:
    assert not verdict_on(change).right


def test_a_norm_over_all_channels_is_wrong() -> None:
    """Channels that are zeroed instead of taken out leave the mean and the deviation of a norm as they were."""
    dense, small = by_hand()

    def as_dense(_module: nn.Module, x: tuple[Tensor], _result: Tensor) -> Tensor:
        whole = x[0].new_zeros(len(x[0]), 8)
        whole[:, KEPT] = x[0]
        found = functional.layer_norm(whole, (8,), eps=1e-5)[:, KEPT]
        return found * small.get_parameter("n.weight") + small.get_parameter("n.bias")

    small.get_submodule("n").register_forward_hook(as_dense)
    assert not judged(dense, small, floats(5)).right


def test_weights_that_are_the_dense_ones_own_are_wrong() -> None:
    dense, small = by_hand()
    small.get_submodule("b").bias = dense.get_submodule("b").bias  # type: ignore[assignment]  # a parameter
    verdict = judged(dense, small, floats(5))
    assert "own" in str(verdict.why)


def test_numbers_that_stand_twice_are_no_evidence() -> None:
    dense, small = by_hand()
    with torch.no_grad():
        dense.get_parameter("n.weight").fill_(1.0)
        small.get_parameter("n.weight").fill_(1.0)
    assert "twice" in str(judged(dense, small, floats(5)).why)


def test_both_networks_stay_as_they_were() -> None:
    dense, small = by_hand()
    before = copy.deepcopy((dense.state_dict(), small.state_dict()))
    assert judged(dense, small, floats(5)).right
    for then, module in zip(before, (dense, small), strict=True):
        assert all(torch.equal(t, module.state_dict()[n]) and t.dtype is torch.float32 for n, t in then.items())


def test_numbers_are_all_unlike() -> None:
    module = distinct_(nn.Sequential(nn.Embedding(300, 40), nn.Linear(40, 40), nn.BatchNorm1d(40)))
    for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
        assert len(tensor.unique()) == tensor.numel()
    assert bool((module[2].running_var > 0).all())  # type: ignore[index,union-attr]
