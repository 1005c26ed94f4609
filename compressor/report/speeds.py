"""The report's parts on latency as a budget: how it was met, and where the time goes layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.report.charts import paired_bar
from compressor.report.document import Block, Cell, Code, Column, Paragraph, Section, Strong, Table, Text, Tone
from compressor.report.findings import Findings, Speedup
from compressor.report.reading import Entry
from compressor.report.wording import digits, listed, milliseconds, multiple, percent, speedup_with_interval

DASH = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """What one network's operators took with a layer."""

    us: float
    intensity: float | None
    ceiling: str
    of_ceiling: float | None


def latency_section(findings: Findings) -> Section | None:
    """What was asked of the clock, what it said at each trial, and in the end; `None` where it was not the budget."""
    if findings.latency is None:
        return None
    entry = Entry(dict(findings.latency), place="results.latency")
    wanted, found = entry.number("wanted") or 0.0, _speedup(entry.entry("speedup"))
    where = f"{entry.text('runtime')}, batch {entry.count('batch')}, threads: {entry.count('threads')}"
    blocks: list[Block] = []
    told: Text
    if found is None:
        told = ("Predicted by a table from another machine, and not measured here.",)
        blocks.append(Paragraph(text=told, tone=Tone.CAUTION))
    else:
        before, after = entry.number("dense_ms"), entry.number("small_ms")
        took = f", {milliseconds(before)} before and {milliseconds(after)} after" if before and after else ""
        blocks.append(
            Paragraph(
                text=(
                    "Asked was ", Strong(content=multiple(wanted)), " on ", Code(content=where), "; measured ",
                    Strong(content=speedup_with_interval(found)), f"{took}.",
                )
            )
        )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for number, trial in enumerate(entry.entries("trials")):
        seen = _speedup(trial.entry("measured"))
        rows.append(
            (
                (str(number + 1),),
                (multiple(trial.number("aim") or 0),),
                (multiple(trial.number("predicted") or 0),),
                (DASH if seen is None else speedup_with_interval(seen),),
                (str(trial.count("channels") or 0),),
            )
        )
    columns = (
        Column(name="trial"),
        *(Column(name=n, numeric=True) for n in ("aim", "predicted", "measured", "channels")),
    )
    blocks.append(Table(columns=columns, rows=tuple(rows), caption="From the table to the clock"))
    blocks += [Paragraph(text=(text,), tone=Tone.CAUTION) for text in entry.texts("caveats")]
    search = entry.entry("search")
    if search is not None:
        tried = ", ".join(
            f"{multiple(t.number('speedup') or 0)} loses {t.number('drop') or 0:.2f}" for t in search.entries("tried")
        )
        allowed, drop = search.number("allowed") or 0.0, search.number("drop") or 0.0
        blocks.append(
            Paragraph(text=(f"Within {allowed:g} points on the tuning split: {drop:.2f} lost. Tried: {tried}.",))
        )
    alignments = [(f"multiples of {a.count('multiple')}", percent(a.number("excess") or 0, decimals=0)) for a in
                  entry.entries("alignments")]  # fmt: skip
    for raw in ("samples_ns", "align", "met"):
        entry.value(raw)
    facts = list(entry.rest())
    blocks.append(listed((*facts, *alignments)))
    note: Text = (
        "A table of what each operator takes at what widths chose the widths; trials ran without weights. ",
        "Under multiples: what widths that are no finer than these take, of what aligned ones would.",
    )
    return Section(anchor="latency", title="Latency as the budget", blocks=tuple(blocks), note=note)


def why_section(findings: Findings) -> Section | None:
    """Layer by layer, before and after, and which ceiling holds it; `None` where nobody has profiled."""
    found = None if findings.bench is None else findings.bench.why
    if found is None:
        return None
    entry = Entry(dict(found), place="results.bench.why")
    where = f"{entry.text('runtime')}, batch {entry.count('batch')}, threads: {entry.count('threads')}"
    rows: list[tuple[float, tuple[Cell, ...]]] = []
    launched = set()
    widest = 1e-9
    parsed = []
    for row in entry.entries("rows"):
        sides = [_side(row.entry(which)) for which in ("dense", "small")]
        widest = max(widest, *(side.us for side in sides if side is not None))
        parsed.append((row, sides))
    for row, (dense, small) in parsed:
        last = small or dense
        if last is None:
            continue
        layer = row.text("layer") or ""
        before, after = (0.0 if side is None else side.us for side in (dense, small))
        said = f"{layer}: {digits(before)} µs dense, {digits(after)} µs small"
        cells: tuple[Cell, ...] = (
            (Code(content=layer),),
            (_pair(row.pair("in")),),
            (_pair(row.pair("out")),),
            paired_bar(before, after, whole=widest, said=said, width=120),
            (digits(before) if dense else DASH,),
            (digits(after) if small else "gone",),
            (DASH if last.intensity is None else digits(last.intensity),),
            (last.ceiling,),
            (DASH if last.of_ceiling is None else percent(last.of_ceiling, decimals=0),),
        )
        rows.append((-max(before, after), cells))
    rows.sort(key=lambda pair: pair[0])
    for number, (_, cells) in enumerate(rows):
        if cells[7] == ("launch",):
            launched.add(number)
    columns = (
        Column(name="layer"), Column(name="in", numeric=True), Column(name="out", numeric=True),
        Column(name="time", drawn=True), Column(name="dense, µs", numeric=True), Column(name="small, µs", numeric=True),
        Column(name="MACs/byte", numeric=True), Column(name="held by"), Column(name="of that", numeric=True),
    )  # fmt: skip
    table = Table(
        columns=columns, rows=tuple(cells for _, cells in rows), caption=f"On {where}", quiet=frozenset(launched)
    )
    peaks = entry.entry("ceilings")
    told = (
        ""
        if peaks is None
        else f"The machine at most, as measured on this runtime: {digits(peaks.number('gmacs_per_s') or 0)} GMACs/s, "
        f"{digits(peaks.number('gbytes_per_s') or 0)} GB/s from memory, {digits(peaks.number('launch_us') or 0)} µs to "
        "start an operator."
    )
    note: Text = (
        "Each layer with what the runtime fuses into it, and what follows without weights. A layer takes no less than "
        "its arithmetic, its bytes or its start would; the largest of the three is what holds it. Grey: its start. "
        "Above 100 % of memory its data came from caches.",
    )
    return Section(
        anchor="why", title="Where the time goes", blocks=(Paragraph(text=(told,), tone=Tone.QUIET), table), note=note
    )


def _side(entry: Entry | None) -> _Side | None:
    if entry is None:
        return None
    return _Side(
        us=entry.number("us") or 0.0,
        intensity=entry.number("intensity"),
        ceiling=entry.text("ceiling") or "",
        of_ceiling=entry.number("of_ceiling"),
    )


def _speedup(entry: Entry | None) -> Speedup | None:
    if entry is None:
        return None
    ratio, low, high = (entry.number(key) or 1.0 for key in ("ratio", "low", "high"))
    return Speedup(ratio=ratio, low=low, high=high)


def _pair(pair: tuple[int, int] | None) -> str:
    if pair is None:
        return DASH
    return f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]} → {pair[1]}"
