"""The batch norms behind a group's channels, for the criteria that read them."""

from __future__ import annotations

from compressor.channels.groups import BATCH_NORMS, ChannelGroup, Member, Role
from compressor.errors import CalibrationError
from compressor.planning.calibration import Calibration, over_channels


def norm_scales(group: ChannelGroup, *, calibration: Calibration, instead: str) -> list[Member]:
    """Return the batch norms' scales among the group's members.

    Refused: a channel without a scale; `instead` is the criterion that the hint names.
    """
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
            hint=f"`--protect {group.root}`, or another criterion: `--criterion {instead}`",
        )
    return scales
