"""Train what pruning left, in one of the published ways."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.options import (
    ArtifactArgument,
    DataOption,
    DataRootOption,
    DenseOption,
    DownloadOption,
    ForceOption,
    JsonOption,
    OutOption,
    SeedOption,
    ThreadsOption,
    TrustOption,
    command_line,
    console,
    open_default,
    print_json,
    talk,
)

if TYPE_CHECKING:
    from compressor.train import Callback, Progress


def command(
    artifact: ArtifactArgument = None,
    how: Annotated[
        str, typer.Option(help="fine-tune, scratch-e, scratch-b, rewind-weights or rewind-lr.")
    ] = "fine-tune",
    epochs: Annotated[
        int | None, typer.Option(help="Length of fine-tuning (3), or of the dense run's end that is repeated.")
    ] = None,
    data: DataOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    lr: Annotated[float | None, typer.Option("--lr", help="The peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.", min=1)] = None,
    schedule: Annotated[str | None, typer.Option(help="How the rate falls: cosine, step or constant.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Share of the run in which the rate rises.")] = None,
    augment: Annotated[str | None, typer.Option(help="Some of flip,crop,erase, or none.")] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of the label given to the other classes.")
    ] = None,
    optimiser: Annotated[str | None, typer.Option(help="sgd or adamw.")] = None,
    cap: Annotated[float | None, typer.Option(help="The most times over that scratch-b trains longer.")] = None,
    dense_epochs: Annotated[
        int | None, typer.Option(help="How long the dense network trained, if its checkpoint does not say.")
    ] = None,
    rewind_to: Annotated[
        Path | None, typer.Option(help="The dense network's early weights, for rewind-weights.")
    ] = None,
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

    Example: `compress retrain --how fine-tune --epochs 3`, `compress retrain --how scratch-b --cap 2 --data DIR`
    """
    import torch

    from compressor import retraining as work
    from compressor.arms import wishes_from
    from compressor.recipe import how_named
    from compressor.retrain import read_early_state
    from compressor.retrain import tensorboard as streaming
    from compressor.sources import data_for

    way = how_named(how)
    wishes = wishes_from(
        epochs=epochs, dense_epochs=dense_epochs, cap=cap, rate=lr, shape=schedule, warmup=warmup, seed=seed,
        batch_size=batch_size, label_smoothing=label_smoothing, augment=augment, optimiser=optimiser,
        temperature=temperature,
    )  # fmt: skip
    if threads is not None:
        torch.set_num_threads(threads)
    planned = work.prepare(
        open_default(artifact), way, wishes=wishes, folder=out, dense=dense, taught=work.wants_teacher(teacher),
        early_state=None if rewind_to is None else read_early_state(rewind_to), device=device, force=force,
        trust_pickle=trust_pickle,
    )  # fmt: skip
    found = data_for(planned.checkpoint, data, root=data_root, download=download, seed=seed)
    announce(planned, found.name)
    with contextlib.ExitStack() as stack:
        callbacks = [stack.enter_context(progress_bar())]
        if tensorboard is not None:
            callbacks.append(stack.enter_context(streaming(tensorboard)))
        try:
            entry = work.run(
                planned,
                found,
                callbacks=tuple(callbacks),
                command=command_line(),
                force=force,
                trust_pickle=trust_pickle,
            )
        except KeyboardInterrupt:
            stack.close()
            if planned.state_file.exists():
                talk().print(f"\nkept after its last whole epoch: {planned.state_file}", markup=False, soft_wrap=True)
            raise
    if as_json:
        print_json(entry)
    else:
        show(entry, planned.folder)


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
    out.print(f"\nwrote [bold]{folder}[/]; next: `compress export --onnx`, `compress bench`", soft_wrap=True)
