"""Let easy images leave a network early, and measure what that saves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from compressor.cli.groups import Panel, changed
from compressor.cli.loading import load_model, needed_data
from compressor.cli.options import (
    DataOptions,
    JsonOption,
    ModelArgument,
    NetworkOptions,
    NormalisationOptions,
    OutOption,
    SeedOption,
    command_line,
    console,
    print_json,
    refuse_silent,
    status,
    strong,
    talk,
)
from compressor.cli.result_tables import columns
from compressor.files.names import file_name_from

if TYPE_CHECKING:
    from compressor.jobs.exits import ExitRequest
    from compressor.results.exits import EarlyExitResults


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchOptions:
    """The branches, how they train, and when an image leaves."""

    panel: ClassVar[Panel] = Panel.TRAINING
    after: Annotated[str, typer.Option(help="Layers after which images may leave, with commas between them.")]
    max_drop: Annotated[float, typer.Option(help="Most points of accuracy to lose, on the tuning split.", min=0)] = 0.5
    certainty: Annotated[str, typer.Option(help="How certainty is measured: entropy or probability.")] = "entropy"
    epochs: Annotated[int, typer.Option(help="Epochs of training the branches.", min=1)] = 2
    joint: Annotated[
        bool,
        typer.Option("--joint", help="Train the network too; by default it is frozen, and stays as good as it is."),
    ] = False
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 0.05
    batch_size: Annotated[int, typer.Option(help="Images per step.", min=1)] = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingOptions:
    """How the file is timed."""

    panel: ClassVar[Panel] = Panel.MEASURING
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of each network while it is timed.")] = 1
    blocks: Annotated[
        int | None, typer.Option(help="Rounds of timing; by default as many as fit in some seconds.", min=8)
    ] = None


def command(
    model: ModelArgument,
    branches: BranchOptions,
    timing: TimingOptions,
    images: DataOptions,
    normalisation: NormalisationOptions,
    network: NetworkOptions,
    seed: SeedOption = 0,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train branches after some layers, let images leave where they are certain, and time it: one ONNX file.

    For example:

    - `compress exits model.pt --after layer2,layer3 --max-drop 0.5 --data images/ --epochs 2`
    """
    from compressor.jobs.exits import early_exits

    refuse_silent(changed(images, "--task"), because="here: branches classify", hint="leave it out")
    request = _request(branches, timing, seed=seed)
    with status("loading") as say:
        checkpoint = load_model(model, network, normalisation)
        data = needed_data(
            images, seed=seed, checkpoint=checkpoint,
            why="branches are trained and judged on labelled images", hint="give them: `--data DIR`",
        )  # fmt: skip
        folder = out or Path(f"{file_name_from(checkpoint.name)}.exits")
        results = early_exits(checkpoint, request, data, folder, say=say, command=command_line())
    if as_json:
        print_json(results.to_json())
        return
    show(results)
    after = ": model.onnx, exits.safetensors and results.json"
    console().print("\nwrote ", strong(folder), after, sep="", soft_wrap=True)


def _request(branches: BranchOptions, timing: TimingOptions, *, seed: int) -> ExitRequest:
    from compressor.checkpoint.recipes import Recipe, Schedule, Step
    from compressor.errors import PlanError, named
    from compressor.jobs.exits import ExitRequest
    from compressor.training.exits.branches import Certainty

    return ExitRequest(
        after=tuple(name.strip() for name in branches.after.split(",") if name.strip()),
        recipe=Recipe(
            budget=Step(epochs=branches.epochs),
            schedule=Schedule(rate=branches.lr),
            batch_size=branches.batch_size,
            seed=seed,
        ),
        max_drop=branches.max_drop,
        kind=named(Certainty, branches.certainty, one="certainty", many="certainties", refusal=PlanError),
        joint=branches.joint,
        threads=timing.threads,
        blocks=timing.blocks,
    )


def show(results: EarlyExitResults) -> None:
    """Print who leaves where and how right they are, and the two latencies."""
    from compressor.words import DASH, counted, milliseconds, percent, scaled, scored, speedup_with_interval

    out, test = console(), results.splits.test
    table = columns("leaving after", "share", "right of these", "right of all", "MACs", left=("leaving after",))
    for e, share in zip(test.exits, test.shares, strict=True):
        right = percent(e.correct / e.leaving, decimals=1) if e.leaving else DASH
        everyone = percent(e.correct_of_all / test.accuracy.total, decimals=1)
        table.add_row(e.after or "the end", percent(share, decimals=1), right, everyone, scaled(e.macs))
    out.print(table)
    out.print()
    for name, split in (("tune", results.splits.tune), ("test", test)):
        early, full = split.accuracy, split.full
        out.print(
            f"{name}: {counted(early)} correct ({scored(early)}), whole network {full.correct:,} "
            f"({scored(full)})",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    out.print(f"MACs on average: {scaled(round(test.mean_macs))} of {scaled(results.macs[0])}", markup=False)
    clock = results.latency
    out.print(
        f"latency on {clock.runtime}, batch 1, threads: {clock.threads}: dense {milliseconds(clock.dense_ms)}, "
        f"early exit {milliseconds(clock.early_ms)} on average, speed-up {speedup_with_interval(clock.speedup)}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    for caveat in clock.caveats:
        talk().print(caveat, style="yellow", markup=False, soft_wrap=True)
