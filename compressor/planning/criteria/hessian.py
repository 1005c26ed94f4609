"""Second-order change of the loss with a diagonal Hessian, summed over the channel (OBD, LeCun et al. 1990).

score(c) = ½ Σ over every parameter w of channel c of w² · h, with the Hessian's diagonal h estimated by the mean over
images of the squared gradient of that image's loss. With labels this is the empirical Fisher diagonal; without, targets
drawn from the network's own distribution make it the Gauss-Newton diagonal in expectation (`planning.gathering`). It
needs one backward pass per image. Refused without data: add `--data`.
"""

from __future__ import annotations

from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.planning.calibration import Calibration, Needs, over_channels, required, rows

NEEDS = Needs.SQUARED_GRADIENTS
COMPARABLE = True  # all in units of the loss


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Return the second-order changes of the loss; `[channels]`, float64."""
    curvatures = required(calibration.squared_gradients, NEEDS)
    trained = [m for m in group.members if m.tensor in curvatures]  # running statistics have no gradient
    saliencies = over_channels(
        group, trained, lambda m: (rows(m, calibration.weights).square() * rows(m, curvatures)).sum(dim=1)
    )
    return 0.5 * saliencies
