"""Mean absolute activation of each channel.

score(c) = mean over images, positions and consumers of |x_c|, where x is what the group's consumers read, behind the
norm and the activation function (Molchanov et al. 2017, arXiv:1611.06440, sec. 2.2, "activation"). Labels are not used.
Refused without data: add `--data`.
"""

from __future__ import annotations

from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.planning.calibration import Calibration, Needs, required

NEEDS = Needs.ACTIVATIONS
COMPARABLE = False  # the scale of activations differs from layer to layer


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Return the means of |x|; `[channels]`, float64."""
    return required(calibration.mean_absolute, NEEDS)[group.root].clone()
