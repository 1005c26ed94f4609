"""Show what the output loses as each channel group is narrowed: a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compressor.cli.options import (
    ArchArgOption,
    ArchOption,
    DataOption,
    DataRootOption,
    DownloadOption,
    InputOption,
    JsonOption,
    MeanOption,
    ModelArgument,
    SeedOption,
    StdOption,
    TrustOption,
    console,
    load_data_option,
    load_model,
    print_json,
    status,
)
from compressor.files.names import file_name_from


def command(
    model: ModelArgument,
    data: DataOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    mean: MeanOption = None,
    std: StdOption = None,
    criterion: Annotated[str, typer.Option(help="Which channels leave first: obs, l1-norm, taylor, …")] = "obs",
    align: Annotated[str, typer.Option(help="Widths that are tried are multiples of this number.")] = "auto",
    calibration: Annotated[int, typer.Option(help="How many images are looked at; no labels.", min=2)] = 512,
    protect: Annotated[
        list[str] | None, typer.Option(help="A glob of layers whose channels stay; repeat for more.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The picture's file; NAME.sensitivity.svg.")] = None,
    arch: ArchOption = None,
    arch_arg: ArchArgOption = None,
    input_shape: InputOption = None,
    trust_pickle: TrustOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure the output's error against the width of each channel group, narrowed alone and repaired.

    Example: `compress sensitivity model.pt --data images/`
    """
    from compressor.errors import DataError
    from compressor.jobs.prune import request_from
    from compressor.jobs.sensitivity import measure_curves
    from compressor.pruning.request import Request
    from compressor.report.sensitivities import picture, write_picture

    request = request_from(
        ratio=0.5, criterion=criterion, align=align, calibration=calibration, protect=protect or (), seed=seed,
        repair="least-squares",
    )  # fmt: skip
    assert isinstance(request, Request)
    with status("loading") as say:
        checkpoint = load_model(
            model, arch=arch, arch_args=arch_arg, inputs=input_shape, trust_pickle=trust_pickle, mean=mean, std=std
        )
        found = load_data_option(data, root=data_root, download=download, seed=seed, checkpoint=checkpoint)
        if found is None:
            raise DataError("measuring takes images", hint="give some, labels are not needed: `--data DIR`")
        curves = measure_curves(checkpoint, request, found, say=say).to_json()
    file = out or Path(f"{file_name_from(checkpoint.name)}.sensitivity.svg")
    write_picture(file, picture(curves))
    if as_json:
        print_json(curves)
        return
    show(curves)
    console().print(f"\nwrote {file}", markup=False, soft_wrap=True)


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
