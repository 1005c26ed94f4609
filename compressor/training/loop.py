"""The one training loop: takes a module, data and a recipe; returns the trained module and its history.

The order, augmentation and dropout of epoch `e` depend on `(seed, e)` alone. A resumed run therefore ends with the same
bytes as a run without interruption (on a CPU).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compressor.checkpoint.recipes import Optimiser, Recipe, Step
from compressor.data.batches import EVALUATION_BATCH, augmentation_named, batches, first_batch, is_labelled
from compressor.data.items import Batch
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Samples
from compressor.data.splits import Data, SplitName
from compressor.errors import RetrainError
from compressor.graph.copies import copy_of
from compressor.graph.gradients import EXAMPLES, check_gradients, right_gradients
from compressor.graph.lent import evaluating
from compressor.results.training import EpochRecord
from compressor.tasks.classes import classification
from compressor.tasks.finding import task_shown
from compressor.tasks.task import Rows, Task, together
from compressor.training.bn_penalty import scale_norm, scales_of
from compressor.training.resume import Run, digest_of, restore_, save, write


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The argument of every callback, after each iteration."""

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
AfterStep = Callable[[nn.Module], object]
BeforeEpoch = Callable[[nn.Module, int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Functions to call while a network trains.

    `callbacks` get the progress after every iteration. `after_step` gets the training copy before the first step and
    after every step of the optimiser; it can restore a mask, for example. `before_epoch` gets the training copy and the
    number of the next epoch.
    """

    callbacks: tuple[Callback, ...] = ()
    after_step: tuple[AfterStep, ...] = ()
    before_epoch: tuple[BeforeEpoch, ...] = ()


NO_HOOKS = Hooks()


class Objective(Protocol):
    """A loss that replaces the cross entropy; `identity` names it in plain values, to check a resumed run."""

    @property
    def identity(self) -> Mapping[str, object]:
        """Plain values: equal losses have equal values."""
        ...

    def __call__(self, module: nn.Module, inputs: Tensor, labels: Tensor, /, *, step: int, steps: int) -> Tensor:
        """Return the loss of a batch at step `step` of `steps`, a scalar."""
        ...


def train(
    module: nn.Module,
    data: Data,
    *,
    recipe: Recipe,
    preprocessing: Preprocessing,
    teacher: nn.Module | None = None,
    objective: Objective | None = None,
    hooks: Hooks = NO_HOOKS,
    state_file: Path | None = None,
    snapshot: tuple[Step, Path] | None = None,
) -> Trained:
    """Train a copy of `module` and return it with its history.

    The loss is that of the data's task; without one, the outputs and the targets show which it is (cross entropy for
    class scores and labels). With `teacher`, half of it is the task's distance to the teacher's outputs. An `objective`
    replaces the whole loss and excludes a teacher. In each case the loss also contains the recipe's `bn_l1` times the
    absolute scales of the batch norms.

    The state is written to `state_file` after every epoch; if the file exists at the start, the run continues from it.
    `snapshot` is an early step and the file to write the weights of that step to.

    Refused: unlabelled data, labels without a matching network output, a network without trainable parameters (with
    `bn_l1`: without batch norm scales), a loss that is not finite, the state of another run, a processor that computes
    wrong gradients (`graph.gradients`).
    """
    images, tune = data.split(SplitName.TRAIN), data.split(SplitName.TUNE)
    _check(module, data, images, tune, preprocessing)
    task = data.task
    if task is None:
        task = _task_of(module, images, preprocessing, recipe) if objective is None else classification()
    if recipe.bn_l1:
        scales_of(module)
    if objective is not None and teacher is not None:
        raise ValueError("an objective is the whole loss: it leaves no place for a teacher")
    identity = {} if objective is None else dict(objective.identity)
    if task.name != "classification":
        identity["task"] = task.name
    run = Run(recipe=recipe, data=data, start=digest_of(module), objective=identity)
    module = _training_copy(module)
    device = next(module.parameters()).device
    example = first_batch(images, size=EXAMPLES, preprocessing=preprocessing)
    check_gradients(module, [part.to(device) for part in example.inputs])
    course = _Course(
        module=module, optimiser=optimiser_of(module, recipe), images=images, recipe=recipe,
        preprocessing=preprocessing, task=task, teacher=None if teacher is None else copy_of(teacher).eval(),
        objective=objective, hooks=hooks,
    )  # fmt: skip
    history: list[EpochRecord] = []
    if state_file is not None and state_file.exists():
        history = restore_(state_file, module, course.optimiser, run)
    for call in hooks.after_step:
        call(module)
    for epoch in range(len(history), recipe.budget.epochs):
        for happen in hooks.before_epoch:
            happen(module, epoch)
        losses, last = _epoch(course, epoch)
        record = EpochRecord(
            epoch=epoch,
            rate=last.rate,
            train_loss=sum(losses) / len(losses),
            **score_in(module.eval(), tune, preprocessing=preprocessing, task=task),
        )
        history.append(record)
        if snapshot is not None and snapshot[0].epochs == len(history):
            write(module.state_dict(), snapshot[1])
        if state_file is not None:
            save(state_file, module, course.optimiser, run, history)
        for callback in hooks.callbacks:
            callback(dataclasses.replace(last, record=record))
    return Trained(module=module.eval().to(memory_format=torch.contiguous_format), history=tuple(history))


def _training_copy(module: nn.Module) -> nn.Module:
    """The copy that trains, in the memory layout that is fast on its device."""
    module = copy_of(module)
    device = next(module.parameters()).device
    if device.type == "cpu" and any(isinstance(m, nn.Conv2d) for m in nn.Module.modules(module)):
        return module.to(memory_format=torch.channels_last)  # 1.2 to 2 times faster
    return module


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """Everything that is the same in every epoch of a run."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    images: Samples
    recipe: Recipe
    preprocessing: Preprocessing
    task: Task
    teacher: nn.Module | None
    objective: Objective | None
    hooks: Hooks

    @property
    def iterations(self) -> int:
        """Steps in an epoch."""
        return iterations_per_epoch(len(self.images), self.recipe.batch_size)

    def stream(self, seed: int) -> Iterator[Batch]:
        """The epoch's batches, shuffled and augmented by `seed`."""
        names = self.recipe.augment
        return batches(
            self.images,
            batch_size=self.recipe.batch_size,
            preprocessing=self.preprocessing,
            augmentation=augmentation_named(names, size=self._size()) if names else None,
            shuffle_seed=seed,
        )

    def _size(self) -> tuple[int, int]:
        """Height and width of the network's images."""
        if self.preprocessing.size is not None:
            return self.preprocessing.size
        shape = first_batch(self.images, preprocessing=self.preprocessing).inputs[0].shape
        if len(shape) != 4:
            raise RetrainError("only images are augmented", hint="`--augment none`")
        return int(shape[-2]), int(shape[-1])

    def loss(self, batch: Batch, *, step: int, steps: int) -> Tensor:
        """The loss of a batch, without the penalty on batch norm scales."""
        if self.objective is not None:
            return self.objective(self.module, batch.inputs[0], batch.target, step=step, steps=steps)
        return _loss(self.module, batch, task=self.task, recipe=self.recipe, teacher=self.teacher)


def _check(module: nn.Module, data: Data, images: Samples, tune: Samples, preprocessing: Preprocessing) -> None:
    """Raise where there are no labels to train on, or no parameter to train."""
    if not all(is_labelled(split, preprocessing=preprocessing) for split in (images, tune)):
        raise RetrainError(
            f"{data.name} has no labels to train on",
            hint="give a folder of class folders, an .npz, or items with their targets: (inputs, target)",
        )
    if not any(p.requires_grad for p in module.parameters()):
        raise RetrainError(
            "no parameter of this network is trainable", hint="unfreeze it: `module.requires_grad_(True)`"
        )


def _task_of(module: nn.Module, images: Samples, preprocessing: Preprocessing, recipe: Recipe) -> Task:
    """The task that the network's outputs and the targets show."""
    device = next(module.parameters()).device
    batch = first_batch(images, size=EXAMPLES, preprocessing=preprocessing).on(device)
    with evaluating(module), torch.no_grad():
        outputs = module(*batch.inputs)
    return task_shown(outputs, batch.target, label_smoothing=recipe.label_smoothing)


def correct_in(module: nn.Module, samples: Samples, *, preprocessing: Preprocessing) -> int:
    """Return how many of the samples the module classifies as labelled; the module must be in eval mode."""
    reading = score_in(module, samples, preprocessing=preprocessing, task=classification())
    return int(reading["tune_correct"])


def score_in(module: nn.Module, samples: Samples, *, preprocessing: Preprocessing, task: Task) -> dict[str, Any]:
    """Return an epoch's fields about the tuning split: what was counted, or the task's score. The module must be in
    eval mode.
    """
    device = next(module.parameters()).device
    rows: list[Rows] = []
    with torch.inference_mode():
        for batch in batches(samples, batch_size=EVALUATION_BATCH, preprocessing=preprocessing):
            inputs = (part.to(device) for part in batch.inputs)
            rows.append(task.rows(module(*inputs), batch.target))
    every = together(rows)
    if isinstance(every, Tensor) and every.dtype is torch.bool:
        return {"tune_correct": int(every.sum()), "tune_total": len(every)}
    return {"tune_total": len(every), "tune_score": task.value(every), "metric": task.metric}


def _epoch(course: _Course, epoch: int) -> tuple[list[float], Progress]:
    """Train for one epoch, in place; return the loss of every step, and the last step's progress."""
    recipe, epochs, per_epoch = course.recipe, course.recipe.budget.epochs, course.iterations
    device = next(course.module.parameters()).device
    seed = recipe.seed * 1_000_003 + epoch
    losses: list[float] = []
    progress: Progress | None = None
    course.module.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for iteration, batch in zip(range(per_epoch), course.stream(seed), strict=False):
            step, steps = epoch * per_epoch + iteration, per_epoch * epochs
            rate = recipe.schedule.at(step / steps)
            losses.append(_step(course, batch.on(device), rate=rate, step=step, steps=steps))
            if not math.isfinite(losses[-1]):
                raise RetrainError(
                    f"the loss is {losses[-1]} in epoch {epoch + 1}", hint=f"try a lower `--lr` than {rate:.3g}"
                )
            progress = Progress(
                epoch=epoch, epochs=epochs, iteration=iteration, iterations=per_epoch, loss=losses[-1], rate=rate,
                record=None,
            )  # fmt: skip
            if iteration < per_epoch - 1:
                for callback in course.hooks.callbacks:
                    callback(progress)
    assert progress is not None  # a split is never empty
    return losses, progress


def _step(course: _Course, batch: Batch, *, rate: float, step: int, steps: int) -> float:
    """One step of the optimiser, in place; return the loss before it."""
    recipe, device = course.recipe, batch.inputs[0].device
    for group in course.optimiser.param_groups:
        group["lr"] = rate
    amp = recipe.mixed_precision and device.type == "cuda"
    with right_gradients(), torch.autocast(device.type, enabled=amp, dtype=torch.bfloat16):
        loss = course.loss(batch, step=step, steps=steps)
    if recipe.bn_l1:
        loss = loss + recipe.bn_l1 * scale_norm(course.module)
    course.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    course.optimiser.step()
    for call in course.hooks.after_step:
        call(course.module)
    return float(loss.detach())


def iterations_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of steps in an epoch; a last batch of one image is skipped, because it has no variance."""
    full, rest = divmod(images, batch_size)
    return max(1, full + (rest > 1 or (rest == 1 and batch_size == 1)))


def optimiser_of(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser; weight decay does not apply to vectors (norms, biases)."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimiser is Optimiser.ADAMW:
        return torch.optim.AdamW(groups, lr=recipe.schedule.rate)
    nesterov = recipe.momentum > 0
    return torch.optim.SGD(groups, lr=recipe.schedule.rate, momentum=recipe.momentum, nesterov=nesterov)


def _loss(module: nn.Module, batch: Batch, *, task: Task, recipe: Recipe, teacher: nn.Module | None) -> Tensor:
    """Return the task's loss; with a teacher, the mean of it and of the distance to the teacher's outputs.

    A network that computes its own loss in train mode gives no outputs then: a second pass, in eval mode, does.
    """
    if teacher is None:
        return task.batch_loss(module, batch.inputs, batch.target)
    with torch.no_grad():
        target = teacher(*batch.inputs)
    if task.own_loss is not None:
        with evaluating(module):
            outputs = module(*batch.inputs)
        loss = task.batch_loss(module, batch.inputs, batch.target)
    else:
        outputs = module(*batch.inputs)
        loss = task.loss(outputs, batch.target)
    return 0.5 * loss + 0.5 * task.distance(outputs, target, temperature=recipe.temperature)
