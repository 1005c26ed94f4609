"""Everything on the sample model, offline."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.children import python_module
from compressor.cli.groups import Panel
from compressor.cli.options import ExitCode, console, strong
from compressor.cli.result_tables import columns
from compressor.errors import ArtifactError

if TYPE_CHECKING:
    from compressor.results.artifact import Results
    from compressor.results.timing import TimedRow

FOLDER = Path("compress-demo")
SMALL, TUNED = "fashion_resnet20.compressed", "fashion_resnet20.fine-tune.compressed"
CLOCK = "--batch 1 --threads 1 --runtimes onnxruntime-cpu"


def command(
    out: Annotated[Path, typer.Option(help="Folder to work in.", rich_help_panel=Panel.OUTPUT)] = FOLDER,
    epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning.", min=1, rich_help_panel=Panel.TRAINING)] = 2,
) -> None:
    """Make the sample ResNet-20 twice as fast, command by command: prune and repair, measure, retrain, export, report.

    For example:

    - `compress demo`

    It takes about three minutes on two cores. The last table has the accuracy of each network next to its speed.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"the demo cannot work in {out}: {error.strerror or error}", hint="give a folder: `--out DIR`"
        ) from error
    with contextlib.chdir(out):
        for step in steps(epochs):
            console().print("\n", strong(f"$ compress {step}", "bold cyan"), "\n", sep="", soft_wrap=True)
            status = subprocess.run(python_module("compressor.cli.main", *shlex.split(step)), check=False)
            if status.returncode:
                raise typer.Exit(status.returncode)
        show(rows(_results(SMALL), _results(TUNED)))
    console().print("\nthe report is ", strong(out / TUNED / "report.html"), sep="", soft_wrap=True)
    raise typer.Exit(ExitCode.DONE)


def steps(epochs: int) -> tuple[str, ...]:
    """The demo's command lines: a speed-up with repair, then training; at the end all networks on one clock."""
    import sample_models
    from compressor.data.sources import SAMPLE_FILE

    folder = Path(sample_models.__file__).parent
    model, images = shlex.quote(str(folder / "fashion_resnet20.pt")), shlex.quote(str(folder / SAMPLE_FILE))
    return (
        f"inspect {model}",
        f"prune {model} --speedup 2 --threads 1 --data {images} --force",
        f"evaluate {SMALL}",
        f"retrain {SMALL} --how fine-tune --epochs {epochs} --force",
        f"export {TUNED} --onnx",
        f"bench {TUNED} {CLOCK}",
        f"evaluate {TUNED}",
        f"report {TUNED}",
    )


def rows(repaired: Results, retrained: Results) -> Iterator[tuple[str, str, str, str]]:
    """Name, accuracy, latency and speed-up of the dense, the masked, the repaired and the retrained network."""
    from compressor.words import DASH

    yield "dense", _accuracy(retrained, "dense"), *_speed(retrained, "dense")
    for name in ("masked weights", "masked channels"):
        yield name, DASH, *_speed(retrained, name)
    assert repaired.latency is not None  # the budget was a speed-up, and pruning measured it
    yield "small, repaired without labels", _accuracy(repaired, "small"), *_words(repaired.latency.rows[-1])
    yield "small, then retrained", _accuracy(retrained, "small"), *_speed(retrained, "small")


def _accuracy(results: Results, model: str) -> str:
    from compressor.words import score_interval, scored

    (quality,) = (one.quality for one in results.evaluations if one.model == model)
    return f"{scored(quality)} ({score_interval(quality)})"


def _speed(results: Results, candidate: str) -> tuple[str, str]:
    assert results.bench is not None  # a step measured it
    (row,) = (one for one in results.bench.rows if one.candidate == candidate)
    return _words(row)


def _words(row: TimedRow) -> tuple[str, str]:
    from compressor.words import finding, milliseconds

    return milliseconds(row.median_ms), finding(row.speedup)


def _results(folder: str) -> Results:
    from compressor.checkpoint.artifacts import open_artifact

    return open_artifact(Path(folder)).results()


def show(table: Iterator[tuple[str, str, str, str]]) -> None:
    """Accuracy next to speed, on stdout."""
    shown = columns("network", "accuracy", "latency", "speed-up", left=("network", "accuracy", "speed-up"))
    for cells in table:
        shown.add_row(*cells)
    console().print()
    console().print(shown)
    console().print(
        "\naccuracy on the test split, with its 95 % interval; each speed-up is over the dense network in turns with it"
    )
