"""Time dense, masked and small in turns on real runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from compressor.cli.groups import Panel, given
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
    short,
    status,
    strong,
    talk,
)
from compressor.progress import Say

if TYPE_CHECKING:
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.data.splits import Data
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
    from compressor.checkpoint.artifacts import add_results, read_json
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
    add_results(opened.folder, "bench", result)
    print_json(result) if as_json else show(result)
    if "why" in result and not as_json:
        show_why(result["why"])
    for caveat in result["caveats"]:
        talk().print(f"caveat: {caveat}", markup=False, soft_wrap=True)
    _check_speed(result, timing.min_speedup)


def _check_pack(elsewhere: PackOptions, timing: TimingOptions, images: DataOptions, *, seed: int) -> None:
    """Refuses options that have no effect where nothing is measured here."""
    if elsewhere.pack is not None and elsewhere.read is not None:
        raise typer.BadParameter("a pack is written or read, not both at once", param_hint="--pack")
    of_here = {
        **given(timing, "--runtimes", "--blocks", "--why", "--min-speedup"), "--data": images.data is not None
    }  # fmt: skip
    hint = "leave it out; `python bench.py` in the pack has options of its own"
    if elsewhere.pack is not None:
        refuse_silent(of_here, because="beside `--pack`, which measures nothing", hint=hint)
    if elsewhere.read is not None:
        of_here = {**of_here, **given(timing, "--batch", "--threads"), "--seed": seed != 0}
        refuse_silent(of_here, because="beside `--read`: it was measured already", hint=hint)


def _measured(
    small: Checkpoint, dense: Checkpoint, timing: TimingOptions, *, mask: WeightMask | None, batches: tuple[int, ...],
    names: tuple[str, ...] | None, data: Data | None, seed: int, say: Say,
) -> dict[str, Any]:  # fmt: skip
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
        result["why"] = why(small, dense, profiled, batch=batches[0], threads=result["threads"], seed=seed, say=say)
    return result


def _check_speed(result: dict[str, Any], at_least: float | None) -> None:
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


def show(result: dict[str, Any]) -> None:
    """What each candidate counts, and then a table for every setting, on stdout."""
    from rich.table import Table

    rows, out = result["rows"], console()
    table = Table(box=None, pad_edge=False)
    accuracy = any(row["accuracy"] for row in rows)
    for name in ("", "parameters", "MACs", "ONNX file", *(["accuracy"] if accuracy else [])):
        table.add_column(name, justify="left" if not name else "right")
    for candidate in dict.fromkeys(row["candidate"] for row in rows):
        mine = [row for row in rows if row["candidate"] == candidate]
        size = next((row["file_bytes"] for row in mine if row["file_bytes"] is not None), None)
        cells = [
            candidate,
            short(mine[0]["params"]),
            short(mine[0]["macs"]),
            "–" if size is None else f"{short(size)}B",
        ]
        table.add_row(*cells, *([quality(mine[0]["accuracy"])] if accuracy else []))
    out.print(table)
    for runtime, batch in dict.fromkeys((row["runtime"], row["batch"]) for row in rows):
        mine = [row for row in rows if (row["runtime"], row["batch"]) == (runtime, batch)]
        out.print()
        out.print(
            strong(runtime),
            f", batch {batch}, threads: {result['threads']}, run by {mine[0]['provider']}, "
            f"{mine[0]['blocks']} blocks of {mine[0]['calls_per_block']} calls; milliseconds:",
            sep="",
        )
        out.print(timings(mine))
    percent = f"{result['confidence']:.0%}"
    out.print(
        f"\nspeed-up: dense latency over the candidate's, with its {percent} interval; theoretical: by MACs alone"
    )


def show_why(why: dict[str, Any]) -> None:
    """A row for every layer, those that took longest first."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    names = ("", "in", "out", "dense", "small", "", "MACs/byte", "held by", "of that ceiling")
    for name in names:
        table.add_column(name, justify="left" if name in ("held by",) or not table.columns else "right", no_wrap=True)

    def taken(row: dict[str, Any], which: str) -> float:
        return float(row[which]["us"]) if row[which] else 0.0

    rows = sorted(why["rows"], key=lambda r: -max(taken(r, "dense"), taken(r, "small")))
    for row in rows:
        dense, small = row["dense"], row["small"]
        last = small or dense
        arrows = [f"{a} → {b}" if a != b else f"{a}" for a, b in (row["in"], row["out"])]
        ratio = f"{dense['us'] / small['us']:.2f}×" if dense and small and small["us"] else ""
        intensity = "" if last["intensity"] is None else f"{last['intensity']:.3g}"
        held = "" if last["of_ceiling"] is None else f"{last['of_ceiling']:.0%}"
        times = [digits(one["us"]) if one else "gone" for one in (dense, small)]
        table.add_row(row["layer"], *arrows, *times, ratio, intensity, last["ceiling"], held)
    peaks, out = why["ceilings"], console()
    out.print(
        "\n",
        strong(why["runtime"]),
        f", batch {why['batch']}, threads: {why['threads']}, microseconds by layer, with what is fused into it or "
        "follows without weights:",
        sep="",
    )
    out.print(table)
    out.print(
        f"\nthe machine at most, as measured: {peaks['gmacs_per_s']:.3g} GMACs/s, {peaks['gbytes_per_s']:.3g} GB/s "
        f"from memory (caches give more), {peaks['launch_us']:.2g} µs to start an operator",
        soft_wrap=True,
    )


def timings(rows: list[dict[str, Any]]) -> Any:
    """One setting as a table: latencies, peak memory, and the theoretical speed-up beside the measured one."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("", "median", "p90", "p99", "samples/s", "memory", "theoretical", "speed-up"):
        table.add_column(
            name, justify="right" if name not in ("", "speed-up") else "left", no_wrap=name in ("", "speed-up")
        )
    for row in rows:
        latencies = [digits(row[key]) for key in ("median_ms", "p90_ms", "p99_ms")]
        memory = "–" if row["peak_memory_bytes"] is None else f"{short(row['peak_memory_bytes'])}B"
        theory = "–" if row["theoretical_speedup"] is None else f"{row['theoretical_speedup']:.2f}×"
        table.add_row(row["candidate"], *latencies, short(round(row["throughput"])), memory, theory, measured(row))
    return table


def digits(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def measured(row: dict[str, Any]) -> str:
    """The measured speed-up, in words where no difference was found."""
    found = row["speedup"]
    if found is None:
        return ""
    places = 3 if any(f"{found[bound]:.2f}" == "1.00" for bound in ("low", "high")) else 2
    told = f"{found['low']:.{places}f} to {found['high']:.{places}f}"
    if found["low"] <= 1 <= found["high"]:
        return f"no significant difference ({told})"
    return f"{found['ratio']:.{places}f}× ({told})"


def quality(reading: dict[str, Any] | None) -> str:
    """Correct, or agreeing with the dense network, of all."""
    if reading is None:
        return "–"
    if "correct" in reading:
        return f"{reading['correct']:,}/{reading['total']:,} = {reading['correct'] / reading['total']:.2%}"
    return f"{reading['agreeing']:,}/{reading['total']:,} as dense"
