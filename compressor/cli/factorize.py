"""Split trained layers into thinner ones by their singular values, and write a network with fewer MACs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import typer

from compressor.cli.groups import Panel
from compressor.cli.loading import load_model
from compressor.cli.options import (
    DryRunOption,
    ModelArgument,
    NetworkOptions,
    NormalisationOptions,
    OutputOptions,
    command_line,
    console,
    print_json,
    share,
    short,
    status,
    strong,
    talk,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOptions:
    """How thin the layers become; one of them."""

    panel: ClassVar[Panel] = Panel.BUDGET
    macs: Annotated[float | None, typer.Option(help="Share of the MACs that may stay: 0.5.")] = None
    params: Annotated[float | None, typer.Option(help="Share of the parameters that may stay: 0.5.")] = None
    energy: Annotated[
        float | None, typer.Option(help="Share of the squared singular values that every layer keeps: 0.9.")
    ] = None
    rank: Annotated[int | None, typer.Option(help="Rank of every layer.", min=1)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOptions:
    """Which layers are split, and into what."""

    panel: ClassVar[Panel] = Panel.LAYERS
    how: Annotated[
        str,
        typer.Option(
            help="spatial (kx1, 1xk), channel (kxk, 1x1), separable (depthwise kxk, 1x1) or svd (linear layers); "
            "several with commas."
        ),
    ] = "spatial"
    protect: Annotated[
        list[str] | None, typer.Option(help="Layers that stay as they are, as a glob; repeat for more.")
    ] = None
    align: Annotated[int, typer.Option(help="Ranks are rounded up to multiples of this number.", min=1)] = 8


def command(
    model: ModelArgument,
    budget: RankOptions,
    layers: LayerOptions,
    normalisation: NormalisationOptions,
    network: NetworkOptions,
    output: OutputOptions,
    dry_run: DryRunOption = False,
) -> None:
    """Split layers into two thinner ones by the singular values of their weights, each keeping the same energy.

    For example:

    - `compress factorize model.pt --macs 0.5`
    - `compress factorize model.pt --energy 0.9 --how channel,svd`

    With `--how separable` and no budget, convolutions become the depthwise blocks of MobileNets, to be retrained.

    """
    from compressor.jobs.factorize import default_folder, factorize_to, low_rank_from

    request = low_rank_from(
        macs=budget.macs, params=budget.params, energy=budget.energy, rank=budget.rank, how=layers.how,
        protect=layers.protect or (), align=layers.align,
    )  # fmt: skip
    with status("loading") as say:
        checkpoint = load_model(model, network, normalisation)
        folder = output.out or default_folder(checkpoint)
        results = factorize_to(
            None if dry_run else folder, checkpoint, request, command=command_line(), force=output.force,
            trust_pickle=network.trust_pickle, say=say,
        )  # fmt: skip
    if output.as_json:
        print_json(results)
        return
    show(results["factorize"])
    if dry_run:
        talk().print("dry run: nothing was written")
    else:
        after = "; next: `compress retrain`, `compress export --onnx`, `compress bench`"
        console().print("\nwrote ", strong(folder), after, sep="", soft_wrap=True)


def show(found: dict[str, Any]) -> None:
    """What the network counts before and after, and every layer's rank, on stdout."""
    from rich.table import Table

    from compressor.surgery.proof import in_words

    out = console()
    table = Table(box=None, pad_edge=False)
    for name in ("", "dense", "small", "stays", "asked"):
        table.add_column(name, justify="left" if not name else "right")
    for name in ("params", "macs"):
        pair, wanted = found["achieved"][name], found["requested"].get(name)
        cells = (short(pair[0]), short(pair[1]), share(pair))
        table.add_row(name, *cells, "" if wanted is None else f"{wanted:.1%}")
    out.print(table)
    layers = Table(box=None, pad_edge=False)
    for name in ("layer", "as", "rank", "of", "energy", "MACs"):
        layers.add_column(name, justify="left" if name in ("layer", "as") else "right")
    for layer in found["layers"]:
        layers.add_row(
            layer["layer"], layer["kind"], str(layer["rank"]), str(layer["full_rank"]), f"{layer['energy']:.1%}",
            share(layer["macs"]),
        )  # fmt: skip
    out.print()
    out.print(layers)
    proof = found["proof"]
    out.print(
        f"\nproof: {in_words(proof)}, from the dense network "
        f"with the weights approximated, which moves its output by {proof['moved']:.2g}",
        soft_wrap=True,
    )
    for layer in found["left_alone"]:
        out.print(f"left alone: {layer['layer']} ({layer['reason']})", style="dim", markup=False)
    talk().print("MACs are counted and not timed: `compress bench` times both networks in turns", style="dim")
