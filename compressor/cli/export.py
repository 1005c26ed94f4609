"""Write a network as ONNX, checked and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.groups import Panel
from compressor.cli.loading import checkpoint_in, load_model, open_default
from compressor.cli.options import (
    JsonOption,
    NetworkArgument,
    NetworkOptions,
    console,
    print_json,
    status,
    strong,
    talk,
)
from compressor.files.model_folders import is_artifact_folder

if TYPE_CHECKING:
    from compressor.results.parity import Parity


def command(
    network: NetworkOptions,
    model: NetworkArgument = None,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="The format; ONNX is the only one, and the default.", rich_help_panel=Panel.OUTPUT),
    ] = False,
    opset: Annotated[
        int | None, typer.Option(help="Version of ONNX's operators to write.", rich_help_panel=Panel.OUTPUT)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File to write; by default `model.onnx` in the artifact.", rich_help_panel=Panel.OUTPUT
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a network as ONNX, run it in onnxruntime, and compare every output with the network's.

    For example:

    - `compress export --onnx`
    - `compress export model.pt --out model.onnx --opset 20`
    """
    from compressor.jobs import export as work

    del onnx  # it names the only format
    artifact = open_default(model) if model is None or is_artifact_folder(model) else None
    with status("loading") as say:
        if artifact is not None:
            checkpoint = checkpoint_in(artifact, network)
        else:
            assert model is not None
            checkpoint = load_model(model, network)
        say("exporting, and comparing in onnxruntime")
        file, parity = work.export_to(out, checkpoint, artifact=artifact, opset=opset)
    if as_json:
        print_json({"file": str(file), **parity.to_json()})
    else:
        show(file, parity)


def show(file: Path, parity: Parity) -> None:
    """Where the file is and how well it agrees, on stdout."""
    from compressor.words import size, tiny

    out = console()
    sizes = " and ".join(map(str, parity.batch_sizes))
    out.print(
        f"parity: {tiny(parity.largest_relative_difference)} relative, the largest of {parity.outputs} outputs over "
        f"{parity.batches} batches of {sizes}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    batch = "any batch size" if parity.dynamic_batch else "batches of one"
    out.print("wrote ", strong(file), f": {size(parity.bytes)}, opset {parity.opset}, {batch}", sep="", soft_wrap=True)
    if parity.same_maxima:
        talk().print(
            "two maxima may differ by rounding alone: the comparison uses the positions that the file chose",
            style="dim",
        )
    for note in filter(None, (parity.note, parity.sparse_note)):
        talk().print(note, style="yellow", markup=False, soft_wrap=True)
    if parity.sparse is not None:
        out.print("wrote ", strong(parity.sparse.file), f": {size(parity.sparse.bytes)}", sep="", soft_wrap=True)
        talk().print(parity.sparse.statement or "", style="dim", markup=False, soft_wrap=True)
