"""The int8 file against the float one: what it saves on disk, whether it is faster, and what it answers otherwise."""

from __future__ import annotations

from compressor.report.document import Block, Cell, Column, Items, Look, Paragraph, Section, Strong, Table, Text, Tone
from compressor.report.findings import Quantizing
from compressor.report.wording import (
    SPACE,
    listed,
    milliseconds,
    multiple,
    share_percent,
    shares,
    size,
    speedup_with_interval,
)


def int8_section(found: Quantizing) -> Section:
    """Size, accuracy and latency of both files, and what was found of the speed."""
    before, after = found.bytes
    rows: list[tuple[Cell, ...]] = [
        (("file",), (size(before),), (size(after),), (f"{multiple(before / after)} smaller",))
    ]
    if found.accuracy is not None:
        told = " and ".join(shares(share) for share in found.accuracy)
        split = found.accuracy[1].split
        cells: list[Cell] = [(share_percent(share),) for share in found.accuracy]
        rows.append((("accuracy",), *cells, (f"{told}, {split} split" if split else told,)))
    for batch, float_ms, int8_ms, speedup in found.rows:
        told = speedup_with_interval(speedup) + ("" if speedup.resolved else f"{SPACE}n.{SPACE}s.")
        rows.append(((f"latency, batch {batch}",), (milliseconds(float_ms),), (milliseconds(int8_ms),), (told,)))
    columns = (Column(name=""), *(Column(name=n, numeric=True) for n in ("float", "int8")), Column(name=""))
    blocks: list[Block] = [Table(columns=columns, rows=tuple(rows), caption="Float and int8", look=Look.BOARD)]
    if found.agreement is not None:
        close = found.agreement
        told = f"{shares(close)} images get the class that the float network gives"
        where = f", on the {close.split} split." if close.split else "."
        blocks.append(Paragraph(text=(Strong(content=told), where)))
    if found.rows and not any(speedup.low > 1 for *_, speedup in found.rows):
        told = "Int8 is not faster than float on this machine: what it saves is disk and memory."
        blocks.append(Paragraph(text=(told,), tone=Tone.CAUTION))
    if found.caveats:
        blocks.append(Items(items=tuple((caveat,) for caveat in found.caveats), tone=Tone.CAUTION))
    facts = [(key, value) for key, value in found.facts if key not in ("environment", "command")]
    blocks.append(listed(facts))
    note: Text = ("Both files ran in turns on one machine; the small model above is the float one.",)
    return Section(anchor="int8", title="In 8-bit integers", blocks=tuple(blocks), note=note)
