"""E[BN]: a channel's mean output behind its batch norm and a ReLU (Bartoldson et al. 2020, arXiv:1906.03728).

Behind a batch norm with scale γ and shift β a channel is assumed to be N(β, γ²). With a = -β/|γ| and Z = 1 - Φ(a) the
mean of its ReLU is Z (β + |γ| φ(a) / Z) = Z β + |γ| φ(a). Where several batch norms act on the same channels, as before
a residual sum, their means add. Refused: a group without a batch norm. Needs no data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.planning.calibration import Calibration, Needs, rows
from compressor.planning.criteria._norms import norm_scales

NEEDS = Needs.NOTHING
COMPARABLE = False  # the paper ranks within a layer


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Return the sums of the means of the rectified batch norms; `[channels]`, float64."""
    scales = norm_scales(group, calibration=calibration, instead="l2-norm")
    total = torch.zeros(group.channels, dtype=torch.float64)
    for member in scales:
        shift = calibration.weights[f"{member.layer}.bias"].double()[member.positions]
        total.index_add_(0, member.channels, rectified_mean(rows(member, calibration.weights).flatten(), shift))
    return total


def rectified_mean(scale: Tensor, shift: Tensor) -> Tensor:
    """Return the mean of ReLU(x) for x from N(shift, scale²), elementwise; of a constant where the scale is 0."""
    width = scale.abs()
    a = -shift / width.clamp_min(torch.finfo(width.dtype).tiny)
    above = 0.5 * torch.erfc(a / math.sqrt(2))  # Z; erfc keeps its digits where 1 - Φ loses them
    density = torch.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    return torch.where(width > 0, above * shift + width * density, shift.clamp_min(0))
