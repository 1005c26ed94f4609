"""Mask criteria: every score by hand, exact counts, ties by chance, the output layer at half the rate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.errors import PlanError
from compressor.surgery.mask_criteria import (
    MaskCriterion,
    mask_by,
    mask_criterion_named,
    score_weights,
    slower_at_the_output,
)
from compressor.surgery.masks import MaskScope, magnitude

M = MaskCriterion
INITIAL = torch.tensor([[0.5, -0.4], [0.1, -0.2]], dtype=torch.float64)
FINAL = torch.tensor([[0.6, 0.5], [-0.3, -0.1]], dtype=torch.float64)


def weights(seed: int, *shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"{i}.weight": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}


# Oracles


@pytest.mark.parametrize(
    ("criterion", "scores"),
    [
        (M.LARGE_FINAL, [0.6, 0.5, 0.3, 0.1]),
        (M.SMALL_FINAL, [-0.6, -0.5, -0.3, -0.1]),
        (M.LARGE_INIT, [0.5, 0.4, 0.1, 0.2]),
        (M.SMALL_INIT, [-0.5, -0.4, -0.1, -0.2]),
        (M.LARGE_INIT_LARGE_FINAL, [0.75, 0.5, 0.0, 0.0]),
        (M.SMALL_INIT_SMALL_FINAL, [0.0, 0.25, 0.5, 0.5]),
        (M.MAGNITUDE_INCREASE, [0.1, 0.1, 0.2, -0.1]),
        (M.MOVEMENT, [0.1, 0.9, 0.4, 0.1]),
        (M.LARGE_FINAL_SAME_SIGN, [0.6, 0.0, 0.0, 0.1]),
        (M.LARGE_FINAL_DIFF_SIGN, [0.0, 0.5, 0.3, 0.0]),
        (M.MAGNITUDE_INCREASE_SAME_SIGN, [0.1, 0.0, 0.0, -0.1]),
        (M.MAGNITUDE_INCREASE_DIFF_SIGN, [0.0, 0.1, 0.2, 0.0]),
        (M.RANDOM, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_every_score_is_the_one_by_hand(criterion: MaskCriterion, scores: list[float]) -> None:
    found = score_weights(criterion, INITIAL, FINAL)
    assert found.shape == INITIAL.shape
    torch.testing.assert_close(found.flatten(), torch.tensor(scores, dtype=torch.float64))


def test_every_criterion_has_a_score_by_hand() -> None:
    cases = next(m for m in test_every_score_is_the_one_by_hand.pytestmark if m.name == "parametrize")  # type: ignore[attr-defined]
    assert {case[0] for case in cases.args[1]} == set(MaskCriterion)


@pytest.mark.parametrize("scope", MaskScope)
def test_large_final_is_magnitude_pruning(scope: MaskScope) -> None:
    net = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    final = {name: net.get_parameter(name) for name in ("0.weight", "2.weight")}
    found = mask_by(M.LARGE_FINAL, initial={}, final=final, sparsity=0.6, scope=scope)
    expected = magnitude(net, sparsity=0.6, scope=scope)
    assert all(torch.equal(found.kept[name], kept) for name, kept in expected.kept.items())


@pytest.mark.parametrize("criterion", [c for c in MaskCriterion if c is not M.RANDOM])
def test_no_weight_that_goes_scores_above_one_that_stays(criterion: MaskCriterion) -> None:
    initial, final = weights(1, (12, 9)), weights(2, (12, 9))
    kept = mask_by(criterion, initial=initial, final=final, sparsity=0.7).kept["0.weight"]
    scores = score_weights(criterion, initial["0.weight"], final["0.weight"])
    assert float(scores[~kept].max()) <= float(scores[kept].min())


# Properties


@settings(max_examples=40, deadline=None)
@given(
    criterion=st.sampled_from(MaskCriterion),
    sparsity=st.floats(0.1, 0.95),
    levels=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_exactly_as_many_weights_go_as_asked_whatever_ties_there_are(
    criterion: MaskCriterion, sparsity: float, levels: int, seed: int
) -> None:
    initial, final = (
        {n: (w * levels).round() / levels for n, w in weights(s, (8, 6), (4, 8)).items()} for s in (seed, seed + 1)
    )
    mask = mask_by(criterion, initial=initial, final=final, sparsity=sparsity, seed=seed)
    for kept in mask.kept.values():
        assert int((~kept).sum()) == math.floor(sparsity * kept.numel() + 1e-9)


def test_ties_are_drawn_by_the_seed() -> None:
    final = weights(0, (20, 20))
    masks = [mask_by(M.RANDOM, initial={}, final=final, sparsity=0.5, seed=s).kept["0.weight"] for s in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    rows = torch.stack(
        [mask_by(M.RANDOM, initial={}, final=final, sparsity=0.5, seed=s).kept["0.weight"] for s in range(200)]
    )
    share = rows.double().mean(0)  # of the seeds that keep each weight: a deviation of 0.035
    assert float((share - 0.5).abs().max()) < 0.18


@pytest.mark.parametrize("criterion", MaskCriterion)
def test_levels_are_nested(criterion: MaskCriterion) -> None:
    initial, mask = weights(0, (9, 8), (3, 9)), None
    for level, sparsity in enumerate((0.3, 0.6, 0.8)):
        deeper = mask_by(
            criterion, initial=initial, final=weights(level + 1, (9, 8), (3, 9)), sparsity=sparsity, within=mask
        )
        assert mask is None or deeper.nested_in(mask)
        mask = deeper


def test_every_tensor_may_have_a_sparsity_of_its_own() -> None:
    final = weights(0, (10, 10), (5, 10))
    mask = mask_by(M.SMALL_FINAL, initial={}, final=final, sparsity={"0.weight": 0.9, "1.weight": 0.2})
    assert [int((~kept).sum()) for kept in mask.kept.values()] == [90, 10]


# Hand-made cases


def test_a_sign_that_changed_goes_before_any_that_did_not() -> None:
    initial = {"0.weight": torch.tensor([[1.0, -1.0], [1.0, -1.0]])}
    final = {"0.weight": torch.tensor([[-9.0, 9.0], [0.1, -0.1]])}
    kept = mask_by(M.LARGE_FINAL_SAME_SIGN, initial=initial, final=final, sparsity=0.5).kept["0.weight"]
    assert kept.tolist() == [[False, False], [True, True]]


def test_the_output_layer_is_pruned_at_half_the_rate() -> None:
    """Three rounds of 20 % leave 0.512, three of 10 % leave 0.729."""
    found = slower_at_the_output({"a": 0, "b": 0, "out": 0}, 1 - 0.8**3)
    assert found == pytest.approx({"a": 0.488, "b": 0.488, "out": 0.271})


def test_a_criterion_that_looks_back_takes_initial_values() -> None:
    final = weights(0, (4, 4))
    for criterion in MaskCriterion:
        if criterion.looks_back:
            with pytest.raises(PlanError, match=r"initial values of `0\.weight` are missing"):
                mask_by(criterion, initial={}, final=final, sparsity=0.5)
        else:
            mask_by(criterion, initial={}, final=final, sparsity=0.5)
    with pytest.raises(PlanError, match=r"are \[2, 8\], the weights \[4, 4\]"):
        mask_by(M.MOVEMENT, initial=weights(0, (2, 8)), final=final, sparsity=0.5)


@pytest.mark.parametrize("sparsity", [0.0, 1.0, {"0.weight": 1.0}, {"1.weight": 0.5}])
def test_a_sparsity_outside_its_range_is_refused(sparsity: float | dict[str, float]) -> None:
    with pytest.raises(PlanError, match="between 0 and 1"):
        mask_by(M.LARGE_FINAL, initial={}, final=weights(0, (4, 4)), sparsity=sparsity)


def test_values_that_are_not_finite_are_refused() -> None:
    initial, final = weights(0, (4, 4)), weights(1, (4, 4))
    initial["0.weight"][0, 0] = math.nan
    with pytest.raises(PlanError, match=r"`0\.weight` holds values that are not finite"):
        mask_by(M.MOVEMENT, initial=initial, final=final, sparsity=0.5)


def test_criteria_have_names() -> None:
    assert mask_criterion_named("movement") is M.MOVEMENT
    with pytest.raises(PlanError, match="no mask criterion called `movemnt`") as caught:
        mask_criterion_named("movemnt")
    assert "movement" in str(caught.value.hint)
