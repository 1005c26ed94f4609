"""Batch norm scale |γ| of each channel (Network Slimming, Liu et al. 2017, arXiv:1708.06519, sec. 3).

score(c) = Σ over the group's batch norms |γ_c|. The paper trains with an L1 penalty on γ first; without one the
ranking is weaker. One threshold for the whole network is the paper's: the scores compare across groups. A group without
a batch norm is refused. Takes no data.
"""

from __future__ import annotations

from torch import Tensor

from compressor.calibration import Calibration, Needs, over_channels, rows
from compressor.errors import CalibrationError
from compressor.groups import BATCH_NORMS, ChannelGroup, Role

NEEDS = Needs.NOTHING
COMPARABLE = True


def score(group: ChannelGroup, *, calibration: Calibration) -> Tensor:
    """Sums of absolute batch norm scales; `[channels]`, float64."""
    scales = [
        m
        for m in group.members
        if m.role is Role.CARRIES
        and m.tensor.rpartition(".")[2] == "weight"
        and isinstance(calibration.module.get_submodule(m.layer), BATCH_NORMS)
    ]
    covered = over_channels(group, scales, lambda m: m.positions.new_ones(len(m.positions)))
    if not bool(covered.all()):
        raise CalibrationError(
            f"the group of `{group.root}` has no batch norm with a scale on all of its channels",
            hint=f"`--protect {group.root}`, or another criterion: `--criterion l1-norm`",
        )
    return over_channels(group, scales, lambda m: rows(m, calibration.weights).abs().sum(dim=1))
