"""What becomes of kept and pruned weights: by hand, by sign, by count, and through training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.checkpoint.recipes import Optimiser, Recipe, Schedule, Step
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import PlanError
from compressor.surgery.masks import WeightMask
from compressor.training.loop import Hooks, train
from compressor.training.lottery.treatments import (
    Frozen,
    Kept,
    PrunedWeights,
    signed_constant,
    start_weights,
    towards_zero,
    with_weights,
)

INITIAL = torch.tensor([[0.5, -0.4], [0.1, -0.2]])
FINAL = torch.tensor([[0.6, 0.3], [-0.3, -0.1]])  # the second and the fourth moved towards zero
STAYS = torch.tensor([[True, True], [False, False]])
SIGNED = [Kept.SIGNED_REINITIALISE, Kept.SIGNED_RESHUFFLE, Kept.SIGNED_CONSTANT]
UNSIGNED = [Kept.REINITIALISE, Kept.RESHUFFLE, Kept.CONSTANT]


def started(kept: Kept = Kept.REWIND, pruned: PrunedWeights = PrunedWeights.ZERO, *, seed: int = 0) -> Tensor:
    return start_weights(
        WeightMask(kept={"w": STAYS}), initial={"w": INITIAL}, final={"w": FINAL}, kept=kept, pruned=pruned, seed=seed
    )["w"]


def drawn(seed: int, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    initial, final = (torch.randn(shape, generator=generator) for _ in range(2))
    return initial, final, torch.rand(shape, generator=generator) < 0.4


def large(
    kept: Kept, pruned: PrunedWeights = PrunedWeights.ZERO, *, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    initial, final, stays = drawn(3, 20, 15)
    mask = WeightMask(kept={"w": stays})
    found = start_weights(mask, initial={"w": initial}, final={"w": final}, kept=kept, pruned=pruned, seed=seed)["w"]
    return found, initial, final, stays


# Oracles

DEVIATION = 0.3391165  # of 0.5, -0.4, 0.1, -0.2, whose mean is 0: sqrt(0.46 / 4)


@pytest.mark.parametrize(
    ("kept", "pruned", "expected"),
    [
        (Kept.REWIND, PrunedWeights.ZERO, [0.5, -0.4, 0.0, 0.0]),
        (Kept.BY_DIRECTION, PrunedWeights.ZERO, [0.5, 0.0, 0.0, 0.0]),
        (Kept.SIGNED_CONSTANT, PrunedWeights.ZERO, [DEVIATION, -DEVIATION, 0.0, 0.0]),
        (Kept.REWIND, PrunedWeights.FREEZE, [0.5, -0.4, 0.1, -0.2]),
        (Kept.REWIND, PrunedWeights.BY_DIRECTION, [0.5, -0.4, 0.1, 0.0]),
        (Kept.REWIND, PrunedWeights.REVERSED, [0.5, -0.4, 0.0, -0.2]),
        (Kept.BY_DIRECTION, PrunedWeights.BY_DIRECTION, [0.5, 0.0, 0.1, 0.0]),
    ],
)
def test_what_is_not_random_is_what_it_is_by_hand(kept: Kept, pruned: PrunedWeights, expected: list[float]) -> None:
    torch.testing.assert_close(started(kept, pruned).flatten(), torch.tensor(expected))


def test_towards_zero_is_about_the_magnitude() -> None:
    assert towards_zero(INITIAL, FINAL).tolist() == [[False, True], [False, True]]


def test_a_constant_is_the_deviation_of_the_whole_tensor() -> None:
    initial = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    mean = float(initial.mean())
    deviation = (sum((v - mean) ** 2 for v in initial.flatten().tolist()) / initial.numel()) ** 0.5
    assert signed_constant(initial).abs().unique().tolist() == pytest.approx([deviation], rel=1e-5)


# Properties


@pytest.mark.parametrize("kept", [Kept.REWIND, *SIGNED])
def test_the_signs_are_kept(kept: Kept) -> None:
    found, initial, _, stays = large(kept)
    assert torch.equal(found[stays].sign(), initial[stays].sign())


@pytest.mark.parametrize("kept", UNSIGNED)
def test_the_signs_are_not_kept(kept: Kept) -> None:
    """Of about 120 weights half keep theirs by chance."""
    found, initial, _, stays = large(kept)
    same = float((found[stays].sign() == initial[stays].sign()).double().mean())
    assert 0.3 < same < 0.7


@pytest.mark.parametrize("kept", [Kept.RESHUFFLE, Kept.SIGNED_RESHUFFLE])
def test_a_reshuffle_is_among_the_kept_weights(kept: Kept) -> None:
    found, initial, _, stays = large(kept)
    assert torch.equal(found[stays].abs().sort().values, initial[stays].abs().sort().values)
    assert not torch.equal(found[stays].abs(), initial[stays].abs())


@pytest.mark.parametrize("kept", [Kept.REINITIALISE, Kept.SIGNED_REINITIALISE])
def test_a_new_start_is_drawn_from_the_whole_tensor(kept: Kept) -> None:
    found, initial, _, stays = large(kept)
    values = set(initial.abs().flatten().tolist())
    assert set(found[stays].abs().tolist()) <= values
    assert not torch.equal(found[stays].abs().sort().values, initial[stays].abs().sort().values)


@pytest.mark.parametrize("kept", [Kept.CONSTANT, Kept.SIGNED_CONSTANT])
def test_constants_have_one_magnitude(kept: Kept) -> None:
    found, initial, _, stays = large(kept)
    assert found[stays].abs().unique().tolist() == pytest.approx([float(initial.std(correction=0))])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_random_control_zeroes_as_many_as_by_direction_and_only_pruned_ones(seed: int) -> None:
    initial, final, stays = drawn(seed, 9, 8)
    found = {
        how: start_weights(
            WeightMask(kept={"w": stays}), initial={"w": initial}, final={"w": final}, pruned=how, seed=seed
        )["w"]
        for how in (PrunedWeights.BY_DIRECTION, PrunedWeights.RANDOM)
    }
    zeros = [int((w == 0).sum()) for w in found.values()]
    assert zeros[0] == zeros[1] == int((towards_zero(initial, final) & ~stays).sum())
    assert torch.equal(found[PrunedWeights.RANDOM][stays], initial[stays])


@pytest.mark.parametrize("pruned", PrunedWeights)
@pytest.mark.parametrize("kept", Kept)
def test_kept_and_pruned_weights_have_nothing_to_do_with_each_other(kept: Kept, pruned: PrunedWeights) -> None:
    found, initial, _, stays = large(kept, pruned)
    assert torch.equal(found[stays], large(kept)[0][stays])
    assert set(found[~stays].tolist()) <= {0.0, *initial[~stays].tolist()}


@pytest.mark.parametrize("kept", [*UNSIGNED, Kept.SIGNED_REINITIALISE, Kept.SIGNED_RESHUFFLE])
def test_what_is_random_is_drawn_by_the_seed(kept: Kept) -> None:
    first, again, other = (large(kept, PrunedWeights.RANDOM, seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# Training


def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    images = Images(torch.rand(64, 1, 4, 4, generator=generator), torch.arange(64) % 3)
    return Data(name="noise", source="here", train=images, tune=images, test=images)


@pytest.mark.parametrize("optimiser", Optimiser)
@pytest.mark.parametrize("pruned", PrunedWeights)
def test_pruned_weights_stay_where_they_are_and_kept_ones_train(pruned: PrunedWeights, optimiser: Optimiser) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    initial = {name: net.get_parameter(name).detach().clone() for name in ("1.weight", "3.weight")}
    final = {name: w + 0.2 for name, w in initial.items()}
    generator = torch.Generator().manual_seed(1)
    mask = WeightMask(kept={name: torch.rand(w.shape, generator=generator) < 0.5 for name, w in initial.items()})
    start = start_weights(mask, initial=initial, final=final, pruned=pruned)
    begun = with_weights(net, start)
    recipe = Recipe(
        budget=Step(epochs=2), schedule=Schedule(rate=0.1), optimiser=optimiser, batch_size=16, augment=(),
        weight_decay=0.1,
    )  # fmt: skip
    trained = train(
        begun, data(), recipe=recipe, preprocessing=Preprocessing(), hooks=Hooks(after_step=(Frozen(mask, start),))
    )
    for name, kept in mask.kept.items():
        weight = trained.module.get_parameter(name).detach()
        assert torch.equal(weight[~kept], start[name][~kept])
        assert bool((weight[kept] != start[name][kept]).float().mean() > 0.9)
        assert torch.equal(net.get_parameter(name), initial[name])  # lent
    assert not torch.equal(trained.module.get_parameter("1.bias"), net.get_parameter("1.bias"))


# Refusals


def test_values_of_another_shape_are_refused() -> None:
    mask = WeightMask(kept={"w": STAYS})
    for initial, final in (({}, {"w": FINAL}), ({"w": INITIAL}, {"w": FINAL[:1]})):
        with pytest.raises(PlanError, match="no values of `w`"):
            start_weights(mask, initial=initial, final=final)
    with pytest.raises(PlanError, match="no values to freeze the pruned weights of `w`"):
        Frozen(mask, {})
