"""What `compress retrain` does, for library users too: an artifact in, a retrained artifact out."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from compressor.checkpoint.artifact_writing import check_free, write_artifact
from compressor.checkpoint.artifacts import SUFFIX, Artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import How, Recipe
from compressor.data.splits import Data
from compressor.errors import RetrainError
from compressor.planning.costs import Cost, count
from compressor.results.training import Retrained
from compressor.training.loop import Callback
from compressor.training.retraining import retrain
from compressor.training.ways import Wishes, recipe_for

STATE = "train.state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraining:
    """One run, decided before it starts: the artifact, the recipe, and the folders of its result and its state."""

    artifact: Artifact
    checkpoint: Checkpoint
    recipe: Recipe
    folder: Path
    teacher: nn.Module | None = None
    early_state: Mapping[str, Tensor] | None = None
    device: str | None = None

    @property
    def state_file(self) -> Path:
        """The file from which an interrupted run continues."""
        return self.folder.with_name(f"{self.folder.name}.partial") / STATE


def prepare(
    artifact: Artifact,
    how: How,
    *,
    wishes: Wishes,
    folder: Path | None = None,
    dense: Path | None = None,
    taught: bool = False,
    early_state: Mapping[str, Tensor] | None = None,
    device: str | None = None,
    force: bool = False,
    trust_pickle: bool = False,
) -> Retraining:
    """Decide and check everything before the first step: the recipe, the folder, the teacher.

    Refused: what `recipe_for` refuses, an existing folder, a missing teacher, a temperature without a teacher.
    """
    if wishes.temperature is not None and not taught:
        raise RetrainError("a temperature softens a teacher's scores, and there is none", hint="add `--teacher dense`")
    folder = folder or default_folder(artifact, how)
    check_free(folder, force=force)
    checkpoint = artifact.checkpoint(trust_pickle=trust_pickle)
    teacher = artifact.dense(dense, trust_pickle=trust_pickle).module if taught else None
    small_cost = count(checkpoint.module, checkpoint.example_inputs)
    recipe = recipe_for(
        how,
        dense_recipe=checkpoint.training,
        dense_cost=_dense_cost(artifact, small_cost, dense, trust_pickle=trust_pickle),
        small_cost=small_cost,
        wishes=wishes,
        images=checkpoint.reads_images,
    )
    return Retraining(
        artifact=artifact,
        checkpoint=checkpoint,
        recipe=recipe,
        folder=folder,
        teacher=teacher,
        early_state=early_state,
        device=device,
    )


def wants_teacher(teacher: str | None) -> bool:
    """Return true if `--teacher` names a teacher; the dense network is the only one."""
    if teacher not in (None, "dense"):
        raise RetrainError(
            f"there is no teacher called `{teacher}`", hint="follow the dense network: `--teacher dense`"
        )
    return teacher is not None


def default_folder(artifact: Artifact, how: str) -> Path:
    """Return the default folder beside the artifact: `NAME.HOW.compressed`."""
    stem = artifact.folder.resolve().name.removesuffix(SUFFIX)
    return (
        artifact.folder.with_name(f"{stem}.{how}{SUFFIX}") if artifact.folder.name else Path(f"../{stem}.{how}{SUFFIX}")
    )


def _dense_cost(artifact: Artifact, small: Cost, dense: Path | None, *, trust_pickle: bool) -> Cost:
    """The cost counted when the artifact was made; a masked network costs as much as the dense one."""
    results = artifact.results()
    params, macs = results.achieved("params"), results.achieved("macs")
    if params is not None and macs is not None:
        return Cost(params=params[0], macs=macs[0], bytes=small.bytes)
    if results.masking is not None:
        return small
    network = artifact.dense(dense, trust_pickle=trust_pickle)
    return count(network.module, network.example_inputs)


def run(
    retraining: Retraining,
    data: Data,
    *,
    callbacks: tuple[Callback, ...] = (),
    command: str = "",
    force: bool = False,
    trust_pickle: bool = False,
) -> Retrained:
    """Train, and write the artifact; return the new entry of its results. The run's state is deleted afterwards.

    Results of the old weights (export, quantize, bench, evaluate) are dropped, because they would be wrong.
    """
    mask = retraining.artifact.mask()
    retrained = retrain(
        retraining.checkpoint,
        data,
        recipe=retraining.recipe,
        teacher=retraining.teacher,
        callbacks=callbacks,
        state_file=retraining.state_file,
        mask=mask,
        early_state=retraining.early_state,
        device=retraining.device,
    )
    step = Retrained.from_json(retrained.lineage[-1], place="lineage")
    entry = dataclasses.replace(step, notes=retraining.recipe.notes, command=command)
    old = retraining.artifact.results().without_measurements()
    results = dataclasses.replace(old, retrainings=(*old.retrainings, entry), lineage=tuple(retrained.lineage))
    write_artifact(
        retraining.folder,
        dataclasses.replace(retrained, name=retraining.checkpoint.name),
        source=retraining.artifact.recipe["source"],
        results=results,
        force=force,
        trust_pickle=trust_pickle,
        mask=mask,
    )
    shutil.rmtree(retraining.state_file.parent, ignore_errors=True)
    return entry
