"""Measure what a network's operators take at what widths, as a file to prune with elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from compressor.cli.groups import Panel, changed
from compressor.cli.loading import load_model
from compressor.cli.options import (
    ClockOptions,
    JsonOption,
    ModelArgument,
    NetworkOptions,
    ProtectOption,
    SeedOption,
    console,
    print_json,
    refuse_silent,
    status,
    strong,
)
from compressor.files.names import file_name_from
from compressor.progress import Say

if TYPE_CHECKING:
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.measuring.tables.table import LatencyTable


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions:
    """A measurement from another machine."""

    panel: ClassVar[Panel] = Panel.ELSEWHERE
    pack: Annotated[Path | None, typer.Option(help="Folder that `compress bench --pack` wrote for this network.")] = (
        None
    )
    read: Annotated[
        Path | None,
        typer.Option(help="Its measured.json, from `python bench.py --networks` on the other machine."),
    ] = None


def command(
    model: ModelArgument,
    clock: ClockOptions,
    elsewhere: PackOptions,
    network: NetworkOptions,
    protect: ProtectOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File of the table (default NAME.table.json).", rich_help_panel=Panel.OUTPUT),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a latency table on this machine, or make one from what a pack measured on another machine.

    For example:

    - `compress measure-table model.pt`
    - `compress measure-table model.pt --pack DIR --read measured.json`

    With `--table FILE`, `prune` then plans for that machine.

    """
    from compressor.files.json_files import read_json
    from compressor.measuring.pack.folder import table_of_pack
    from compressor.measuring.tables.table import write_table

    pack, read = elsewhere.pack, elsewhere.read
    _check_pack(elsewhere, {**changed(clock), "--protect": bool(protect), "--seed": seed != 0})
    with status("loading") as say:
        checkpoint = load_model(model, network)
        if pack is not None and read is not None:
            table = table_of_pack(pack, read_json(read))
        else:
            table = _measured(checkpoint, clock, protect=protect or (), seed=seed, say=say)
    file = out or Path(f"{file_name_from(checkpoint.name)}.table.json")
    write_table(file, table)
    if as_json:
        print_json(table.to_json())
        return
    show(table.to_json())
    console().print(f"\nwrote {file}; next: `compress prune {model} --speedup 2 --table {file}`", soft_wrap=True)


def _check_pack(elsewhere: PackOptions, of_here: Mapping[str, bool]) -> None:
    """Refuses half of a pack, and options for a measurement on this machine beside a pack."""
    from compressor.errors import ArtifactError

    if (elsewhere.pack is None) != (elsewhere.read is None):
        raise ArtifactError("a table from another machine takes `--pack DIR` and `--read FILE`", hint="give both")
    if elsewhere.pack is not None:
        refuse_silent(of_here, because="beside `--pack` and `--read`: it was measured already", hint="leave it out")


def _measured(
    checkpoint: Checkpoint, clock: ClockOptions, *, protect: Sequence[str], seed: int, say: Say
) -> LatencyTable:
    from compressor.channels.groups import trace
    from compressor.environment import cores
    from compressor.measuring.runtimes import usable
    from compressor.measuring.tables.measured import measured_table, target_of
    from compressor.measuring.tables.networks import networks_of

    (runtime,) = usable((clock.on,))
    say("tracing the channel groups")
    traced = trace(checkpoint.module, checkpoint.example_inputs, protect=protect)
    target = target_of(runtime, batch=clock.batch, threads=clock.threads or cores())
    inputs = checkpoint.example_inputs
    with networks_of(checkpoint.module, traced, inputs, runtime, batch=clock.batch) as networks:
        return measured_table(networks, target, seed=seed, say=say)


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
