"""Remove channels along the dependency graph, and write a smaller network with its proof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.options import (
    ArchArgOption,
    ArchOption,
    DataOption,
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
    load_data_option,
    load_model,
    print_json,
    refuse_silent,
    share,
    short,
    status,
    strong,
    talk,
)

if TYPE_CHECKING:
    from compressor.training.loop import Progress


def command(
    model: ModelArgument,
    ratio: Annotated[float | None, typer.Option(help="Share of the channels that leave.")] = None,
    macs: Annotated[float | None, typer.Option(help="Share of the MACs that may stay.")] = None,
    params: Annotated[float | None, typer.Option(help="Share of the parameters that may stay.")] = None,
    speedup: Annotated[
        float | None, typer.Option(help="How many times as fast it is to be, on the clock of `--on`.")
    ] = None,
    latency: Annotated[str | None, typer.Option(help="How long a batch may take there: 4ms, 800us.")] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="As fast as possible at this loss: points of accuracy on the tuning split, or of agreement."),
    ] = None,
    sparsity: Annotated[float | None, typer.Option(help="Share of the weights to zero in place, instead.")] = None,
    on: Annotated[
        str, typer.Option("--on", help="The runtime that a latency is of: onnxruntime-cpu, torch-eager.")
    ] = "onnxruntime-cpu",
    batch: Annotated[int, typer.Option(help="The batch that a latency is of.", min=1)] = 1,
    threads: ThreadsOption = None,
    tolerance: Annotated[float, typer.Option(help="How far the measured speed-up may lie from the asked one.")] = 0.05,
    table: Annotated[
        Path | None, typer.Option(help="A latency table from the target, by `compress measure-table`.")
    ] = None,
    criterion: Annotated[
        str, typer.Option(help="How a channel is judged: l1-norm, taylor, …; obs where there is data.")
    ] = "auto",
    mask_criterion: Annotated[
        str,
        typer.Option(
            help="How a single weight is judged, with `--sparsity`: large-final, magnitude-increase, movement, …"
        ),
    ] = "large-final",
    initial: Annotated[
        Path | None, typer.Option(help="The network's weights before training, or early, if the mask criterion asks.")
    ] = None,
    scope: Annotated[
        str,
        typer.Option(help="How the budget is shared: uniform, global, isomorphic, random, or measured (with data)."),
    ] = "auto",
    repair: Annotated[
        str,
        typer.Option(help="none, mean, batch-norm, least-squares or distill; least-squares where there is data."),
    ] = "auto",
    calibration: Annotated[int, typer.Option(help="How many images are looked at; no labels.", min=1)] = 512,
    memory: Annotated[
        float, typer.Option(help="GB that repair may hold; it looks at fewer images, or fits biases alone, to fit.")
    ] = 4.0,
    align: Annotated[
        str, typer.Option(help="Widths are multiples of this number; by default of 8, of less in narrow layers.")
    ] = "auto",
    min_channels: Annotated[int, typer.Option(help="What every group keeps at least.", min=1)] = 1,
    protect: Annotated[
        list[str] | None, typer.Option(help="A glob of layers whose channels stay; repeat for more.")
    ] = None,
    heads: Annotated[
        bool, typer.Option("--heads/--head-features", help="Attention loses whole heads, or features of every head.")
    ] = True,
    levels: Annotated[int, typer.Option(help="Rounds of scoring and pruning on the way.")] = 1,
    largest: Annotated[
        bool, typer.Option("--largest", help="Remove the highest scores instead of the lowest.")
    ] = False,
    while_training: Annotated[
        bool, typer.Option("--while-training", help="Let the channels leave step by step, while the network trains.")
    ] = False,
    regrow: Annotated[
        bool, typer.Option("--regrow", help="There: zero channels, let them train on, and cut at the end alone.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="There: how long to train; 6.")] = None,
    every: Annotated[int | None, typer.Option(help="There: channels leave every so many epochs; 1.")] = None,
    start: Annotated[
        int | None, typer.Option(help="There: after how many epochs the first leave; 0, or 1 with `--regrow`.")
    ] = None,
    end: Annotated[int | None, typer.Option(help="There: after how many epochs the last may leave.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="The peak learning rate.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to train: auto, cpu or cuda.")] = None,
    data: DataOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    mean: MeanOption = None,
    std: StdOption = None,
    arch: ArchOption = None,
    arch_arg: ArchArgOption = None,
    input_shape: InputOption = None,
    trust_pickle: TrustOption = False,
    out: OutOption = None,
    force: ForceOption = False,
    seed: SeedOption = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove channels and write a physically smaller network, with the proof that the surgery was right.

    With images (`--data`, labels are not needed) the network is repaired before any retraining.

    Channels can leave `--while-training` too; with `--regrow` that is soft filter pruning.

    Example: `compress prune model.pt --ratio 0.5`, `compress prune model.pt --speedup 2 --data images/`,
    `compress prune model.pt --ratio 0.5 --while-training --epochs 6 --every 1 --data DIR`,
    `compress prune model.pt --sparsity 0.9 --mask-criterion magnitude-increase --initial early.pt`
    """
    from compressor.checkpoint.reading import read_state
    from compressor.jobs.prune import default_folder, during_from, goal_from, needs_data, prune_to, request_from

    request = request_from(
        ratio=ratio, macs=macs, params=params, sparsity=sparsity, speedup=speedup, latency=latency,
        max_drop=max_drop,
        criterion=criterion, mask_criterion=mask_criterion, scope=scope, align=align,
        min_channels=min_channels, protect=protect or (), heads=heads, levels=levels, largest=largest, seed=seed,
        repair=repair, calibration=calibration, memory_gb=memory, data_given=data is not None,
        while_training=while_training,
    )  # fmt: skip
    if speedup is None and latency is None and max_drop is None:
        refuse_silent(
            {
                "--on": on != "onnxruntime-cpu", "--batch": batch != 1, "--threads": threads is not None,
                "--tolerance": tolerance != 0.05, "--table": table is not None,
            },
            because="without a budget of time",
            hint="give one (`--speedup 2`, `--latency 4ms`, `--max-drop 1`), or leave it out",
        )  # fmt: skip
    if table is not None:
        refuse_silent(
            {"--on": on != "onnxruntime-cpu", "--batch": batch != 1, "--threads": threads is not None},
            because="beside `--table`, which is of one target",
            hint="leave it out",
        )
    if data is None and not while_training and max_drop is None and not needs_data(request):
        refuse_silent(
            {"--calibration": calibration != 512, "--memory": memory != 4.0},
            because="where nothing looks at images: neither criterion nor repair",
            hint="give images (`--data DIR`), or leave it out",
        )
    goal = goal_from(request, runtime=on, batch=batch, threads=threads, tolerance=tolerance, table=table)
    with status("loading") as say:
        checkpoint = load_model(
            model, arch=arch, arch_args=arch_arg, inputs=input_shape, trust_pickle=trust_pickle, mean=mean, std=std
        )
        found = None
        if data is not None or while_training or max_drop is not None or needs_data(request):
            found = load_data_option(data, root=data_root, download=download, seed=seed, checkpoint=checkpoint)
        during = during_from(
            checkpoint, wanted=while_training, epochs=epochs, every=every, start=start, end=end, rate=lr,
            regrow=regrow, device=device, seed=seed, callbacks=(tell_epoch,),
        )  # fmt: skip
        folder = out or default_folder(checkpoint)
        results = prune_to(
            None if dry_run else folder, checkpoint, request, data=found,
            initial=None if initial is None else read_state(initial), command=command_line(), force=force,
            trust_pickle=trust_pickle, say=say, goal=goal, max_drop=max_drop, during=during,
        )  # fmt: skip
    if as_json:
        print_json(results)
        return
    show(results)
    if dry_run:
        talk().print("dry run: nothing was written")
    else:
        console().print(
            "\nwrote ", strong(folder), "; next: `compress retrain`, `compress export --onnx`, `compress bench`",
            sep="", soft_wrap=True,
        )  # fmt: skip


def tell_epoch(progress: Progress) -> None:
    """A line on stderr at the end of an epoch."""
    if progress.record is not None:
        last = progress.record
        tune = last.tune_correct / last.tune_total
        said = f"epoch {last.epoch + 1}/{progress.epochs}: loss {last.train_loss:.4f}, tune {tune:.2%}"
        talk().print(said, style="dim", highlight=False)


def show(results: dict[str, Any]) -> None:
    """What was asked for and what came of it, as tables on stdout."""
    from rich.table import Table

    from compressor.report.wording import VACUOUS
    from compressor.surgery.proof import in_words

    if "mask" in results:
        show_mask(results["mask"])
        return show_repair(results.get("repair"))
    prune = results["prune"]
    out = console()
    table = Table(box=None, pad_edge=False)
    for name in ("", "dense", "small", "stays", "asked"):
        table.add_column(name, justify="left" if not name else "right")
    asked = prune["requested"]
    wishes = {"channels": 1 - asked["ratio"]} if "ratio" in asked else asked
    for name in ("channels", "params", "macs"):
        pair, wanted = prune["achieved"][name], wishes.get(name)
        table.add_row(name, short(pair[0]), short(pair[1]), share(pair), "" if wanted is None else f"{wanted:.1%}")
    out.print(table)
    proof = prune["proof"]
    out.print(f"\nsurgery proof: {in_words(proof)}", soft_wrap=True)
    for caveat in prune.get("caveats", ()):
        talk().print(f"caveat: {caveat}", markup=False, soft_wrap=True)
    if "while_training" in results:
        show_events(results["while_training"])
    elif proof["vacuous"]:
        talk().print(f"caveat: {VACUOUS}", soft_wrap=True)
    show_latency(results.get("latency"))
    show_repair(results.get("repair"))
    if prune["kept_as"] == "program":
        out.print(
            "kept as an exported program, which trains, exports and prunes again like any network, but has no layers",
            soft_wrap=True,
        )
        if "takes" in prune:
            out.print(f"the program takes inputs of {prune['takes']}; others are refused", markup=False, soft_wrap=True)
    if prune["emptied"]:
        out.print(f"branches taken out: {', '.join(prune['emptied'])}", markup=False)
    for layer in prune["left_alone"]:
        out.print(f"left alone: {layer['layer']} ({layer['reason']})", style="dim", markup=False)
    return None


def show_events(training: dict[str, Any]) -> None:
    """What each event took, and what it cost on the tuning split."""
    from rich.table import Table

    out = console()
    how = "zeroed, and left to train on" if training["regrow"] else "silenced for good"
    out.print(f"trained for {training['epochs']} epochs meanwhile; what the events chose was {how}", markup=False)
    table = Table(box=None, pad_edge=False)
    for name in ("after epochs", "channels", "tune before", "after"):
        table.add_column(name, justify="right")
    for event in training["events"]:
        chosen = sum(len(channels) for channels in event["chosen"].values())
        shares = [f"{event[when] / event['total']:.2%}" for when in ("before", "after")]
        table.add_row(str(event["epoch"]), str(chosen), *shares)
    out.print(table)


def show_latency(latency: dict[str, Any] | None) -> None:
    """How fast the clock says that it is, where a latency was the budget."""
    if latency is None:
        return
    where = f"{latency['runtime']}, batch {latency['batch']}, threads: {latency['threads']}"
    found = latency["speedup"]
    if found is None:
        predicted = latency["trials"][-1]["predicted"]
        console().print(f"latency: predicted {predicted:.2f}× on {where}, by a table from there", markup=False)
        talk().print("caveat: predicted, not measured: run it there, `compress bench --pack`")
        return
    console().print(
        f"speed-up: {found['ratio']:.2f}× ({found['low']:.2f} to {found['high']:.2f}), asked {latency['wanted']:.2f}×; "
        f"{latency['dense_ms']:.3g} ms before, {latency['small_ms']:.3g} ms after, on {where}",
        markup=False,
    )
    console().print(
        f"table: {latency['table_error']:.1%} off at first; widths are multiples of {latency['align']}, "
        f"by measurement; trials: {len(latency['trials'])}",
        style="dim", markup=False,
    )  # fmt: skip
    for caveat in latency.get("caveats", ()):
        talk().print(f"caveat: {caveat}", markup=False)
    search = latency.get("search")
    if search is not None:
        console().print(
            f"loses {search['drop']:.2f} points on the tuning split, {search['allowed']:g} allowed; tried: "
            + ", ".join(f"{t['speedup']:.2f}× loses {t['drop']:.2f}" for t in search["tried"]),
            markup=False, soft_wrap=True,
        )  # fmt: skip
    elif not latency["met"]:
        talk().print(f"caveat: that is further from what was asked than {latency['tolerance']:.0%}")


def show_repair(repair: dict[str, Any] | None) -> None:
    """How far the output is from the dense network's, before and after the repair."""
    if repair is None:
        return
    before, after = repair["rise"]
    if before is None:
        console().print(f"repair: {repair['how']}, by {repair['data']}", markup=False)
        return
    told = f"output error {before:.3g} before, {after:.3g} after"
    text = f"repair: {repair['how']} on {repair['images']:,} images of {repair['data']}; {told}"
    console().print(text if repair["kept"] else f"{text}; made worse by it, left as it was", markup=False)


def show_mask(mask: dict[str, Any]) -> None:
    """What an unstructured mask saves on disk, and that it saves no time."""
    from rich.table import Table

    out = console()
    table = Table(box=None, pad_edge=False)
    for name in ("", "dense", "sparse", "stays"):
        table.add_column(name, justify="left" if not name else "right")
    pair = (mask["dense_bytes"], mask["stored_bytes"])
    table.add_row("weights", f"{short(pair[0])}B", f"{short(pair[1])}B", share(pair))
    asked = f"{mask['sparsity']:.2%}, asked {mask['requested']:.2%}"
    out.print(f"{mask['zeros']:,} of {mask['weights']:,} weights are zero ({asked})")
    out.print(table)
    out.print("\n" + mask["statement"], markup=False)
