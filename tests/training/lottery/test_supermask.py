"""Learned masks: the straight-through gradient by formula, draws that follow the logits, a network that is lent."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor.chance import generator
from compressor.checkpoint.recipes import Recipe, Schedule, Shape, Step
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.splits import Data, SplitName
from compressor.errors import PlanError
from compressor.training.loop import Hooks, train
from compressor.training.lottery.initialisation import glorot_normal
from compressor.training.lottery.supermask import LearnedMask, MaskLearner, Multiplied, learn_mask, masked
from compressor.training.lottery.treatments import signed_constant


def net() -> nn.Module:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 3))
    return glorot_normal(layers, seed=0).eval()


def data(images: int = 192) -> Data:
    """Three classes, each with its own bright row."""
    drawing, labels = torch.Generator().manual_seed(0), torch.arange(images) % 3
    pixels = torch.rand(images, 1, 6, 6, generator=drawing)
    pixels[torch.arange(images), 0, 2 * labels] += 1
    held = Images(pixels / 2, labels)
    return Data(name="rows", source="here", train=held, tune=held, test=held)


def recipe(epochs: int = 20, *, seed: int = 0) -> Recipe:
    return Recipe(
        budget=Step(epochs=epochs), schedule=Schedule(rate=20.0, shape=Shape.CONSTANT, warmup=0.0), weight_decay=0.0,
        batch_size=32, augment=(), seed=seed,
    )  # fmt: skip


def learned(epochs: int = 20, **options: object) -> LearnedMask:
    return learn_mask(net(), data(), recipe=recipe(epochs), preprocessing=Preprocessing(), **options)  # type: ignore[arg-type]


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    drawing = torch.Generator().manual_seed(0)
    weight, logits, upstream = (torch.randn(5, 4, generator=drawing, dtype=torch.float64) for _ in range(3))
    return weight, logits.requires_grad_(True), torch.rand(5, 4, generator=drawing, dtype=torch.float64), upstream


# Oracles


def test_the_gradient_is_that_of_the_probability() -> None:
    weight, logits, uniform, upstream = tensors()
    masked(weight, logits, uniform, rescaled=False).backward(upstream)
    probability = 1 / (1 + (-logits.detach()).exp())
    torch.testing.assert_close(logits.grad, probability * (1 - probability) * weight * upstream)


def test_the_gradient_of_a_rescaled_mask_knows_of_the_scale() -> None:
    weight, logits, uniform, upstream = tensors()
    masked(weight, logits, uniform, rescaled=True).backward(upstream)
    probability = 1 / (1 + (-logits.detach()).exp())
    ones = (uniform < probability).double()
    scale, total = ones.numel() / ones.sum(), (upstream * weight * ones).sum()
    by_hand = scale * probability * (1 - probability) * (weight * upstream - total / ones.sum())
    torch.testing.assert_close(logits.grad, by_hand)


@pytest.mark.parametrize("rescaled", [False, True])
def test_a_draw_keeps_a_weight_as_it_is_or_not_at_all(rescaled: bool) -> None:
    weight, logits, uniform, _ = tensors()
    ones = uniform < logits.sigmoid()
    found = masked(weight, logits, uniform, rescaled=rescaled)
    assert 0 < int(ones.sum()) < ones.numel()
    expected = weight * ones * (ones.numel() / int(ones.sum()) if rescaled else 1)
    torch.testing.assert_close(found.detach(), expected)
    assert rescaled or torch.equal(found, expected)


def test_a_rescaled_draw_without_a_one_is_zero_and_not_nan() -> None:
    found = masked(torch.ones(3), torch.full((3,), -50.0), torch.full((3,), 0.5), rescaled=True)
    assert found.tolist() == [0, 0, 0]


def test_certain_logits_give_the_network_itself_or_nothing() -> None:
    module = net()
    x = torch.rand(5, 1, 6, 6)
    learner = MaskLearner(module, multiplied=Multiplied.INITIAL, rescaled=False).train()
    for logits in learner.logits:
        logits.data.fill_(60.0)
    assert torch.equal(learner(x), module(x))
    for logits in learner.logits:
        logits.data.fill_(-60.0)
    assert not bool(learner(x).any())


def test_draws_keep_as_many_as_the_logits_say() -> None:
    logits = torch.tensor([-1.0, 0.0, 2.0]).repeat(10_000, 1)
    layer = nn.Linear(3, 10_000, bias=False)
    found = LearnedMask(module=layer, logits={"weight": logits}, rescaled=False, history=())
    kept = (found.drawn(seed=0).weight != 0).double().mean(0)  # type: ignore[operator]
    torch.testing.assert_close(kept, torch.tensor([-1.0, 0.0, 2.0]).double().sigmoid(), rtol=0, atol=0.02)
    assert found.density == pytest.approx(float(logits[0].sigmoid().mean()))


# Properties


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("multiplied", Multiplied)
def test_a_mask_learns_what_no_weight_does(multiplied: Multiplied, rescaled: bool) -> None:
    found = learned(multiplied=multiplied, rescaled=rescaled)
    test = data().split(SplitName.TEST)
    shares = [a.share for a in found.accuracies(test, split="test", preprocessing=Preprocessing(), draws=5)]
    assert len(shares) == 5
    assert min(shares) > 0.8
    before, after = net().state_dict(), found.module.state_dict()
    for name, values in before.items():
        constant = multiplied is Multiplied.SIGNED_CONSTANT and name in found.logits
        assert torch.equal(after[name], signed_constant(values) if constant else values)
        assert not after[name].requires_grad
    for name, weight in found.drawn(seed=0).state_dict().items():
        ratio = weight[weight != 0] / after[name][weight != 0]
        if name in found.logits and not rescaled:
            assert bool((ratio == 1).all())
        elif name in found.logits:
            torch.testing.assert_close(ratio, torch.full_like(ratio, weight.numel() / int((weight != 0).sum())))
        else:
            assert torch.equal(weight, after[name])


def test_the_caller_gets_back_the_module_that_was_lent() -> None:
    module = net().train()
    module[1].weight.requires_grad_(False)  # type: ignore[index]
    before = copy.deepcopy(module.state_dict())
    learn_mask(module, data(), recipe=recipe(1), preprocessing=Preprocessing())
    assert module.training
    assert [p.requires_grad for p in module.parameters()] == [False, True, True, True]
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())


def test_the_same_recipe_gives_the_same_logits_and_draws() -> None:
    first, again = learned(2), learned(2)
    other = learn_mask(net(), data(), recipe=recipe(2, seed=1), preprocessing=Preprocessing())
    for name, logits in first.logits.items():
        assert torch.equal(logits, again.logits[name])
        assert not torch.equal(logits, other.logits[name])
    draws = [first.drawn(seed=s).state_dict()["1.weight"] for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_run_that_was_stopped_gives_the_same_logits(tmp_path: Path) -> None:
    whole, file = learned(3), tmp_path / "mask.state"

    class Stop(Exception):
        pass

    learner = MaskLearner(net(), multiplied=Multiplied.INITIAL, rescaled=False)

    def stop(progress: object) -> None:
        if getattr(progress, "record", None) is not None and getattr(progress, "epoch", 0) == 1:
            raise Stop

    with pytest.raises(Stop):
        train(
            learner,
            data(),
            recipe=recipe(3),
            preprocessing=Preprocessing(),
            state_file=file,
            hooks=Hooks(callbacks=(stop,)),
        )
    again = learn_mask(net(), data(), recipe=recipe(3), preprocessing=Preprocessing(), state_file=file)
    assert len(again.history) == 3
    assert all(torch.equal(logits, again.logits[name]) for name, logits in whole.logits.items())


def test_draws_have_nothing_to_do_with_the_weights() -> None:
    """Fresh generators with one seed repeat each other: large weights would be kept more often."""
    module = nn.Linear(200, 200, bias=False)
    begun = glorot_normal(module, seed=7)
    found = LearnedMask(module=begun, logits={"weight": torch.zeros(200, 200)}, rescaled=False, history=())
    kept = (found.drawn(seed=7).weight != 0).double().flatten()  # type: ignore[operator]
    signs = begun.weight.detach().sign().double().flatten()  # type: ignore[union-attr]
    magnitudes = begun.weight.detach().abs().double().flatten()  # type: ignore[union-attr]
    for values in (signs, magnitudes):
        assert (
            abs(float(torch.corrcoef(torch.stack([kept, values]))[0, 1])) < 0.03
        )  # 40,000 pairs: a deviation of 0.005


def test_purposes_and_seeds_have_numbers_of_their_own() -> None:
    drawn = [torch.rand(8, generator=generator(s, p)).tolist() for s, p in ((0, "a"), (0, "b"), (1, "a"), (0, "a"))]
    assert drawn[0] == drawn[3]
    assert len({tuple(d) for d in drawn}) == 3


# Hand-made cases


def test_a_shared_weight_has_one_draw() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) - self.b(x)  # type: ignore[no-any-return]

    learner = MaskLearner(Twice(), multiplied=Multiplied.INITIAL, rescaled=False).train()
    assert len(learner.logits) == 1
    assert not bool(learner(torch.rand(3, 4)).any())


def test_protected_layers_have_no_mask() -> None:
    assert list(learned(1, protect=("3",)).logits) == ["1.weight"]
    with pytest.raises(PlanError, match="matches no weight"):
        learned(1, protect=("9",))


def test_glorot_normal_has_its_deviation_and_no_bias() -> None:
    module = nn.Sequential(nn.Conv2d(8, 24, 5), nn.BatchNorm2d(24), nn.Flatten(), nn.Linear(24, 400))
    fresh, again, other = (glorot_normal(module, seed=s) for s in (0, 0, 1))
    for index, fans in ((0, (8 + 24) * 25), (3, 424)):
        weight = fresh[index].weight.detach()  # type: ignore[index]
        assert float(weight.std()) == pytest.approx((2 / fans) ** 0.5, rel=0.06)
        assert not bool(fresh[index].bias.any())  # type: ignore[index]
        assert torch.equal(weight, again[index].weight)  # type: ignore[index]
        assert not torch.equal(weight, other[index].weight)  # type: ignore[index]
    assert bool(module[3].bias.any())  # lent
