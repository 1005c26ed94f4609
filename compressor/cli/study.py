"""Run a published experiment again, and say whether its claims hold."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from compressor.cli.options import (
    DataOption,
    DataRootOption,
    DownloadOption,
    JsonOption,
    command_line,
    console,
    print_json,
    status,
    strong,
    talk,
)


def command(
    name: Annotated[str | None, typer.Argument(help="Which study; without a name, all are listed.")] = None,
    scale: Annotated[str, typer.Option(help="smoke: seconds; small: an hour on two cores; paper: a GPU.")] = "small",
    data: DataOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    jobs: Annotated[int, typer.Option(help="How many cells run at the same time.", min=1)] = 1,
    seeds: Annotated[int | None, typer.Option(help="Run so many seeds only, the first ones.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; NAME.study by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a published experiment again, and say whether its claims hold; what has finished never runs twice.

    Example: `compress study`, `compress study lottery-ticket --scale small --jobs 2 --data DIR`
    """
    from compressor.studies import papers as studies
    from compressor.studies.study import scale_named

    if name is None:
        for one in studies.names():
            console().print(strong(f"{one:18}"), studies.help_of(one))
        return
    from compressor.checkpoint.artifacts import write_json
    from compressor.report.markdown import markdown
    from compressor.report.page import page
    from compressor.report.sensitivities import write_picture
    from compressor.report.studies import document, picture
    from compressor.studies.runner import Progressed, run_study, told

    size, folder = scale_named(scale), out or Path(f"{name}.study")
    studies.load(name)
    source = functools.partial(data_of, data, root=data_root, download=download)

    def finished(progressed: Progressed) -> None:
        talk().print(f"{progressed.done}/{progressed.total} {progressed.cell.key}", style="dim", highlight=False)

    with status(f"{name}: what is there already") as say:
        results = run_study(
            name, size, source, folder / "cells", jobs=jobs, seeds=seeds, finished=finished,
            say=lambda s: say(f"{name}: {s}"),
        )  # fmt: skip
    found = told(name, size, results, data=source(), command=command_line())
    write_json(folder / "results.json", found)
    write_picture(folder / "report.html", page(document(found)))
    write_picture(folder / "report.md", markdown(document(found)))
    for number, plot in enumerate(found["plots"], start=1):
        write_picture(folder / f"plot-{number}.svg", picture(plot))
    if as_json:
        print_json(found)
        return
    show(found)
    console().print(f"\nwrote {folder}/report.html, report.md and results.json", markup=False, soft_wrap=True)


def data_of(source: str | None, *, root: Path | None, download: bool) -> Any:
    """The data that `--data` names, or the sample that ships with the sample models."""
    import sample_models
    from compressor.data.sources import SAMPLE_FILE, load_data

    where = source or str(Path(str(sample_models.__file__)).parent / SAMPLE_FILE)
    return load_data(where, root=root, download=download)


def show(found: dict[str, Any]) -> None:
    """Each claim's verdict, and the intervals that decided it."""
    from rich.table import Table

    from compressor.report.studies import finding_cells

    out = console()
    for claim in found["claims"]:
        out.print(f"\n{claim['verdict']}: {claim['claim']}", style="bold", markup=False, soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        for column in ("quantity", "claimed", "measured", "95% interval", "n", "verdict"):
            table.add_column(column, justify="right" if column in ("measured", "95% interval", "n") else "left")
        for finding in claim["findings"]:
            table.add_row(*finding_cells(finding))
        out.print(table)
        if claim["why"]:
            out.print(claim["why"], style="dim", markup=False, soft_wrap=True)
