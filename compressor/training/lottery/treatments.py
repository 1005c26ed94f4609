"""Treatments of the weights that a mask keeps, and of those that it prunes (Zhou et al. 2019, arXiv:1905.01067).

A masked network is trained again from its initial weights ("rewind", "zero"), or from variants of them without their
magnitudes or signs. PrunedWeights weights are frozen, at zero or at other values.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compressor.chance import generator
from compressor.errors import PlanError
from compressor.graph.copies import copy_of
from compressor.surgery.masks import WeightMask


class Kept(enum.StrEnum):
    """The start of a tensor's kept weights; the `signed` ones have their initial signs (sec. 3)."""

    REWIND = "rewind"  # at w_i
    REINITIALISE = "reinitialise"  # at initial values of the whole tensor, permuted
    RESHUFFLE = "reshuffle"  # at the kept weights' own initial values, permuted
    CONSTANT = "constant"  # at +-deviation of the tensor's initial values, with the tensor's signs permuted
    SIGNED_REINITIALISE = "signed-reinitialise"
    SIGNED_RESHUFFLE = "signed-reshuffle"
    SIGNED_CONSTANT = "signed-constant"
    BY_DIRECTION = "by-direction"  # at w_i, or at zero where training moved them towards it ("Variant 2")


class PrunedWeights(enum.StrEnum):
    """The values at which a tensor's pruned weights are frozen (sec. 4)."""

    ZERO = "zero"
    FREEZE = "freeze"  # at w_i
    BY_DIRECTION = "by-direction"  # at zero where training moved them towards it, else at w_i ("Variant 1")
    REVERSED = "reversed"  # a control: at zero where training moved them away from it
    RANDOM = "random"  # a control: at zero as many as by direction, drawn at random


def start_weights(
    mask: WeightMask,
    *,
    initial: Mapping[str, Tensor],
    final: Mapping[str, Tensor],
    kept: Kept = Kept.REWIND,
    pruned: PrunedWeights = PrunedWeights.ZERO,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the start of every masked tensor, by name, in its shape and the dtype of its initial values.

    `initial` are the values before training, `final` those after it: together they show the direction in which a weight
    moved. Random values are drawn by `seed`. Refused: missing values, values of another shape than the mask.
    """
    drawing = generator(seed, "treatment of weights")
    started: dict[str, Tensor] = {}
    for name, stays in mask.kept.items():
        for values in (initial, final):
            if name not in values or values[name].shape != stays.shape:
                raise PlanError(f"there are no values of `{name}` in the shape of its mask: {list(stays.shape)}")
        first, last = initial[name].detach().cpu(), final[name].detach().cpu()
        stays = stays.cpu()
        of_kept = kept_values(kept, first, last, stays, drawing=drawing)
        started[name] = torch.where(stays, of_kept, pruned_values(pruned, first, last, stays, drawing=drawing))
    return started


def kept_values(how: Kept, initial: Tensor, final: Tensor, stays: Tensor, *, drawing: torch.Generator) -> Tensor:
    """Return the start of a tensor's kept weights, in its shape; the values at pruned positions have no meaning."""
    match how:
        case Kept.REWIND:
            return initial
        case Kept.BY_DIRECTION:
            return initial.masked_fill(towards_zero(initial, final), 0)
        case Kept.REINITIALISE:
            return _permuted(initial, drawing)
        case Kept.SIGNED_REINITIALISE:
            return _permuted(initial, drawing).abs() * initial.sign()
        case Kept.RESHUFFLE | Kept.SIGNED_RESHUFFLE:
            shuffled = initial.clone()
            shuffled[stays] = _permuted(initial[stays], drawing)
            return shuffled if how is Kept.RESHUFFLE else shuffled.abs() * initial.sign()
        case Kept.CONSTANT:
            return _permuted(signed_constant(initial), drawing)
        case Kept.SIGNED_CONSTANT:
            return signed_constant(initial)


def pruned_values(
    how: PrunedWeights, initial: Tensor, final: Tensor, stays: Tensor, *, drawing: torch.Generator
) -> Tensor:
    """Return the values of a tensor's pruned weights, in its shape; the values at kept positions have no meaning."""
    fell = towards_zero(initial, final)
    match how:
        case PrunedWeights.ZERO:
            return torch.zeros_like(initial)
        case PrunedWeights.FREEZE:
            return initial
        case PrunedWeights.BY_DIRECTION:
            return initial.masked_fill(fell, 0)
        case PrunedWeights.REVERSED:
            return initial.masked_fill(~fell, 0)
        case PrunedWeights.RANDOM:
            drawn = torch.zeros_like(fell)
            drawn[~stays] = _permuted(fell[~stays], drawing)
            return initial.masked_fill(drawn, 0)


def towards_zero(initial: Tensor, final: Tensor) -> Tensor:
    """Return where training reduced a weight's magnitude: bool, in its shape."""
    return final.abs() < initial.abs()


def signed_constant(initial: Tensor) -> Tensor:
    """Return the sign of every weight times the standard deviation of all: only the signs remain."""
    return initial.sign() * initial.std(correction=0)


def with_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of `module` with these values for its parameters, by name."""
    copied = copy_of(module)
    with torch.no_grad():
        for name, values in weights.items():
            copied.get_parameter(name).copy_(values)
    return copied


class Frozen:
    """Resets the pruned weights of a network to `values`; for `after_step` of `training.loop.train`.

    Kept weights are never changed. Refused: missing values.
    """

    def __init__(self, mask: WeightMask, values: Mapping[str, Tensor]) -> None:
        for name in mask.kept:
            if name not in values:
                raise PlanError(f"there are no values to freeze the pruned weights of `{name}` at")
        self._frozen = {name: (kept, values[name].detach()) for name, kept in mask.kept.items()}

    def __call__(self, module: nn.Module) -> None:
        """Reset the pruned weights, in place."""
        with torch.no_grad():
            for name, (kept, values) in self._frozen.items():
                parameter = module.get_parameter(name)
                frozen = values.to(parameter.device, parameter.dtype)
                parameter.copy_(torch.where(kept.to(parameter.device), parameter, frozen))


def _permuted(values: Tensor, drawing: torch.Generator) -> Tensor:
    return values.flatten()[torch.randperm(values.numel(), generator=drawing)].view(values.shape)
