"""Remove channels along the dependency graph, and write a smaller network with its proof."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from compressor.cli.groups import Panel, changed
from compressor.cli.loading import load_data, load_model
from compressor.cli.options import (
    AlignOption,
    CalibrationOption,
    ClockOptions,
    DataOptions,
    DryRunOption,
    LrOption,
    ModelArgument,
    NetworkOptions,
    NormalisationOptions,
    OutputOptions,
    ProtectOption,
    SeedOption,
    command_line,
    console,
    print_json,
    refuse_silent,
    status,
    strong,
    talk,
)
from compressor.cli.result_tables import show_results

if TYPE_CHECKING:
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.pruning.request import MaskRequest, Request
    from compressor.pruning.speed.planner import Goal
    from compressor.pruning.while_training import During
    from compressor.training.loop import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptions:
    """How much leaves, or how fast the small network is to be; one of them."""

    panel: ClassVar[Panel] = Panel.BUDGET
    ratio: Annotated[float | None, typer.Option(help="Share of the channels to remove: 0.5.")] = None
    macs: Annotated[float | None, typer.Option(help="Share of the MACs that may stay: 0.5.")] = None
    params: Annotated[float | None, typer.Option(help="Share of the parameters that may stay: 0.5.")] = None
    speedup: Annotated[float | None, typer.Option(help="Measured speed-up to reach, on the runtime of --on: 2.")] = None
    latency: Annotated[
        str | None, typer.Option(help="Measured latency of a batch to reach, on the runtime of --on: 4ms, 800us.")
    ] = None
    max_drop: Annotated[
        float | None,
        typer.Option(help="The fastest network that loses at most so many points of accuracy (or of agreement)."),
    ] = None
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the single weights to set to zero, in place of channels: 0.9.")
    ] = None

    @property
    def is_time(self) -> bool:
        """True if the budget is met by measured latency."""
        return self.speedup is not None or self.latency is not None or self.max_drop is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyOptions(ClockOptions):
    """Where and how exactly a budget of latency is met."""

    tolerance: Annotated[float, typer.Option(help="Allowed distance of the measured speed-up from the asked one.")] = (
        0.05
    )
    table: Annotated[
        Path | None,
        typer.Option(help="A latency table of the target machine, by `compress measure-table`: nothing is timed here."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    """Which channels leave, and how the budget is shared among the groups."""

    panel: ClassVar[Panel] = Panel.CHANNELS
    criterion: Annotated[
        str, typer.Option(help="How channels are scored: l1-norm, taylor, …; by default obs with data, else l1-norm.")
    ] = "auto"
    scope: Annotated[
        str,
        typer.Option(help="How the budget is shared: uniform, global, isomorphic, random, or measured (with data)."),
    ] = "auto"
    align: AlignOption = "auto"
    min_channels: Annotated[int, typer.Option(help="Channels that every group keeps at least.", min=1)] = 1
    protect: ProtectOption = None
    heads: Annotated[
        bool, typer.Option("--heads/--head-features", help="Attention loses whole heads, or features of every head.")
    ] = True
    levels: Annotated[int, typer.Option(help="Number of rounds of scoring and pruning.")] = 1
    largest: Annotated[
        bool, typer.Option("--largest", help="Remove the highest scores and not the lowest, as a control.")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairOptions:
    """What happens to the small network before any retraining."""

    panel: ClassVar[Panel] = Panel.REPAIR
    repair: Annotated[
        str,
        typer.Option(help="none, mean, batch-norm, least-squares or distill; by default least-squares with data."),
    ] = "auto"
    calibration: CalibrationOption = 512
    memory: Annotated[
        float, typer.Option(help="Memory that repair may use, in GB; with less it reads fewer images, or fits biases.")
    ] = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOptions:
    """How single weights are judged."""

    panel: ClassVar[Panel] = Panel.MASKS
    mask_criterion: Annotated[
        str, typer.Option(help="How single weights are scored: large-final, magnitude-increase, movement, …")
    ] = "large-final"
    initial: Annotated[
        Path | None,
        typer.Option(help="The network's weights before or early in training, if the criterion needs them."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How the network trains while its channels leave."""

    panel: ClassVar[Panel] = Panel.WHILE_TRAINING
    while_training: Annotated[
        bool, typer.Option("--while-training", help="Remove the channels step by step, while the network trains.")
    ] = False
    regrow: Annotated[
        bool,
        typer.Option("--regrow", help="With --while-training: zeroed channels train on, and are cut only at the end."),
    ] = False
    epochs: Annotated[int | None, typer.Option(help="With --while-training: epochs (default 6).")] = None
    every: Annotated[
        int | None, typer.Option(help="With --while-training: epochs between two removals (default 1).")
    ] = None
    start: Annotated[
        int | None,
        typer.Option(help="With --while-training: epochs before the first removal (default 0; with --regrow 1)."),
    ] = None
    end: Annotated[int | None, typer.Option(help="With --while-training: epochs before the last removal.")] = None
    lr: LrOption = None
    device: Annotated[str | None, typer.Option(help="Device to train on: auto, cpu or cuda.")] = None


def command(
    model: ModelArgument,
    budget: BudgetOptions,
    latency: LatencyOptions,
    channels: ChannelOptions,
    repair: RepairOptions,
    masks: MaskOptions,
    training: TrainingOptions,
    images: DataOptions,
    normalisation: NormalisationOptions,
    network: NetworkOptions,
    *,
    seed: SeedOption = 0,
    output: OutputOptions,
    dry_run: DryRunOption = False,
) -> None:
    """Remove channels and write a physically smaller network, with the proof that the surgery was right.

    For example:

    - `compress prune model.pt --ratio 0.5`
    - `compress prune model.pt --speedup 2 --data images/`
    - `compress prune model.pt --ratio 0.5 --while-training --epochs 6 --every 1 --data DIR`
    - `compress prune model.pt --sparsity 0.9 --mask-criterion magnitude-increase --initial early.pt`

    With images (`--data`, labels are not needed) the small network is repaired before any retraining.

    With `--while-training` the channels leave while the network trains; with `--regrow` that is soft filter pruning.

    """
    from compressor.jobs.prune import default_folder, prune_to
    from compressor.jobs.requests import needs_data

    has_data = images.data is not None
    request = _request(budget, channels, repair, masks, seed=seed, has_data=has_data, training=training.while_training)
    looks = has_data or training.while_training or budget.max_drop is not None or needs_data(request)
    _refuse_without_effect(budget, latency, repair, looks_at_images=looks)
    goal = _goal(request, latency)
    with status("loading") as say:
        checkpoint = load_model(model, network, normalisation)
        data = load_data(images, seed=seed, checkpoint=checkpoint) if looks else None
        during = _during(checkpoint, training, seed=seed)
        folder = output.out or default_folder(checkpoint)
        results = prune_to(
            None if dry_run else folder, checkpoint, request, data=data, initial=_initial(masks),
            command=command_line(), force=output.force, trust_pickle=network.trust_pickle, say=say, goal=goal,
            max_drop=budget.max_drop, during=during,
        )  # fmt: skip
    if output.as_json:
        print_json(results.to_json())
        return
    show_results(results)
    if dry_run:
        talk().print("dry run: nothing was written")
    else:
        after = "; next: `compress retrain`, `compress export --onnx`, `compress bench`"
        console().print("\nwrote ", strong(folder), after, sep="", soft_wrap=True)


def _request(
    budget: BudgetOptions, channels: ChannelOptions, repair: RepairOptions, masks: MaskOptions, *, seed: int,
    has_data: bool, training: bool,
) -> Request | MaskRequest:  # fmt: skip
    from compressor.jobs.requests import PruneOptions, request_from

    options = PruneOptions(
        ratio=budget.ratio, macs=budget.macs, params=budget.params, sparsity=budget.sparsity, speedup=budget.speedup,
        latency=budget.latency, max_drop=budget.max_drop,
        criterion=channels.criterion, scope=channels.scope, align=channels.align, min_channels=channels.min_channels,
        protect=tuple(channels.protect or ()), heads=channels.heads, levels=channels.levels, largest=channels.largest,
        repair=repair.repair, calibration=repair.calibration, memory=repair.memory,
        mask_criterion=masks.mask_criterion, seed=seed,
    )  # fmt: skip
    return request_from(options, has_data=has_data, while_training=training)


def _refuse_without_effect(
    budget: BudgetOptions, latency: LatencyOptions, repair: RepairOptions, *, looks_at_images: bool
) -> None:
    if not budget.is_time:
        refuse_silent(
            changed(latency),
            because="without a budget of time",
            hint="give one (`--speedup 2`, `--latency 4ms`, `--max-drop 1`), or leave it out",
        )
    if latency.table is not None:
        refuse_silent(
            changed(latency, "--on", "--batch", "--threads"),
            because="beside `--table`, which is of one target",
            hint="leave it out",
        )
    if not looks_at_images:
        refuse_silent(
            changed(repair, "--calibration", "--memory"),
            because="where neither the criterion nor the repair reads images",
            hint="give images (`--data DIR`), or leave it out",
        )


def _goal(request: Request | MaskRequest, latency: LatencyOptions) -> Goal | None:
    from compressor.jobs.requests import goal_from

    return goal_from(
        request, runtime=latency.on, batch=latency.batch, threads=latency.threads, tolerance=latency.tolerance,
        table=latency.table,
    )  # fmt: skip


def _during(checkpoint: Checkpoint, training: TrainingOptions, *, seed: int) -> During | None:
    from compressor.pruning.while_training import during_from

    return during_from(
        checkpoint, wanted=training.while_training, epochs=training.epochs, every=training.every,
        start=training.start, end=training.end, rate=training.lr, regrow=training.regrow, device=training.device,
        seed=seed, callbacks=(tell_epoch,),
    )  # fmt: skip


def _initial(masks: MaskOptions) -> Any:
    from compressor.checkpoint.reading import read_state

    return None if masks.initial is None else read_state(masks.initial)


def tell_epoch(progress: Progress) -> None:
    """A line on stderr at the end of an epoch."""
    from compressor.words import tuned

    if progress.record is not None:
        last = progress.record
        line = f"epoch {last.epoch + 1}/{progress.epochs}: loss {last.train_loss:.4f}, tune {tuned(last)}"
        talk().print(line, style="dim", highlight=False)
