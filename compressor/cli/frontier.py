"""The whole curve: accuracy against measured latency, as table, JSON and picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from compressor.cli.groups import Panel
from compressor.cli.loading import load_model, needed_data
from compressor.cli.options import (
    ClockOptions,
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
from compressor.cli.result_tables import columns
from compressor.files.names import file_name_from

if TYPE_CHECKING:
    from compressor.pruning.request import Request
    from compressor.pruning.speed.planner import Goal
    from compressor.results.frontier import Frontier


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveOptions:
    """The points of the curve, and how each is pruned."""

    panel: ClassVar[Panel] = Panel.CHANNELS
    speedups: Annotated[
        str, typer.Option(help="Speed-ups to try, with commas between them.", rich_help_panel=Panel.BUDGET)
    ] = "1.25,1.5,2,2.5,3,4"
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines/--no-baselines",
            help="Also measure uniform pruning and global magnitude.",
            rich_help_panel=Panel.BUDGET,
        ),
    ] = True
    criterion: Annotated[str, typer.Option(help="How channels are scored: obs, l1-norm, taylor, …")] = "obs"
    protect: ProtectOption = None
    repair: Annotated[
        str, typer.Option(help="none, mean, batch-norm, least-squares or distill.", rich_help_panel=Panel.REPAIR)
    ] = "least-squares"
    calibration: Annotated[
        int,
        typer.Option(
            help="Number of images to compute statistics on; labels are not needed.",
            min=1,
            rich_help_panel=Panel.REPAIR,
        ),
    ] = 512


def command(
    model: ModelArgument,
    points: CurveOptions,
    clock: ClockOptions,
    images: DataOptions,
    normalisation: NormalisationOptions,
    network: NetworkOptions,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write to (default NAME.frontier).", rich_help_panel=Panel.OUTPUT),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prune to one speed after the other, and show what each costs: accuracy against measured latency.

    For example:

    - `compress frontier model.pt --data images/`

    Finished points are kept; the same command goes on where it stopped.

    """
    from compressor.files.json_files import write_json
    from compressor.pruning.speed.frontier import frontier
    from compressor.report.plots.frontiers import picture
    from compressor.report.plots.look import write_picture

    speedups = _speedups(points.speedups)
    request, goal = _asked(points, clock, speedup=speedups[0], seed=seed)
    with status("loading") as say:
        checkpoint = load_model(model, network, normalisation)
        data = needed_data(
            images, seed=seed, checkpoint=checkpoint,
            why="a curve of accuracy takes images", hint="with labels or without: `--data DIR`",
        )  # fmt: skip
        folder = out or Path(f"{file_name_from(checkpoint.name)}.frontier")
        curve = frontier(
            checkpoint, request, goal, data, folder / "points", speedups=speedups, baselines=points.baselines, say=say
        )
    write_json(folder / "frontier.json", curve.to_json())
    write_picture(folder / "frontier.svg", picture(curve))
    if as_json:
        print_json(curve.to_json())
        return
    show(curve)
    console().print(f"\nwrote {folder}/frontier.svg and frontier.json", markup=False, soft_wrap=True)


def _asked(points: CurveOptions, clock: ClockOptions, *, speedup: float, seed: int) -> tuple[Request, Goal]:
    """What every point is pruned by, and the clock that judges it."""
    from compressor.jobs.requests import PruneOptions, goal_from, request_from
    from compressor.pruning.request import Request

    options = PruneOptions(
        speedup=speedup, criterion=points.criterion, repair=points.repair, calibration=points.calibration,
        protect=tuple(points.protect or ()), seed=seed,
    )  # fmt: skip
    request = request_from(options, has_data=True)
    assert isinstance(request, Request)
    goal = goal_from(request, runtime=clock.on, batch=clock.batch, threads=clock.threads, tolerance=0.05, table=None)
    assert goal is not None
    return request, goal


def _speedups(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(1 < s < 1000 for s in values):
        raise typer.BadParameter(
            f"speed-ups are numbers above 1 and below 1000, as in `1.5,2,3`: {text}", param_hint="--speedups"
        )
    return values


def show(curve: Frontier) -> None:
    """A row for every point."""
    from compressor.words import count, milliseconds, multiple, score_interval, scored, speedup_with_interval

    kind = "accuracy" if curve.labelled else "as dense"
    table = columns("", "asked", "speed-up", "latency", kind, "95 % interval", "params")
    table.add_row("dense", "", multiple(1), "", scored(curve.dense), score_interval(curve.dense), "")
    for point in curve.points:
        asked = f"{point.asked:g}×"
        if point.speedup is None or point.quality is None:
            table.add_row(point.arm, asked, "out of reach")
            continue
        table.add_row(
            point.arm, asked, speedup_with_interval(point.speedup), milliseconds(point.small_ms or 0.0),
            scored(point.quality), score_interval(point.quality), count(point.params or 0),
        )  # fmt: skip
    console().print(table)
    target = curve.target
    where = f"{target['runtime']}, batch {target['batch']}, threads: {target['threads']}"
    console().print(f"\non {where}; {curve.split} split of {curve.data}", markup=False, soft_wrap=True)
