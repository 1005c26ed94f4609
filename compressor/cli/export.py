"""Write a network as ONNX, checked and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compressor.cli.groups import Panel
from compressor.cli.loading import checkpoint_in, load_model, open_default
from compressor.cli.options import (
    JsonOption,
    NetworkArgument,
    NetworkOptions,
    console,
    print_json,
    short,
    status,
    strong,
    talk,
)


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
    artifact = open_default(model) if model is None or model.is_dir() else None
    with status("loading") as say:
        if artifact is not None:
            checkpoint = checkpoint_in(artifact, network)
        else:
            assert model is not None
            checkpoint = load_model(model, network)
        say("exporting, and comparing in onnxruntime")
        file, results = work.export_to(out, checkpoint, artifact=artifact, opset=opset)
    if as_json:
        print_json({"file": str(file), **results})
    else:
        show(file, results)


def show(file: Path, results: dict[str, Any]) -> None:
    """Where the file is and how well it agrees, on stdout."""
    out = console()
    sizes = " and ".join(map(str, results["batch_sizes"]))
    out.print(
        f"parity: {results['largest_relative_difference']:.1e} relative, the largest of {results['outputs']} outputs "
        f"over {results['batches']} batches of {sizes}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    batch = "any batch size" if results["dynamic_batch"] else "batches of one"
    said = f": {short(results['bytes'])}B, opset {results['opset']}, {batch}"
    out.print("wrote ", strong(file), said, sep="", soft_wrap=True)
    if results.get("same_maxima"):
        talk().print(
            "two maxima may be alike but for rounding: it was compared at the positions that the file chose",
            style="dim",
        )
    if results["note"]:
        talk().print(results["note"], style="yellow", markup=False, soft_wrap=True)
    if "sparse" in results:
        sparse = results["sparse"]
        out.print("wrote ", strong(sparse["file"]), f": {short(sparse['bytes'])}B", sep="", soft_wrap=True)
        talk().print(results["sparse"]["statement"], style="dim", markup=False, soft_wrap=True)
