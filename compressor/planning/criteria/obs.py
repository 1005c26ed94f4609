"""Optimal brain surgeon on channels: the loss when the others compensate for one (Hassibi & Stork 1992).

Channels are removed one by one, the cheapest first (`planning.elimination`, with the formula). A channel's score is its
cost at its removal, over the variance of its readers' outputs, summed over the readers. It is at least the score of the
channel before it, so that the order of the scores is the order of the elimination.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.errors import CalibrationError
from compressor.planning.calibration import Calibration, Needs, required
from compressor.planning.elimination import eliminate

NEEDS = Needs.SECOND_MOMENTS
COMPARABLE = True  # all are shares of a variance


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Return the cost of each channel at its removal; `[channels]`, float64."""
    elimination = eliminate(group, required(calibration.readings, NEEDS))
    if elimination is None:
        raise CalibrationError(
            f"what is read of the group of `{group.root}` cannot be observed at any layer",
            hint=f"use a criterion on weights or gradients, or `--protect {group.root}`",
        )
    scores = torch.zeros(group.channels, dtype=torch.float64)
    highest = before = 0.0
    for rank, (channel, lost) in enumerate(zip(elimination.order, elimination.lost, strict=True)):
        highest, before = max(highest, lost - before), lost
        scores[channel] = highest * (1 + 1e-9 * rank) + 1e-15 * rank  # ties in the order of removal
    return scores
