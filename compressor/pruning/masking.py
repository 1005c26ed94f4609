"""Mask a checkpoint's weights: choose the weights that stay, set the others to zero in place, repair."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.sparse import SAVES_NO_TIME
from compressor.data.splits import Data
from compressor.errors import CalibrationError, PlanError
from compressor.graph.copies import copy_of
from compressor.progress import Say, quiet
from compressor.pruning.repair.repairing import Repair, Repaired, images_to_repair_with, repair
from compressor.pruning.request import MaskRequest
from compressor.results.changes import Masking, Repairing
from compressor.surgery.mask_criteria import MaskCriterion, mask_by
from compressor.surgery.masks import MaskScope, WeightMask, apply_mask_, magnitude, maskable
from compressor.surgery.surgery import Surgery


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """The masked network, its mask, and its repair (`None` without one)."""

    checkpoint: Checkpoint
    request: MaskRequest
    mask: WeightMask
    repaired: Repaired | None

    @property
    def result(self) -> Masking:
        """The `mask` section of an artifact's results."""
        request = self.request
        return masking_of(self.mask, requested=request.sparsity, scope=request.scope, criterion=request.criterion)

    @property
    def repair_result(self) -> Repairing | None:
        """The `repair` section of an artifact's results; `None` where nothing was repaired."""
        return None if self.repaired is None else self.repaired.result


def mask_weights(
    checkpoint: Checkpoint,
    request: MaskRequest,
    *,
    initial: Mapping[str, Tensor] | None = None,
    data: Data | None = None,
    say: Say = quiet,
) -> Masked:
    """Return the masked network that `request` asks for, repaired on images of `data`.

    The checkpoint is not modified. `initial` is the network's state before training or early in it, for criteria that
    compare with it. Refused: a sparsity that cannot be met, a criterion that needs `initial` without it, another
    criterion with it, a repair without images.
    """
    request = request.resolved(has_data=data is not None)
    module = copy_of(checkpoint.module)
    mask = _chosen(module, request, initial)
    apply_mask_(module, mask)
    entry = masking_of(mask, requested=request.sparsity, scope=request.scope, criterion=request.criterion)
    lineage: list[dict[str, object]] = [{"step": "mask", **entry.to_json()}]
    repaired: Repaired | None = None
    if request.repair is not Repair.NONE:
        if data is None:
            raise CalibrationError(
                f"repair of single weights by {request.repair} needs images",
                hint="give some, labels are not needed: `--data DIR`",
            )
        images = images_to_repair_with(
            checkpoint, data, how=request.repair, images=request.images, memory_bytes=request.memory_bytes,
            seed=request.seed, say=say,
        )  # fmt: skip
        repaired = repair(
            checkpoint.module, module, Surgery(), images, how=request.repair, mask=mask,
            memory_bytes=request.memory_bytes, seed=request.seed, say=say,
        )  # fmt: skip
        module = repaired.module
        lineage.append(repaired.step(seed=request.seed))
    masked = dataclasses.replace(checkpoint, module=module, lineage=(*checkpoint.lineage, *lineage))
    return Masked(checkpoint=masked, request=request, mask=mask, repaired=repaired)


def _chosen(module: nn.Module, request: MaskRequest, initial: Mapping[str, Tensor] | None) -> WeightMask:
    """Return the mask of the weights that stay by the request's criterion."""
    criterion = request.criterion
    if criterion.looks_back and initial is None:
        raise PlanError(
            f"`{criterion}` compares every weight with its value before training",
            hint="give the network's weights from before training, or from early in it: `--initial FILE`",
        )
    if initial is not None and not criterion.looks_back:
        raise PlanError(
            f"`{criterion}` does not use initial weights",
            hint="omit `--initial`, or choose a criterion that uses them: `--mask-criterion magnitude-increase`",
        )
    if criterion is MaskCriterion.LARGE_FINAL:
        return magnitude(module, sparsity=request.sparsity, scope=request.scope, protect=request.protect)
    return mask_by(
        criterion,
        initial=initial or {},
        final=maskable(module, protect=request.protect),
        sparsity=request.sparsity,
        scope=request.scope,
        seed=request.seed,
    )


def masking_of(
    mask: WeightMask, *, requested: float, scope: MaskScope, criterion: MaskCriterion | None = None
) -> Masking:
    """Return the mask's counts with the request; `criterion` is `None` if several rounds chose the weights."""
    return Masking(
        requested=requested,
        sparsity=mask.sparsity,
        criterion=None if criterion is None else str(criterion),
        scope=str(scope),
        weights=mask.weights,
        zeros=mask.removed,
        statement=SAVES_NO_TIME,
    )
