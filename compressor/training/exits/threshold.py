"""Choose the threshold of certainty at which images leave early, on the tuning split.

The answers of every exit for every image are gathered once; accuracy and MACs at any threshold follow by counting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.data.batches import EVALUATION_BATCH, batches
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import UNLABELLED, Samples
from compressor.errors import DataError, PlanError
from compressor.graph.lent import evaluating
from compressor.results.exits import Exit, ExitAccuracy
from compressor.results.quality import Accuracy
from compressor.training.exits.branches import Certainty, EarlyExits, certainty

MOST_THRESHOLDS = 2000  # that are tried, evenly spaced among all


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Correctness and certainty of every exit for every image of a split: the branches in order, the network last.

    `right` is bool `[images, exits]`, `certain` float `[images, branches]`.
    """

    right: Tensor
    certain: Tensor
    split: str

    def __post_init__(self) -> None:
        if not len(self.right) or self.right.shape != (len(self.certain), self.certain.shape[1] + 1):
            raise ValueError(f"{list(self.right.shape)} answers with {list(self.certain.shape)} certainties")


def answers(
    exits: EarlyExits,
    images: Samples,
    *,
    split: str,
    preprocessing: Preprocessing,
    kind: Certainty = Certainty.ENTROPY,
) -> Answers:
    """Return the exits' answers for the images, in one pass; refused: images without labels."""
    right, certain = [], []
    device = next(exits.parameters()).device
    with evaluating(exits), torch.no_grad():
        for (inputs,), labels in batches(images, batch_size=EVALUATION_BATCH, preprocessing=preprocessing):
            if int(labels.min()) <= UNLABELLED:
                raise DataError(
                    "choosing a threshold needs labels, and these images have none", hint="give labelled images"
                )
            own, *early = exits(inputs.to(device))
            right.append(torch.stack([s.argmax(1).cpu() == labels for s in (*early, own)], dim=1))
            certain.append(torch.stack([certainty(s, kind).cpu() for s in early], dim=1))
    return Answers(right=torch.cat(right), certain=torch.cat(certain), split=split)


def exit_taken(certain: Tensor, threshold: float) -> Tensor:
    """Return the exit that each image takes: certainties `[images, branches]` to `[images]`.

    It is the first branch whose certainty is at least `threshold`, or else the end of the network. With 0, every image
    leaves at the first branch; with infinity, none leaves early.
    """
    enough = torch.cat([certain >= threshold, torch.ones(len(certain), 1, dtype=torch.bool)], dim=1)
    return enough.int().argmax(dim=1)  # of equal maxima, argmax returns the first


def at_threshold(answers: Answers, threshold: float, *, after: Sequence[str], macs: Sequence[int]) -> ExitAccuracy:
    """Return accuracy and statistics of the exits at a threshold; `macs` are those of each exit (`macs_of_exits`)."""
    exits = exit_taken(answers.certain, threshold)
    correct = answers.right.gather(1, exits.unsqueeze(1)).squeeze(1)
    total = len(answers.right)
    return ExitAccuracy(
        threshold=threshold if math.isfinite(threshold) else None,
        accuracy=Accuracy(correct=int(correct.sum()), total=total, split=answers.split),
        full=Accuracy(correct=int(answers.right[:, -1].sum()), total=total, split=answers.split),
        exits=tuple(
            Exit(
                after=name,
                leaving=int((exits == number).sum()),
                correct=int(correct[exits == number].sum()),
                correct_of_all=int(answers.right[:, number].sum()),
                macs=spent,
            )
            for number, (name, spent) in enumerate(zip((*after, None), macs, strict=True))
        ),
    )


def threshold_for(answers: Answers, *, max_drop: float, macs: Sequence[int]) -> float:
    """Return the threshold with the lowest mean MACs at which at most `max_drop` points of accuracy are lost.

    All exits share it. It is halfway between two measured certainties, so that rounding in a file changes no image's
    exit. Refused: a negative drop, a drop at which no image may leave early.
    """
    if not (max_drop >= 0 and math.isfinite(max_drop)):
        raise PlanError(
            f"a drop must be at least 0 points, not {max_drop}", hint="for example half a point: `--max-drop 0.5`"
        )
    certainties = torch.unique(answers.certain)
    middles = (certainties[1:] + certainties[:-1]) / 2
    if len(middles) > MOST_THRESHOLDS:
        middles = middles[torch.linspace(0, len(middles) - 1, MOST_THRESHOLDS).long()]
    spent = torch.tensor(macs, dtype=torch.float64)
    least = int(answers.right[:, -1].sum()) - math.floor(len(answers.right) * max_drop / 100 + 1e-9)
    best, cost = math.inf, float("inf")
    for threshold in (*reversed(middles.tolist()), 0.0):
        exits = exit_taken(answers.certain, threshold)
        correct = int(answers.right.gather(1, exits.unsqueeze(1)).sum())
        mean = float(spent[exits].mean())
        if correct >= least and mean < cost and bool((exits < len(macs) - 1).any()):
            best, cost = threshold, mean
    if math.isinf(best):
        raise PlanError(
            f"no image can leave early without losing more than {max_drop:g} points on the {answers.split} split",
            hint="train the branches longer (`--epochs`), or name later layers (`--after`)",
        )
    return best


def alike(exits: Tensor, count: int, *, seed: int = 0) -> list[int]:
    """Return the indices of `count` images, drawn by `seed`, with the same share at each exit as all images.

    `exits` is the exit of every image, `[images]`. Rounding follows the largest remainders.
    """
    total, count = len(exits), min(count, len(exits))
    each = torch.bincount(exits) * count
    wanted, rest = each // total, each % total
    for number in rest.argsort(descending=True, stable=True)[: count - int(wanted.sum())].tolist():
        wanted[number] += 1
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    chosen = [order[exits[order] == number][:some] for number, some in enumerate(wanted.tolist())]
    return sorted(int(i) for i in torch.cat(chosen))
