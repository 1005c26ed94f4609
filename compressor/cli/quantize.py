"""Write a network as an int8 ONNX file, judged and timed against the float one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from compressor.cli.groups import Panel
from compressor.cli.loading import load_data, load_model, open_default
from compressor.cli.options import (
    CalibrationOption,
    DataOptions,
    NetworkArgument,
    NetworkOptions,
    NormalisationOptions,
    OutputOptions,
    SeedOption,
    batch_sizes,
    command_line,
    console,
    print_json,
    status,
    strong,
    talk,
)
from compressor.cli.result_tables import columns
from compressor.environment import Processor
from compressor.files.model_folders import is_artifact_folder

if TYPE_CHECKING:
    from compressor.results.int8 import Quantizing


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerOptions:
    """How weights and activations become integers."""

    panel: ClassVar[Panel] = Panel.INTEGERS
    images: CalibrationOption = 512
    per_channel: Annotated[
        bool,
        typer.Option("--per-channel/--per-tensor", help="One scale per output channel of a weight, or per weight."),
    ] = True
    reduce_range: Annotated[
        bool | None,
        typer.Option(
            "--reduce-range/--full-range", help="Weights in 7 bits or in 8; by default what the target needs."
        ),
    ] = None
    target: Annotated[
        Processor,
        typer.Option(help="The processor that runs the file: x86 without VNNI needs weights in 7 bits."),
    ] = Processor.HERE


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingOptions:
    """How the files are timed."""

    panel: ClassVar[Panel] = Panel.MEASURING
    batch: Annotated[str, typer.Option(help="Batch sizes to time, with commas between them.")] = "1,64"
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads to compute with.")] = None


def command(
    integers: IntegerOptions,
    timing: TimingOptions,
    images: DataOptions,
    normalisation: NormalisationOptions,
    network: NetworkOptions,
    *,
    model: NetworkArgument = None,
    seed: SeedOption = 0,
    output: OutputOptions,
) -> None:
    """Quantise a network to 8-bit integers after training, and measure what that costs and whether it is faster here.

    For example:

    - `compress quantize --data images/`
    - `compress quantize model.pt --data images/ --images 512 --per-tensor`

    The int8 file joins the artifact; a checkpoint gets a new artifact, `NAME.int8.compressed`, which holds both files.

    """
    from compressor.export.int8 import Int8
    from compressor.jobs import quantize as work

    clock = work.Timing(batch_sizes=batch_sizes(timing.batch), threads=timing.threads)
    how = Int8(
        images=integers.images, per_channel=integers.per_channel, reduce_range=integers.reduce_range,
        target=integers.target, seed=seed,
    )  # fmt: skip
    artifact = open_default(model) if model is None or is_artifact_folder(model) else None
    place = artifact.folder if artifact is not None else model
    assert place is not None
    with status("loading") as say:
        checkpoint = load_model(place, network, normalisation, opened=artifact is not None)
        data = work.required(load_data(images, seed=seed, checkpoint=checkpoint))
        file, section = work.quantize_to(
            output.out, checkpoint, data, how, artifact=artifact, timing=clock, command=command_line(),
            force=output.force, trust_pickle=network.trust_pickle, say=say,
        )  # fmt: skip
    if output.as_json:
        print_json({"file": str(file), **section.to_json()})
    else:
        show(file, section)
    for caveat in section.caveats:
        talk().print(f"caveat: {caveat}", markup=False, soft_wrap=True)


def show(file: Path, section: Quantizing) -> None:
    """Size, closeness and speed, on stdout."""
    from compressor.results.quality import Agreement, Counted, Score
    from compressor.words import count, counted, finding, milliseconds, multiple, percent, scored, size, tiny

    out, accuracy = console(), section.accuracy
    table = columns("", "float", "int8", "of which", left=("",))
    table.columns[-1].header = ""
    before, after = section.float_bytes, section.int8_bytes
    table.add_row("file", size(before), size(after), f"{multiple(before / after)} smaller")
    if accuracy is not None:
        points = -accuracy.int8.lost_against(accuracy.float)
        cells = [counted(one) if isinstance(one, Counted) else scored(one) for one in (accuracy.float, accuracy.int8)]
        change = f"{points:+.2f} {'points' if accuracy.int8.is_share else '%'}"
        table.add_row(f"{accuracy.int8.named}, {accuracy.int8.split}", *cells, change)
    for exact, integer in section.pairs:
        cells = [milliseconds(row.median_ms) for row in (exact, integer)]
        table.add_row(f"latency, batch {exact.batch}", *cells, finding(integer.speedup))
    out.print(table)
    close = section.agreement
    if close is not None:
        error = close.relative_error if isinstance(close, (Agreement, Score)) else None
        out.print(
            f"\nagreement with the float network: {counted(close)} ({scored(close)}) on the {close.split} split"
            + ("" if error is None else f", relative error of the scores {tiny(error)}"),
            markup=False, soft_wrap=True,
        )  # fmt: skip
    out.print(str(section.how["why"]), markup=False, soft_wrap=True)
    if section.left_float:
        out.print(f"left in float: {', '.join(section.left_float)}", markup=False, soft_wrap=True)
    seen, level = section.data, percent(section.confidence or 0.0, decimals=0)
    out.print(
        f"ranges by {count(seen['images'])} images of {seen['name']}; timed in turns on {section.runtime}, "
        f"threads: {section.threads}, {level} intervals",
        style="dim", markup=False, soft_wrap=True,
    )  # fmt: skip
    if not section.faster:
        talk().print("int8 is not faster here: what it saves is disk and memory", style="yellow")
    out.print("wrote ", strong(file), f"; on the test split: `compress evaluate {file}`", sep="", soft_wrap=True)
