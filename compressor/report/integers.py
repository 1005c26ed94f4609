"""The int8 file against the float one: what it saves on disk, whether it is faster, and what it answers otherwise."""

from __future__ import annotations

from compressor.report.document import (
    Block,
    BulletList,
    Cell,
    Column,
    Look,
    Paragraph,
    Section,
    Strong,
    Table,
    Text,
    Tone,
    listed,
)
from compressor.results.int8 import Quantizing
from compressor.results.quality import Counted
from compressor.words import (
    counted,
    milliseconds,
    multiple,
    ratio_in_table,
    scored,
    size,
)


def int8_section(quantizing: Quantizing) -> Section:
    """Size, accuracy and latency of both files, and what was found of the speed."""
    before, after = quantizing.float_bytes, quantizing.int8_bytes
    rows: list[tuple[Cell, ...]] = [
        (("file",), (size(before),), (size(after),), (f"{multiple(before / after)} smaller",))
    ]
    if quantizing.accuracy is not None:
        both = (quantizing.accuracy.float, quantizing.accuracy.int8)
        text = " and ".join(map(counted, both))
        split = quantizing.accuracy.int8.split
        cells: list[Cell] = [(scored(share),) for share in both]
        rows.append(((both[0].named,), *cells, (f"{text}, {split} split" if split else text,)))
    for pair in quantizing.pairs:
        latencies: list[Cell] = [(milliseconds(row.median_ms),) for row in pair]
        rows.append(((f"latency, batch {pair[0].batch}",), *latencies, (ratio_in_table(pair[1].speedup),)))
    columns = (Column(name=""), *(Column(name=n, numeric=True) for n in ("float", "int8")), Column(name=""))
    blocks: list[Block] = [Table(columns=columns, rows=tuple(rows), caption="Float and int8", look=Look.BOARD)]
    if quantizing.agreement is not None:
        close = quantizing.agreement
        text = f"{counted(close)} images get the class that the float network gives"
        if not isinstance(close, Counted):
            text = f"{close.named} {scored(close)} ({counted(close)}), with the float network's outputs as the truth"
        where = f", on the {close.split} split." if close.split else "."
        blocks.append(Paragraph(text=(Strong(content=text), where)))
    if quantizing.rows and not quantizing.faster:
        text = "Int8 is not faster than float on this machine: what it saves is disk and memory."
        blocks.append(Paragraph(text=(text,), tone=Tone.CAUTION))
    if quantizing.caveats:
        blocks.append(BulletList(items=tuple((caveat,) for caveat in quantizing.caveats), tone=Tone.CAUTION))
    shown = ("environment", "command", "agreement", "accuracy", "rows", "caveats", "float_bytes", "int8_bytes")
    blocks.append(listed(quantizing.facts(without=shown)))
    note: Text = ("Both files ran in turns on one machine; the small model above is the float one.",)
    return Section(anchor="int8", title="In 8-bit integers", blocks=tuple(blocks), note=note)
