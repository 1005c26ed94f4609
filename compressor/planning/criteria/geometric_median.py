"""Distance of each filter to all others of its layer (FPGM, He et al. 2019, arXiv:1811.00250).

score(c) = Σ over producers Σ over c' ‖w_c − w_c'‖₂. The other filters can replace a filter near the geometric median of
its layer, whatever its norm. Where several layers write into the same channels their sums add. Needs no data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.planning.calibration import Calibration, Needs, over_channels, producers, rows

NEEDS = Needs.NOTHING
COMPARABLE = False
DIRECT_AT_MOST = 10**8  # multiplications; above it matrix products are 10 times faster and more


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Return the sums of Euclidean distances; `[channels]`, float64."""
    return over_channels(group, producers(group), lambda m: _distances(rows(m, calibration.weights)))


def _distances(filters: Tensor) -> Tensor:
    # With matrix products two equal filters have distance 1e-8, so that rounding, and not their index, breaks the tie.
    direct = filters.numel() * len(filters) <= DIRECT_AT_MOST
    mode = "donot_use_mm_for_euclid_dist" if direct else "use_mm_for_euclid_dist"
    return torch.cdist(filters, filters, compute_mode=mode).sum(dim=1)
