"""Tickets: nested masks, early weights times mask, controls that differ in one thing, and searches that go on."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn

from compressor.checkpoint.recipes import Recipe, Schedule, Step
from compressor.data.splits import Data
from compressor.errors import PlanError
from compressor.surgery.masks import MaskScope, WeightMask, magnitude, maskable
from compressor.training.loop import Hooks, train
from compressor.training.lottery.tickets import (
    Keeping,
    Round,
    Rounds,
    find_ticket,
    output_weight,
    redrawn,
    rewound,
    rounds_with_output,
    shuffled,
)
from compressor.training.watch import StateAt, state_of
from tests.support.topologies import TOPOLOGIES, alive, checkpoint_of
from tests.training.test_loop import PREPROCESSING, small_data, small_network

RECIPE = Recipe(budget=Step(epochs=1), schedule=Schedule(rate=0.05), batch_size=24, augment=())
ROUNDS = Rounds(rounds=3, rate=0.4, rates={"8": 0.2})


def trained_with(module: nn.Module, mask: WeightMask | None, data: Data) -> nn.Module:
    hooks = () if mask is None else (Keeping(mask),)
    return train(module, data, recipe=RECIPE, preprocessing=PREPROCESSING, hooks=Hooks(after_step=hooks)).module


def search(early: dict[str, Tensor] | None, **options: object) -> tuple[list[Round], list[dict[str, Tensor]]]:
    """Every round of a search, and what each training started from."""
    data, starts = small_data(), list[dict[str, Tensor]]()

    def training(ticket: nn.Module, mask: WeightMask) -> nn.Module:
        starts.append(state_of(ticket))
        return trained_with(ticket, mask, data)

    dense = trained_with(small_network(), None, data)
    options = {"trained": dense, "rounds": ROUNDS, **options}
    return list(find_ticket(train=training, early=early, **options)), starts  # type: ignore[arg-type]  # as given


def same(one: nn.Module, other: nn.Module) -> bool:
    pair = one.state_dict(), other.state_dict()
    return all(torch.equal(t, pair[1][n]) for n, t in pair[0].items())


def test_every_round_starts_from_the_early_weights_times_its_mask() -> None:
    early = state_of(small_network())
    rounds, starts = search(early)
    assert [r.number for r in rounds] == [1, 2, 3]
    for found, start in zip(rounds, starts, strict=True):
        for name, tensor in start.items():
            kept = found.mask.kept.get(name, torch.ones_like(tensor, dtype=torch.bool))
            assert torch.equal(tensor, early[name] * kept)
            assert not bool(found.trained.state_dict()[name][~kept].any())


def test_masks_are_nested_and_judge_what_the_round_before_has_trained() -> None:
    rounds, _ = search(state_of(small_network()))
    for before, after in itertools.pairwise(rounds):
        assert after.mask.nested_in(before.mask)
        assert after.mask.kept.keys() == before.mask.kept.keys()
        for name, kept in after.mask.kept.items():
            left = before.mask.kept[name]
            rate = ROUNDS.rates["8"] if name == "8.weight" else ROUNDS.rate
            assert int(kept.sum()) == int(left.sum()) - int(rate * int(left.sum()) + 1e-9)
            magnitudes = before.trained.get_parameter(name).detach().abs()
            assert float(magnitudes[left & ~kept].max()) <= float(magnitudes[kept].min())


def test_learning_rate_rewinding_starts_from_what_survives() -> None:
    rounds, starts = search(None)
    for before, after, start in zip(rounds, rounds[1:], starts[1:], strict=False):
        for name, tensor in start.items():
            kept = after.mask.kept.get(name, torch.ones_like(tensor, dtype=torch.bool))
            assert torch.equal(tensor, before.trained.state_dict()[name] * kept)


def test_a_search_that_was_stopped_goes_on_as_one_that_was_not() -> None:
    early = state_of(small_network())
    whole, _ = search(early)
    rest, _ = search(early, trained=whole[0].trained, within=whole[0].mask, after=1)
    assert [r.number for r in rest] == [2, 3]
    for one, other in zip(whole[1:], rest, strict=True):
        assert same(one.trained, other.trained)
        assert all(torch.equal(k, other.mask.kept[n]) for n, k in one.mask.kept.items())


def test_rewinding_late_takes_the_weights_of_that_step() -> None:
    snapshot = StateAt(2)
    train(
        small_network(), small_data(), recipe=RECIPE, preprocessing=PREPROCESSING, hooks=Hooks(after_step=(snapshot,))
    )
    _, starts = search(snapshot.state)
    first = state_of(small_network())
    kept = starts[0]["0.weight"] != 0
    assert torch.equal(starts[0]["0.weight"][kept], snapshot.state["0.weight"][kept])
    assert not torch.equal(starts[0]["0.weight"][kept], first["0.weight"][kept])


def test_the_ticket_is_a_copy() -> None:
    module = small_network()
    before = copy.deepcopy(module.state_dict())
    mask = magnitude(module, sparsity=0.5)
    early = {n: t + 1 for n, t in state_of(module).items()}
    ticket = rewound(module, early, mask)
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    assert torch.equal(ticket.state_dict()["1.weight"], early["1.weight"])


def test_shuffling_keeps_the_counts_and_moves_the_places() -> None:
    mask = magnitude(small_network(), sparsity=0.7, scope=MaskScope.GLOBAL)
    other = shuffled(mask, seed=1)
    assert {n: int(k.sum()) for n, k in other.kept.items()} == {n: int(k.sum()) for n, k in mask.kept.items()}
    assert any(not torch.equal(k, mask.kept[n]) for n, k in other.kept.items())
    again = shuffled(mask, seed=1)
    assert all(torch.equal(k, again.kept[n]) for n, k in other.kept.items())
    assert any(not torch.equal(k, shuffled(mask, seed=2).kept[n]) for n, k in other.kept.items())


def test_the_redrawn_control_has_the_mask_and_nothing_of_the_weights() -> None:
    checkpoint = checkpoint_of(alive(TOPOLOGIES["plain"]()))
    mask = magnitude(checkpoint.module, sparsity=0.5)
    control = redrawn(checkpoint, mask, seed=3)
    for name, kept in mask.kept.items():
        mine, theirs = control.get_parameter(name).detach(), checkpoint.module.get_parameter(name).detach()
        assert not bool(mine[~kept].any())
        assert not bool((mine[kept] == theirs[kept]).any())
    assert same(control, redrawn(checkpoint, mask, seed=3))
    assert not same(control, redrawn(checkpoint, mask, seed=4))


def test_keeping_serves_the_next_network_too() -> None:
    first, second = small_network(), small_network()
    mask = magnitude(first, sparsity=0.5)
    keeping = Keeping(mask)
    for module in (first, second):
        keeping(module)
        assert all(not bool(module.get_parameter(n)[~k].any()) for n, k in mask.kept.items())


class Backwards(nn.Module):
    """Its output layer is the first one that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(4, 2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(x).relu())
        return found


def test_the_output_layer_is_the_one_that_is_used_last() -> None:
    inputs = (torch.zeros(1, 6),)
    module = Backwards().train()
    assert output_weight(module, inputs) == "head.weight"
    assert module.training
    assert not any(layer._forward_hooks for layer in module.modules())
    assert rounds_with_output(module, inputs, rate=0.4).rates == {"head.weight": 0.2}
    assert rounds_with_output(module, inputs, output_rate=0.3).rates == {"head.weight": 0.3}
    assert rounds_with_output(module, inputs, scope=MaskScope.GLOBAL).rates == {"head.weight": 0.0}


def test_what_makes_no_search_is_refused() -> None:
    with pytest.raises(PlanError, match="rounds is 0") as caught:
        Rounds(rounds=0)
    assert "--rounds 1" in str(caught.value.hint)
    with pytest.raises(PlanError, match="between 0 and 1"):
        search(None, rounds=dataclasses.replace(ROUNDS, rate=1.5))
    other = WeightMask(kept={n: torch.ones_like(k, dtype=torch.bool)[:1] for n, k in maskable(small_network()).items()})
    with pytest.raises(PlanError, match="earlier mask of `0"):
        search(None, within=other)
