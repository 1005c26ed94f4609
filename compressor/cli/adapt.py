"""Draw a network to an unlabelled domain, and remove channels meanwhile."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from compressor.cli.options import (
    ArchArgOption,
    ArchOption,
    DataRootOption,
    DownloadOption,
    ForceOption,
    InputOption,
    JsonOption,
    MeanOption,
    ModelArgument,
    OutOption,
    SeedOption,
    StdOption,
    ThreadsOption,
    TrustOption,
    command_line,
    console,
    load_model,
    print_json,
    refuse_silent,
    say_repeated,
    status,
    strong,
    talk,
)


def command(
    model: ModelArgument,
    source: Annotated[
        str, typer.Option(help="The labelled data that the network knows, in any form that `--data` takes elsewhere.")
    ],
    target: Annotated[str, typer.Option(help="Images of the domain to adapt to; labels, if any, are not read.")],
    macs: Annotated[float | None, typer.Option(help="Share of the MACs that may stay; all of them by default.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of scoring and pruning on the way there.")] = 5,
    epochs: Annotated[int, typer.Option(help="How long it adapts before any channel leaves.")] = 5,
    round_epochs: Annotated[int, typer.Option(help="How long it adapts after each round.")] = 1,
    final_epochs: Annotated[int, typer.Option(help="How long it adapts after the last round.")] = 5,
    layer: Annotated[
        str | None, typer.Option(help="The layer whose inputs are compared; the last linear one by default.")
    ] = None,
    weight: Annotated[float, typer.Option(help="What the domains' discrepancy counts beside the source's loss.")] = 1.0,
    lr: Annotated[float, typer.Option("--lr", help="The learning rate that every stage begins with.")] = 0.01,
    batch_size: Annotated[int, typer.Option(help="Images of each domain per step.", min=2)] = 32,
    augment: Annotated[str, typer.Option(help="Some of flip,crop,erase, or none; for both domains.")] = "none",
    calibration: Annotated[int, typer.Option(help="How many images of each domain score the channels.", min=2)] = 2048,
    align: Annotated[int, typer.Option(help="Widths are rounded up to multiples of this number.", min=1)] = 1,
    min_channels: Annotated[int, typer.Option(help="What every group keeps at least.", min=1)] = 2,
    protect: Annotated[
        list[str] | None, typer.Option(help="A glob of layers whose channels stay; repeat for more.")
    ] = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    mean: MeanOption = None,
    std: StdOption = None,
    arch: ArchOption = None,
    arch_arg: ArchArgOption = None,
    input_shape: InputOption = None,
    trust_pickle: TrustOption = False,
    device: Annotated[str, typer.Option(help="Where to train: auto, cpu or cuda.")] = "auto",
    threads: ThreadsOption = None,
    out: OutOption = None,
    force: ForceOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Draw a network to an unlabelled domain, and remove the channels that matter to neither domain meanwhile.

    The loss is the source's cross entropy plus the discrepancy (MMD) of both domains' features. An interrupted run goes
    on with the same command.

    Example: `compress adapt model.pt --source photos/ --target sketches/ --macs 0.75`
    """
    import torch

    from compressor.data.sources import data_for, load_data
    from compressor.jobs import adapt as work
    from compressor.jobs.prune import default_folder

    if threads is not None:
        torch.set_num_threads(threads)
    if macs is None:
        refuse_silent(
            {
                "--rounds": rounds != 5, "--round-epochs": round_epochs != 1, "--final-epochs": final_epochs != 5,
                "--align": align != 1, "--min-channels": min_channels != 2, "--protect": bool(protect),
                "--calibration": calibration != 2048,
            },
            because="without a budget, for no channel leaves",
            hint="give one (`--macs 0.75`), or leave it out",
        )  # fmt: skip
    with status("loading") as say:
        checkpoint = load_model(
            model, arch=arch, arch_args=arch_arg, inputs=input_shape, trust_pickle=trust_pickle, mean=mean, std=std
        )
        adaptation = work.adaptation_from(
            checkpoint, macs=macs, layer=layer, weight=weight, epochs=epochs, rounds=rounds,
            round_epochs=round_epochs, final_epochs=final_epochs, rate=lr, batch_size=batch_size, augment=augment,
            calibration=calibration, align=align, min_channels=min_channels, protect=protect or (), seed=seed,
        )  # fmt: skip
        known = data_for(checkpoint, source, root=data_root, download=download, seed=seed)
        other = load_data(target, root=data_root, download=download, seed=seed)  # whatever its classes are called
        say_repeated(known)
        folder = out or default_folder(checkpoint)
        results = work.adapt_to(
            folder, checkpoint, known, other, adaptation, device=device, callbacks=(tell,), command=command_line(),
            force=force, trust_pickle=trust_pickle, say=say,
        )  # fmt: skip
    if as_json:
        print_json(results)
        return
    show(results)
    after = "; next: `compress evaluate`, `compress export --onnx`"
    console().print("\nwrote ", strong(folder), after, sep="", soft_wrap=True)


def tell(progress: Any) -> None:
    """One line for each epoch, on stderr."""
    if progress.record is not None:
        last = progress.record
        share = last.tune_correct / last.tune_total
        talk().print(f"epoch {last.epoch + 1}/{progress.epochs}: loss {last.train_loss:.4f}, source tune {share:.2%}")


def show(results: dict[str, Any]) -> None:
    """What came of it, on stdout: the surgery where there was one, and how the source is classified."""
    from compressor.cli.prune import show as show_pruning

    if "prune" in results:
        show_pruning(results)
    adapt, last = results["adapt"], results["retrain"][-1]["history"][-1]
    tune = f"{last['tune_correct']}/{last['tune_total']}"
    images = f"{adapt['target']['images']:,} unlabelled images of {adapt['target']['name']}"
    console().print(f"\nadapted to {images}; on the source's tuning split {tune} correct", markup=False, soft_wrap=True)
    talk().print("nothing here says how well the target is classified: that takes labels, `compress evaluate`")
