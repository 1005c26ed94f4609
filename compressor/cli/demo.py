"""All of it on the sample model, offline."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from compressor.children import python_module
from compressor.cli.groups import Panel
from compressor.cli.options import ExitCode, console, strong
from compressor.errors import ArtifactError

FOLDER = Path("compress-demo")


def command(
    out: Annotated[Path, typer.Option(help="Folder to work in.", rich_help_panel=Panel.OUTPUT)] = FOLDER,
    epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning.", min=1, rich_help_panel=Panel.TRAINING)] = 2,
) -> None:
    """Prune, retrain, export, measure and report on the sample ResNet-20, command by command.

    For example:

    - `compress demo`
    """
    import sample_models

    model = Path(sample_models.__file__).parent / "fashion_resnet20.pt"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"the demo cannot work in {out}: {error.strerror or error}", hint="give a folder: `--out DIR`"
        ) from error
    small = "fashion_resnet20.fine-tune.compressed"
    steps = (
        f"inspect {shlex.quote(str(model))}",
        f"prune {shlex.quote(str(model))} --ratio 0.5 --force",
        f"retrain fashion_resnet20.compressed --how fine-tune --epochs {epochs} --force",
        f"export {small} --onnx",
        f"bench {small} --batch 1 --threads 1 --runtimes onnxruntime-cpu",
        f"evaluate {small}",
        f"report {small}",
    )
    with contextlib.chdir(out):
        for step in steps:
            console().print("\n", strong(f"$ compress {step}", "bold cyan"), "\n", sep="", soft_wrap=True)
            status = subprocess.run(python_module("compressor.cli.main", *shlex.split(step)), check=False)
            if status.returncode:
                raise typer.Exit(status.returncode)
    console().print("\nthe report is ", strong(out / small / "report.html"), sep="", soft_wrap=True)
    raise typer.Exit(ExitCode.DONE)
