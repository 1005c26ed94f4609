"""How good a network is on data: correct of total with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.groups import Panel, changed
from compressor.cli.loading import checkpoint_in, load_model, open_default, use_threads
from compressor.cli.options import (
    DataOptions,
    DenseOption,
    JsonOption,
    NetworkOptions,
    NormalisationOptions,
    SeedOption,
    ThreadsOption,
    console,
    print_json,
    refuse_silent,
    talk,
)
from compressor.files.model_folders import is_artifact_folder

if TYPE_CHECKING:
    from compressor.checkpoint.artifacts import Artifact
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.jobs.evaluate import Subject
    from compressor.results.artifact import Evaluation


def command(
    images: DataOptions,
    normalisation: NormalisationOptions,
    network: NetworkOptions,
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A checkpoint, the folder of an artifact or an ONNX file; by default the newest artifact here."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="test, tune, train or all; by default test where there is one.", rich_help_panel=Panel.DATA),
    ] = None,
    dense: DenseOption = None,
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Print correct/total with its interval, or without labels the agreement with the dense network.

    For example:

    - `compress evaluate model.compressed --data DIR`
    - `compress evaluate model.onnx --data test.npz --split all`
    """
    from compressor.jobs import evaluate as work

    use_threads(threads)
    subject, checkpoint, artifact = _subject(model, network, threads=threads)
    subject = work.normalised(subject, normalisation.mean, normalisation.std)
    data = work.data_of(
        subject,
        images.data,
        checkpoint=checkpoint,
        root=images.data_root,
        download=images.download,
        seed=seed,
        task=images.task,
    )
    reference, why_not = work.dense_of(artifact, dense, trust_pickle=network.trust_pickle)
    if reference is not None:
        reference = work.normalised(reference, normalisation.mean, normalisation.std)
    if why_not is not None:
        talk().print(f"without the dense network beside it: {why_not}", style="dim", markup=False, soft_wrap=True)
    evaluations = work.judge(subject, reference, data, split=split)
    if artifact is not None:
        work.record(artifact, evaluations)
    if as_json:
        print_json([evaluation.to_json() for evaluation in evaluations])
    else:
        show(evaluations)
    name = evaluations[0].quality.split
    if name in data.drawn:
        text = (
            f"{data.name} has no {name} split of its own: seed {seed} drew these images; `--split all` reads every one"
        )
        talk().print(text, style="dim", markup=False, soft_wrap=True)


def _subject(
    model: Path | None, network: NetworkOptions, *, threads: int | None
) -> tuple[Subject, Checkpoint | None, Artifact | None]:
    """What is judged, with its checkpoint and its artifact where it has them."""
    from compressor.jobs import evaluate as work

    if model is not None and work.is_onnx(model):
        refuse_silent(
            changed(network, "--arch", "--arch-arg", "--input"),
            because="on an ONNX file, which holds all of its network",
            hint="leave it out",
        )
        artifact = work.artifact_around(model)
        checkpoint = artifact.checkpoint(trust_pickle=network.trust_pickle) if artifact else None
        return work.subject_of_onnx(model, threads=threads), checkpoint, artifact
    if model is None or is_artifact_folder(model):
        artifact = open_default(model)
        checkpoint = checkpoint_in(artifact, network)
        return work.subject_of(checkpoint, model="small"), checkpoint, artifact
    checkpoint = load_model(model, network)
    return work.subject_of(checkpoint, model="network"), checkpoint, None


def show(evaluations: tuple[Evaluation, ...]) -> None:
    """One line for each network, on stdout."""
    from compressor.results.quality import Agreement, Counted, Score
    from compressor.words import counted, score_interval, scored, tiny

    out = console()
    for evaluation in evaluations:
        quality = evaluation.quality
        if isinstance(quality, Counted):
            what = f"{counted(quality)} {'agree with the dense network' if quality.against_dense else 'correct'},"
        else:
            what = f"{quality.named}, of {counted(quality)},"
        text = f"{evaluation.model}: {what} {scored(quality)} ({score_interval(quality)})"
        out.print(f"{text}, on {evaluation.data}, {quality.split}", markup=False, soft_wrap=True)
        if quality.against_dense:
            error = quality.relative_error if isinstance(quality, (Agreement, Score)) else None
            if error is not None:
                out.print(f"relative error of the outputs: {tiny(error)}", markup=False)
            text = "the data has no labels: this is agreement with the dense network, not accuracy"
            talk().print(text, style="dim", soft_wrap=True)
