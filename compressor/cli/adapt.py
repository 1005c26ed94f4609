"""Draw a network to an unlabelled domain, and remove channels meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from compressor.cli.groups import Panel, changed
from compressor.cli.loading import load_model, say_repeated, use_threads
from compressor.cli.options import (
    DataRootOption,
    DownloadOption,
    ModelArgument,
    NetworkOptions,
    NormalisationOptions,
    OutputOptions,
    ProtectOption,
    TrainingRunOptions,
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
    from compressor.jobs.adapt import Adaptation
    from compressor.results.artifact import Results


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainOptions:
    """The domain that the network knows, and the one that it adapts to."""

    panel: ClassVar[Panel] = Panel.DATA
    source: Annotated[
        str,
        typer.Option(help="Labelled data that the network was trained on, in any form of --data of other commands."),
    ]
    target: Annotated[str, typer.Option(help="Images of the domain to adapt to; labels, if any, are not read.")]
    data_root: DataRootOption = None
    download: DownloadOption = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptions:
    """How much leaves, in how many rounds; nothing leaves without a budget."""

    panel: ClassVar[Panel] = Panel.CHANNELS
    macs: Annotated[float | None, typer.Option(help="Share of the MACs that may stay; by default all of them.")] = None
    rounds: Annotated[int, typer.Option(help="Rounds of scoring and pruning until the budget is met.")] = 5
    round_epochs: Annotated[int, typer.Option(help="Epochs after each round.")] = 1
    final_epochs: Annotated[int, typer.Option(help="Epochs after the last round.")] = 5
    calibration: Annotated[int, typer.Option(help="Images of each domain that score the channels.", min=2)] = 2048
    align: Annotated[int, typer.Option(help="Widths are rounded up to multiples of this number.", min=1)] = 1
    min_channels: Annotated[int, typer.Option(help="Channels that every group keeps at least.", min=1)] = 2
    protect: ProtectOption = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How the network adapts."""

    panel: ClassVar[Panel] = Panel.TRAINING
    epochs: Annotated[int, typer.Option(help="Epochs before any channel leaves.")] = 5
    layer: Annotated[
        str | None, typer.Option(help="Layer whose inputs are compared; by default the last linear one.")
    ] = None
    weight: Annotated[float, typer.Option(help="Weight of the domains' discrepancy beside the source's loss.")] = 1.0
    lr: Annotated[float, typer.Option("--lr", help="Learning rate at the start of every stage.")] = 0.01
    batch_size: Annotated[int, typer.Option(help="Images of each domain per step.", min=2)] = 32
    augment: Annotated[str, typer.Option(help="Augmentation of both domains: some of flip,crop,erase, or none.")] = (
        "none"
    )


def command(
    model: ModelArgument,
    domains: DomainOptions,
    normalisation: NormalisationOptions,
    budget: BudgetOptions,
    training: TrainingOptions,
    network: NetworkOptions,
    run: TrainingRunOptions,
    output: OutputOptions,
) -> None:
    """Adapt a network to an unlabelled domain, and remove the channels that matter to neither domain meanwhile.

    For example:

    - `compress adapt model.pt --source photos/ --target sketches/ --macs 0.75`

    The loss is the source's cross entropy plus the discrepancy (MMD) of both domains' features. An interrupted run goes
    on with the same command.

    """
    from compressor.data.sources import data_for
    from compressor.data.sources import load_data as data_named
    from compressor.jobs import adapt as work
    from compressor.jobs.prune import default_folder

    use_threads(run.threads)
    if budget.macs is None:
        refuse_silent(
            changed(budget),
            because="without a budget, for no channel leaves",
            hint="give one (`--macs 0.75`), or leave it out",
        )
    root, download = domains.data_root, domains.download
    with status("loading") as say:
        checkpoint = load_model(model, network, normalisation)
        adaptation = _adaptation(checkpoint, budget, training, seed=run.seed)
        known = data_for(checkpoint, domains.source, root=root, download=download, seed=run.seed)
        other = data_named(domains.target, root=root, download=download, seed=run.seed)  # whatever its classes are
        say_repeated(known)
        folder = output.out or default_folder(checkpoint)
        results = work.adapt_to(
            folder, checkpoint, known, other, adaptation, device=run.device, callbacks=(tell,), command=command_line(),
            force=output.force, trust_pickle=network.trust_pickle, say=say,
        )  # fmt: skip
    if output.as_json:
        print_json(results.to_json())
        return
    show(results)
    after = "; next: `compress evaluate`, `compress export --onnx`"
    console().print("\nwrote ", strong(folder), after, sep="", soft_wrap=True)


def _adaptation(checkpoint: Checkpoint, budget: BudgetOptions, training: TrainingOptions, *, seed: int) -> Adaptation:
    from compressor.jobs.adapt import adaptation_from

    return adaptation_from(
        checkpoint, macs=budget.macs, layer=training.layer, weight=training.weight, epochs=training.epochs,
        rounds=budget.rounds, round_epochs=budget.round_epochs, final_epochs=budget.final_epochs, rate=training.lr,
        batch_size=training.batch_size, augment=training.augment, calibration=budget.calibration, align=budget.align,
        min_channels=budget.min_channels, protect=budget.protect or (), seed=seed,
    )  # fmt: skip


def tell(progress: Any) -> None:
    """One line for each epoch, on stderr."""
    from compressor.words import tuned

    if progress.record is not None:
        last = progress.record
        line = f"epoch {last.epoch + 1}/{progress.epochs}: loss {last.train_loss:.4f}, source tune {tuned(last)}"
        talk().print(line)


def show(results: Results) -> None:
    """What came of it, on stdout: the surgery where there was one, and how the source is classified."""
    if results.pruning is not None:
        show_results(results)
    target, last = (results.adapt or {})["target"], results.retrainings[-1].history[-1]
    tune = f"{last.tune_correct}/{last.tune_total}"
    images = f"{target['images']:,} unlabelled images of {target['name']}"
    console().print(f"\nadapted to {images}; on the source's tuning split {tune} correct", markup=False, soft_wrap=True)
    talk().print("the accuracy on the target is not known: it takes labels, `compress evaluate`")
