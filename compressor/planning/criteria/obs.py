"""Optimal brain surgeon on channels: what is lost when the others make up for one (Hassibi & Stork 1992).

Channels are taken out one by one, the cheapest first (`planning.elimination`, with the formula). The score of
a channel is what it cost when it went, over the variance of what its readers give, summed over them; never less than
that of the channel before it, so that the order of the scores is the order of the elimination.
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
    """What each channel cost when it left; `[channels]`, float64."""
    found = eliminate(group, required(calibration.readings, NEEDS))
    if found is None:
        raise CalibrationError(
            f"no layer shows what is read of the group of `{group.root}`",
            hint=f"use a criterion on weights or gradients, or `--protect {group.root}`",
        )
    scores = torch.zeros(group.channels, dtype=torch.float64)
    highest = before = 0.0
    for rank, (channel, lost) in enumerate(zip(found.order, found.lost, strict=True)):
        highest, before = max(highest, lost - before), lost
        scores[channel] = highest * (1 + 1e-9 * rank) + 1e-15 * rank  # ties in the order of leaving
    return scores
