"""Time dense, masked and small in turns on real runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compressor.cli.options import (
    ArtifactArgument,
    DataOption,
    DataRootOption,
    DenseOption,
    DownloadOption,
    ExitCode,
    JsonOption,
    SeedOption,
    ThreadsOption,
    TrustOption,
    batch_sizes,
    console,
    load_data_option,
    open_default,
    print_json,
    refuse_silent,
    short,
    status,
    strong,
    talk,
)


def command(
    artifact: ArtifactArgument = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas between them.")] = "1,64",
    threads: ThreadsOption = None,
    runtimes: Annotated[
        str | None,
        typer.Option(help="torch-eager, torch-compile, onnxruntime-cpu, …; all that can be used here by default."),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(help="Blocks of calls per candidate; as many as fit in some seconds by default.", min=8),
    ] = None,
    dense: DenseOption = None,
    data: DataOption = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    why: Annotated[
        bool, typer.Option("--why", help="Where the time goes, layer by layer, before and after, and what holds it.")
    ] = False,
    pack: Annotated[
        Path | None,
        typer.Option(help="Write a folder that measures this on a machine without torch, instead of measuring here."),
    ] = None,
    read: Annotated[
        Path | None, typer.Option(help="Take in what such a folder measured: its measured.json, instead of measuring.")
    ] = None,
    min_speedup: Annotated[
        float | None,
        typer.Option(help="Exit with 3 unless the interval lies at this or above, in every setting.", min=0),
    ] = None,
    trust_pickle: TrustOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Time the dense, the masked and the small network in turns, with intervals, and the dense one against itself.

    Example: `compress bench`, `compress bench --why --batch 1 --runtimes onnxruntime-cpu --min-speedup 1.5`
    """
    batches, names = batch_sizes(batch), None if runtimes is None else _names(runtimes)
    from compressor.checkpoint.artifacts import add_results, read_json
    from compressor.measuring.benchmark import bench, missed
    from compressor.measuring.layer_times import why as reasons
    from compressor.measuring.pack.folder import bench_of_pack, write_pack
    from compressor.measuring.runtimes import usable

    if pack is not None and read is not None:
        raise typer.BadParameter("a pack is written or read, not both at once", param_hint="--pack")
    if pack is not None:
        refuse_silent(
            {
                "--runtimes": names is not None, "--blocks": blocks is not None, "--why": why,
                "--min-speedup": min_speedup is not None, "--data": data is not None,
            },
            because="beside `--pack`, which measures nothing",
            hint="leave it out; `python bench.py` in the pack has options of its own",
        )  # fmt: skip
    if read is not None:
        refuse_silent(
            {
                "--runtimes": names is not None, "--blocks": blocks is not None, "--why": why,
                "--batch": batch != "1,64", "--threads": threads is not None, "--seed": seed != 0,
                "--data": data is not None,
            },
            because="beside `--read`: it was measured already",
            hint="leave it out; `python bench.py` in the pack has options of its own",
        )  # fmt: skip
    opened = open_default(artifact)
    with status("loading") as say:
        small, reference = opened.checkpoint(trust_pickle=trust_pickle), opened.dense(dense, trust_pickle=trust_pickle)
        asked = data is not None
        found = (
            load_data_option(data, root=data_root, download=download, seed=seed, checkpoint=small) if asked else None
        )
        if pack is not None:
            files = write_pack(pack, small, reference, mask=opened.mask(), batches=batches, threads=threads, say=say)
        elif read is not None:
            result = bench_of_pack(read_json(read), where=str(read))
        else:
            result = bench(
                small, reference, mask=opened.mask(), runtimes=names, batches=batches, threads=threads, data=found,
                blocks=blocks, seed=seed, say=say,
            )  # fmt: skip
            if why:
                chosen = next((r for r in usable(names) if r.profile is not None), usable(names)[0])
                result["why"] = reasons(
                    small, reference, chosen, batch=batches[0], threads=result["threads"], seed=seed, say=say
                )
    if pack is not None:
        console().print(f"wrote {pack}: {files} files; there: `python bench.py`, and bring back measured.json")
        return
    add_results(opened.folder, "bench", result)
    print_json(result) if as_json else show(result)
    if "why" in result and not as_json:
        show_why(result["why"])
    for caveat in result["caveats"]:
        talk().print(f"caveat: {caveat}", markup=False, soft_wrap=True)
    too_slow = [] if min_speedup is None else missed(result, at_least=min_speedup)
    for setting in too_slow:
        talk().print(f"not {min_speedup:g} times as fast as dense: {setting}", markup=False, soft_wrap=True)
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
