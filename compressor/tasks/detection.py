"""Detection: boxes with classes and scores, by torchvision's conventions and by those of Ultralytics.

torchvision: in eval mode a list of mappings with `boxes` `[n, 4]` (x1, y1, x2, y2), `scores` and `labels`; in train
mode `module(images, targets)` returns the losses. Ultralytics: in eval mode `[batch, 4 + classes, places]` (centre,
width and height, then a probability for every class); `module.loss(batch)` returns the losses. Targets are mappings
with `boxes` in pixels and `labels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.errors import TaskError
from compressor.graph.outputs import tensors_in
from compressor.tasks.task import Rows, Task, first_tensor, relative_distance

OVERLAPS = tuple(0.5 + 0.05 * i for i in range(10))  # COCO's
MOST = 100  # boxes of an image that count, COCO's
SURE = 0.5  # a box of the dense network that another one should find too
LEAST_SCORE, SUPPRESSED = 0.001, 0.6  # of a place, before and in non-maximum suppression
RECALLS = 101  # points of the precision curve, COCO's

Boxes = Mapping[str, Tensor]


def detection() -> Task:
    """Boxes: the network's own losses, and COCO's mean average precision over overlaps from 0.5 to 0.95."""
    return Task(
        name="detection",
        metric="mAP",
        loss=lambda outputs, _: _no_loss(outputs),
        score=lambda outputs, target: [
            rows_of(predicted, true) for predicted, true in zip(_found(outputs), target, strict=True)
        ],
        value=mean_average_precision,
        as_target=lambda outputs: [_sure(one) for one in _found(outputs)],
        distance=relative_distance,
        own_loss=own_loss,
    )


def _no_loss(outputs: Any) -> Tensor:
    """Refuse a network that computes no loss."""
    raise TaskError(
        f"a detector's loss is its own, and this network's output is a `{type(outputs).__name__}`",
        hint="give it: `--task file.py:task`, with a `loss(outputs, target)`",
    )


def own_loss(module: nn.Module, inputs: Sequence[Tensor], target: Sequence[Boxes]) -> Tensor:
    """Return the sum of the network's own losses of a batch, in train mode. Refused: a network without any."""
    images, targets = inputs[0], _on(target, inputs[0].device)
    computed: Callable[[Any], Any] | None = getattr(module, "loss", None)
    if computed is not None:
        total: Tensor = computed(_as_ultralytics(images, targets))[0].sum()
        return total / len(images)  # theirs is the sum over a batch
    try:
        losses = module(list(images), targets)
    except TypeError:  # a forward that takes no targets
        return _no_loss(None)
    parts = [part for part in tensors_in(losses) if part.is_floating_point()]
    if not parts or any(part.numel() != 1 for part in parts):
        return _no_loss(losses)
    return torch.stack([part.reshape(()) for part in parts]).sum()


def _on(targets: Sequence[Boxes], device: torch.device) -> list[dict[str, Tensor]]:
    return [{n: part.to(device) for n, part in one.items() if isinstance(part, Tensor)} for one in targets]


def _as_ultralytics(images: Tensor, targets: Sequence[Boxes]) -> dict[str, Tensor]:
    """A batch in the form of Ultralytics' losses: shares of the image's size, centre and extent."""
    height, width = images.shape[-2:]
    scale = torch.tensor([width, height] * 2, device=images.device, dtype=images.dtype)
    boxes = torch.cat([one["boxes"].reshape(-1, 4).to(images) for one in targets]) / scale
    centre, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    owners = [torch.full((len(one["labels"]),), float(i), device=images.device) for i, one in enumerate(targets)]
    labels = torch.cat([one["labels"].reshape(-1, 1).to(images) for one in targets])
    return {"img": images, "batch_idx": torch.cat(owners), "cls": labels, "bboxes": torch.cat([centre, extent], dim=1)}


def _found(outputs: Any) -> list[Boxes]:
    """The boxes of each image, whichever the convention."""
    if isinstance(outputs, (list, tuple)) and all(isinstance(one, Mapping) and "boxes" in one for one in outputs):
        return list(outputs)
    places = first_tensor(outputs)
    if places.ndim != 3 or places.shape[1] < 5:
        raise TaskError(
            f"outputs of {list(places.shape)} are not boxes of a known kind",
            hint="say how they are read: `--task file.py:task`, with a `score(outputs, target)`",
        )
    return [_suppressed(one) for one in places]


def _suppressed(places: Tensor) -> Boxes:
    """The boxes of one image `[4 + classes, places]` after non-maximum suppression by class."""
    from torchvision.ops import batched_nms, box_convert

    scores, labels = places[4:].max(dim=0)
    there = scores > LEAST_SCORE
    boxes = box_convert(places[:4, there].T.float(), "cxcywh", "xyxy")
    kept = batched_nms(boxes, scores[there].float(), labels[there], SUPPRESSED)[:MOST]
    return {"boxes": boxes[kept], "scores": scores[there][kept], "labels": labels[there][kept]}


def _sure(detected: Boxes) -> Boxes:
    """The boxes that the dense network is sure of, as targets."""
    sure = detected["scores"] >= SURE
    return {"boxes": detected["boxes"][sure], "labels": detected["labels"][sure]}


def rows_of(predicted: Boxes, true: Boxes) -> Tensor:
    """Return one image's boxes: `[detected + true, 2 + overlaps]` with class, score and, for each overlap, 1 if right.

    A true box has the score -1. As in COCO's evaluation, boxes are taken by score, and each takes the true box of its
    class that it overlaps most and that is not taken yet.
    """
    from torchvision.ops import box_iou

    order = predicted["scores"].argsort(descending=True, stable=True)[:MOST].cpu()
    boxes, labels = predicted["boxes"].cpu()[order].float(), predicted["labels"].cpu()[order]
    targets, classes = true["boxes"].cpu().reshape(-1, 4).float(), true["labels"].cpu().reshape(-1)
    overlaps = box_iou(boxes, targets) * (labels[:, None] == classes[None])
    right = torch.zeros(len(boxes), len(OVERLAPS))
    for number, least in enumerate(OVERLAPS):
        free = torch.ones(len(targets), dtype=torch.bool)
        for i in range(len(boxes) if len(targets) else 0):
            best = int((overlaps[i] * free).argmax())
            if free[best] and overlaps[i, best] >= least:
                free[best], right[i, number] = False, 1.0
    detected = torch.cat([labels[:, None].float(), predicted["scores"].cpu()[order][:, None].float(), right], dim=1)
    there = torch.zeros(len(targets), 2 + len(OVERLAPS))
    there[:, 0], there[:, 1] = classes.float(), -1.0
    return torch.cat([detected, there])


def mean_average_precision(rows: Rows) -> float:
    """Return the mean of the average precision over classes that have a true box, and over overlaps."""
    every = torch.cat(list(rows)).double()
    means = []
    for one in sorted(set(every[every[:, 1] < 0][:, 0].tolist())):
        mine = every[every[:, 0] == one]
        total = int((mine[:, 1] < 0).sum())
        detected = mine[mine[:, 1] >= 0]
        detected = detected[detected[:, 1].argsort(descending=True, stable=True), 2:]
        means.append(_average_precision(detected, total))
    return float(torch.stack(means).mean()) if means else 0.0


def _average_precision(right: Tensor, total: int) -> Tensor:
    """The mean precision at 101 recalls, for each overlap: right `[detected, overlaps]`, by falling score."""
    if not len(right):
        return torch.zeros(right.shape[1], dtype=torch.float64)
    hits = right.cumsum(dim=0)
    recall = (hits / total).T.contiguous()  # [overlaps, detected]
    precision = hits / torch.arange(1, len(right) + 1, dtype=torch.float64)[:, None]
    best = precision.flip(0).cummax(dim=0).values.flip(0).T  # the best at this recall or a higher one
    wanted = torch.from_numpy(np.linspace(0.0, 1.0, RECALLS)).expand(len(recall), -1).contiguous()
    places = torch.searchsorted(recall, wanted)
    padded = torch.cat([best, torch.zeros(len(best), 1, dtype=torch.float64)], dim=1)
    return padded.gather(1, places).mean(dim=1)
