"""The one training loop: a module, data and a recipe in; the trained module and its history out.

Epoch `e` draws its order, augmentation and dropout from `(seed, e)` alone, so that a run resumed after an interruption
gives the bytes of one that was not (on a CPU).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.data import UNLABELLED, Data, ImageSet, Preprocessing, SplitName, augmentation_named, batches
from compressor.errors import RetrainError
from compressor.recipe import Optimiser, Recipe, Step

EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """What one epoch did; rates and losses are means over its iterations."""

    epoch: int
    rate: float
    train_loss: float
    tune_correct: int
    tune_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a callback sees after every iteration."""

    epoch: int
    epochs: int
    iteration: int
    iterations: int
    loss: float
    rate: float
    record: EpochRecord | None  # at the end of an epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained module, in eval mode, and one record per epoch."""

    module: nn.Module
    history: tuple[EpochRecord, ...]


Callback = Callable[[Progress], None]


def correct_in(module: nn.Module, images: ImageSet, *, preprocessing: Preprocessing) -> int:
    """How many of the images the module classifies as labelled; it must be in eval mode."""
    device = next(module.parameters()).device
    right = 0
    with torch.inference_mode():
        for inputs, labels in batches(images, batch_size=EVALUATION_BATCH, preprocessing=preprocessing):
            right += int((class_scores(module(inputs.to(device))).argmax(1).cpu() == labels).sum())
    return right


def class_scores(output: object) -> Tensor:
    """The first tensor of a network's output: `[batch, classes]` (some networks return auxiliary ones behind it)."""
    while not isinstance(output, Tensor):
        if isinstance(output, dict) and output:
            output = next(iter(output.values()))
        elif isinstance(output, (tuple, list)) and output:
            output = output[0]
        else:
            raise RetrainError(f"the network's output is a `{type(output).__name__}`, not class scores")
    return output


def train(
    module: nn.Module,
    data: Data,
    *,
    recipe: Recipe,
    preprocessing: Preprocessing,
    teacher: nn.Module | None = None,
    callbacks: tuple[Callback, ...] = (),
    state_file: Path | None = None,
    snapshot: tuple[Step, Path] | None = None,
) -> Trained:
    """Train a copy of `module`; with `teacher`, half of the loss is the distance to its softened scores.

    `state_file` keeps the state after every epoch, and a run that finds one there goes on from it; `snapshot` names an
    early step and the file that keeps the weights it had then. Refused: unlabelled data, a loss that is not finite.
    """
    images = data.split(SplitName.TRAIN)
    tune = data.split(SplitName.TUNE)
    if images[0][1] == UNLABELLED:
        raise RetrainError(f"{data.name} has no labels to train on", hint="give a folder of class folders, or an .npz")
    module = copy.deepcopy(module)
    device = next(module.parameters()).device
    if device.type == "cpu" and any(isinstance(m, nn.Conv2d) for m in module.modules()):
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.2 to 2 times faster
    optimiser = optimiser_of(module, recipe)
    per_epoch = -(-len(images) // recipe.batch_size)
    total = per_epoch * recipe.budget.epochs
    history: list[EpochRecord] = []
    if state_file is not None and state_file.exists():
        history = _restore(state_file, module, optimiser, recipe)
    size = preprocessing.size or (int(images[0][0].shape[-2]), int(images[0][0].shape[-1]))
    augmentation = augmentation_named(recipe.augment, size=size)
    amp = recipe.mixed_precision and device.type == "cuda"
    for epoch in range(len(history), recipe.budget.epochs):
        module.train()
        losses: list[float] = []
        rate = recipe.schedule.rate
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(recipe.seed * 1_000_003 + epoch)
            stream = batches(
                images,
                batch_size=recipe.batch_size,
                preprocessing=preprocessing,
                augmentation=augmentation,
                shuffle_seed=recipe.seed * 1_000_003 + epoch,
            )
            for iteration, (inputs, labels) in enumerate(stream):
                rate = recipe.schedule.at((epoch * per_epoch + iteration) / total)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                with torch.autocast(device.type, enabled=amp, dtype=torch.bfloat16):
                    loss = _loss(module, inputs.to(device), labels.to(device), recipe=recipe, teacher=teacher)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                losses.append(float(loss.detach()))
                if losses[-1] != losses[-1] or losses[-1] == float("inf"):
                    raise RetrainError(
                        f"the loss is {losses[-1]} in epoch {epoch + 1}", hint=f"try a lower `--lr` than {rate:.3g}"
                    )
                if iteration < per_epoch - 1:
                    _tell(callbacks, recipe, epoch, iteration, per_epoch, losses[-1], rate, None)
        module.eval()
        record = EpochRecord(
            epoch=epoch,
            rate=rate,
            train_loss=sum(losses) / len(losses),
            tune_correct=correct_in(module, tune, preprocessing=preprocessing),
            tune_total=len(tune),
        )
        history.append(record)
        if snapshot is not None and snapshot[0].epochs == len(history):
            torch.save(module.state_dict(), snapshot[1])
        if state_file is not None:
            _save(state_file, module, optimiser, recipe, history)
        _tell(callbacks, recipe, epoch, per_epoch - 1, per_epoch, losses[-1], rate, record)
    return Trained(module=module.eval().to(memory_format=torch.contiguous_format), history=tuple(history))  # type: ignore[call-overload]


def optimiser_of(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; weight decay leaves vectors (norms, biases) alone."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimiser is Optimiser.ADAMW:
        return torch.optim.AdamW(groups, lr=recipe.schedule.rate)
    nesterov = recipe.momentum > 0
    return torch.optim.SGD(groups, lr=recipe.schedule.rate, momentum=recipe.momentum, nesterov=nesterov)


def _loss(module: nn.Module, inputs: Tensor, labels: Tensor, *, recipe: Recipe, teacher: nn.Module | None) -> Tensor:
    scores = class_scores(module(inputs))
    loss = functional.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)
    if teacher is None:
        return loss
    temperature = 4.0  # Hinton et al. 2015, sec. 3: best between 2.5 and 20 by the student's size
    with torch.no_grad():
        target = functional.log_softmax(class_scores(teacher(inputs)) / temperature, dim=1)
    followed = functional.log_softmax(scores / temperature, dim=1)
    distance = functional.kl_div(followed, target, reduction="batchmean", log_target=True)
    return 0.5 * loss + 0.5 * temperature**2 * distance


def _tell(
    callbacks: tuple[Callback, ...],
    recipe: Recipe,
    epoch: int,
    iteration: int,
    iterations: int,
    loss: float,
    rate: float,
    record: EpochRecord | None,
) -> None:
    progress = Progress(
        epoch=epoch,
        epochs=recipe.budget.epochs,
        iteration=iteration,
        iterations=iterations,
        loss=loss,
        rate=rate,
        record=record,
    )
    for callback in callbacks:
        callback(progress)


def _save(
    file: Path, module: nn.Module, optimiser: torch.optim.Optimizer, recipe: Recipe, history: list[EpochRecord]
) -> None:
    state: dict[str, Any] = {
        "recipe": recipe.to_json(),
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": [asdict(r) for r in history],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    torch.save(state, part)
    os.replace(part, file)


def _restore(
    file: Path, module: nn.Module, optimiser: torch.optim.Optimizer, recipe: Recipe
) -> list[EpochRecord]:
    state = torch.load(file, weights_only=True, map_location="cpu")
    if state["recipe"] != recipe.to_json():
        raise RetrainError(
            f"{file} belongs to a run with another recipe", hint="delete it, or repeat the command that made it"
        )
    module.load_state_dict(state["module"])
    optimiser.load_state_dict(state["optimiser"])
    return [EpochRecord(**r) for r in state["history"]]
