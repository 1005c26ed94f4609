"""Layer-adaptive magnitude, LAMP (Lee et al. 2021, arXiv:2010.07611), on channels.

The paper's score of a weight is w² / Σ of the squares in its layer that are at or above it. Here channels replace
weights: with s(c) = Σ over producers ‖w_c‖₂²,

    score(c) = s(c) / Σ over c' with s(c') ≥ s(c) of s(c')

so that a group's strongest channel scores 1, and one threshold for the whole network empties no group. Equal channels
have equal scores. Needs no data.
"""

from __future__ import annotations

from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.planning.calibration import Calibration, Needs, by_row, over_channels, producers

NEEDS = Needs.NOTHING
COMPARABLE = True


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Return the shares of the squared norm at or above; `[channels]`, float64."""
    squares = over_channels(group, producers(group), by_row(calibration.weights, lambda rows: rows.square().sum(dim=1)))
    at_or_above = squares[None, :] >= squares[:, None]
    total = (at_or_above * squares[None, :]).sum(dim=1)
    return squares / total.where(total > 0, 1)  # a group of zeros scores 0
