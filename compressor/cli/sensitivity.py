"""Show what the output loses as each channel group is narrowed: a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from compressor.cli.groups import Panel
from compressor.cli.loading import load_model, needed_data
from compressor.cli.options import (
    AlignOption,
    DataOptions,
    JsonOption,
    ModelArgument,
    NetworkOptions,
    NormalisationOptions,
    ProtectOption,
    SeedOption,
    console,
    print_json,
    status,
)
from compressor.files.names import file_name_from

if TYPE_CHECKING:
    from compressor.pruning.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveOptions:
    """What is measured."""

    panel: ClassVar[Panel] = Panel.CHANNELS
    criterion: Annotated[
        str, typer.Option(help="How channels are scored; the lowest leave first: obs, l1-norm, taylor, …")
    ] = "obs"
    align: AlignOption = "auto"
    protect: ProtectOption = None
    calibration: Annotated[
        int, typer.Option(help="Number of images to compute statistics on; labels are not needed.", min=2)
    ] = 512


def command(
    model: ModelArgument,
    curve: CurveOptions,
    images: DataOptions,
    normalisation: NormalisationOptions,
    network: NetworkOptions,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File of the picture (default NAME.sensitivity.svg).", rich_help_panel=Panel.OUTPUT),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the output's error against the width of each channel group, narrowed alone and repaired.

    For example:

    - `compress sensitivity model.pt --data images/`
    """
    from compressor.jobs.sensitivity import measure_curves
    from compressor.report.plots.look import write_picture
    from compressor.report.plots.sensitivities import picture

    request = _request(curve, seed=seed)
    with status("loading") as say:
        checkpoint = load_model(model, network, normalisation)
        data = needed_data(
            images, seed=seed, checkpoint=checkpoint,
            why="measuring takes images", hint="give some, labels are not needed: `--data DIR`",
        )  # fmt: skip
        curves = measure_curves(checkpoint, request, data, say=say).to_json()
    file = out or Path(f"{file_name_from(checkpoint.name)}.sensitivity.svg")
    write_picture(file, picture(curves))
    if as_json:
        print_json(curves)
        return
    show(curves)
    console().print(f"\nwrote {file}", markup=False, soft_wrap=True)


def _request(curve: CurveOptions, *, seed: int) -> Request:
    from compressor.jobs.requests import PruneOptions, request_from
    from compressor.pruning.request import Request

    options = PruneOptions(
        ratio=0.5, criterion=curve.criterion, align=curve.align, calibration=curve.calibration,
        protect=tuple(curve.protect or ()), seed=seed, repair="least-squares",
    )  # fmt: skip
    request = request_from(options)
    assert isinstance(request, Request)
    return request


def show(curves: dict[str, Any]) -> None:
    """One row per group: the error at each width that was tried."""
    from rich.table import Table

    most = max(len(group["widths"]) for group in curves["groups"])
    table = Table(box=None, pad_edge=False)
    table.add_column("group")
    table.add_column("channels", justify="right")
    for _ in range(most - 1):
        table.add_column("", justify="right")
    for group in curves["groups"]:
        pairs = list(zip(group["widths"], group["errors"], strict=True))[1:]
        cells = [f"{width}: {error:.2g}" for width, error in pairs]
        table.add_row(group["root"], str(group["widths"][0]), *cells)
    out, seen = console(), curves["data"]
    out.print(table)
    out.print(f"\nwidth: error; {curves['error']}", markup=False, soft_wrap=True)
    out.print(f"{seen['fitted']:,} images of {seen['name']} to fit, {seen['probed']:,} others to measure", markup=False)
    if curves["not_seen"]:
        out.print(f"not seen: {', '.join(curves['not_seen'])}", style="dim", markup=False)
