"""Learned supermasks: training does not change the weights, but learns which of them to keep (Zhou et al. 2019).

Every weight has a logit m. A forward pass uses w_i · Bernoulli(sigmoid(m)), with a new draw each time; the gradient of
the draw is replaced by that of its probability (straight-through estimator; arXiv:1905.01067, sec. 5).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compressor.chance import generator
from compressor.checkpoint.recipes import Recipe
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Samples
from compressor.data.splits import Data
from compressor.graph.copies import copy_of
from compressor.measuring.quality import evaluate
from compressor.results.quality import Quality
from compressor.results.training import EpochRecord
from compressor.surgery.masks import maskable
from compressor.training.loop import train
from compressor.training.lottery.treatments import signed_constant

DRAWS = 10  # of a learned mask, for its mean accuracy, as in the paper's code


class Multiplied(enum.StrEnum):
    """The values that a learned mask multiplies."""

    INITIAL = "initial"  # the initial weights
    SIGNED_CONSTANT = "signed-constant"  # the sign of each initial weight, times the deviation of its tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedMask:
    """An untrained network and the mask that was learned for it.

    `module` has the weights that the mask multiplies and is in eval mode. `logits` are float32 by parameter name, in
    the weights' shapes. If `rescaled`, every masked tensor is multiplied by its weights / its kept weights.
    """

    module: nn.Module
    logits: Mapping[str, Tensor]
    rescaled: bool
    history: tuple[EpochRecord, ...]

    @property
    def density(self) -> float:
        """The share of the masked weights that a draw keeps on average."""
        kept = sum(float(m.sigmoid().double().sum()) for m in self.logits.values())
        return kept / sum(m.numel() for m in self.logits.values())

    def drawn(self, *, seed: int) -> nn.Module:
        """Return a plain network with the weights that one draw keeps."""
        module, drawing = copy_of(self.module), generator(seed, "draw of a mask")
        with torch.no_grad():
            for name, logits in self.logits.items():
                weight = module.get_parameter(name)
                uniform = torch.rand(logits.shape, generator=drawing).to(weight.device)
                weight.copy_(masked(weight, logits.to(weight.device), uniform, rescaled=self.rescaled))
        return module

    def accuracies(
        self, images: Samples, *, split: str, preprocessing: Preprocessing, draws: int = DRAWS, seed: int = 0
    ) -> tuple[Quality, ...]:
        """Return the accuracy of each of several draws; reports use their mean."""
        modules = (self.drawn(seed=seed * 1_000_003 + draw) for draw in range(draws))
        return tuple(evaluate(module, images, split=split, preprocessing=preprocessing) for module in modules)


def learn_mask(
    module: nn.Module,
    data: Data,
    *,
    recipe: Recipe,
    preprocessing: Preprocessing,
    multiplied: Multiplied = Multiplied.INITIAL,
    rescaled: bool = False,
    protect: Sequence[str] = (),
    state_file: Path | None = None,
) -> LearnedMask:
    """Learn a mask for the weights of `module` by `recipe`, and return it; the module is not modified.

    Every logit starts at 0. No weight, bias or norm is trained. Learning rates are far higher than for weights: the
    paper's is 100. Refused: what `maskable` and `train` refuse.
    """
    learner = MaskLearner(module, multiplied=multiplied, rescaled=rescaled, protect=protect)
    trained = train(learner, data, recipe=recipe, preprocessing=preprocessing, state_file=state_file)
    learned = trained.module
    assert isinstance(learned, MaskLearner)
    return LearnedMask(
        module=learned.network, logits=learned.logits_by_name(), rescaled=rescaled, history=trained.history
    )


def masked(weight: Tensor, logits: Tensor, uniform: Tensor, *, rescaled: bool) -> Tensor:
    """Return the weight times the mask drawn from the logits by `uniform` in [0, 1); all have one shape.

    With h = 1 where uniform < sigmoid(m), else 0, forward: w·h, or rescaled c·w·h with c = weights / Σh. Backward, for
    a gradient g of the loss by the result: ∂/∂m = sigmoid'(m)·w·g, or rescaled c·sigmoid'(m)·(w·g - Σ(g·w·h)/Σh).
    """
    probability = logits.sigmoid()
    drawn = (uniform < probability).to(probability.dtype) + (probability - probability.detach())  # 0 or 1, exactly
    if rescaled:
        drawn = drawn * (drawn.numel() / drawn.sum().clamp(min=1))
    return weight * drawn


class MaskLearner(nn.Module):
    """A copy of a network whose mask is drawn in every forward pass, and whose only parameters are the mask's logits.

    In training mode, draws come from torch's global generator, like dropout's; in eval mode, the draw is always the
    same.
    """

    def __init__(
        self, module: nn.Module, *, multiplied: Multiplied, rescaled: bool, protect: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.network = copy_of(module).requires_grad_(False)
        self.names = tuple(maskable(self.network, protect=protect))
        self.rescaled = rescaled
        weights = [self.network.get_parameter(name) for name in self.names]
        if multiplied is Multiplied.SIGNED_CONSTANT:
            for weight in weights:
                weight.copy_(signed_constant(weight))
        self.logits = nn.ParameterList(torch.zeros_like(weight, requires_grad=True) for weight in weights)

    def logits_by_name(self) -> dict[str, Tensor]:
        """Return a copy of the logits, by the names of the weights."""
        return {name: m.detach().clone() for name, m in zip(self.names, self.logits, strict=True)}

    def forward(self, *inputs: Any) -> Any:
        """Return the network's outputs with the weights of one draw."""
        drawing = None if self.training else generator(0, "draw of a mask")
        weights = {}
        for name, logits in zip(self.names, self.logits, strict=True):
            uniform = torch.rand(logits.shape, generator=drawing, device=None if drawing else logits.device)
            weight = self.network.get_parameter(name)
            weights[name] = masked(weight, logits, uniform.to(logits.device), rescaled=self.rescaled)
        return functional_call(self.network, weights, inputs)
