"""How good a network is on data: correct of total with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.options import (
    ArchArgOption,
    ArchOption,
    DataOption,
    DataRootOption,
    DenseOption,
    DownloadOption,
    InputOption,
    JsonOption,
    MeanOption,
    SeedOption,
    StdOption,
    ThreadsOption,
    TrustOption,
    checkpoint_in,
    console,
    load_model,
    open_default,
    print_json,
    refuse_silent,
    talk,
)

if TYPE_CHECKING:
    from compressor.jobs.evaluate import Judgement


def command(
    model: Annotated[
        Path | None,
        typer.Argument(help="A checkpoint, an artifact's folder or an ONNX file; the newest artifact by default."),
    ] = None,
    data: DataOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    split: Annotated[
        str | None, typer.Option(help="test, tune, train or all; by default test where there is one.")
    ] = None,
    dense: DenseOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    arch: ArchOption = None,
    arch_arg: ArchArgOption = None,
    input_shape: InputOption = None,
    trust_pickle: TrustOption = False,
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Print correct/total with its interval, or without labels the agreement with the dense network.

    Example: `compress evaluate model.compressed --data DIR`, `compress evaluate model.onnx --data test.npz --split all`
    """
    import torch

    from compressor.jobs import evaluate as work

    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = artifact = None
    if model is not None and work.is_onnx(model):
        refuse_silent(
            {"--arch": arch is not None, "--arch-arg": bool(arch_arg), "--input": bool(input_shape)},
            because="to an ONNX file, which holds all of its network",
            hint="leave it out",
        )
        subject, artifact = work.subject_of_onnx(model, threads=threads), work.artifact_around(model)
        checkpoint = artifact.checkpoint(trust_pickle=trust_pickle) if artifact else None
    elif model is None or model.is_dir():
        artifact = open_default(model)
        checkpoint = checkpoint_in(
            artifact, arch=arch, arch_args=arch_arg, inputs=input_shape, trust_pickle=trust_pickle
        )
        subject = work.subject_of(checkpoint, model="small")
    else:
        checkpoint = load_model(model, arch=arch, arch_args=arch_arg, inputs=input_shape, trust_pickle=trust_pickle)
        subject = work.subject_of(checkpoint, model="network")
    subject = work.normalised(subject, mean, std)
    found = work.data_of(subject, data, checkpoint=checkpoint, root=data_root, download=download, seed=seed)
    reference, why_not = work.dense_of(artifact, dense, trust_pickle=trust_pickle)
    if reference is not None:
        reference = work.normalised(reference, mean, std)
    if why_not is not None:
        talk().print(f"without the dense network beside it: {why_not}", style="dim", markup=False, soft_wrap=True)
    judgements = work.judge(subject, reference, found, split=split)
    if artifact is not None:
        work.record(artifact, judgements)
    if as_json:
        print_json([judgement.to_json() for judgement in judgements])
    else:
        show(judgements)
    name = judgements[0].quality.split
    if name in found.drawn:
        text = (
            f"{found.name} has no {name} split of its own: seed {seed} drew these images; `--split all` reads every one"
        )
        talk().print(text, style="dim", markup=False, soft_wrap=True)


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
