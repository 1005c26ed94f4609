"""Split trained layers into thinner ones by their singular values, and write a network with fewer MACs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

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
    status,
    strong,
    talk,
)
from compressor.cli.result_tables import before_and_after, columns

if TYPE_CHECKING:
    from compressor.results.changes import Factorizing


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
        print_json(results.to_json())
        return
    if results.factorizing is not None:
        show(results.factorizing)
    if dry_run:
        talk().print("dry run: nothing was written")
    else:
        after = "; next: `compress retrain`, `compress export --onnx`, `compress bench`"
        console().print("\nwrote ", strong(folder), after, sep="", soft_wrap=True)


def show(factorizing: Factorizing) -> None:
    """What the network counts before and after, and every layer's rank, on stdout."""
    from compressor.words import percent, proof_in_words, tiny

    out = console()
    out.print(before_and_after(factorizing.achieved, factorizing.requested))
    layers = columns("layer", "as", "rank", "of", "energy", "MACs", left=("layer", "as"))
    for layer in factorizing.layers:
        stays = percent(layer.macs[1] / layer.macs[0], decimals=1)
        energy = percent(layer.energy, decimals=1)
        layers.add_row(layer.layer, layer.kind, str(layer.rank), str(layer.full_rank), energy, stays)
    out.print()
    out.print(layers)
    proof = factorizing.proof
    if proof is not None:
        out.print(
            f"\nproof: {proof_in_words(proof)}, from the dense network with the weights approximated, which moves its "
            f"output by {tiny(proof.moved or 0.0)}",
            soft_wrap=True,
        )
    for one in factorizing.left_alone:
        out.print(f"left alone: {one.layer} ({one.reason})", style="dim", markup=False)
    talk().print("MACs are counted and not timed: `compress bench` times both networks in turns", style="dim")
