"""What becomes of the weights that a mask keeps, and of those that it prunes (Zhou et al. 2019, arXiv:1905.01067).

A masked network is trained again from the weights that it once began with ("rewind", "zero"), or from what is left of
them when their magnitudes or signs are taken away; what was pruned need not be zero, only frozen.
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
    """Where the kept weights of a tensor start; `signed` ones have the signs that they began with (sec. 3)."""

    REWIND = "rewind"  # at w_i
    REINITIALISE = "reinitialise"  # at initial values of the whole tensor, permuted
    RESHUFFLE = "reshuffle"  # at the kept weights' own initial values, permuted
    CONSTANT = "constant"  # at +-deviation of the tensor's initial values, with the tensor's signs permuted
    SIGNED_REINITIALISE = "signed-reinitialise"
    SIGNED_RESHUFFLE = "signed-reshuffle"
    SIGNED_CONSTANT = "signed-constant"
    BY_DIRECTION = "by-direction"  # at w_i, or at zero where training moved them towards it ("Variant 2")


class Pruned(enum.StrEnum):
    """Where the pruned weights of a tensor stay, frozen (sec. 4)."""

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
    pruned: Pruned = Pruned.ZERO,
    seed: int = 0,
) -> dict[str, Tensor]:
    """What every masked tensor starts at, by name, in its shape and the dtype of its initial values.

    `initial` are the values before training and `final` those after it, which say which way a weight moved. What is
    random is drawn by `seed`. Refused: values that are missing or of another shape than the mask.
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
    """The start of a tensor's kept weights, in its shape; what is said of pruned ones means nothing."""
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


def pruned_values(how: Pruned, initial: Tensor, final: Tensor, stays: Tensor, *, drawing: torch.Generator) -> Tensor:
    """Where a tensor's pruned weights stay, in its shape; what is said of kept ones means nothing."""
    fell = towards_zero(initial, final)
    match how:
        case Pruned.ZERO:
            return torch.zeros_like(initial)
        case Pruned.FREEZE:
            return initial
        case Pruned.BY_DIRECTION:
            return initial.masked_fill(fell, 0)
        case Pruned.REVERSED:
            return initial.masked_fill(~fell, 0)
        case Pruned.RANDOM:
            drawn = torch.zeros_like(fell)
            drawn[~stays] = _permuted(fell[~stays], drawing)
            return initial.masked_fill(drawn, 0)


def towards_zero(initial: Tensor, final: Tensor) -> Tensor:
    """Whether training left a weight smaller than it was: bool, in its shape."""
    return final.abs() < initial.abs()


def signed_constant(initial: Tensor) -> Tensor:
    """The sign of every weight times the deviation of them all: the sign is all that is left of it."""
    return initial.sign() * initial.std(correction=0)


def with_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `module` with these values in place of its parameters of their names."""
    copied = copy_of(module)
    with torch.no_grad():
        for name, values in weights.items():
            copied.get_parameter(name).copy_(values)
    return copied


class Frozen:
    """A call that puts the pruned weights of a network back to `values`; `training.loop` makes it after every step.

    Weights that the mask keeps are never touched. Refused: values that are missing.
    """

    def __init__(self, mask: WeightMask, values: Mapping[str, Tensor]) -> None:
        for name in mask.kept:
            if name not in values:
                raise PlanError(f"there is nothing to freeze the pruned weights of `{name}` at")
        self._held = {name: (kept, values[name].detach()) for name, kept in mask.kept.items()}

    def __call__(self, module: nn.Module) -> None:
        """Put them back, in place."""
        with torch.no_grad():
            for name, (kept, values) in self._held.items():
                parameter = module.get_parameter(name)
                held = values.to(parameter.device, parameter.dtype)
                parameter.copy_(torch.where(kept.to(parameter.device), parameter, held))


def _permuted(values: Tensor, drawing: torch.Generator) -> Tensor:
    return values.flatten()[torch.randperm(values.numel(), generator=drawing)].view(values.shape)
