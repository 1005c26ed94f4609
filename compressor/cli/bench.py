"""Time dense, masked and small in turns on real runtimes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from compressor.cli.groups import Panel, changed
from compressor.cli.loading import load_data, open_default
from compressor.cli.options import (
    ArtifactArgument,
    DataOptions,
    DenseOption,
    ExitCode,
    JsonOption,
    SeedOption,
    TrustOption,
    batch_sizes,
    console,
    print_json,
    refuse_silent,
    status,
    strong,
    talk,
)
from compressor.cli.result_tables import columns
from compressor.progress import Say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.data.splits import Data
    from compressor.results.quality import Quality
    from compressor.results.timing import Bench, LayerTimes, TimedRow
    from compressor.surgery.masks import WeightMask


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingOptions:
    """What is timed, and how long."""

    panel: ClassVar[Panel] = Panel.MEASURING
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas between them.")] = "1,64"
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads to compute with.")] = None
    runtimes: Annotated[
        str | None,
        typer.Option(help="torch-eager, torch-compile, onnxruntime-cpu, …; by default all that are installed here."),
    ] = None
    blocks: Annotated[
        int | None,
        typer.Option(help="Blocks of calls per candidate; by default as many as fit in some seconds.", min=8),
    ] = None
    why: Annotated[
        bool, typer.Option("--why", help="Also show the time of every layer, before and after, and what limits it.")
    ] = False
    min_speedup: Annotated[
        float | None,
        typer.Option(help="Exit with 3 unless the interval lies at or above this, in every setting.", min=0),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions:
    """A measurement on another machine."""

    panel: ClassVar[Panel] = Panel.ELSEWHERE
    pack: Annotated[
        Path | None,
        typer.Option(help="Measure nothing; write a folder that measures this on a machine without torch."),
    ] = None
    read: Annotated[
        Path | None, typer.Option(help="Measure nothing; read what such a folder measured: its measured.json.")
    ] = None


def command(
    timing: TimingOptions,
    elsewhere: PackOptions,
    images: DataOptions,
    artifact: ArtifactArgument = None,
    dense: DenseOption = None,
    trust_pickle: TrustOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Time the dense, the masked and the small network in turns, with intervals, and the dense one against itself.

    For example:

    - `compress bench`
    - `compress bench --why --batch 1 --runtimes onnxruntime-cpu --min-speedup 1.5`
    """
    from compressor.checkpoint.artifact_writing import add_results
    from compressor.files.json_files import read_json
    from compressor.measuring.pack.folder import bench_of_pack, write_pack

    batches, names = batch_sizes(timing.batch), None if timing.runtimes is None else _names(timing.runtimes)
    _check_pack(elsewhere, timing, images, seed=seed)
    opened = open_default(artifact)
    with status("loading") as say:
        small, reference = opened.checkpoint(trust_pickle=trust_pickle), opened.dense(dense, trust_pickle=trust_pickle)
        mask = opened.mask()
        if elsewhere.pack is not None:
            files = write_pack(
                elsewhere.pack, small, reference, mask=mask, batches=batches, threads=timing.threads, say=say
            )
            text = f"wrote {elsewhere.pack}: {files} files; there: `python bench.py`, and bring back measured.json"
            console().print(text)
            return
        if elsewhere.read is not None:
            result = bench_of_pack(read_json(elsewhere.read), where=str(elsewhere.read))
        else:
            data = None
            if images.data is not None:
                data = load_data(images, seed=seed, checkpoint=small)
            result = _measured(
                small, reference, timing, mask=mask, batches=batches, names=names, data=data, seed=seed, say=say
            )
    add_results(opened.folder, bench=result)
    print_json(result.to_json()) if as_json else show(result)
    if result.why is not None and not as_json:
        show_why(result.why)
    for caveat in result.caveats:
        talk().print(f"caveat: {caveat}", markup=False, soft_wrap=True)
    _check_speed(result, timing.min_speedup)


def _check_pack(elsewhere: PackOptions, timing: TimingOptions, images: DataOptions, *, seed: int) -> None:
    """Refuses options that have no effect where nothing is measured here."""
    if elsewhere.pack is not None and elsewhere.read is not None:
        raise typer.BadParameter("a pack is written or read, not both at once", param_hint="--pack")
    of_here = {
        **changed(timing, "--runtimes", "--blocks", "--why", "--min-speedup"), "--data": images.data is not None
    }  # fmt: skip
    hint = "leave it out; `python bench.py` in the pack has options of its own"
    if elsewhere.pack is not None:
        refuse_silent(of_here, because="beside `--pack`, which measures nothing", hint=hint)
    if elsewhere.read is not None:
        of_here = {**of_here, **changed(timing, "--batch", "--threads"), "--seed": seed != 0}
        refuse_silent(of_here, because="beside `--read`: it was measured already", hint=hint)


def _measured(
    small: Checkpoint, dense: Checkpoint, timing: TimingOptions, *, mask: WeightMask | None, batches: tuple[int, ...],
    names: tuple[str, ...] | None, data: Data | None, seed: int, say: Say,
) -> Bench:  # fmt: skip
    """What the clock of this machine says, layer by layer too with `--why`."""
    from compressor.measuring.benchmark import bench
    from compressor.measuring.layer_times import why
    from compressor.measuring.runtimes import usable

    result = bench(
        small, dense, mask=mask, runtimes=names, batches=batches, threads=timing.threads, data=data,
        blocks=timing.blocks, seed=seed, say=say,
    )  # fmt: skip
    if timing.why:
        runtimes = usable(names)
        profiled = next((r for r in runtimes if r.profile is not None), runtimes[0])
        layers = why(small, dense, profiled, batch=batches[0], threads=result.threads or 1, seed=seed, say=say)
        result = replace(result, why=layers)
    return result


def _check_speed(result: Bench, at_least: float | None) -> None:
    """Ends with an exit code of its own where a setting is not as fast as the user asked."""
    from compressor.measuring.benchmark import missed

    too_slow = [] if at_least is None else missed(result, at_least=at_least)
    for setting in too_slow:
        talk().print(f"not {at_least:g} times as fast as dense: {setting}", markup=False, soft_wrap=True)
    if too_slow:
        raise typer.Exit(ExitCode.GATE_MISSED)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise typer.BadParameter(f"runtimes are names with commas between them: {text!r}", param_hint="--runtimes")
    return names


def show(result: Bench) -> None:
    """What each candidate counts, and then a table for every setting, on stdout."""
    from compressor.words import DASH, percent, scaled, size

    rows, out = result.rows, console()
    qualities = any(row.accuracy for row in rows)
    table = columns("", "parameters", "MACs", "ONNX file", *(["accuracy"] if qualities else []))
    for candidate in dict.fromkeys(row.candidate for row in rows):
        mine = [row for row in rows if row.candidate == candidate]
        on_disk = next((row.file_bytes for row in mine if row.file_bytes is not None), None)
        counts = [DASH if n is None else scaled(n) for n in (mine[0].params, mine[0].macs)]
        cells = [candidate, *counts, DASH if on_disk is None else size(on_disk)]
        table.add_row(*cells, *([quality(mine[0].accuracy)] if qualities else []))
    out.print(table)
    for runtime, batch in dict.fromkeys((row.runtime, row.batch) for row in rows):
        mine = [row for row in rows if (row.runtime, row.batch) == (runtime, batch)]
        out.print()
        out.print(
            strong(runtime),
            f", batch {batch}, threads: {result.threads}, run by {mine[0].provider}, "
            f"{mine[0].blocks} blocks of {mine[0].calls_per_block} calls; milliseconds:",
            sep="",
        )
        out.print(timings(mine))
    level = percent(result.confidence or 0.0, decimals=0)
    out.print(f"\nspeed-up: dense latency over the candidate's, with its {level} interval; theoretical: by MACs alone")


def show_why(why: LayerTimes) -> None:
    """A row for every layer, those that took longest first."""
    from compressor.words import digits, multiple, percent

    table = columns(
        "", "in", "out", "dense", "small", "ratio", "MACs/byte", "held by", "of that ceiling", left=("", "held by")
    )
    layers = [layer for layer in why.rows if layer.dense or layer.small]
    for layer in sorted(layers, key=lambda one: -max(s.us for s in (one.dense, one.small) if s is not None)):
        dense, small = layer.dense, layer.small
        last = small or dense
        assert last is not None
        arrows = [f"{a} → {b}" if a != b else f"{a}" for a, b in filter(None, (layer.inputs, layer.outputs))]
        ratio = multiple(dense.us / small.us) if dense and small and small.us else ""
        intensity = "" if last.intensity is None else digits(last.intensity)
        share = "" if last.of_ceiling is None else percent(last.of_ceiling, decimals=0)
        times = [digits(one.us) if one else "gone" for one in (dense, small)]
        table.add_row(layer.layer, *arrows, *times, ratio, intensity, last.ceiling, share)
    peaks, out = why.ceilings, console()
    out.print(
        "\n",
        strong(why.runtime),
        f", batch {why.batch}, threads: {why.threads}, microseconds by layer, with what is fused into it or "
        "follows without weights:",
        sep="",
    )
    out.print(table)
    out.print(
        f"\nthe machine at most, as measured: {digits(peaks['gmacs_per_s'])} GMACs/s, {digits(peaks['gbytes_per_s'])} "
        f"GB/s from memory (caches give more), {digits(peaks['launch_us'])} µs to start an operator",
        soft_wrap=True,
    )


def timings(rows: Sequence[TimedRow]) -> Table:
    """One setting as a table: latencies, peak memory, and the theoretical speed-up beside the measured one."""
    from compressor.words import DASH, digits, finding, multiple, scaled, size

    table = columns("", "median", "p90", "p99", "samples/s", "memory", "theoretical", "speed-up", left=("", "speed-up"))
    for row in rows:
        latencies = [DASH if ms is None else digits(ms) for ms in (row.median_ms, row.p90_ms, row.p99_ms)]
        rate = DASH if row.throughput is None else scaled(round(row.throughput))
        memory = DASH if row.peak_memory_bytes is None else size(row.peak_memory_bytes)
        theory = DASH if row.theoretical_speedup is None else multiple(row.theoretical_speedup)
        table.add_row(row.candidate, *latencies, rate, memory, theory, finding(row.speedup))
    return table


def quality(reading: Quality | None) -> str:
    """Correct, or agreeing with the dense network, of all."""
    from compressor.words import DASH, counted, scored

    if reading is None:
        return DASH
    return f"{counted(reading)}{' as dense' if reading.against_dense else ''} = {scored(reading)}"
