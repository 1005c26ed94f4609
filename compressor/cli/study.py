"""Run a published experiment again, and say whether its claims hold."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from compressor.cli.groups import Panel, changed
from compressor.cli.options import (
    DataOptions,
    JsonOption,
    command_line,
    console,
    print_json,
    refuse_silent,
    status,
    strong,
    talk,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    """How much of the study runs, and how."""

    panel: ClassVar[Panel] = Panel.RUN
    scale: Annotated[str, typer.Option(help="smoke: seconds; small: an hour on two cores; paper: needs a GPU.")] = (
        "small"
    )
    jobs: Annotated[int, typer.Option(help="Number of cells that run at the same time.", min=1)] = 1
    seeds: Annotated[int | None, typer.Option(help="Run only the first so many seeds.", min=1)] = None


def command(
    runs: StudyOptions,
    images: DataOptions,
    name: Annotated[str | None, typer.Argument(help="Name of the study; without a name, all are listed.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results (default NAME.study).", rich_help_panel=Panel.OUTPUT)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a published experiment again, and say whether its claims hold; what has finished never runs twice.

    For example:

    - `compress study`
    - `compress study lottery-ticket --scale small --jobs 2 --data DIR`
    """
    from compressor.studies import papers as studies

    if name is None:
        for one in studies.names():
            console().print(strong(f"{one:18}"), studies.help_of(one))
        return
    refuse_silent(changed(images, "--task"), because="in a study, whose task is the paper's", hint="leave it out")
    folder = out or Path(f"{name}.study")
    results = _run(name, folder, runs, images)
    _write(folder, results)
    if as_json:
        print_json(results)
        return
    show(results)
    console().print(f"\nwrote {folder}/report.html, report.md and results.json", markup=False, soft_wrap=True)


def _run(name: str, folder: Path, runs: StudyOptions, images: DataOptions) -> dict[str, Any]:
    """The results of the study; cells that finished earlier are read and not run."""
    from compressor.studies import papers as studies
    from compressor.studies.runner import Progressed, results_to_json, run_study
    from compressor.studies.study import scale_named

    size = scale_named(runs.scale)
    studies.load(name)
    source = functools.partial(data_of, images.data, root=images.data_root, download=images.download)

    def finished(progressed: Progressed) -> None:
        talk().print(f"{progressed.done}/{progressed.total} {progressed.cell.key}", style="dim", highlight=False)

    with status(f"{name}: what is there already") as say:
        results = run_study(
            name, size, source, folder / "cells", jobs=runs.jobs, seeds=runs.seeds, finished=finished,
            say=lambda s: say(f"{name}: {s}"),
        )  # fmt: skip
    return results_to_json(name, size, results, data=source(), command=command_line())


def _write(folder: Path, results: dict[str, Any]) -> None:
    """The study's results as JSON, HTML and Markdown, with its plots."""
    from compressor.files.json_files import write_json
    from compressor.report.markdown import markdown
    from compressor.report.page import page
    from compressor.report.plots.look import write_picture
    from compressor.report.plots.studies import picture
    from compressor.report.studies import document

    write_json(folder / "results.json", results)
    write_picture(folder / "report.html", page(document(results)))
    write_picture(folder / "report.md", markdown(document(results)))
    for number, plot in enumerate(results["plots"], start=1):
        write_picture(folder / f"plot-{number}.svg", picture(plot))


def data_of(source: str | None, *, root: Path | None, download: bool) -> Any:
    """The data that `--data` names, or the sample that ships with the sample models."""
    import sample_models
    from compressor.data.sources import SAMPLE_FILE, load_data

    where = source or str(Path(str(sample_models.__file__)).parent / SAMPLE_FILE)
    return load_data(where, root=root, download=download)


def show(results: dict[str, Any]) -> None:
    """Each claim's verdict, and the intervals that decided it."""
    from rich.table import Table

    from compressor.report.studies import finding_cells

    out = console()
    for claim in results["claims"]:
        out.print(f"\n{claim['verdict']}: {claim['claim']}", style="bold", markup=False, soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        for column in ("quantity", "claimed", "measured", "95% interval", "n", "verdict"):
            table.add_column(column, justify="right" if column in ("measured", "95% interval", "n") else "left")
        for finding in claim["findings"]:
            table.add_row(*finding_cells(finding))
        out.print(table)
        if claim["why"]:
            out.print(claim["why"], style="dim", markup=False, soft_wrap=True)
