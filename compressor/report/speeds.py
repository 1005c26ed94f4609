"""The report's parts on latency as a budget: how it was met, and where the time goes layer by layer."""

from __future__ import annotations

from compressor.report.charts import paired_bar
from compressor.report.document import Block, Cell, Code, Column, Paragraph, Section, Strong, Table, Text, Tone, listed
from compressor.results.artifact import Results
from compressor.results.latency import MeetingLatency
from compressor.results.records import Pair
from compressor.results.timing import LayerShare, LayerTime, LayerTimes
from compressor.words import DASH, digits, milliseconds, multiple, percent, ratio_in_table, speedup_with_interval


def latency_section(results: Results) -> Section | None:
    """The requested speed, the measurement of each trial, and the final one; `None` for any other budget."""
    latency = results.latency
    if latency is None:
        return None
    blocks: list[Block] = [_verdict(latency)]
    rows: list[tuple[Cell, ...]] = [
        (
            (str(number),), (multiple(trial.aim),), (multiple(trial.predicted),), (ratio_in_table(trial.measured),),
            (str(trial.channels),),
        )
        for number, trial in enumerate(latency.trials, start=1)
    ]  # fmt: skip
    columns = (
        Column(name="trial"),
        *(Column(name=n, numeric=True) for n in ("aim", "predicted", "measured", "channels")),
    )
    blocks.append(Table(columns=columns, rows=tuple(rows), caption="From the table to the clock"))
    blocks += [Paragraph(text=(text,), tone=Tone.CAUTION) for text in latency.caveats]
    search = latency.search
    if search is not None:
        tried = ", ".join(f"{multiple(one.speedup)} loses {one.drop:.2f}" for one in search.tried)
        lost = f"Within {search.allowed:g} points on the tuning split: {search.drop:.2f} lost. Tried: {tried}."
        blocks.append(Paragraph(text=(lost,)))
    alignments = [
        (f"multiples of {one.get('multiple')}", percent(one.get("excess") or 0.0, decimals=0))
        for one in latency.alignments
    ]
    shown = (
        "runtime", "batch", "threads", "wanted", "rows", "speedup", "dense_ms", "small_ms", "trials", "caveats",
        "search", "alignments", "align", "met",
    )  # fmt: skip
    blocks.append(listed((*latency.facts(without=shown), *alignments)))
    note: Text = (
        "A table of what each operator takes at what widths chose the widths; trials ran without weights. ",
        "Under multiples: what widths that are no finer than these take, of what aligned ones would.",
    )
    return Section(anchor="latency", title="Latency as the budget", blocks=tuple(blocks), note=note)


def _verdict(latency: MeetingLatency) -> Paragraph:
    if latency.speedup is None:
        return Paragraph(text=("Predicted by a table from another machine, and not measured here.",), tone=Tone.CAUTION)
    before, after = latency.dense_ms, latency.small_ms
    took = f", {milliseconds(before)} before and {milliseconds(after)} after" if before and after else ""
    where = f"{latency.runtime}, batch {latency.batch}, threads: {latency.threads}"
    return Paragraph(
        text=(
            "Asked was ", Strong(content=multiple(latency.wanted)), " on ", Code(content=where), "; measured ",
            Strong(content=speedup_with_interval(latency.speedup)), f"{took}.",
        )
    )  # fmt: skip


def why_section(results: Results) -> Section | None:
    """Layer by layer, before and after, and which ceiling holds it; `None` where nobody has profiled."""
    why = None if results.bench is None else results.bench.why
    if why is None:
        return None
    layers = sorted((layer for layer in why.rows if layer.dense or layer.small), key=lambda layer: -_longest(layer))
    widest = max((_longest(layer) for layer in layers), default=1e-9)
    launched = {n for n, layer in enumerate(layers) if _last(layer).ceiling == "launch"}
    columns = (
        Column(name="layer"), Column(name="in", numeric=True), Column(name="out", numeric=True),
        Column(name="time", drawn=True), Column(name="dense, µs", numeric=True), Column(name="small, µs", numeric=True),
        Column(name="MACs/byte", numeric=True), Column(name="held by"), Column(name="of that", numeric=True),
    )  # fmt: skip
    table = Table(
        columns=columns,
        rows=tuple(_layer_row(layer, widest) for layer in layers),
        caption=f"On {why.runtime}, batch {why.batch}, threads: {why.threads}",
        quiet=frozenset(launched),
    )
    note: Text = (
        "Each layer with what the runtime fuses into it, and what follows without weights. A layer takes no less than "
        "its arithmetic, its bytes or its start would; the largest of the three is what holds it. Grey: its start. "
        "Above 100 % of memory its data came from caches.",
    )
    peaks = Paragraph(text=(_peaks(why),), tone=Tone.QUIET)
    return Section(anchor="why", title="Where the time goes", blocks=(peaks, table), note=note)


def _peaks(why: LayerTimes) -> str:
    if not why.ceilings:
        return ""
    gmacs, gbytes, launch = (
        digits(float(why.ceilings.get(key) or 0)) for key in ("gmacs_per_s", "gbytes_per_s", "launch_us")
    )
    return (
        f"The machine at most, as measured on this runtime: {gmacs} GMACs/s, {gbytes} GB/s from memory, {launch} µs to "
        "start an operator."
    )


def _layer_row(layer: LayerTime, widest: float) -> tuple[Cell, ...]:
    last = _last(layer)
    before, after = (0.0 if side is None else side.us for side in (layer.dense, layer.small))
    alt = f"{layer.layer}: {digits(before)} µs dense, {digits(after)} µs small"
    return (
        (Code(content=layer.layer),),
        (_pair(layer.inputs),),
        (_pair(layer.outputs),),
        paired_bar(before, after, whole=widest, alt=alt, width=120),
        (digits(before) if layer.dense else DASH,),
        (digits(after) if layer.small else "gone",),
        (DASH if last.intensity is None else digits(last.intensity),),
        (last.ceiling,),
        (DASH if last.of_ceiling is None else percent(last.of_ceiling, decimals=0),),
    )


def _last(layer: LayerTime) -> LayerShare:
    """The small network's side, or the dense one's where the layer is gone."""
    return layer.small or layer.dense or LayerShare()


def _longest(layer: LayerTime) -> float:
    return max(side.us for side in (layer.dense, layer.small) if side is not None)


def _pair(pair: Pair | None) -> str:
    if pair is None:
        return DASH
    return f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]} → {pair[1]}"
