"""First-order Taylor expansion of the loss, summed over the channel (Molchanov et al. 2019, arXiv:1906.10771).

score(c) = |Σ over every parameter w of channel c of w · g|, with g the mean gradient of the loss: to first order, the
change of the loss when all of the channel's parameters (its filters, bias, norms and its columns in the consumers)
become zero together. The sum is taken before the absolute value: parameters of one channel may cancel, because they are
removed together. Batch norms use their running statistics.

Without labels the loss is the cross entropy against the network's own top class, or half the squared output where that
is not class scores (`planning.gathering`). Refused without data: add `--data`.
"""

from __future__ import annotations

from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.planning.calibration import Calibration, Needs, over_channels, required, rows

NEEDS = Needs.GRADIENTS
COMPARABLE = True  # all in units of the loss


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Return the absolute first-order changes of the loss; `[channels]`, float64."""
    gradients = required(calibration.gradients, NEEDS)
    trained = [m for m in group.members if m.tensor in gradients]  # running statistics have no gradient
    changes = over_channels(group, trained, lambda m: (rows(m, calibration.weights) * rows(m, gradients)).sum(dim=1))
    return changes.abs()
