"""Score single weights by their initial and final values (Zhou et al. 2019, arXiv:1905.01067, sec. 2).

Magnitude pruning uses the final value alone. The other criteria use the initial value, the distance that the weight
moved, and whether it kept its sign. Each is a score, and the weights with the highest scores stay.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.chance import generator
from compressor.errors import PlanError, named
from compressor.surgery.masks import MaskScope, WeightMask, mask_from_scores

OUTPUT_PER_ROUND, OTHERS_PER_ROUND = 0.1, 0.2  # share of the remaining weights (Frankle & Carbin 2019, fig. 2)


class MaskCriterion(enum.StrEnum):
    """The score of a weight with initial value w_i and final value w_f; higher = keep."""

    LARGE_FINAL = "large-final"  # |w_f|: magnitude pruning
    SMALL_FINAL = "small-final"  # -|w_f|
    LARGE_INIT = "large-init"  # |w_i|
    SMALL_INIT = "small-init"  # -|w_i|
    LARGE_INIT_LARGE_FINAL = "large-init-large-final"  # the lower of the two ranks within the tensor
    SMALL_INIT_SMALL_FINAL = "small-init-small-final"  # the same for the smallest
    MAGNITUDE_INCREASE = "magnitude-increase"  # |w_f| - |w_i|
    MOVEMENT = "movement"  # |w_f - w_i|
    LARGE_FINAL_SAME_SIGN = "large-final-same-sign"  # |w_f|, or 0 where the sign changed
    LARGE_FINAL_DIFF_SIGN = "large-final-diff-sign"  # |w_f|, or 0 where the sign stayed: the control
    MAGNITUDE_INCREASE_SAME_SIGN = (
        "magnitude-increase-same-sign"  # |w_f| - |w_i|, or 0: above weights that shrank, as published
    )
    MAGNITUDE_INCREASE_DIFF_SIGN = "magnitude-increase-diff-sign"
    RANDOM = "random"  # 0

    @property
    def looks_back(self) -> bool:
        """True if the criterion reads the initial values."""
        return self not in (MaskCriterion.LARGE_FINAL, MaskCriterion.SMALL_FINAL, MaskCriterion.RANDOM)


def mask_criterion_named(name: str) -> MaskCriterion:
    """Return the mask criterion called `name`."""
    return named(MaskCriterion, name, one="mask criterion", many="mask criteria", refusal=PlanError)


def score_weights(criterion: MaskCriterion, initial: Tensor, final: Tensor) -> Tensor:
    """Return a score for every weight of a tensor, float64 in its shape."""
    first, last = initial.detach().double().cpu(), final.detach().double().cpu()
    grown = last.abs() - first.abs()
    same = first.sign() == last.sign()
    match criterion:
        case MaskCriterion.LARGE_FINAL:
            return last.abs()
        case MaskCriterion.SMALL_FINAL:
            return -last.abs()
        case MaskCriterion.LARGE_INIT:
            return first.abs()
        case MaskCriterion.SMALL_INIT:
            return -first.abs()
        case MaskCriterion.LARGE_INIT_LARGE_FINAL:
            return torch.minimum(_rank(first.abs()), _rank(last.abs()))
        case MaskCriterion.SMALL_INIT_SMALL_FINAL:
            return torch.minimum(_rank(-first.abs()), _rank(-last.abs()))
        case MaskCriterion.MAGNITUDE_INCREASE:
            return grown
        case MaskCriterion.MOVEMENT:
            return (last - first).abs()
        case MaskCriterion.LARGE_FINAL_SAME_SIGN:
            return last.abs() * same
        case MaskCriterion.LARGE_FINAL_DIFF_SIGN:
            return last.abs() * ~same
        case MaskCriterion.MAGNITUDE_INCREASE_SAME_SIGN:
            return grown * same
        case MaskCriterion.MAGNITUDE_INCREASE_DIFF_SIGN:
            return grown * ~same
        case MaskCriterion.RANDOM:
            return torch.zeros_like(last)


def mask_by(
    criterion: MaskCriterion,
    *,
    initial: Mapping[str, Tensor],
    final: Mapping[str, Tensor],
    sparsity: float | Mapping[str, float],
    scope: MaskScope | str = MaskScope.UNIFORM,
    within: WeightMask | None = None,
    keep_at_least: int = 1,
    seed: int = 0,
) -> WeightMask:
    """Return the mask that removes the weights with the lowest scores: exactly ⌊sparsity × weights⌋, ties drawn by
    `seed`.

    `final` names the tensors to mask (`masks.maskable` lists a network's; biases are not among them), and `initial` has
    their initial values. `sparsity` is one number, or one per tensor. Refused: initial values that are missing or have
    another shape, and what `masks.magnitude` refuses.
    """
    if criterion.looks_back:
        check_initial(initial, final)
    scores = {name: score_weights(criterion, initial.get(name, last), last) for name, last in final.items()}
    return mask_from_scores(
        _without_ties(scores, seed), sparsity=sparsity, scope=scope, within=within, keep_at_least=keep_at_least
    )


def check_initial(initial: Mapping[str, Tensor], final: Mapping[str, Tensor]) -> None:
    """Refuse initial values that do not belong to these weights."""
    for name, last in final.items():
        if name not in initial or initial[name].shape != last.shape:
            shape = list(initial[name].shape) if name in initial else "missing"
            raise PlanError(
                f"the initial values of `{name}` are {shape}, the weights {list(last.shape)}",
                hint="they must come from the same network, before its training or early in it",
            )


def slower_at_the_output(names: Mapping[str, object], sparsity: float) -> dict[str, float]:
    """Return a sparsity per weight tensor: the last one, the output layer's, is pruned at half the rate.

    As in Frankle & Carbin 2019 and Zhou et al. 2019: where n rounds of 20 % lead to `sparsity`, the output layer goes
    through n rounds of 10 %.
    """
    if not 0 < sparsity < 1:
        raise PlanError(f"sparsity must lie between 0 and 1, not {sparsity}")
    rounds = math.log(1 - sparsity) / math.log(1 - OTHERS_PER_ROUND)
    return dict.fromkeys(names, sparsity) | {list(names)[-1]: 1 - (1 - OUTPUT_PER_ROUND) ** rounds}


def _rank(scores: Tensor) -> Tensor:
    """The share of the tensor that lies below each score."""
    order = scores.flatten().argsort(stable=True)
    ranks = torch.empty(len(order), dtype=torch.float64)
    ranks[order] = torch.arange(len(order), dtype=torch.float64) / len(order)
    return ranks.view(scores.shape)


def _without_ties(scores: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Ranks among all scores; equal scores are ordered by a draw with `seed`."""
    every = torch.cat([s.flatten() for s in scores.values()])
    if not bool(every.isfinite().all()):
        name = next(n for n, s in scores.items() if not bool(s.isfinite().all()))
        raise PlanError(f"`{name}` holds values that are not finite", hint="mend the checkpoint: NaN has no rank")
    drawn = torch.randperm(len(every), generator=generator(seed, "ties between scores"))
    order = drawn[every[drawn].argsort(stable=True)]
    ranks = torch.empty(len(every), dtype=torch.float64)
    ranks[order] = torch.arange(len(every), dtype=torch.float64)
    parts = torch.split(ranks, [s.numel() for s in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}
