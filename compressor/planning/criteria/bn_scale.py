"""Batch norm scale |γ| of each channel (Network Slimming, Liu et al. 2017, arXiv:1708.06519, sec. 3).

score(c) = Σ over the group's batch norms |γ_c|. The paper trains with an L1 penalty on γ first; without one the ranking
is weaker. One threshold for the whole network is the paper's: the scores compare across groups. Refused: a group
without a batch norm. Needs no data.
"""

from __future__ import annotations

from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.planning.calibration import Calibration, Needs, over_channels, rows
from compressor.planning.criteria._norms import norm_scales

NEEDS = Needs.NOTHING
COMPARABLE = True


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Return the sums of absolute batch norm scales; `[channels]`, float64."""
    scales = norm_scales(group, calibration=calibration, instead="l1-norm")
    return over_channels(group, scales, lambda m: rows(m, calibration.weights).abs().sum(dim=1))
