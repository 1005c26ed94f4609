"""Random scores: the baseline every criterion has to beat.

score(c) ~ U[0, 1), drawn from the seed and the group's root, so that the order in which groups are scored does not
matter. Li et al. 2017 (arXiv:1608.08710, sec. 4.4) and Mittal et al. 2018 (arXiv:1801.10447) compare with it. Needs no
data.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.planning.calibration import Calibration, Needs

NEEDS = Needs.NOTHING
COMPARABLE = True


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Return uniform numbers; `[channels]`, float64."""
    stream = f"{calibration.generator.initial_seed()}/{group.root}"
    seed = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:7])  # 56 bits: torch accepts 63
    return torch.rand(group.channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
