"""Train what pruning left, in one of the published ways."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.options import (
    ArchArgOption,
    ArchOption,
    DataOption,
    DataRootOption,
    DenseOption,
    DownloadOption,
    ForceOption,
    InputOption,
    JsonOption,
    MeanOption,
    OutOption,
    SeedOption,
    StdOption,
    ThreadsOption,
    TrustOption,
    command_line,
    console,
    load_model,
    open_default,
    print_json,
    say_repeated,
    strong,
    talk,
)

if TYPE_CHECKING:
    from compressor.training.loop import Callback, Progress


def command(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="An artifact's folder, the newest here by default; for lottery a checkpoint too.", show_default=False
        ),
    ] = None,
    how: Annotated[
        str, typer.Option(help="fine-tune, scratch-e, scratch-b, rewind-weights, rewind-lr or lottery.")
    ] = "fine-tune",
    epochs: Annotated[
        int | None, typer.Option(help="Length of fine-tuning (3), or of the dense run's end that is repeated.")
    ] = None,
    data: DataOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    lr: Annotated[float | None, typer.Option("--lr", help="The peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.", min=1)] = None,
    schedule: Annotated[str | None, typer.Option(help="How the rate falls: cosine, step, constant or inverse.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Share of the run in which the rate rises.")] = None,
    augment: Annotated[str | None, typer.Option(help="Some of flip,crop,erase, or none.")] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of the label given to the other classes.")
    ] = None,
    optimiser: Annotated[str | None, typer.Option(help="sgd or adamw.")] = None,
    bn_l1: Annotated[
        float, typer.Option("--bn-l1", help="L1 penalty on batch norm scales, to prune by bn-scale after it.")
    ] = 0.0,
    cap: Annotated[float | None, typer.Option(help="The most times over that scratch-b trains longer.")] = None,
    dense_epochs: Annotated[
        int | None, typer.Option(help="How long the dense network trained, if its checkpoint does not say.")
    ] = None,
    rewind_to: Annotated[
        Path | None,
        typer.Option(help="The dense network's early weights, for rewind-weights; for lottery also: fresh, trained."),
    ] = None,
    rewind_step: Annotated[
        int | None, typer.Option(help="lottery, fresh: how many steps after the first weights.", min=0)
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="lottery: rounds of pruning and training (5).", min=1)] = None,
    rate: Annotated[float | None, typer.Option(help="lottery: share of the weights left that a round removes.")] = None,
    output_rate: Annotated[
        float | None, typer.Option(help="lottery: the same of the output layer; half, or 0 where all compete.")
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="lottery: where weights compete: uniform (in a layer) or global.")
    ] = None,
    arch: ArchOption = None,
    arch_arg: ArchArgOption = None,
    input_shape: InputOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    teacher: Annotated[str | None, typer.Option(help="`dense`: follow the dense network's scores as well.")] = None,
    temperature: Annotated[float | None, typer.Option(help="What the teacher's scores are softened by; 4.")] = None,
    dense: DenseOption = None,
    device: Annotated[str, typer.Option(help="Where to train: auto, cpu or cuda.")] = "auto",
    threads: ThreadsOption = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Stream the metrics to this folder.")] = None,
    seed: SeedOption = 0,
    trust_pickle: TrustOption = False,
    out: OutOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train what pruning left, in one of the published ways; an interrupted run goes on with the same command.

    With `--how lottery`, find the winning ticket of a network: rounds of pruning single weights, rewinding, training.

    Example: `compress retrain --how fine-tune --epochs 3`, `compress retrain --how scratch-b --cap 2 --data DIR`,
    `compress retrain model.pt --how lottery --rounds 5 --rate 0.2 --rewind-to early.pt --data DIR`,
    `compress retrain --bn-l1 1e-4`
    """
    import torch

    from compressor.checkpoint.recipes import how_named
    from compressor.data.sources import data_for
    from compressor.jobs import lottery as ticketing
    from compressor.jobs import retrain as retraining
    from compressor.training.retraining import read_early_state
    from compressor.training.retraining import tensorboard as streaming
    from compressor.training.ways import wishes_from

    wishes = wishes_from(
        epochs=epochs, dense_epochs=dense_epochs, cap=cap, rate=lr, shape=schedule, warmup=warmup, seed=seed,
        batch_size=batch_size, label_smoothing=label_smoothing, augment=augment, optimiser=optimiser, bn_l1=bn_l1,
        temperature=temperature,
    )  # fmt: skip
    if threads is not None:
        torch.set_num_threads(threads)
    if how == ticketing.LOTTERY:
        refuse_beside(how, {"--teacher": teacher, "--cap": cap, "--dense": dense})
        artifact = open_default(model) if model is None or model.is_dir() else None
        network = load_model(
            artifact.folder if artifact is not None else Path(str(model)), arch=arch, arch_args=arch_arg,
            inputs=input_shape, trust_pickle=trust_pickle, mean=mean, std=std,
        )  # fmt: skip
        found_by = ticketing.rounds_for(network, rounds=rounds, rate=rate, output_rate=output_rate, scope=scope)
        planned: Any = ticketing.prepare(
            network, artifact=artifact, rounds=found_by, rewind_to=None if rewind_to is None else str(rewind_to),
            step=rewind_step or 0, wishes=wishes, folder=out, device=device, force=force,
        )  # fmt: skip
        run: Any = functools.partial(ticketing.run, planned, say=show_round)
    else:
        way = how_named(how, besides=(ticketing.LOTTERY,))
        refuse_beside(
            how,
            {
                "--rounds": rounds, "--rate": rate, "--output-rate": output_rate, "--scope": scope, "--arch": arch,
                "--rewind-step": rewind_step, "--arch-arg": arch_arg, "--input": input_shape, "--mean": mean,
                "--std": std,
            },
        )  # fmt: skip
        planned = retraining.prepare(
            open_default(model), way, wishes=wishes, folder=out, dense=dense, taught=retraining.wants_teacher(teacher),
            early_state=None if rewind_to is None else read_early_state(rewind_to), device=device, force=force,
            trust_pickle=trust_pickle,
        )  # fmt: skip
        run = functools.partial(retraining.run, planned)
    found = data_for(planned.checkpoint, data, root=data_root, download=download, seed=seed)
    say_repeated(found)
    announce(planned, found.name)
    with contextlib.ExitStack() as stack:
        callbacks = [stack.enter_context(progress_bar())]
        if tensorboard is not None:
            callbacks.append(stack.enter_context(streaming(tensorboard)))
        try:
            entry = run(
                found, callbacks=tuple(callbacks), command=command_line(), force=force, trust_pickle=trust_pickle
            )
        except KeyboardInterrupt:
            stack.close()
            if planned.state_file.exists():
                talk().print(f"\nkept after its last whole epoch: {planned.state_file}", markup=False, soft_wrap=True)
            raise
    if as_json:
        print_json(entry)
    elif how == ticketing.LOTTERY:
        show_ticket(entry, planned.folder)
    else:
        show(entry, planned.folder)


def refuse_beside(how: str, given: Mapping[str, object]) -> None:
    """Refuses options that say nothing to this way."""
    from compressor.errors import RetrainError

    for option in (option for option, value in given.items() if value not in (None, [])):
        raise RetrainError(f"`{option}` says nothing to `--how {how}`", hint="leave it out, or choose another way")


def announce(planned: Any, data: str) -> None:
    """What was decided, before the first step."""
    err = talk()
    err.print(f"{planned.recipe.how} on {data}", style="dim", markup=False)
    for note in planned.recipe.notes:
        err.print(f"  {note}", style="dim", markup=False, soft_wrap=True)
    if planned.state_file.exists():
        err.print(f"going on from {planned.state_file}", style="dim", markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callback]:
    """A callback that draws a bar with loss and tune accuracy on stderr; a pipe gets one line per epoch."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    err = talk()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        task = bars.add_task("training", total=None)

        def tell(progress: Progress) -> None:
            done = progress.epoch * progress.iterations + progress.iteration + 1
            said = f"epoch {progress.epoch + 1}/{progress.epochs}, loss {progress.loss:.3f}"
            bars.update(task, completed=done, total=progress.epochs * progress.iterations, description=said)
            if progress.record is not None:
                last = progress.record
                share = last.tune_correct / last.tune_total
                err.print(f"epoch {last.epoch + 1}/{progress.epochs}: loss {last.train_loss:.4f}, tune {share:.2%}")

        yield tell


def show(entry: dict[str, Any], folder: Path) -> None:
    """What came of it, on stdout."""
    last = entry["history"][-1]
    share = last["tune_correct"] / last["tune_total"]
    out = console()
    length = f"{entry['epochs']} epoch{'s' * (entry['epochs'] != 1)}"
    tune = f"tune {last['tune_correct']}/{last['tune_total']} ({share:.2%})"
    out.print(f"{entry['how']}: {length} on {entry['images']:,} images of {entry['data']}, {tune}", markup=False)
    after = "; next: `compress export --onnx`, `compress bench`"
    out.print("\nwrote ", strong(folder), after, sep="", soft_wrap=True)


def show_round(told: dict[str, Any]) -> None:
    """What a round of the search left, on stderr."""
    share = told["tune_correct"] / told["tune_total"]
    talk().print(f"round {told['round']}: {1 - told['sparsity']:.2%} of the weights left, tune {share:.2%}")


def show_ticket(found: dict[str, Any], folder: Path) -> None:
    """Every round of the search, on stdout."""
    from rich.table import Table

    out, lottery = console(), found["lottery"]
    table = Table(box=None, pad_edge=False)
    for name in ("round", "weights left", "share", "tune"):
        table.add_column(name, justify="right")
    for told in lottery["told"]:
        left, tune = told["weights"] - told["zeros"], told["tune_correct"] / told["tune_total"]
        table.add_row(str(told["round"]), f"{left:,}", f"{left / told['weights']:.2%}", f"{tune:.2%}")
    out.print(table)
    out.print(f"rewound to: {lottery['rewound_to']}; {lottery['epochs']} epochs a round on {lottery['data']}")
    out.print("\n" + found["mask"]["statement"], markup=False)
    after = "; next: `compress evaluate`, `compress export --onnx`"
    out.print("\nwrote ", strong(folder), after, sep="", soft_wrap=True)
