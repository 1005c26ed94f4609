"""Measure what a network's operators take at what widths, as a file to prune with elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compressor.cli.options import (
    ArchArgOption,
    ArchOption,
    InputOption,
    JsonOption,
    ModelArgument,
    SeedOption,
    ThreadsOption,
    TrustOption,
    console,
    load_model,
    print_json,
    refuse_silent,
    status,
    strong,
)
from compressor.files.names import file_name_from


def command(
    model: ModelArgument,
    on: Annotated[str, typer.Option("--on", help="The runtime: onnxruntime-cpu, torch-eager.")] = "onnxruntime-cpu",
    batch: Annotated[int, typer.Option(help="The batch size.", min=1)] = 1,
    threads: ThreadsOption = None,
    protect: Annotated[
        list[str] | None, typer.Option(help="A glob of layers whose channels stay; repeat for more.")
    ] = None,
    pack: Annotated[Path | None, typer.Option(help="A folder by `compress bench --pack`, of this network.")] = None,
    read: Annotated[
        Path | None, typer.Option(help="What that folder measured on its target with --networks: measured.json.")
    ] = None,
    arch: ArchOption = None,
    arch_arg: ArchArgOption = None,
    input_shape: InputOption = None,
    trust_pickle: TrustOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="The table's file; NAME.table.json.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure a latency table on this machine, or make one of what a pack measured on another.

    With `--table FILE`, prune then plans for that machine. Example: `compress measure-table model.pt`,
    `compress measure-table model.pt --pack DIR --read measured.json`
    """
    from compressor.channels.groups import trace
    from compressor.checkpoint.artifacts import read_json
    from compressor.environment import cores
    from compressor.errors import ArtifactError
    from compressor.measuring.pack.folder import table_of_pack
    from compressor.measuring.runtimes import usable
    from compressor.measuring.tables.measured import measured_table, target_of
    from compressor.measuring.tables.networks import networks_of
    from compressor.measuring.tables.table import write_table

    if (pack is None) != (read is None):
        raise ArtifactError("a table from elsewhere takes `--pack DIR` and `--read FILE`", hint="give both")
    if pack is not None:
        refuse_silent(
            {
                "--on": on != "onnxruntime-cpu", "--batch": batch != 1, "--threads": threads is not None,
                "--protect": bool(protect), "--seed": seed != 0,
            },
            because="beside `--pack` and `--read`: it was measured already",
            hint="leave it out",
        )  # fmt: skip
    with status("loading") as say:
        checkpoint = load_model(model, arch=arch, arch_args=arch_arg, inputs=input_shape, trust_pickle=trust_pickle)
        if pack is not None and read is not None:
            table = table_of_pack(pack, read_json(read))
        else:
            (runtime,) = usable((on,))
            say("tracing the channel groups")
            traced = trace(checkpoint.module, checkpoint.example_inputs, protect=protect or ())
            target = target_of(runtime, batch=batch, threads=threads or cores())
            inputs = checkpoint.example_inputs
            with networks_of(checkpoint.module, traced, inputs, runtime, batch=batch) as networks:
                table = measured_table(networks, target, seed=seed, say=say)
    file = out or Path(f"{file_name_from(checkpoint.name)}.table.json")
    write_table(file, table)
    if as_json:
        print_json(table.to_json())
        return
    show(table.to_json())
    console().print(f"\nwrote {file}; next: `compress prune {model} --speedup 2 --table {file}`", soft_wrap=True)


def show(table: dict[str, Any]) -> None:
    """What widths are worth having, and how well the table predicts the networks it was made from."""
    import statistics

    from rich.table import Table

    out, target = console(), table["target"]
    out.print(
        strong(target["runtime"]),
        f", batch {target['batch']}, threads: {target['threads']}, {target['hardware']}",
        sep="",
    )
    rows = Table(box=None, pad_edge=False)
    for name in ("widths are multiples of", "take, of what aligned ones would"):
        rows.add_column(name, justify="right")
    for one in table["alignments"]:
        mark = "  ← taken" if one["multiple"] == table["align"] else ""
        rows.add_row(f"{one['multiple']}", f"{one['excess']:.0%}{mark}")
    out.print(rows)
    pairs = [pair for whole in table["wholes"].values() for pair in whole["networks"]]
    errors = [abs(p / m - 1) for p, m in pairs]
    points = sum(len(some) for some in table["samples"].values())
    out.print(
        f"\n{len(table['samples'])} operators, {points:,} points; whole networks, each left out, are predicted within "
        f"{statistics.median(errors):.1%} (median of {len(errors)})" if errors else "", soft_wrap=True,
    )  # fmt: skip
