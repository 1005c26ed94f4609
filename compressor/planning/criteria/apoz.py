"""Share of non-zero activations, one minus APoZ (Hu et al. 2016, arXiv:1607.03250).

score(c) = 1 − mean over images, positions and consumers of [x_c = 0], where x is what the group's consumers read,
behind the norm and the activation function. Only an activation with exact zeros (ReLU, ReLU6, hard swish) ranks
channels: a group without one scores 1 throughout, with ties broken by index. Refused: a network without any zero.
Labels are not used. Refused without data: add `--data`.
"""

from __future__ import annotations

from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.errors import CalibrationError
from compressor.planning.calibration import Calibration, Needs, required

NEEDS = Needs.ACTIVATIONS
COMPARABLE = True


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Return the shares of activations that are not zero; `[channels]`, float64."""
    shares = required(calibration.zero_share, NEEDS)
    if not any(bool(share.any()) for share in shares.values()):
        raise CalibrationError(
            "no activation of this network is ever zero: every channel would score alike",
            hint="apoz is for networks with ReLU; use `--criterion activation`",
        )
    return 1 - shares[group.root]
