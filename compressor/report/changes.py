"""What was done to the network: widths or masks, what was left alone, and the proof that it is right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compressor.report.charts import paired_bar
from compressor.report.document import (
    Block,
    BulletList,
    Cell,
    Code,
    Column,
    Facts,
    Folded,
    Paragraph,
    Section,
    Strong,
    Subheading,
    Table,
    Text,
    Tone,
    listed,
)
from compressor.report.missing import Commands
from compressor.results.artifact import Results
from compressor.results.changes import Achieved, Factorizing, Masking, Pruning, Repairing, Width
from compressor.results.records import Pair, Plain
from compressor.words import (
    DASH,
    VACUOUS,
    count,
    label,
    plain,
    scaled,
    size,
)


def widths_section(results: Results, commands: Commands) -> Section:
    """What was asked for, what was removed, layer by layer."""
    title = "Widths before and after"
    pruning = results.pruning
    if pruning is None:
        missing = commands.missing("Nothing has been pruned here.", commands.prune)
        return Section(anchor="widths", title=title, blocks=(missing,))
    shown = ("requested", "achieved", "caveats", "proof", "widths", "left_alone", "curves")
    asked = _asked(pruning.requested, pruning.achieved, pruning.facts(without=shown))
    blocks: list[Block] = [asked] if asked.pairs else []
    if pruning.caveats:
        blocks.append(BulletList(items=tuple((caveat,) for caveat in pruning.caveats), tone=Tone.CAUTION))
    if pruning.widths:
        blocks.append(_widths(pruning.widths))
    else:
        blocks.append(commands.missing("No widths were recorded.", commands.prune))
    note: Text = (
        "Output channels of each layer: the pale bar is the dense model, the coloured one the small model. "
        "Rows in grey kept their width.",
    )
    return Section(anchor="widths", title=title, blocks=tuple(blocks), note=note if pruning.widths else ())


def _asked(requested: Plain, achieved: Achieved, settings: Iterable[tuple[str, Any]]) -> Facts:
    """What was asked for, what came of it, and how."""
    pairs: list[tuple[str, Text]] = [(f"requested {label(k)}", (plain(v, key=k),)) for k, v in requested.items()]
    pairs += [(f"achieved {label(k)}", (_pair(k, pair),)) for k, pair in achieved.facts()]
    return Facts(pairs=(*pairs, *listed(settings).pairs))


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
        alt = f"{width.layer}: {before} output channels dense, {after} small"
        bar = paired_bar(before, after, whole=widest, alt=alt, width=150)
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


def factorized_section(factorizing: Factorizing) -> Section:
    """Which layers became two, at which rank, and what was left alone."""
    shown = ("requested", "achieved", "layers", "left_alone", "proof")
    rows: list[tuple[Cell, ...]] = []
    for layer in factorizing.layers:
        alt = f"{layer.layer}: rank {layer.rank} of {layer.full_rank}"
        bar = paired_bar(layer.full_rank, layer.rank, whole=layer.full_rank, alt=alt, width=150)
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
        _asked(factorizing.requested, factorizing.achieved, factorizing.facts(without=shown)),
        Table(columns=columns, rows=tuple(rows), caption="Layer by layer"),
    ]
    alone: list[tuple[Cell, ...]] = [((Code(content=one.layer),), (one.reason,)) for one in factorizing.left_alone]
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
    blocks.append(listed(masking.facts(without=("statement", "rows"))))
    if masking.rows:
        largest = max(tensor.dense_bytes for tensor in masking.rows)
        rows: list[tuple[Cell, ...]] = [
            (
                (Code(content=tensor.name),),
                (tensor.encoding,),
                paired_bar(
                    tensor.dense_bytes,
                    tensor.stored_bytes,
                    whole=largest,
                    alt=f"{tensor.name}: {size(tensor.dense_bytes)} dense, {size(tensor.stored_bytes)} stored",
                    width=130,
                ),
                (count(tensor.elements),),
                (count(tensor.kept),),
                (size(tensor.dense_bytes),),
                (size(tensor.stored_bytes),),
            )
            for tensor in masking.rows
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
    before, after = repairing.rise or (None, None)
    if before is not None and after is not None:
        text: Text = (
            "By ",
            Strong(content=repairing.how),
            f": the output's squared error over its variance went from {before:.3g} to {after:.3g}, "
            "on images that judged it. No labels were used.",
        )
        blocks.append(Paragraph(text=text))
    blocks.append(listed(repairing.facts(without=("how", "rise", "layers", "distilled"))))
    if repairing.layers:
        rows: list[tuple[Cell, ...]] = [
            ((Code(content=fit.layer),), (f"{fit.before:.3g}",), (f"{fit.after:.3g}",)) for fit in repairing.layers
        ]
        columns = (Column(name="layer"), Column(name="before", numeric=True), Column(name="after", numeric=True))
        table = Table(columns=columns, rows=tuple(rows), caption="")
        blocks.append(Folded(summary=f"Layer by layer: {len(rows)} fits", blocks=(table,)))
    note: Text = (
        "A layer's error is that of its output against the dense network's, over its variance, on images that it was "
        "not fitted on.",
    )
    return Section(anchor="repair", title="Repair before any retraining", blocks=tuple(blocks), note=note)


def left_alone_section(results: Results, commands: Commands) -> Section:
    """The layers that kept their channels, by reason."""
    title = "What was left alone, and why"
    pruning = results.pruning
    if pruning is None:
        return Section(
            anchor="left-alone",
            title=title,
            blocks=(commands.missing("Nothing has been pruned here.", commands.prune),),
        )
    outputs = _outputs_kept(pruning)
    if not pruning.left_alone:
        text: Text = ("Nothing: every layer with channels took part.",)
        return Section(anchor="left-alone", title=title, blocks=(Paragraph(text=text), *outputs))
    reasons: dict[str, list[str]] = {}
    for one in pruning.left_alone:
        reasons.setdefault(one.reason, []).append(one.layer)
    rows: list[tuple[Cell, ...]] = []
    for reason, layers in reasons.items():
        names: list[str | Code] = []
        for layer in layers:
            names += [", ", Code(content=layer)] if names else [Code(content=layer)]
        rows.append(((reason,), tuple(names)))
    table = Table(columns=(Column(name="reason"), Column(name="layers")), rows=tuple(rows), caption="")
    return Section(anchor="left-alone", title=title, blocks=(table, *outputs))


def _outputs_kept(pruning: Pruning) -> tuple[Block, ...]:
    """Which outputs had to stay as they are, where not all had to."""
    if not pruning.outputs:
        return ()
    names: list[str | Code] = ["Outputs kept: "]
    for name in pruning.outputs:
        names += [", ", Code(content=name)] if len(names) > 1 else [Code(content=name)]
    return (Paragraph(text=(*names, ". The others may differ, and are not exported.")),)


def proof_section(results: Results, commands: Commands) -> Section:
    """That the surgery was right, and that the ONNX file says the same."""
    blocks: list[Block] = [Subheading(title="Surgery proof")]
    proof = results.pruning.proof if results.pruning else None
    if results.factorizing is not None and results.pruning is None:
        text = "Compared is the dense network with each weight replaced by the product of the two that it became."
        factors = results.factorizing.proof
        blocks += [listed(factors.facts() if factors else ()), Paragraph(text=(text,))]
    elif proof is not None:
        blocks.append(listed(proof.facts()))
        if proof.vacuous and results.while_training is None:
            blocks.append(Paragraph(text=(f"Caveat: {VACUOUS}.",)))
    elif results.masking is not None and results.pruning is None:
        text = "There was no surgery to prove: masked weights are zeros in place, and every layer kept its shape."
        blocks.append(Paragraph(text=(text,)))
    else:
        blocks.append(commands.missing("No surgery proof is on record.", commands.prune))
    blocks.append(Subheading(title="ONNX parity"))
    if results.export:
        blocks.append(listed(results.export.facts()))
    else:
        blocks.append(commands.missing("No ONNX file has been exported.", commands.export))
    note: Text = (
        "The proof compares the small model with the dense one in which exactly the removed channels are silenced; "
        "parity compares the ONNX file with the small model. Both are largest relative differences over all outputs.",
    )
    return Section(anchor="proof", title="Proof and parity", blocks=tuple(blocks), note=note)
