"""What was done to the network: widths or masks, what was left alone, and the proof that it is right."""

from __future__ import annotations

from compressor.report.charts import paired_bar
from compressor.report.document import (
    Block,
    Cell,
    Code,
    Column,
    Facts,
    Folded,
    Items,
    Paragraph,
    Section,
    Strong,
    Subheading,
    Table,
    Text,
    Tone,
)
from compressor.report.findings import Factorizing, Findings, Masking, Pair, Pruning, Repairing, Width
from compressor.report.missing import Commands
from compressor.report.wording import (
    VACUOUS,
    count,
    label,
    listed,
    plain,
    scaled,
    size,
)

DASH = "–"  # not measured


def widths_section(findings: Findings, commands: Commands) -> Section:
    """What was asked for, what was removed, layer by layer."""
    title = "Widths before and after"
    pruning = findings.pruning
    if pruning is None:
        missing = commands.missing("Nothing has been pruned here.", commands.prune)
        return Section(anchor="widths", title=title, blocks=(missing,))
    pairs: list[tuple[str, Text]] = [(f"requested {label(k)}", (plain(v, key=k),)) for k, v in pruning.requested]
    pairs += [(f"achieved {label(k)}", (f"{_pair(k, pair)}",)) for k, pair in pruning.achieved]
    pairs += [(label(key), (plain(value, key=key),)) for key, value in pruning.settings]
    blocks: list[Block] = [Facts(pairs=tuple(pairs))] if pairs else []
    if pruning.caveats:
        blocks.append(Items(items=tuple((caveat,) for caveat in pruning.caveats), tone=Tone.CAUTION))
    if pruning.widths:
        blocks.append(_widths(pruning.widths))
    else:
        blocks.append(commands.missing("No widths were recorded.", commands.prune))
    note: Text = (
        "Output channels of each layer: the pale bar is the dense model, the coloured one the small model. "
        "Rows in grey kept their width.",
    )
    return Section(anchor="widths", title=title, blocks=tuple(blocks), note=note if pruning.widths else ())


def _pair(key: str, pair: Pair) -> str:
    if key.endswith("bytes"):
        return f"{size(pair[0])} → {size(pair[1])}"
    return f"{count(pair[0])} → {count(pair[1])}"


def _arrow(pair: Pair | None) -> str:
    if pair is None:
        return DASH
    return scaled(pair[0]) if pair[0] == pair[1] else f"{scaled(pair[0])} → {scaled(pair[1])}"


def _widths(widths: tuple[Width, ...]) -> Table:
    widest = max(max(width.outputs) for width in widths)
    rows: list[tuple[Cell, ...]] = []
    for width in widths:
        before, after = width.outputs
        said = f"{width.layer}: {before} output channels dense, {after} small"
        bar = paired_bar(before, after, whole=widest, said=said, width=150)
        rows.append(
            (
                (Code(content=width.layer),),
                (width.kind,),
                bar,
                (_arrow(width.outputs),),
                (_arrow(width.inputs),),
                (_arrow(width.macs),),
            )
        )
    columns = (
        Column(name="layer"),
        Column(name="kind"),
        Column(name="output channels", drawn=True),
        Column(name="out", numeric=True),
        Column(name="in", numeric=True),
        Column(name="MACs", numeric=True),
    )
    kept = frozenset(i for i, width in enumerate(widths) if width.outputs[0] == width.outputs[1])
    return Table(columns=columns, rows=tuple(rows), caption="Layer by layer", quiet=kept)


def factorized_section(found: Factorizing) -> Section:
    """Which layers became two, at which rank, and what was left alone."""
    pairs: list[tuple[str, Text]] = [(f"requested {label(k)}", (plain(v, key=k),)) for k, v in found.requested]
    pairs += [(f"achieved {label(k)}", (f"{_pair(k, pair)}",)) for k, pair in found.achieved]
    pairs += [(label(key), (plain(value, key=key),)) for key, value in found.settings]
    rows: list[tuple[Cell, ...]] = []
    for layer in found.layers:
        said = f"{layer.layer}: rank {layer.rank} of {layer.full_rank}"
        bar = paired_bar(layer.full_rank, layer.rank, whole=layer.full_rank, said=said, width=150)
        ranks, energy = f"{layer.full_rank} → {layer.rank}", f"{layer.energy:.1%}"
        counts = (_arrow(layer.params), _arrow(layer.macs))
        cells = [(text,) for text in (ranks, energy, *counts)]
        rows.append(((Code(content=layer.layer),), (layer.kind,), bar, *cells))
    columns = (
        Column(name="layer"),
        Column(name="as"),
        Column(name="rank", drawn=True),
        *(Column(name=name, numeric=True) for name in ("of, at", "energy", "weights", "MACs")),
    )
    blocks: list[Block] = [
        Facts(pairs=tuple(pairs)),
        Table(columns=columns, rows=tuple(rows), caption="Layer by layer"),
    ]
    alone: list[tuple[Cell, ...]] = [((Code(content=name),), (reason,)) for name, reason in found.left_alone]
    if alone:
        columns = (Column(name="left alone"), Column(name="reason"))
        blocks.append(Table(columns=columns, rows=tuple(alone), caption=""))
    note: Text = (
        "Each layer became two by the singular values of its weight; its energy is the share of their squares that "
        "stays. Fewer MACs are not yet less time: two layers start twice.",
    )
    return Section(anchor="factors", title="Low-rank layers", blocks=tuple(blocks), note=note)


def masked_section(masking: Masking) -> Section:
    """Which weights are zero in place, and what that saves: disk, and no time."""
    blocks: list[Block] = []
    if masking.statement:
        blocks.append(Paragraph(text=(Strong(content=masking.statement[:1].upper() + masking.statement[1:] + "."),)))
    blocks.append(listed(masking.facts))
    if masking.tensors:
        largest = max(tensor.dense_bytes for tensor in masking.tensors)
        rows: list[tuple[Cell, ...]] = [
            (
                (Code(content=tensor.name),),
                (tensor.encoding,),
                paired_bar(
                    tensor.dense_bytes,
                    tensor.stored_bytes,
                    whole=largest,
                    said=f"{tensor.name}: {size(tensor.dense_bytes)} dense, {size(tensor.stored_bytes)} stored",
                    width=130,
                ),
                (count(tensor.elements),),
                (count(tensor.kept),),
                (size(tensor.dense_bytes),),
                (size(tensor.stored_bytes),),
            )
            for tensor in masking.tensors
        ]
        columns = (
            Column(name="tensor"),
            Column(name="stored as"),
            Column(name="bytes", drawn=True),
            *(Column(name=name, numeric=True) for name in ("elements", "kept", "dense", "stored")),
        )
        blocks.append(Table(columns=columns, rows=tuple(rows), caption="Tensor by tensor"))
    return Section(anchor="masked", title="Masked weights on disk", blocks=tuple(blocks))


def repair_section(repairing: Repairing) -> Section:
    """What was fitted before any retraining, and how near the output came to the dense network's."""
    blocks: list[Block] = []
    if repairing.rise is not None:
        before, after = repairing.rise
        told: Text = (
            "By ",
            Strong(content=repairing.how),
            f": the output's squared error over its variance went from {before:.3g} to {after:.3g}, "
            "on images that judged it. No labels were used.",
        )
        blocks.append(Paragraph(text=told))
    blocks.append(listed(repairing.facts))
    if repairing.layers:
        rows: list[tuple[Cell, ...]] = [
            ((Code(content=layer),), (f"{before:.3g}",), (f"{after:.3g}",)) for layer, before, after in repairing.layers
        ]
        columns = (Column(name="layer"), Column(name="before", numeric=True), Column(name="after", numeric=True))
        table = Table(columns=columns, rows=tuple(rows), caption="")
        blocks.append(Folded(summary=f"Layer by layer: {len(rows)} fits", blocks=(table,)))
    note: Text = (
        "A layer's error is that of its output against the dense network's, over its variance, on images that it was "
        "not fitted on.",
    )
    return Section(anchor="repair", title="Repair before any retraining", blocks=tuple(blocks), note=note)


def left_alone_section(findings: Findings, commands: Commands) -> Section:
    """The layers that kept their channels, by reason."""
    title = "What was left alone, and why"
    pruning: Pruning | None = findings.pruning
    if pruning is None:
        return Section(
            anchor="left-alone",
            title=title,
            blocks=(commands.missing("Nothing has been pruned here.", commands.prune),),
        )
    if not pruning.left_alone:
        told: Text = ("Nothing: every layer with channels took part.",)
        return Section(anchor="left-alone", title=title, blocks=(Paragraph(text=told),))
    reasons: dict[str, list[str]] = {}
    for layer, reason in pruning.left_alone:
        reasons.setdefault(reason, []).append(layer)
    rows: list[tuple[Cell, ...]] = []
    for reason, layers in reasons.items():
        names: list[str | Code] = []
        for layer in layers:
            names += [", ", Code(content=layer)] if names else [Code(content=layer)]
        rows.append(((reason,), tuple(names)))
    table = Table(columns=(Column(name="reason"), Column(name="layers")), rows=tuple(rows), caption="")
    return Section(anchor="left-alone", title=title, blocks=(table,))


def proof_section(findings: Findings, commands: Commands) -> Section:
    """That the surgery was right, and that the ONNX file says the same."""
    blocks: list[Block] = [Subheading(title="Surgery proof")]
    proof = findings.pruning.proof if findings.pruning else ()
    if findings.factorizing is not None and findings.pruning is None:
        told = "Compared is the dense network with each weight replaced by the product of the two that it became."
        blocks += [listed(findings.factorizing.proof), Paragraph(text=(told,))]
    elif proof:
        blocks.append(listed(proof))
        if dict(proof).get("vacuous") and findings.while_training is None:
            blocks.append(Paragraph(text=(f"Caveat: {VACUOUS}.",)))
    elif findings.masking is not None and findings.pruning is None:
        told = "There was no surgery to prove: masked weights are zeros in place, and every layer kept its shape."
        blocks.append(Paragraph(text=(told,)))
    else:
        blocks.append(commands.missing("No surgery proof is on record.", commands.prune))
    blocks.append(Subheading(title="ONNX parity"))
    if findings.export:
        blocks.append(listed(findings.export))
    else:
        blocks.append(commands.missing("No ONNX file has been exported.", commands.export))
    note: Text = (
        "The proof compares the small model with the dense one in which exactly the removed channels are silenced; "
        "parity compares the ONNX file with the small model. Both are largest relative differences over all outputs.",
    )
    return Section(anchor="proof", title="Proof and parity", blocks=tuple(blocks), note=note)
