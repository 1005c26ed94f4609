"""L2 norm of each channel's filter (He et al. 2018, Soft Filter Pruning, arXiv:1808.06866).

score(c) = Σ over producers sqrt(Σ w²) over the producer's row of channel c. Where several layers write into the same
channels, as before a residual sum, their norms add. Biases and norms are not counted. Needs no data.
"""

from __future__ import annotations

from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.planning.calibration import Calibration, Needs, by_row, over_channels, producers

NEEDS = Needs.NOTHING
COMPARABLE = False  # it grows with the square root of the fan-in


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Return the Euclidean norms; `[channels]`, float64."""
    return over_channels(group, producers(group), by_row(calibration.weights, lambda rows: rows.norm(dim=1)))
