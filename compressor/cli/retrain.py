"""Train what pruning left, in one of the published ways."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from compressor.cli.groups import Panel, changed
from compressor.cli.loading import load_model, open_default, say_repeated, use_threads
from compressor.cli.options import (
    BatchSizeOption,
    DataOptions,
    DenseOption,
    LrOption,
    NetworkOptions,
    NormalisationOptions,
    OutputOptions,
    TrainingRunOptions,
    command_line,
    console,
    print_json,
    strong,
    talk,
)
from compressor.cli.result_tables import columns
from compressor.files.model_folders import is_artifact_folder

if TYPE_CHECKING:
    from compressor.data.splits import Data
    from compressor.jobs.lottery import Search
    from compressor.jobs.retrain import Retraining
    from compressor.results.artifact import Results
    from compressor.results.training import LotteryRound, Retrained
    from compressor.training.loop import Callback, Progress
    from compressor.training.ways import Wishes

Model = Annotated[
    Path | None,
    typer.Argument(
        help="The folder of an artifact; by default the newest one in this folder. For lottery a checkpoint too.",
        show_default=False,
    ),
]
How = Annotated[
    str,
    typer.Option(
        help="fine-tune, scratch-e, scratch-b, rewind-weights, rewind-lr or lottery.", rich_help_panel=Panel.TRAINING
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """The recipe, where the user decides and not the published way."""

    panel: ClassVar[Panel] = Panel.TRAINING
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of fine-tuning (default 3), or the last epochs of the dense run to repeat."),
    ] = None
    lr: LrOption = None
    batch_size: BatchSizeOption = None
    schedule: Annotated[
        str | None, typer.Option(help="How the learning rate falls: cosine, step, constant or inverse.")
    ] = None
    warmup: Annotated[float | None, typer.Option(help="Share of the run in which the learning rate rises.")] = None
    augment: Annotated[str | None, typer.Option(help="Augmentation: some of flip,crop,erase, or none.")] = None
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of the label that is spread over the other classes.")
    ] = None
    optimiser: Annotated[str | None, typer.Option(help="sgd or adamw.")] = None
    bn_l1: Annotated[
        float,
        typer.Option("--bn-l1", help="L1 penalty on batch norm scales; prune with --criterion bn-scale after it."),
    ] = 0.0
    tensorboard: Annotated[Path | None, typer.Option(help="Folder to write the metrics to, for TensorBoard.")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherOptions:
    """A teacher to follow."""

    panel: ClassVar[Panel] = Panel.TEACHER
    teacher: Annotated[str | None, typer.Option(help="`dense`: follow the scores of the dense network too.")] = None
    temperature: Annotated[
        float | None, typer.Option(help="Temperature that softens the teacher's scores (default 4).")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOptions:
    """What some of the published ways ask for."""

    panel: ClassVar[Panel] = Panel.WAYS
    cap: Annotated[float | None, typer.Option(help="scratch-b: most times the dense run's length to train for: 2.")] = (
        None
    )
    dense_epochs: Annotated[
        int | None,
        typer.Option(help="scratch, rewind: epochs that the dense network trained, if its checkpoint does not say."),
    ] = None
    rewind_to: Annotated[
        Path | None,
        typer.Option(
            help="rewind-weights, lottery: file of the dense network's early weights; lottery: fresh, trained."
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LotteryOptions:
    """The rounds of a search for a winning ticket."""

    panel: ClassVar[Panel] = Panel.LOTTERY
    rounds: Annotated[int | None, typer.Option(help="Rounds of pruning and training (default 5).", min=1)] = None
    rate: Annotated[
        float | None, typer.Option(help="Share of the weights still there that a round removes (default 0.2).")
    ] = None
    output_rate: Annotated[
        float | None, typer.Option(help="The same for the output layer (default half; 0 with --scope global).")
    ] = None
    scope: Annotated[str | None, typer.Option(help="Where weights compete: uniform (within a layer) or global.")] = None
    rewind_step: Annotated[
        int | None, typer.Option(help="With --rewind-to fresh: step of the first training to rewind to.", min=0)
    ] = None


def command(
    training: TrainingOptions,
    teacher: TeacherOptions,
    way: WayOptions,
    lottery: LotteryOptions,
    images: DataOptions,
    normalisation: NormalisationOptions,
    network: NetworkOptions,
    run: TrainingRunOptions,
    output: OutputOptions,
    model: Model = None,
    how: How = "fine-tune",
    dense: DenseOption = None,
) -> None:
    """Train what pruning left, in one of the published ways; an interrupted run goes on with the same command.

    For example:

    - `compress retrain --how fine-tune --epochs 3`
    - `compress retrain --how scratch-b --cap 2 --data DIR`
    - `compress retrain model.pt --how lottery --rounds 5 --rate 0.2 --rewind-to early.pt --data DIR`
    - `compress retrain --bn-l1 1e-4`

    With `--how lottery`, find the winning ticket of a network: rounds of pruning single weights, rewinding, training.

    """
    from compressor.data.sources import data_for
    from compressor.jobs.lottery import LOTTERY
    from compressor.results.training import Retrained

    wishes = _wishes(training, teacher, way, seed=run.seed)
    use_threads(run.threads)
    planned: Retraining | Search
    if how == LOTTERY:
        refuse_beside(how, {**changed(teacher, "--teacher"), **changed(way, "--cap"), "--dense": dense is not None})
        planned = _search(model, network, normalisation, lottery, way, run, output, wishes=wishes)
    else:
        beside = {**changed(lottery), **changed(network, "--arch", "--arch-arg", "--input"), **changed(normalisation)}
        planned = _retraining(
            how, model, teacher, way, run, output, beside=beside, wishes=wishes, dense=dense,
            trust_pickle=network.trust_pickle,
        )  # fmt: skip
    data = data_for(
        planned.checkpoint, images.data, root=images.data_root, download=images.download, seed=run.seed,
        task=images.task,
    )  # fmt: skip
    say_repeated(data)
    announce(planned, data.name)
    entry = _trained(planned, data, training.tensorboard, force=output.force, trust_pickle=network.trust_pickle)
    if output.as_json:
        print_json(entry.to_json())
        return
    if isinstance(entry, Retrained):
        show(entry, planned.folder)
    else:
        show_ticket(entry, planned.folder)


def _wishes(training: TrainingOptions, teacher: TeacherOptions, way: WayOptions, *, seed: int) -> Wishes:
    from compressor.training.ways import wishes_from

    return wishes_from(
        epochs=training.epochs, dense_epochs=way.dense_epochs, cap=way.cap, rate=training.lr, shape=training.schedule,
        warmup=training.warmup, seed=seed, batch_size=training.batch_size,
        label_smoothing=training.label_smoothing, augment=training.augment, optimiser=training.optimiser,
        bn_l1=training.bn_l1, temperature=teacher.temperature,
    )  # fmt: skip


def _search(
    model: Path | None, network: NetworkOptions, normalisation: NormalisationOptions, lottery: LotteryOptions,
    way: WayOptions, run: TrainingRunOptions, output: OutputOptions, *, wishes: Wishes,
) -> Search:  # fmt: skip
    """The search for a winning ticket, decided before its first step."""
    from compressor.jobs.lottery import prepare, rounds_for

    artifact = open_default(model) if model is None or is_artifact_folder(model) else None
    checkpoint = load_model(artifact.folder if artifact is not None else Path(str(model)), network, normalisation)
    rounds = rounds_for(
        checkpoint, rounds=lottery.rounds, rate=lottery.rate, output_rate=lottery.output_rate, scope=lottery.scope
    )
    return prepare(
        checkpoint, artifact=artifact, rounds=rounds, rewind_to=None if way.rewind_to is None else str(way.rewind_to),
        step=lottery.rewind_step or 0, wishes=wishes, folder=output.out, device=run.device, force=output.force,
    )  # fmt: skip


def _retraining(
    how: str, model: Path | None, teacher: TeacherOptions, way: WayOptions, run: TrainingRunOptions,
    output: OutputOptions, *, beside: Mapping[str, bool], wishes: Wishes, dense: Path | None,
    trust_pickle: bool,
) -> Retraining:  # fmt: skip
    """The training of an artifact's network, decided before its first step; refused `beside` options of lottery."""
    from compressor.checkpoint.recipes import how_named
    from compressor.jobs.lottery import LOTTERY
    from compressor.jobs.retrain import prepare, wants_teacher
    from compressor.training.retraining import read_early_state

    one = how_named(how, besides=(LOTTERY,))
    refuse_beside(how, beside)
    return prepare(
        open_default(model), one, wishes=wishes, folder=output.out, dense=dense, taught=wants_teacher(teacher.teacher),
        early_state=None if way.rewind_to is None else read_early_state(way.rewind_to), device=run.device,
        force=output.force, trust_pickle=trust_pickle,
    )  # fmt: skip


def _trained(
    planned: Retraining | Search, data: Data, tensorboard: Path | None, *, force: bool, trust_pickle: bool
) -> Results | Retrained:
    """Train with a progress bar; an interrupted run says where its state is."""
    from compressor.jobs import lottery, retrain
    from compressor.training.retraining import tensorboard as streaming

    run: Callable[..., Results | Retrained]
    if isinstance(planned, lottery.Search):
        run = functools.partial(lottery.run, planned, say=show_round)
    else:
        run = functools.partial(retrain.run, planned)
    with contextlib.ExitStack() as stack:
        callbacks = [stack.enter_context(progress_bar())]
        if tensorboard is not None:
            callbacks.append(stack.enter_context(streaming(tensorboard)))
        try:
            return run(data, callbacks=tuple(callbacks), command=command_line(), force=force, trust_pickle=trust_pickle)
        except KeyboardInterrupt:
            stack.close()
            if planned.state_file.exists():
                talk().print(
                    f"\nthe state after the last whole epoch is kept: {planned.state_file}",
                    markup=False,
                    soft_wrap=True,
                )
            raise


def refuse_beside(how: str, options: Mapping[str, bool]) -> None:
    """Refuses options that have no effect on this way."""
    from compressor.errors import RetrainError

    for option in (option for option, is_set in options.items() if is_set):
        raise RetrainError(f"`{option}` has no effect with `--how {how}`", hint="leave it out, or choose another way")


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

    from compressor.words import tuned

    err = talk()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        task = bars.add_task("training", total=None)

        def tell(progress: Progress) -> None:
            done = progress.epoch * progress.iterations + progress.iteration + 1
            text = f"epoch {progress.epoch + 1}/{progress.epochs}, loss {progress.loss:.3f}"
            bars.update(task, completed=done, total=progress.epochs * progress.iterations, description=text)
            if progress.record is not None:
                last = progress.record
                tune = tuned(last)
                err.print(f"epoch {last.epoch + 1}/{progress.epochs}: loss {last.train_loss:.4f}, tune {tune}")

        yield tell


def show(entry: Retrained, folder: Path) -> None:
    """What came of it, on stdout."""
    from compressor.words import tuned

    last, out, epochs = entry.history[-1], console(), entry.epochs or len(entry.history)
    length = f"{epochs} epoch{'s' * (epochs != 1)}"
    tune = f"tune {tuned(last)}"
    if last.tune_correct is not None:
        tune = f"tune {last.tune_correct}/{last.tune_total} ({tuned(last)})"
    out.print(f"{entry.how}: {length} on {entry.images or 0:,} images of {entry.data}, {tune}", markup=False)
    after = "; next: `compress export --onnx`, `compress bench`"
    out.print("\nwrote ", strong(folder), after, sep="", soft_wrap=True)


def show_round(one: LotteryRound) -> None:
    """What a round of the search left, on stderr."""
    from compressor.words import percent

    tune = percent(one.tune_correct / one.tune_total)
    talk().print(f"round {one.round}: {percent(1 - one.sparsity)} of the weights left, tune {tune}")


def show_ticket(results: Results, folder: Path) -> None:
    """Every round of the search, on stdout."""
    from compressor.words import count, percent

    out, lottery = console(), results.lottery
    if lottery is None or results.masking is None:
        return
    table = columns("round", "weights left", "share", "tune", left=())
    for one in lottery.history:
        left = one.weights - one.zeros
        tune = percent(one.tune_correct / one.tune_total)
        table.add_row(str(one.round), count(left), percent(left / one.weights), tune)
    out.print(table)
    out.print(f"rewound to: {lottery.rewound_to}; {lottery.epochs} epochs a round on {lottery.data}")
    out.print("\n" + (results.masking.statement or ""), markup=False)
    after = "; next: `compress evaluate`, `compress export --onnx`"
    out.print("\nwrote ", strong(folder), after, sep="", soft_wrap=True)
