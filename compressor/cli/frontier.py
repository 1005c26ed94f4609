"""The whole curve: accuracy against measured latency, as table, JSON and picture."""

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
    ThreadsOption,
    TrustOption,
    console,
    load_data_option,
    load_model,
    print_json,
    share,
    status,
)
from compressor.files.names import file_name_from


def command(
    model: ModelArgument,
    speedups: Annotated[
        str, typer.Option(help="The speed-ups to try, with commas between them.")
    ] = "1.25,1.5,2,2.5,3,4",
    on: Annotated[str, typer.Option("--on", help="The runtime: onnxruntime-cpu, torch-eager.")] = "onnxruntime-cpu",
    batch: Annotated[int, typer.Option(help="The batch size.", min=1)] = 1,
    threads: ThreadsOption = None,
    repair: Annotated[str, typer.Option(help="none, mean, batch-norm, least-squares or distill.")] = "least-squares",
    criterion: Annotated[str, typer.Option(help="How a channel is judged: obs, l1-norm, taylor, …")] = "obs",
    calibration: Annotated[int, typer.Option(help="How many images are looked at; no labels.", min=1)] = 512,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Uniform pruning and global magnitude beside it.")
    ] = True,
    protect: Annotated[
        list[str] | None, typer.Option(help="A glob of layers whose channels stay; repeat for more.")
    ] = None,
    data: DataOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    mean: MeanOption = None,
    std: StdOption = None,
    arch: ArchOption = None,
    arch_arg: ArchArgOption = None,
    input_shape: InputOption = None,
    trust_pickle: TrustOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="A folder; NAME.frontier.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Prune to one speed after the other, and show what each costs: accuracy against measured latency.

    Finished points are kept; the same command goes on where it stopped.

    Example: `compress frontier model.pt --data images/`
    """
    from compressor.checkpoint.artifacts import write_json
    from compressor.errors import DataError
    from compressor.jobs.prune import goal_from, request_from
    from compressor.pruning.request import Request
    from compressor.pruning.speed.frontier import frontier
    from compressor.report.frontiers import picture
    from compressor.report.sensitivities import write_picture

    asked = _speedups(speedups)
    request = request_from(
        speedup=asked[0], criterion=criterion, repair=repair, calibration=calibration, protect=protect or (),
        seed=seed, data_given=True,
    )  # fmt: skip
    assert isinstance(request, Request)
    goal = goal_from(request, runtime=on, batch=batch, threads=threads, tolerance=0.05, table=None)
    assert goal is not None
    with status("loading") as say:
        checkpoint = load_model(
            model, arch=arch, arch_args=arch_arg, inputs=input_shape, trust_pickle=trust_pickle, mean=mean, std=std
        )
        found = load_data_option(data, root=data_root, download=download, seed=seed, checkpoint=checkpoint)
        if found is None:
            raise DataError("a curve of accuracy takes images", hint="with labels or without: `--data DIR`")
        folder = out or Path(f"{file_name_from(checkpoint.name)}.frontier")
        curve = frontier(
            checkpoint, request, goal, found, folder / "points", speedups=asked, baselines=baselines, say=say
        )
    write_json(folder / "frontier.json", curve)
    write_picture(folder / "frontier.svg", picture(curve))
    if as_json:
        print_json(curve)
        return
    show(curve)
    console().print(f"\nwrote {folder}/frontier.svg and frontier.json", markup=False, soft_wrap=True)


def _speedups(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(1 < s < 1000 for s in found):
        raise typer.BadParameter(
            f"speed-ups are numbers above 1 and below 1000, as in `1.5,2,3`: {text}", param_hint="--speedups"
        )
    return found


def show(curve: dict[str, Any]) -> None:
    """A row for every point."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    kind = "accuracy" if curve["labelled"] else "as dense"
    for name in ("", "asked", "speed-up", "ms", kind, "95% interval", "params"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    dense = curve["dense"]
    table.add_row("dense", "", "1", "", *_quality(dense), "")
    for p in curve["points"]:
        if "refused" in p:
            table.add_row(p["arm"], f"{p['asked']:g}×", "out of reach")
            continue
        s = p["speedup"]
        speed = f"{s['ratio']:.2f}× ({s['low']:.2f} to {s['high']:.2f})"
        table.add_row(
            p["arm"], f"{p['asked']:g}×", speed, f"{p['small_ms']:.3g}", *_quality(p["quality"]), f"{p['params']:,}"
        )
    console().print(table)
    target = curve["target"]
    where = f"{target['runtime']}, batch {target['batch']}, threads: {target['threads']}"
    console().print(f"\non {where}; {curve['split']} split of {curve['data']}", markup=False, soft_wrap=True)


def _quality(quality: dict[str, Any]) -> tuple[str, str]:
    count = quality["correct"] if "correct" in quality else quality["agreeing"]
    return share((quality["total"], count)), f"{quality['low']:.1%} to {quality['high']:.1%}"
