"""Training with early stopping: returns the last network, and the one with the lowest tuning loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import Recipe
from compressor.data.splits import Data, SplitName
from compressor.graph.copies import copy_of
from compressor.results.training import EpochRecord
from compressor.surgery.masks import WeightMask
from compressor.training.loop import Hooks, train
from compressor.training.lottery.tickets import Keeping
from compressor.training.watch import Seen, State, StateAt, TuningLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A trained network, its tuning losses during training, and its weights at two earlier steps."""

    trained: nn.Module  # in eval mode, on the training device
    stopped: nn.Module  # a copy with the weights of the lowest tuning loss
    early: State  # the weights after `early_step` steps
    seen: tuple[Seen, ...]
    lowest: Seen
    history: tuple[EpochRecord, ...]


def train_watched(
    checkpoint: Checkpoint,
    data: Data,
    *,
    recipe: Recipe,
    every: int,
    mask: WeightMask | None = None,
    early_step: int = 0,
    device: torch.device | None = None,
) -> Watched:
    """Train a copy of the checkpoint's network, and measure the tuning loss after every `every` steps.

    Weights that `mask` removed stay zero. Refused: what `train` refuses, an `early_step` that the run does not reach.
    """
    look = TuningLoss(data.split(SplitName.TUNE), preprocessing=checkpoint.preprocessing, every=every)
    early = StateAt(early_step)
    module = checkpoint.module if device is None else copy_of(checkpoint.module).to(device)
    trained = train(
        module, data, recipe=recipe, preprocessing=checkpoint.preprocessing,
        hooks=Hooks(after_step=(*(() if mask is None else (Keeping(mask),)), early, look)),
    )  # fmt: skip
    return Watched(
        trained=trained.module, stopped=holding(trained.module, look.lowest_state), early=early.state,
        seen=tuple(look.seen), lowest=look.lowest, history=trained.history,
    )  # fmt: skip


def holding(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the module with this state."""
    copy = copy_of(module)
    copy.load_state_dict(dict(state))
    return copy
