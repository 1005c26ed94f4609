"""A pruning run's unlabelled images, and the scores of every channel group by a criterion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.batches import batches
from compressor.data.samples import first
from compressor.data.splits import Data
from compressor.errors import CalibrationError
from compressor.planning import criteria
from compressor.planning.calibration import CALIBRATION_BATCH, Batches, Calibration, Needs, calibration_split
from compressor.planning.gathering import gather
from compressor.progress import Say, quiet
from compressor.pruning.probing import fitted_and_probed
from compressor.pruning.repair.repairing import Repair, images_to_repair_with
from compressor.pruning.request import Request
from compressor.surgery.plan import Scope, Scores

OTHERWISE = "l1-norm"  # takes no data, and judges any group that a layer writes


def calibration_images(
    checkpoint: Checkpoint, request: Request, data: Data | None, *, say: Say
) -> list[tuple[Tensor, ...]]:
    """Return the images for second moments, measuring and repair, in batches of one size, as many as memory holds.

    The list is empty if none of the three needs images. Refused: images that are needed without data.
    """
    moments = criteria.load(request.criterion).needs is Needs.SECOND_MOMENTS
    measured = request.scope is Scope.MEASURED
    if not (moments or measured or request.repair is not Repair.NONE):
        return []
    if data is None and request.repair is Repair.MEAN and not (moments or measured):
        return []  # the batch norms' shifts and scales replace images
    if data is None:
        what = f"the criterion `{request.criterion}`"
        if measured or not moments:
            what = "measuring widths" if measured else f"repair by {request.repair}"
        raise CalibrationError(f"{what} needs images", hint="give some, labels are not needed: `--data DIR`")
    return images_to_repair_with(
        checkpoint, data, how=request.repair, images=request.images, memory_bytes=request.memory_bytes,
        seed=request.seed, say=say,
    )  # fmt: skip


def score(
    module: nn.Module,
    groups: tuple[ChannelGroup, ...],
    request: Request,
    *,
    data: Data | None,
    images: list[tuple[Tensor, ...]],
    checkpoint: Checkpoint,
    say: Say = quiet,
) -> tuple[Scores, Calibration]:
    """Return every group's scores by the requested criterion, and the calibration they depend on.

    `OTHERWISE` scores the groups that the criterion cannot judge, and `say` names them. Second moments come from the
    part of `images` that no error is judged on; other criteria draw their own images, with labels. Refused: missing
    data, a criterion that can judge no group.
    """
    criterion = criteria.load(request.criterion)
    stream: Batches | None = None
    if criterion.needs is Needs.SECOND_MOMENTS:
        stream = [(inputs, None) for inputs in fitted_and_probed(images)[0]]
    elif criterion.needs is not Needs.NOTHING:
        if data is None:
            raise CalibrationError(
                f"the criterion `{request.criterion}` needs images", hint="give some: `--data DIR`, or use `l1-norm`"
            )
        drawn = first(calibration_split(data), request.images, seed=request.seed)
        stream = batches(drawn, batch_size=CALIBRATION_BATCH, preprocessing=checkpoint.preprocessing)
    calibration = gather(
        module, groups, needs=criterion.needs, batches=stream, seed=request.seed,
        memory_bytes=request.memory_bytes, say=say,
    )  # fmt: skip
    by_root: dict[str, Tensor] = {}
    unjudged: list[ChannelGroup] = []
    for group in groups:
        try:
            by_root[group.root] = criterion.score(group, calibration=calibration)
        except CalibrationError:  # this criterion cannot judge the group
            unjudged.append(group)
            if len(unjudged) == len(groups):
                raise
    by_root |= _otherwise(unjudged, by_root, calibration)
    for group in unjudged:
        say(f"`{request.criterion}` cannot judge the group of `{group.root}`: `{OTHERWISE}` does")
    scores = Scores(by_root=by_root, comparable=criterion.comparable)
    return (scores.reversed() if request.largest else scores), calibration


def _otherwise(
    groups: Iterable[ChannelGroup], judged: Mapping[str, Tensor], calibration: Calibration
) -> dict[str, Tensor]:
    """Return the groups' scores by `OTHERWISE`, scaled so that each group's mean is the mean of all `judged` scores."""
    mean = float(torch.cat([scores.double() for scores in judged.values()]).mean()) if judged else 1.0
    unscaled = {group.root: criteria.load(OTHERWISE).score(group, calibration=calibration) for group in groups}
    return {root: scores * (mean / float(scores.mean().clamp(min=1e-30))) for root, scores in unscaled.items()}
