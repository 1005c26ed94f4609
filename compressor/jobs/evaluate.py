"""What `compress evaluate` does, for library users too: any network, any data, and the quality that they allow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from compressor.checkpoint.artifact_writing import add_results
from compressor.checkpoint.artifacts import INT8, RECIPE, Artifact, open_artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.batches import is_labelled
from compressor.data.classes import with_labels_of
from compressor.data.expected import ANYTHING, expected_by
from compressor.data.preprocessing import Preprocessing, with_normalisation
from compressor.data.samples import Samples
from compressor.data.sources import FORMS, default_data, load_data
from compressor.data.splits import Data, SplitName
from compressor.errors import ArtifactError, CheckpointError, DataError, unknown
from compressor.measuring.onnx_network import OnnxNetwork, load_onnx
from compressor.measuring.quality import agreement, evaluate
from compressor.results.artifact import Evaluation

WHOLE = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network to judge: its name in the results, and its preprocessing."""

    model: str
    name: str
    network: nn.Module | OnnxNetwork
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None


def subject_of(checkpoint: Checkpoint, *, model: str) -> Subject:
    """Return a checkpoint as a network to judge."""
    return Subject(
        model=model,
        name=checkpoint.name,
        network=checkpoint.module,
        preprocessing=checkpoint.preprocessing,
        classes=checkpoint.classes,
    )


def subject_of_onnx(file: Path, *, threads: int | None = None) -> Subject:
    """Return an ONNX file as a network to judge, with the preprocessing and classes in its metadata."""
    network = load_onnx(file, threads=threads)
    model = "int8" if file.name == INT8 else "onnx"  # each has its own reading among an artifact's results
    return Subject(
        model=model, name=network.name, network=network, preprocessing=network.preprocessing, classes=network.classes
    )


def normalised(subject: Subject, mean: str | None, std: str | None) -> Subject:
    """Return the subject with another normalisation, written as `0.5,0.5,0.5`. Refused: text that is not numbers."""
    return replace(subject, preprocessing=with_normalisation(subject.preprocessing, mean, std))


def dense_of(artifact: Artifact | None, path: Path | None, *, trust_pickle: bool) -> tuple[Subject | None, str | None]:
    """Return the dense network to compare with, or the reason why there is none."""
    if artifact is None:
        if path is None:
            return None, None
        from compressor.checkpoint.loading import load

        return subject_of(load(path, trust_pickle=trust_pickle), model="dense"), None
    try:
        return subject_of(artifact.dense(path, trust_pickle=trust_pickle), model="dense"), None
    except (ArtifactError, CheckpointError) as error:
        if path is not None:
            raise
        return None, str(error)


def data_of(
    subject: Subject,
    source: str | None,
    *,
    checkpoint: Checkpoint | None,
    root: Path | None,
    download: bool,
    seed: int,
    task: str | None = None,
) -> Data:
    """Return the data to judge on, with the labels of the subject's classes; a sample model has its own data."""
    if source is None:
        if checkpoint is None:
            raise DataError(f"{subject.name} comes without data", hint=f"name it: `--data`, with {FORMS}")
        return default_data(checkpoint)
    expected = ANYTHING if checkpoint is None else expected_by(checkpoint, takes=subject.preprocessing.takes)
    data = load_data(source, root=root, download=download, seed=seed, task=task, expected=expected)
    return with_labels_of(data, subject.classes)


def artifact_around(file: Path) -> Artifact | None:
    """Return the artifact that contains an ONNX file, if any."""
    return open_artifact(file.parent) if (file.parent / RECIPE).is_file() else None


def chosen_split(data: Data, name: str | None) -> tuple[str, Samples]:
    """Return the split called `name`, or `all`; by default the test split, or the next one if there is none."""
    if name is None:
        name = next(str(s) for s in (SplitName.TEST, SplitName.TUNE, SplitName.TRAIN) if str(s) in data.sizes)
    if name == WHOLE:
        return WHOLE, data.whole
    if name not in list(SplitName):
        raise DataError(f"there is no split called `{name}`", hint=unknown("splits", name, [*SplitName, WHOLE]))
    return name, data.split(SplitName(name))


def judge(subject: Subject, dense: Subject | None, data: Data, *, split: str | None = None) -> tuple[Evaluation, ...]:
    """Return the accuracy of the subject and of the dense network; without labels, their agreement.

    Refused: images without labels if there is no dense network to agree with.
    """
    name, images = chosen_split(data, split)
    if not is_labelled(images, preprocessing=subject.preprocessing):
        if dense is None:
            raise DataError(
                f"{data.name} has no labels, and there is no dense network to compare with",
                hint="give the dense network, `--dense PATH`, or images in class folders",
            )
        agreed = agreement(
            subject.network, dense.network, images, split=name, preprocessing=subject.preprocessing, task=data.task
        )
        return (Evaluation(model=subject.model, data=data.name, quality=agreed),)
    return tuple(
        Evaluation(
            model=one.model,
            data=data.name,
            quality=evaluate(one.network, images, split=name, preprocessing=one.preprocessing, task=data.task),
        )
        for one in (subject, dense)
        if one is not None
    )


def record(artifact: Artifact, evaluations: tuple[Evaluation, ...]) -> None:
    """Add the evaluations to the artifact's results; they replace those of the same network, data and split."""
    places = {(one.model, one.data, one.quality.split) for one in evaluations}
    old = (e for e in artifact.results().evaluations if (e.model, e.data, e.quality.split) not in places)
    add_results(artifact.folder, evaluations=(*old, *evaluations))


def is_onnx(path: Path | None) -> bool:
    """Return true if the path names an ONNX file."""
    return path is not None and path.suffix.lower() == ".onnx"
