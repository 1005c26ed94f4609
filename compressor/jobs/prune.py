"""What `compress prune` does, for library users too: plain values in, an artifact and its results out."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.checkpoint.artifact_writing import check_free, write_artifact
from compressor.checkpoint.artifacts import SUFFIX
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.splits import Data
from compressor.errors import CalibrationError, PlanError
from compressor.files.names import file_name_from
from compressor.jobs.requests import needs_data
from compressor.planning.calibration import calibration_split
from compressor.progress import Say, quiet
from compressor.pruning.masking import mask_weights
from compressor.pruning.pipeline import Pruned, prune
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.repair.synthetic import synthetic_data
from compressor.pruning.request import MaskRequest, Request
from compressor.pruning.speed.frontier import fastest_within
from compressor.pruning.speed.planner import Goal
from compressor.pruning.speed.search import prune_to_speed
from compressor.pruning.while_training import During, prune_while_training
from compressor.results.artifact import Results
from compressor.results.changes import Repairing
from compressor.surgery.masks import WeightMask

STATE = "train.state"


def default_folder(checkpoint: Checkpoint) -> Path:
    """Return an artifact's default folder: `NAME.compressed` in the working folder."""
    return Path(f"{file_name_from(checkpoint.name)}{SUFFIX}")


def prune_to(
    folder: Path | None,
    checkpoint: Checkpoint,
    request: Request | MaskRequest,
    *,
    data: Data | None = None,
    initial: Mapping[str, Tensor] | None = None,
    command: str = "",
    force: bool = False,
    trust_pickle: bool = False,
    say: Say = quiet,
    goal: Goal | None = None,
    max_drop: float | None = None,
    during: During | None = None,
) -> Results:
    """Prune, and write the artifact to `folder` unless that is `None`; return the results in the artifact.

    `goal` describes where a latency budget must be met; with `max_drop` the speed is searched, on the tuning split of
    `data`. With `during` the network trains meanwhile; `FOLDER.partial` has the state from which an interrupted run
    continues. `initial` is the state before training, which some criteria of single weights read.
    """
    if folder is not None:
        check_free(folder, force=force)
    small: Small
    if isinstance(request, MaskRequest):
        small = _masked(checkpoint, request, initial=initial, data=data, say=say)
    else:
        if initial is not None:
            raise PlanError(
                "`--initial` is for single weights, and this budget is one of channels",
                hint="omit it, or ask for `--sparsity 0.9 --mask-criterion magnitude-increase`",
            )
        way = _Way(goal=goal, max_drop=max_drop, during=None if during is None else _resumable(during, folder))
        small = _pruned(checkpoint, request, way, data=data, say=say)
    results = Results.of(checkpoint.name, command, small.checkpoint.lineage, **small.sections)
    if folder is None:
        return results
    say("writing, and reading it back in a fresh process")
    source = checkpoint.source
    artifact = write_artifact(
        folder, small.checkpoint, source=source, results=results, force=force, trust_pickle=trust_pickle,
        mask=small.mask,
    )  # fmt: skip
    if during is not None:
        shutil.rmtree(partial_of(folder), ignore_errors=True)
    return artifact.results()


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """The small or masked network, and the sections of the results about its making."""

    checkpoint: Checkpoint
    sections: Mapping[str, Any]
    mask: WeightMask | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How channels are removed, if not all at once within a share of channels or cost."""

    goal: Goal | None
    max_drop: float | None
    during: During | None


def _masked(
    checkpoint: Checkpoint,
    request: MaskRequest,
    *,
    initial: Mapping[str, Tensor] | None,
    data: Data | None,
    say: Say,
) -> Small:
    request = request.resolved(has_data=data is not None)
    data = _images_for(request, checkpoint, data)
    masked = mask_weights(checkpoint, request, initial=initial, data=data, say=say)
    sections = {"masking": masked.result, **_repairing(masked.repair_result, data)}
    return Small(checkpoint=masked.checkpoint, sections=sections, mask=masked.mask)


def _pruned(checkpoint: Checkpoint, request: Request, way: _Way, *, data: Data | None, say: Say) -> Small:
    request = request.resolved(has_data=data is not None, while_training=way.during is not None)
    data = _images_for(request, checkpoint, data)
    pruned, sections = _by(way, checkpoint, request, data=data, say=say)
    pruning = pruned.result
    if way.max_drop is not None:
        pruning = dataclasses.replace(pruning, requested={"max_drop": way.max_drop})
    if data is not None and needs_data(request):
        images = min(request.images, len(calibration_split(data)))
        pruning = dataclasses.replace(pruning, data={"name": data.name, "images": images})
    sections = {**sections, "pruning": pruning, **_repairing(pruned.repair_result, data)}
    return Small(checkpoint=pruned.checkpoint, sections=sections)


def _by(
    way: _Way, checkpoint: Checkpoint, request: Request, *, data: Data | None, say: Say
) -> tuple[Pruned, dict[str, Any]]:
    """What the way prunes, with the section of the results that only this way has."""
    if way.goal is not None and way.max_drop is not None:
        if data is None:
            raise CalibrationError(
                "`--max-drop` needs images to measure the loss of accuracy on",
                hint="with labels or without: `--data DIR`",
            )
        fastest = fastest_within(checkpoint, request, way.goal, data, max_drop=way.max_drop, say=say)
        return fastest.fast.pruned, {"latency": fastest.result}
    if way.goal is not None:
        fast = prune_to_speed(checkpoint, request, way.goal, data=data, say=say)
        return fast.pruned, {"latency": fast.result}
    if way.during is not None:
        away = prune_while_training(checkpoint, request, way.during, data=data, say=say)
        return away.pruned, {"while_training": away.result}
    return prune(checkpoint, request, data=data, say=say), {}


def _images_for(request: Request | MaskRequest, checkpoint: Checkpoint, data: Data | None) -> Data | None:
    """The data or, if a repair needs images and there are none, images made from the batch norms."""
    if data is None and request.repair not in (Repair.NONE, Repair.MEAN):
        return synthetic_data(checkpoint, count=request.images, seed=request.seed)
    return data


def _repairing(repaired: Repairing | None, data: Data | None) -> dict[str, Repairing]:
    """The section of the results about the repair; empty if nothing was repaired."""
    if repaired is None:
        return {}
    return {"repairing": dataclasses.replace(repaired, data="the batch norms" if data is None else data.name)}


def partial_of(folder: Path) -> Path:
    """Return the folder of the state from which an interrupted run into `folder` continues."""
    return folder.with_name(f"{folder.name}.partial")


def _resumable(during: During, folder: Path | None) -> During:
    return during if folder is None else dataclasses.replace(during, state_file=partial_of(folder) / STATE)
