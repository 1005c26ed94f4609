"""Training that is watched: the network at the end, and as it was where its tuning loss was lowest (early stopping)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import Recipe
from compressor.data.splits import Data, SplitName
from compressor.graph.copies import copy_of
from compressor.surgery.masks import WeightMask
from compressor.training.loop import Hooks, train
from compressor.training.lottery.tickets import Keeping
from compressor.training.resume import EpochRecord
from compressor.training.watch import Seen, State, StateAt, TuningLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A trained network, what was seen of the tuning split on the way, and the weights at two moments."""

    trained: nn.Module  # in eval mode, where it was trained
    stopped: nn.Module  # a copy with the weights of the lowest tuning loss
    early: State  # the weights after the steps that were asked for
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
    """Train a copy of the checkpoint's network, and look at the tuning loss every so many steps.

    `mask` is kept; `early` are the weights after `early_step` steps. Refused: what `train` refuses, a step that the run
    does not reach.
    """
    look = TuningLoss(data.split(SplitName.TUNE), preprocessing=checkpoint.preprocessing, every=every)
    early = StateAt(early_step)
    module = checkpoint.module if device is None else copy_of(checkpoint.module).to(device)
    found = train(
        module, data, recipe=recipe, preprocessing=checkpoint.preprocessing,
        hooks=Hooks(after_step=(*(() if mask is None else (Keeping(mask),)), early, look)),
    )  # fmt: skip
    return Watched(
        trained=found.module, stopped=holding(found.module, look.lowest_state), early=early.state,
        seen=tuple(look.seen), lowest=look.lowest, history=found.history,
    )  # fmt: skip


def holding(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module with this state."""
    held = copy_of(module)
    held.load_state_dict(dict(state))
    return held
