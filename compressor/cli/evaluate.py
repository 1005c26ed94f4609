"""How good a network is on data: correct of total with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.groups import Panel, given
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

if TYPE_CHECKING:
    from compressor.checkpoint.artifacts import Artifact
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.jobs.evaluate import Judgement, Subject


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
        subject, images.data, checkpoint=checkpoint, root=images.data_root, download=images.download, seed=seed
    )
    reference, why_not = work.dense_of(artifact, dense, trust_pickle=network.trust_pickle)
    if reference is not None:
        reference = work.normalised(reference, normalisation.mean, normalisation.std)
    if why_not is not None:
        talk().print(f"without the dense network beside it: {why_not}", style="dim", markup=False, soft_wrap=True)
    judgements = work.judge(subject, reference, data, split=split)
    if artifact is not None:
        work.record(artifact, judgements)
    if as_json:
        print_json([judgement.to_json() for judgement in judgements])
    else:
        show(judgements)
    name = judgements[0].quality.split
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
            given(network, "--arch", "--arch-arg", "--input"),
            because="on an ONNX file, which holds all of its network",
            hint="leave it out",
        )
        artifact = work.artifact_around(model)
        checkpoint = artifact.checkpoint(trust_pickle=network.trust_pickle) if artifact else None
        return work.subject_of_onnx(model, threads=threads), checkpoint, artifact
    if model is None or model.is_dir():
        artifact = open_default(model)
        checkpoint = checkpoint_in(artifact, network)
        return work.subject_of(checkpoint, model="small"), checkpoint, artifact
    checkpoint = load_model(model, network)
    return work.subject_of(checkpoint, model="network"), checkpoint, None


def show(judgements: tuple[Judgement, ...]) -> None:
    """One line for each network, on stdout."""
    from compressor.measuring.accuracy import Accuracy

    out = console()
    for judgement in judgements:
        quality = judgement.quality
        low, high = quality.interval
        where = f"on {judgement.data}, {quality.split}"
        if isinstance(quality, Accuracy):
            text = f"{quality.correct}/{quality.total} correct, {quality.share:.2%} ({low:.2%} to {high:.2%})"
            out.print(f"{judgement.model}: {text}, {where}", markup=False, soft_wrap=True)
        else:
            text = f"{quality.agreeing}/{quality.total} agree with the dense network, {quality.share:.2%}"
            out.print(f"{judgement.model}: {text} ({low:.2%} to {high:.2%}), {where}", markup=False, soft_wrap=True)
            out.print(f"relative error of the scores: {quality.relative_error:.3g}", markup=False)
            talk().print(
                "the images have no labels: this is agreement, and says nothing about being right", style="dim"
            )
