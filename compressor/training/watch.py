"""Observers of a network in training: its weights at a step, and its tuning loss every few steps.

Both are for `after_step` of `training.loop.train`, which calls them with the network in training, once before the first
step and then after every step. A step is one update by the optimiser; step 0 is before the first update.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.data.batches import EVALUATION_BATCH, batches
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images, Samples
from compressor.errors import RetrainError
from compressor.graph.lent import evaluating
from compressor.graph.outputs import class_scores
from compressor.training.resume import read_run, tensors, write

State = dict[str, Tensor]


class StateAt:
    """Copies the network's state after `step` steps.

    With `file`, the copy is written there, for a run that is resumed later. `done` is the number of steps that a
    resumed run has finished.
    """

    def __init__(self, step: int, *, file: Path | None = None, done: int = 0) -> None:
        if step < 0:
            raise RetrainError(
                f"a step cannot be negative: {step}", hint="step 0 has the first weights: `--rewind-step 0`"
            )
        self.step, self.file, self._next = step, file, done
        self._state: State | None = None

    def __call__(self, module: nn.Module) -> None:
        """Count a step, and copy the state at the requested one."""
        if self._next == self.step:
            self._state = state_of(module)
            if self.file is not None:
                write(self._state, self.file)
        self._next += 1

    @property
    def state(self) -> State:
        """The copy; refused: a run that has not reached the step."""
        if self._state is None and self.file is not None and self.file.exists():
            self._state = read_run(self.file, tensors)
        if self._state is None:
            raise RetrainError(
                f"there are no weights of step {self.step}: the run has {max(0, self._next - 1)} steps",
                hint="rewind to an earlier step, or delete the run's files and start again",
            )
        return self._state


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The tuning split after `step` steps: the mean cross entropy and the correct answers."""

    step: int
    loss: float
    correct: int
    total: int


class TuningLoss:
    """Measures the tuning loss before the first step and after every `every` steps, and keeps the best weights.

    A measurement costs one forward pass over the images, whose inputs stay in memory. It draws no random numbers, so
    training does not change. Among equal losses the earliest counts (early stopping, Frankle & Carbin 2019,
    arXiv:1803.03635, sec. 2).
    """

    def __init__(self, images: Samples, *, preprocessing: Preprocessing, every: int) -> None:
        if every < 1:
            raise RetrainError(f"the loss cannot be measured every {every} steps", hint="at least every 1")
        self.every, self.seen = every, list[Seen]()
        self.lowest_state: State = {}
        size = len(images) if isinstance(images, Images) else EVALUATION_BATCH
        pairs = list(batches(images, batch_size=size, preprocessing=preprocessing))
        self._inputs = torch.cat([batch.inputs[0] for batch in pairs])
        self._labels = torch.cat([batch.target for batch in pairs])
        self._steps = 0

    def __call__(self, module: nn.Module) -> None:
        """Count a step, and measure the loss at every `every`-th."""
        if self._steps % self.every == 0:
            before = self.lowest.loss if self.seen else float("inf")
            self.seen.append(self._look(module))
            if self.seen[-1].loss < before:
                self.lowest_state = state_of(module)
        self._steps += 1

    @property
    def lowest(self) -> Seen:
        """The earliest measurement with the lowest loss; raises `ValueError` before the first."""
        return min(self.seen, key=lambda s: s.loss)

    def _look(self, module: nn.Module) -> Seen:
        """Return the mean cross entropy and the correct answers on the tuning split."""
        device = next(module.parameters()).device
        self._inputs, self._labels = self._inputs.to(device), self._labels.to(device)
        loss, correct = 0.0, 0
        with evaluating(module), torch.inference_mode():
            for start in range(0, len(self._labels), EVALUATION_BATCH):
                labels = self._labels[start : start + EVALUATION_BATCH]
                scores = class_scores(module(self._inputs[start : start + EVALUATION_BATCH]))
                loss += float(functional.cross_entropy(scores.float(), labels, reduction="sum"))
                correct += int((scores.argmax(1) == labels).sum())
        total = len(self._labels)
        return Seen(step=self._steps, loss=loss / total, correct=correct, total=total)


def state_of(module: nn.Module) -> State:
    """Return a copy of the module's state on the CPU, in torch's usual memory layout."""
    return {n: t.detach().to("cpu", copy=True).contiguous() for n, t in module.state_dict().items()}
