"""The penalty on batch norm scales: against gradients by hand, then what it does to a run."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from compressor.checkpoint.recipes import How, Recipe, Schedule, Shape, Step, recipe_from_json
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import RetrainError
from compressor.planning.costs import Cost
from compressor.training.bn_penalty import scale_norm, scales_of
from compressor.training.loop import train
from compressor.training.ways import Wishes, recipe_for, wishes_from
from tests.support.command_line import refused

STRENGTH, RATE = 0.5, 0.01
RECIPE = Recipe(
    budget=Step(epochs=3), schedule=Schedule(rate=RATE, shape=Shape.CONSTANT, warmup=0.0), momentum=0.0,
    weight_decay=0.3, batch_size=8, augment=(), bn_l1=STRENGTH,
)  # fmt: skip
SCALES = torch.tensor([0.5, -0.5, 0.0, 2.0])


def constant_images() -> Data:
    """All alike: behind a batch norm nothing is left of them, so no loss pulls at its scales."""
    held = Images(torch.full((16, 1, 6, 6), 90, dtype=torch.uint8), torch.arange(16) % 2)
    return Data(name="grey", source="made", train=held, tune=held, test=held)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 2),
    )  # fmt: skip
    with torch.no_grad():
        made[1].weight.copy_(SCALES)
    return made


def scales_after(recipe: Recipe, module: nn.Module | None = None) -> torch.Tensor:
    trained = train(module or network(), constant_images(), recipe=recipe, preprocessing=Preprocessing())
    return trained.module.get_parameter("1.weight").detach()


def test_the_gradient_is_the_one_by_hand() -> None:
    module = network()
    norm = scale_norm(module)
    assert float(norm.detach()) == 3.0  # 0.5 + 0.5 + 0 + 2
    (STRENGTH * norm).backward()
    assert module[1].weight.grad is not None
    assert module[1].weight.grad.tolist() == [0.5, -0.5, 0.0, 0.5]  # strength times the sign
    assert all(p.grad is None for n, p in module.named_parameters() if n != "1.weight")


def test_scales_that_no_loss_pulls_at_sink_by_rate_times_strength_a_step() -> None:
    steps = 3 * 2  # epochs, batches
    expected = SCALES - steps * RATE * STRENGTH * SCALES.sign()
    assert torch.allclose(scales_after(RECIPE), expected, atol=1e-4)  # the variance's epsilon lets a trace through
    assert torch.allclose(scales_after(dataclasses.replace(RECIPE, bn_l1=0.0)), SCALES, atol=1e-4)


def test_frozen_scales_stay_and_count_for_nothing() -> None:
    module = nn.Sequential(network(), nn.BatchNorm1d(2))
    module[0][1].requires_grad_(False)
    assert [s is module[1].weight for s in scales_of(module)] == [True]


def test_a_scale_that_two_layers_share_is_counted_once() -> None:
    first, second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    second.weight = first.weight
    assert len(scales_of(nn.Sequential(first, second))) == 1


@pytest.mark.parametrize(
    "module",
    [nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36, affine=False))],
)
def test_a_penalty_on_nothing_is_refused(module: nn.Module) -> None:
    module = nn.Sequential(module, nn.Linear(2 if isinstance(module[1], nn.Linear) else 36, 2))
    with pytest.raises(RetrainError, match="has no trainable ones") as refused:
        scales_after(RECIPE, module)
    assert "--bn-l1 0" in str(refused.value.hint)


@pytest.mark.parametrize("strength", [-1e-4, float("inf"), float("nan")])
def test_a_strength_that_is_none_is_refused(strength: float) -> None:
    with pytest.raises(RetrainError, match="a penalty must be finite"):
        dataclasses.replace(RECIPE, bn_l1=strength)


def test_a_recipe_remembers_it_and_an_older_one_had_none() -> None:
    plain = RECIPE.to_json()
    assert recipe_from_json(plain) == RECIPE
    del plain["bn_l1"]
    assert recipe_from_json(plain).bn_l1 == 0


@pytest.mark.parametrize("how", list(How))
def test_no_arm_takes_the_dense_penalty_over_unless_asked(how: How) -> None:
    cost = Cost(params=1, macs=10, bytes=4)
    plain = recipe_for(how, dense_recipe=RECIPE, dense_cost=cost, small_cost=cost)
    assert plain.bn_l1 == 0
    assert "without the dense network's penalty of 0.5" in " ".join(plain.notes)
    asked = recipe_for(how, dense_recipe=RECIPE, dense_cost=cost, small_cost=cost, wishes=wishes_from(bn_l1=1e-3))
    assert asked.bn_l1 == 1e-3
    assert "an L1 penalty of 0.001" in " ".join(asked.notes)
    assert Wishes().bn_l1 == 0


@pytest.mark.usefixtures("pruned")
def test_the_command_line_hands_it_to_the_recipe() -> None:
    refused("retrain", "--data", "data.npz", "--bn-l1", "-1", says="not negative", hints="--bn-l1 1e-4")
