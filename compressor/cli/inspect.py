"""What can be pruned, what cannot and why, and what it would buy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.groups import Panel
from compressor.cli.loading import load_model
from compressor.cli.options import (
    JsonOption,
    ModelArgument,
    NetworkOptions,
    ProtectOption,
    console,
    print_json,
    status,
    strong,
    talk,
)

if TYPE_CHECKING:
    from compressor.jobs.inspect import Inspection


def command(
    model: ModelArgument,
    network: NetworkOptions,
    protect: ProtectOption = None,
    report_coverage: Annotated[
        bool,
        typer.Option(
            "--report-coverage",
            help="MODEL is a list of architectures, one a line: report how far each one gets.",
            rich_help_panel=Panel.RUN,
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what can be pruned, what cannot and why, and what it would save.

    For example:

    - `compress inspect sample_models/fashion_resnet20.pt`
    - `compress inspect names.txt --report-coverage`

    With `--report-coverage`, architectures with random weights go through every stage: pruned at 0.5 with proof, a
    backward pass, pruned again, exported, read back.

    """
    from compressor.jobs.inspect import inspect

    if report_coverage:
        return cover(model, as_json=as_json)

    with status("loading"):
        inspection = inspect(load_model(model, network), protect=tuple(protect or ()))
    if as_json:
        print_json(inspection.to_json())
    else:
        show(inspection)
    return None


def cover(file: Path, *, as_json: bool) -> None:
    """How far each architecture in the file gets, as a table or as JSON; a word on each as it goes."""
    from rich.table import Table

    from compressor.jobs.coverage import coverage_of, listed

    rows = []
    with status("reading") as say:
        for architecture, shapes in listed(file):
            rows.append(
                coverage_of(architecture, shapes, say=lambda text, ref=architecture.ref: say(f"{ref}: {text}"))  # type: ignore[misc]
            )
            if not as_json:
                talk().print(f"{architecture.ref}: {rows[-1].reached or 'nowhere'}", style="dim")
    if as_json:
        print_json({"architectures": [row.to_json() for row in rows]})
        return
    table = Table(box=None, pad_edge=False)
    for name in ("architecture", "reached", "form", "parameters left", "proof", "parity", "why not further"):
        table.add_column(name, overflow="fold")
    for row in rows:
        left = "" if row.left is None else f"{row.left:.1%}"
        figures = ["" if value is None else f"{value:.1e}" for value in (row.proof, row.parity)]
        table.add_row(row.architecture, row.reached or "-", row.form or "", left, *figures, row.why or "")
    console().print(table)
    through = sum(row.through for row in rows)
    console().print(f"\n{through} of {len(rows)} all the way")


def show(inspection: Inspection) -> None:
    """The inspection as tables on stdout."""
    from rich.table import Table

    from compressor.words import percent, scaled, size

    plain: dict[str, Any] = inspection.to_json()
    out = console()
    shapes = ", ".join(plain["inputs"])
    out.print(strong(plain["name"]), f" {plain['architecture']}, input {shapes}")
    out.print(
        f"{scaled(plain['params'])} parameters, {scaled(plain['macs'])} MACs, {size(plain['bytes'])} of weights\n"
    )
    table = Table(title=f"{len(plain['groups'])} channel groups", title_justify="left", box=None, pad_edge=False)
    for name, justify in (("group", "left"), ("channels", "right"), ("positions each", "right"), ("layers", "right"),
                          ("parameters", "right"), ("MACs", "right")):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # the two literals that rich knows
    for group in plain["groups"]:
        table.add_row(
            group["root"],
            str(group["channels"]),
            str(group["size"]) if group["size"] > 1 else "",
            str(len(group["layers"])),
            scaled(group["params"]),
            scaled(group["macs"]),
        )
    out.print(table)
    if plain["left_alone"]:
        alone = Table(title="\nleft alone", title_justify="left", box=None, pad_edge=False)
        alone.add_column("layer")
        alone.add_column("why")
        for layer in plain["left_alone"]:
            alone.add_row(layer["layer"], layer["reason"])
        out.print(alone)
    would = Table(title="\nwhat a uniform ratio would leave", title_justify="left", box=None, pad_edge=False)
    for name in ("ratio", "channels", "parameters", "MACs"):
        would.add_column(name, justify="right")
    for row in plain["would_leave"]:
        would.add_row(f"{row['ratio']:g}", *(percent(row[key], decimals=1) for key in ("channels", "params", "macs")))
    out.print(would)
    out.print("\na group's parameters and MACs are those of every layer that makes or reads its channels", style="dim")
