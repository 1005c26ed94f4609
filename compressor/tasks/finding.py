"""Which task a network is for: the one that its outputs and the data's targets show, or the one that is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from compressor.errors import TaskError
from compressor.graph.outputs import tensors_in
from compressor.tasks.classes import classification, multi_label, segmentation, token_classification
from compressor.tasks.detection import detection
from compressor.tasks.task import Task, first_tensor, relative_distance
from compressor.tasks.values import language_modelling, regression, restoration

BUILT_IN: dict[str, Callable[[], Task]] = {
    "classification": classification,
    "multi-label": multi_label,
    "segmentation": segmentation,
    "detection": detection,
    "regression": regression,
    "restoration": restoration,
    "token-classification": token_classification,
    "language-modelling": language_modelling,
}
EXAMPLE = "one of these, or `file.py:function`, a function that returns a `compressor.Task`"


def task_shown(outputs: Any, target: Any, *, label_smoothing: float = 0.0) -> Task:
    """Return the task that a batch's outputs and targets show. Refused: a pair that shows none."""
    if isinstance(target, list) and target and isinstance(target[0], Mapping) and "boxes" in target[0]:
        return detection()
    if isinstance(target, Tensor) and next(tensors_in(outputs), None) is not None:
        scores = first_tensor(outputs)
        whole = not target.is_floating_point()
        if whole and target.ndim == 1 and scores.ndim == 2:
            return classification(label_smoothing=label_smoothing)
        if whole and target.ndim == 3 and scores.ndim == 4:
            return segmentation()
        if whole and target.ndim == 2 and scores.ndim == 3 and target.shape[1] == scores.shape[1]:
            return token_classification()
        if target.ndim == 2 and scores.shape == target.shape and _is_binary(target) and target.shape[1] > 1:
            return multi_label()
        if target.ndim == 4 and scores.shape == target.shape:
            return restoration()
        if scores.shape == target.shape or scores.shape == (*target.shape, 1):
            return regression()
    shown = list(target.shape) if isinstance(target, Tensor) else f"a `{type(target).__name__}`"
    raise TaskError(
        f"outputs {[list(t.shape) for t in tensors_in(outputs)]} with targets {shown} show no known task",
        hint=f"name it: `--task`, {EXAMPLE}",
    )


def task_of_outputs(outputs: Any) -> Task:
    """Return the task by which two networks are compared where nothing is labelled: by their classes where the outputs
    are class scores or a map of them, else by the outputs' error alone.
    """
    if isinstance(outputs, (list, tuple)) and outputs and all(isinstance(o, Mapping) and "boxes" in o for o in outputs):
        return detection()
    scores = first_tensor(outputs)
    if scores.ndim == 2 and scores.shape[1] > 1:
        return classification()
    return followed()


def followed() -> Task:
    """How closely outputs follow others: 1 - ||difference|| / ||reference||, of each sample."""

    def score(outputs: Any, target: Any) -> Tensor:
        pairs = list(zip(tensors_in(outputs), tensors_in(target), strict=True))
        error = torch.stack([_energy(a.double() - b.double()) for a, b in pairs]).sum(dim=0)
        size = torch.stack([_energy(b.double()) for _, b in pairs]).sum(dim=0)
        return torch.stack([error, size], dim=1)

    return Task(
        name="following",
        metric="output kept",
        loss=relative_distance,
        score=score,
        value=kept,
        as_target=lambda outputs: outputs,
    )


def _energy(part: Tensor) -> Tensor:
    """The sum of squares of each sample, `[batch]`."""
    return part.reshape(len(part), -1).square().sum(dim=1)


def kept(rows: Any) -> float:
    """Return 1 - ||difference|| / ||reference|| of all samples together, at least 0."""
    error, size = rows.sum(dim=0).tolist()
    return max(0.0, 1.0 - (error / size) ** 0.5) if size else float(not error)


def _is_binary(target: Tensor) -> bool:
    return bool(((target == 0) | (target == 1)).all())
