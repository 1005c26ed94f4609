"""What can be pruned, what cannot and why, and what it would buy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.options import (
    ArchArgOption,
    ArchOption,
    InputOption,
    JsonOption,
    ModelArgument,
    TrustOption,
    console,
    load_model,
    print_json,
    short,
    status,
)

if TYPE_CHECKING:
    from compressor.inspection import Inspection


def command(
    model: ModelArgument,
    arch: ArchOption = None,
    arch_arg: ArchArgOption = None,
    input_shape: InputOption = None,
    protect: Annotated[
        list[str] | None, typer.Option(help="A glob of layers whose channels stay; repeat for more.")
    ] = None,
    trust_pickle: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what can be pruned, what cannot and why, and what it would buy.

    Example: `compress inspect sample_models/fashion_resnet20.pt`
    """
    from compressor.inspection import inspect

    with status("loading"):
        checkpoint = load_model(model, arch=arch, arch_args=arch_arg, inputs=input_shape, trust_pickle=trust_pickle)
        inspection = inspect(checkpoint, protect=tuple(protect or ()))
    if as_json:
        print_json(inspection.to_json())
    else:
        show(inspection)


def show(inspection: Inspection) -> None:
    """The inspection as tables on stdout."""
    from rich.table import Table

    plain: dict[str, Any] = inspection.to_json()
    out = console()
    shapes = ", ".join("x".join(map(str, s)) for s in plain["input"])
    out.print(f"[bold]{plain['name']}[/]  {plain['architecture']}, input {shapes}")
    out.print(
        f"{short(plain['params'])} parameters, {short(plain['macs'])} MACs, {short(plain['bytes'])}B of weights\n"
    )
    table = Table(title=f"{len(plain['groups'])} channel groups", title_justify="left", box=None, pad_edge=False)
    for name, justify in (("group", "left"), ("channels", "right"), ("positions each", "right"), ("layers", "right"),
                          ("parameters", "right"), ("MACs", "right")):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # the two literals that rich knows
    for group in plain["groups"]:
        table.add_row(
            group["root"],
            str(group["channels"]),
            str(group["size"]) if group["size"] > 1 else "",
            str(len(group["layers"])),
            short(group["params"]),
            short(group["macs"]),
        )
    out.print(table)
    if plain["left_alone"]:
        alone = Table(title="\nleft alone", title_justify="left", box=None, pad_edge=False)
        alone.add_column("layer")
        alone.add_column("why")
        for layer in plain["left_alone"]:
            alone.add_row(layer["layer"], layer["reason"])
        out.print(alone)
    would = Table(title="\nwhat a uniform ratio would leave", title_justify="left", box=None, pad_edge=False)
    for name in ("ratio", "channels", "parameters", "MACs"):
        would.add_column(name, justify="right")
    for row in plain["would_leave"]:
        would.add_row(f"{row['ratio']:g}", f"{row['channels']:.1%}", f"{row['params']:.1%}", f"{row['macs']:.1%}")
    out.print(would)
    out.print("\n[dim]a group's parameters and MACs are those of every layer that makes or reads its channels[/]")
