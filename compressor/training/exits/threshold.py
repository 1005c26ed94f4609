"""How certain is certain enough: the threshold at which images leave early, chosen on the tuning split.

What every exit says of every image is gathered once; the accuracy and the MACs at any threshold follow by counting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.data.splits import EVALUATION_BATCH, UNLABELLED, ImageSet, Preprocessing, batches
from compressor.errors import DataError, PlanError
from compressor.graph.lent import evaluating
from compressor.measuring.accuracy import Accuracy
from compressor.training.exits.branches import Certainty, EarlyExits, certainty

MOST_THRESHOLDS = 2000  # that are tried; of more than that, evenly spread ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What every exit says of every image of a split: the branches in their order, the whole network last.

    `right` is bool `[images, exits]`, `certain` float `[images, branches]`.
    """

    right: Tensor
    certain: Tensor
    split: str

    def __post_init__(self) -> None:
        if not len(self.right) or self.right.shape != (len(self.certain), self.certain.shape[1] + 1):
            raise ValueError(f"{list(self.right.shape)} answers with {list(self.certain.shape)} certainties")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """Who leaves at one exit: how many images, how many of them rightly classified, and how many all of them would be.

    `after` is the layer; `None` for the end of the network.
    """

    after: str | None
    leaving: int
    correct: int
    correct_of_all: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitAccuracy:
    """The accuracy at one threshold, and what each exit has to do with it."""

    threshold: float
    accuracy: Accuracy
    full: Accuracy
    exits: tuple[Exit, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the images that leave at each exit."""
        return tuple(e.leaving / self.accuracy.total for e in self.exits)

    @property
    def macs(self) -> float:
        """The MACs of an image, in the mean."""
        return sum(e.leaving * e.macs for e in self.exits) / self.accuracy.total

    def to_json(self) -> dict[str, object]:
        """Plain values; a threshold that lets nobody leave is `None`."""
        return {
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
            "accuracy": self.accuracy.to_json(),
            "full": self.full.to_json(),
            "mean_macs": self.macs,
            "exits": [
                {
                    "after": e.after, "share": share, "leaving": e.leaving, "correct": e.correct,
                    "correct_of_all": e.correct_of_all, "macs": e.macs,
                }
                for e, share in zip(self.exits, self.shares, strict=True)
            ],
        }  # fmt: skip


def answers(
    exits: EarlyExits,
    images: ImageSet,
    *,
    split: str,
    preprocessing: Preprocessing,
    kind: Certainty = Certainty.ENTROPY,
) -> Answers:
    """What the exits say of the images, in one pass over them; refused: images without labels."""
    right, certain = [], []
    device = next(exits.parameters()).device
    with evaluating(exits), torch.no_grad():
        for inputs, labels in batches(images, batch_size=EVALUATION_BATCH, preprocessing=preprocessing):
            if int(labels.min()) <= UNLABELLED:
                raise DataError("exits are judged by labels, and these images have none", hint="give labelled images")
            own, *early = exits(inputs.to(device))
            right.append(torch.stack([s.argmax(1).cpu() == labels for s in (*early, own)], dim=1))
            certain.append(torch.stack([certainty(s, kind).cpu() for s in early], dim=1))
    return Answers(right=torch.cat(right), certain=torch.cat(certain), split=split)


def exit_taken(certain: Tensor, threshold: float) -> Tensor:
    """The exit that each image takes: certainties `[images, branches]` to `[images]`.

    It is the first branch whose certainty is at least `threshold`, or else the end of the network: 0 sends every image
    out at the first branch, infinity none.
    """
    enough = torch.cat([certain >= threshold, torch.ones(len(certain), 1, dtype=torch.bool)], dim=1)
    return enough.int().argmax(dim=1)  # the first of the largest


def at_threshold(found: Answers, threshold: float, *, after: Sequence[str], macs: Sequence[int]) -> ExitAccuracy:
    """The accuracy, and who leaves where, at a threshold; `macs` are spent at each exit (`macs_of_exits`)."""
    taken = exit_taken(found.certain, threshold)
    correct = found.right.gather(1, taken.unsqueeze(1)).squeeze(1)
    total = len(found.right)
    return ExitAccuracy(
        threshold=threshold,
        accuracy=Accuracy(correct=int(correct.sum()), total=total, split=found.split),
        full=Accuracy(correct=int(found.right[:, -1].sum()), total=total, split=found.split),
        exits=tuple(
            Exit(
                after=name,
                leaving=int((taken == number).sum()),
                correct=int(correct[taken == number].sum()),
                correct_of_all=int(found.right[:, number].sum()),
                macs=spent,
            )
            for number, (name, spent) in enumerate(zip((*after, None), macs, strict=True))
        ),
    )


def threshold_for(found: Answers, *, max_drop: float, macs: Sequence[int]) -> float:
    """The threshold with the fewest MACs in the mean at which at most `max_drop` points of accuracy are lost.

    One for all exits. It lies halfway between two certainties that were seen, so that a file's rounding changes
    nobody's exit. Refused: a negative drop, and one that no image may leave early at.
    """
    if not (max_drop >= 0 and math.isfinite(max_drop)):
        raise PlanError(f"a drop of {max_drop} points", hint="none is 0, half a point is `--max-drop 0.5`")
    seen = torch.unique(found.certain)
    middles = (seen[1:] + seen[:-1]) / 2
    if len(middles) > MOST_THRESHOLDS:
        middles = middles[torch.linspace(0, len(middles) - 1, MOST_THRESHOLDS).long()]
    spent = torch.tensor(macs, dtype=torch.float64)
    least = int(found.right[:, -1].sum()) - math.floor(len(found.right) * max_drop / 100 + 1e-9)
    best, cost = math.inf, float("inf")
    for threshold in (*reversed(middles.tolist()), 0.0):
        taken = exit_taken(found.certain, threshold)
        correct = int(found.right.gather(1, taken.unsqueeze(1)).sum())
        mean = float(spent[taken].mean())
        if correct >= least and mean < cost and bool((taken < len(macs) - 1).any()):
            best, cost = threshold, mean
    if math.isinf(best):
        raise PlanError(
            f"no image can leave early without losing more than {max_drop:g} points on the {found.split} split",
            hint="train the branches longer (`--epochs`), or name later layers (`--after`)",
        )
    return best


def alike(taken: Tensor, count: int, *, seed: int = 0) -> list[int]:
    """The indices of `count` images of which as large a share takes each exit as of all, drawn by `seed`.

    `taken` is the exit of every image, `[images]`. Of what does not come out even, the largest remainders get one more.
    """
    total, count = len(taken), min(count, len(taken))
    each = torch.bincount(taken) * count
    wanted, rest = each // total, each % total
    for number in rest.argsort(descending=True, stable=True)[: count - int(wanted.sum())].tolist():
        wanted[number] += 1
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    chosen = [order[taken[order] == number][:some] for number, some in enumerate(wanted.tolist())]
    return sorted(int(i) for i in torch.cat(chosen))
