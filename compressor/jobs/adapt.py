"""What `compress adapt` does, for library users too: a network and two domains in, an artifact out."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.checkpoint.artifact_writing import check_free, write_artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import Recipe, Schedule, Shape, Step
from compressor.data.batches import augmentation_named
from compressor.data.domains import TargetDomain, target_of
from compressor.data.splits import Data, SplitName
from compressor.progress import Say, quiet
from compressor.pruning.pipeline import Pruned
from compressor.pruning.transfer.rounds import IMAGES, LEAST_WIDTH, ROUNDS, TransferPruning, prune_while_adapting
from compressor.pruning.transfer.scores import check_comparable
from compressor.results.artifact import Results
from compressor.results.training import Retrained
from compressor.training.domains.adaptation import Alignment, adapt, alignment_of
from compressor.training.loop import Callback

EPOCHS, ROUND_EPOCHS, FINAL_EPOCHS = 5, 1, 5
RATE, BATCH = 0.01, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """A run, decided before it starts: training while adapting, and the pruning meanwhile, if any."""

    alignment: Alignment
    recipe: Recipe
    pruning: TransferPruning | None = None

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        pruning = None if self.pruning is None else _plain(self.pruning)
        return {"alignment": self.alignment.to_json(), "recipe": self.recipe.to_json(), "pruning": pruning}


def _plain(pruning: TransferPruning) -> dict[str, object]:
    values = {field.name: getattr(pruning, field.name) for field in dataclasses.fields(pruning)}
    return {name: v.to_json() if isinstance(v, Recipe) else v for name, v in values.items()}


def adaptation_from(
    checkpoint: Checkpoint,
    *,
    macs: float | None = None,
    layer: str | None = None,
    weight: float = 1.0,
    epochs: int = EPOCHS,
    rounds: int = ROUNDS,
    round_epochs: int = ROUND_EPOCHS,
    final_epochs: int = FINAL_EPOCHS,
    rate: float = RATE,
    batch_size: int = BATCH,
    augment: str = "none",
    calibration: int = IMAGES,
    align: int = 1,
    min_channels: int = LEAST_WIDTH,
    protect: Sequence[str] = (),
    seed: int = 0,
) -> Adaptation:
    """Return the run for a command line's plain values. Refused: unknown names, values that make no run.

    `macs` is the share that stays; without it nothing is pruned. Every stage uses DAN's schedule from `rate`.
    """
    augmentations = tuple(name.strip() for name in augment.split(",") if name.strip() not in ("", "none"))
    augmentation_named(augmentations, size=(1, 1))

    def recipe(length: int) -> Recipe:
        return Recipe(
            budget=Step(epochs=length),
            schedule=Schedule(rate=rate, shape=Shape.INVERSE, warmup=0.0),
            batch_size=batch_size,
            augment=augmentations,
            seed=seed,
        )

    pruning = None
    if macs is not None:
        pruning = TransferPruning(
            stays=macs, rounds=rounds, between=recipe(round_epochs), final=recipe(final_epochs), images=calibration,
            align=align, min_channels=min_channels, protect=tuple(protect),
        )  # fmt: skip
    return Adaptation(
        alignment=alignment_of(checkpoint, layer=layer, weight=weight), recipe=recipe(epochs), pruning=pruning
    )


def states_beside(folder: Path) -> Path:
    """Return the folder in which a run that writes `folder` stores what it needs to continue after an interruption."""
    return folder.with_name(f"{folder.name}.partial")


def adapted(
    checkpoint: Checkpoint,
    source: Data,
    target: TargetDomain,
    adaptation: Adaptation,
    *,
    device: str | None = None,
    callbacks: tuple[Callback, ...] = (),
    states: Path | None = None,
    say: Say = quiet,
) -> tuple[Checkpoint, Pruned | None]:
    """Return the network after the whole run, and the pruning; the checkpoint stays unchanged."""
    say("adapting")
    drawn = adapt(
        checkpoint, source, target, recipe=adaptation.recipe, alignment=adaptation.alignment, callbacks=callbacks,
        state_file=None if states is None else states / "adapt.state", device=device,
    )  # fmt: skip
    if adaptation.pruning is None:
        return drawn, None
    done = prune_while_adapting(
        drawn, source, target, alignment=adaptation.alignment, pruning=adaptation.pruning, callbacks=callbacks,
        states=states, say=say, device=device,
    )  # fmt: skip
    return done.checkpoint, done.pruned


def adapt_to(
    folder: Path,
    checkpoint: Checkpoint,
    source: Data,
    target: Data,
    adaptation: Adaptation,
    *,
    device: str | None = None,
    callbacks: tuple[Callback, ...] = (),
    command: str = "",
    force: bool = False,
    trust_pickle: bool = False,
    say: Say = quiet,
) -> Results:
    """Adapt, prune and write the artifact to `folder`; return its results. The run's state is deleted afterwards.

    Of the target, only the training images are used, without their labels. Refused: an existing folder, data without a
    training split, what the stages refuse.
    """
    check_free(folder, force=force)
    if adaptation.pruning is not None:
        check_comparable(checkpoint.module, adaptation.alignment.layer)
    small, pruned = adapted(
        checkpoint, source, target_of(target), adaptation, device=device, callbacks=callbacks,
        states=states_beside(folder), say=say,
    )  # fmt: skip
    pruning = None if pruned is None else pruned.result
    if pruned is not None and pruning is not None:
        images = min(pruned.request.images, len(source.split(SplitName.TRAIN)))
        pruning = dataclasses.replace(pruning, data={"name": source.name, "images": images})
    results = Results.of(
        checkpoint.name,
        command,
        small.lineage,
        adapt={**adaptation.to_json(), "source": source.to_json(), "target": target_of(target).to_json()},
        retrainings=tuple(
            _as_training(step, source, command)
            for step in small.lineage[len(checkpoint.lineage) :]
            if step["step"] == "adapt"
        ),
        pruning=pruning,
    )
    origin = checkpoint.source
    say("writing, and reading it back in a fresh process")
    artifact = write_artifact(folder, small, source=origin, results=results, force=force, trust_pickle=trust_pickle)
    shutil.rmtree(states_beside(folder), ignore_errors=True)
    return artifact.results()


def _as_training(step: Mapping[str, Any], source: Data, command: str) -> Retrained:
    """A stage in the form of a training in the report."""
    images = len(source.split(SplitName.TRAIN))
    entry = {**step, "how": "adapt", "data": source.name, "images": images, "command": command}
    return Retrained.from_json(entry, place="retrain")
