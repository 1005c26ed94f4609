"""Tasks whose answers are classes: of a sample, several at once, of every pixel, of every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compressor.errors import TaskError
from compressor.tasks.task import Rows, Task, first_tensor, mean_or_ratio, softened_distance

IGNORED = -100  # torch's own: a position that does not count
VOID = 255  # the usual label of pixels that do not count, in 8-bit maps


def classification(*, label_smoothing: float = 0.0) -> Task:
    """One class a sample: outputs `[batch, classes]`, targets int `[batch]`; cross entropy, top-1 accuracy."""

    def score(outputs: Any, target: Tensor) -> Tensor:
        scores = first_tensor(outputs)
        _refuse_labels(scores, target)
        return scores.argmax(dim=1) == target.to(scores.device)

    return Task(
        name="classification",
        metric="accuracy",
        loss=lambda outputs, target: classification_loss(
            first_tensor(outputs), target, label_smoothing=label_smoothing
        ),
        score=score,
        as_target=lambda outputs: first_tensor(outputs).argmax(dim=1),
        distance=softened_distance(1),
    )


def classification_loss(scores: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross entropy of scores `[batch, classes]`; refused: labels without a matching output."""
    _refuse_labels(scores, labels)
    return functional.cross_entropy(scores, labels, label_smoothing=label_smoothing)


def _refuse_labels(scores: Tensor, labels: Tensor) -> None:
    """Refuse labels without a matching output."""
    low, high = int(labels.min()), int(labels.max())
    if scores.ndim != 2 or low < 0 or high >= scores.shape[1]:
        raise TaskError(
            f"labels from {low} to {high} do not fit the network's output `[batch, {list(scores.shape)[1:]}]`",
            hint="labels count from 0, one for each of the network's classes",
        )


def multi_label() -> Task:
    """Any of several classes: outputs `[batch, classes]`, targets 0 or 1 `[batch, classes]`; binary cross entropy, F1
    over all answers (at a probability of one half).
    """

    def score(outputs: Any, target: Tensor) -> Tensor:
        scores = first_tensor(outputs)
        predicted, true = scores > 0, target.to(scores.device) > 0.5
        right = (predicted & true).sum(dim=1)
        return torch.stack([2 * right, predicted.sum(dim=1) + true.sum(dim=1)], dim=1).double()

    return Task(
        name="multi-label",
        metric="F1",
        loss=lambda outputs, target: functional.binary_cross_entropy_with_logits(first_tensor(outputs), target.float()),
        score=score,
        as_target=lambda outputs: (first_tensor(outputs) > 0).float(),
    )


def segmentation() -> Task:
    """A class a pixel: outputs `[batch, classes, h, w]` (a smaller map is enlarged), targets int `[batch, H, W]`, where
    255 and negative numbers do not count; cross entropy, mean intersection over union.
    """

    def loss(outputs: Any, target: Tensor) -> Tensor:
        return functional.cross_entropy(_maps(outputs, target), _counted(target), ignore_index=IGNORED)

    def score(outputs: Any, target: Tensor) -> Tensor:
        maps = _maps(outputs, target)
        return intersections(maps.argmax(dim=1), _counted(target).to(maps.device), classes=maps.shape[1])

    return Task(
        name="segmentation",
        metric="mIoU",
        loss=loss,
        score=score,
        value=mean_iou,
        as_target=lambda outputs: first_tensor(outputs).argmax(dim=1),
        distance=softened_distance(1),
    )


def _maps(outputs: Any, target: Tensor) -> Tensor:
    """The map of scores in the target's size."""
    maps = first_tensor(outputs)
    if maps.ndim != 4 or target.ndim != 3:
        raise TaskError(
            f"outputs of {list(maps.shape)} and maps of {list(target.shape)} are no segmentation",
            hint="outputs are `[batch, classes, h, w]`, targets whole numbers `[batch, h, w]`",
        )
    if maps.shape[-2:] != target.shape[-2:]:
        maps = functional.interpolate(maps, size=target.shape[-2:], mode="bilinear", align_corners=False)
    if int(_counted(target).max()) >= maps.shape[1]:
        raise TaskError(
            f"a pixel has the class {int(_counted(target).max())}, the network {maps.shape[1]} classes",
            hint="classes count from 0; 255 is for pixels that do not count",
        )
    return maps


def _counted(target: Tensor) -> Tensor:
    """The target with one number for everything that does not count."""
    return target.long().masked_fill((target == VOID) | (target < 0), IGNORED)


def intersections(predicted: Tensor, true: Tensor, *, classes: int) -> Tensor:
    """Return every class's pixels in the intersection and in the union, of each image: float64 `[batch, classes, 2]`.

    `predicted` and `true` are `[batch, ...]`; negative pixels of `true` do not count.
    """
    counts = true >= 0
    rows = []
    for one in range(classes):
        a, b = (predicted == one) & counts, (true == one) & counts
        both = (a & b).flatten(1).sum(dim=1)
        rows.append(torch.stack([both, (a | b).flatten(1).sum(dim=1)], dim=1))
    return torch.stack(rows, dim=1).double()


def mean_iou(rows: Rows) -> float:
    """Return the mean over classes of intersection over union, of all images together; a class that nobody has or names
    is left out.
    """
    assert isinstance(rows, Tensor)
    both, either = rows.sum(dim=0).unbind(dim=1)
    there = either > 0
    return float((both[there] / either[there]).mean()) if bool(there.any()) else 0.0


def token_classification() -> Task:
    """A class a token: outputs `[batch, tokens, classes]`, targets int `[batch, tokens]`, where negative numbers do not
    count; cross entropy, accuracy of the tokens.
    """

    def loss(outputs: Any, target: Tensor) -> Tensor:
        scores = first_tensor(outputs)
        return functional.cross_entropy(scores.flatten(0, 1), _counted_tokens(target).flatten(), ignore_index=IGNORED)

    def score(outputs: Any, target: Tensor) -> Tensor:
        scores = first_tensor(outputs)
        true = _counted_tokens(target).to(scores.device)
        counts = true >= 0
        return torch.stack([((scores.argmax(dim=2) == true) & counts).sum(dim=1), counts.sum(dim=1)], dim=1).double()

    return Task(
        name="token-classification",
        metric="token accuracy",
        loss=loss,
        score=score,
        value=mean_or_ratio,
        as_target=lambda outputs: first_tensor(outputs).argmax(dim=2),
        distance=softened_distance(2),
    )


def _counted_tokens(target: Tensor) -> Tensor:
    return target.long().masked_fill(target < 0, IGNORED)
