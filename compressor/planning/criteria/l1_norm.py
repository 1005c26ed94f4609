"""L1 norm of each channel's filter (Li et al. 2017, arXiv:1608.08710, sec. 3.1).

score(c) = Σ over producers Σ |w| over the producer's row of channel c. Where several layers write into the same
channels, as before a residual sum, their norms add. Biases and norms are not counted. Needs no data.
"""

from __future__ import annotations

from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.planning.calibration import Calibration, Needs, by_row, over_channels, producers

NEEDS = Needs.NOTHING
COMPARABLE = False  # a sum over fan-in: wide layers score higher


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Return the sums of absolute weights; `[channels]`, float64."""
    return over_channels(group, producers(group), by_row(calibration.weights, lambda rows: rows.abs().sum(dim=1)))
