"""A task: three functions that say how a network is trained and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import TaskError
from compressor.graph.outputs import tensors_in

TINY = 1e-12
Rows = Tensor | Sequence[Tensor]
"""One row for every sample, so that samples can be drawn anew: `[batch]`, `[batch, ...]`, or tensors of any shape."""


def mean_or_ratio(rows: Rows) -> float:
    """Return the mean of rows `[n]`, or the ratio of the sums of rows `[n, 2]`: numerator and denominator."""
    if not isinstance(rows, Tensor) or rows.ndim > 2 or (rows.ndim == 2 and rows.shape[1] != 2):
        raise TaskError(
            "a score's rows are neither `[batch]` nor `[batch, 2]`", hint="give the task a `value` of such rows"
        )
    rows = rows.double()
    if rows.ndim == 1:
        return float(rows.mean())
    above, below = rows.sum(dim=0).tolist()
    return above / below if below else 0.0


def together(rows: Sequence[Rows]) -> Rows:
    """Return the rows of all batches."""
    tensors = [one for one in rows if isinstance(one, Tensor)]
    if len(tensors) == len(rows):
        return torch.cat(tensors)
    return [row for some in rows for row in some]


def first_tensor(outputs: Any) -> Tensor:
    """Return the first tensor of a network's outputs: the scores or the map that the others come with."""
    first = next(tensors_in(outputs), None)
    if first is None:
        raise TaskError(
            f"the network's output is a `{type(outputs).__name__}` without a tensor",
            hint="say what it is trained for: `--task file.py:task`",
        )
    return first


def relative_distance(student: Any, teacher: Any, *, temperature: float = 1.0) -> Tensor:
    """Return the mean over all output tensors of ||student - teacher||² / ||teacher||²; there is no temperature."""
    del temperature
    pairs = [
        (s, t)
        for s, t in zip(tensors_in(student), tensors_in(teacher), strict=True)
        if t.is_floating_point() and t.numel()
    ]
    each = [(s - t).float().square().sum() / t.float().square().sum().clamp_min(TINY) for s, t in pairs]
    return torch.stack(each).mean()


def softened_distance(dim: int) -> Callable[..., Tensor]:
    """Return the distance of two maps of scores along `dim`: `T² · KL(teacher ‖ student)` at temperature T, the mean
    over everything else (Hinton et al. 2015, arXiv:1503.02531).
    """

    def distance(student: Any, teacher: Any, *, temperature: float = 1.0) -> Tensor:
        target = functional.log_softmax(first_tensor(teacher) / temperature, dim=dim)
        followed = functional.log_softmax(first_tensor(student) / temperature, dim=dim)
        each = functional.kl_div(followed, target, reduction="sum", log_target=True)
        return temperature**2 * (each / (target.numel() // target.shape[dim]))

    return distance


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a network is trained for.

    `loss(outputs, target)` is a scalar, the mean over a batch. `score(outputs, target)` gives a row for every sample:
    a truth value `[batch]` where samples are counted, a number `[batch]` whose mean is the score, a numerator and a
    denominator `[batch, 2]`, or anything else that `value(rows)` makes a number of. `metric` is the score's name;
    `percent` is true for shares, `unit` stands behind other numbers.

    `as_target(outputs)` makes a target of the dense network's outputs, to agree with; `distance(student, teacher,
    temperature=T)` is the loss of following a teacher. `own_loss(module, inputs, target)` is a loss that the network
    itself computes, in train mode, in place of `loss`. `inputs(item)` returns (inputs, target) of an item whose
    structure is not found otherwise.
    """

    name: str
    loss: Callable[[Any, Any], Tensor]
    score: Callable[[Any, Any], Rows]
    value: Callable[[Rows], float] = mean_or_ratio
    metric: str = "score"
    unit: str = ""
    percent: bool = True
    higher_is_better: bool = True
    as_target: Callable[[Any], Any] | None = None
    distance: Callable[..., Tensor] = relative_distance
    own_loss: Callable[[nn.Module, Sequence[Tensor], Any], Tensor] | None = None
    inputs: Callable[[Any], Any] | None = None

    def batch_loss(self, module: nn.Module, inputs: Sequence[Tensor], target: Any) -> Tensor:
        """Return the loss of a batch; the network computes it itself where it can."""
        if self.own_loss is not None:
            return self.own_loss(module, inputs, target)
        return self.loss(module(*inputs), target)

    def rows(self, outputs: Any, target: Any) -> Rows:
        """Return the score's rows of a batch, on the CPU."""
        rows = self.score(outputs, target)
        return rows.detach().cpu() if isinstance(rows, Tensor) else [row.detach().cpu() for row in rows]
