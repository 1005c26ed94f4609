"""The measured results: latency in turns, accuracy against latency."""

from __future__ import annotations

from markupsafe import Markup

from compressor.report.charts import every_call, latency_bars
from compressor.report.document import (
    Block,
    Cell,
    Code,
    Column,
    Facts,
    Figure,
    Look,
    Section,
    Strong,
    Table,
    Text,
    listed,
)
from compressor.report.headline import beside, headline_row
from compressor.report.missing import Commands
from compressor.report.scatter import Point, accuracy_scatter
from compressor.results.artifact import Results
from compressor.results.quality import Quality, Score
from compressor.results.timing import Bench, TimedRow
from compressor.words import (
    DASH,
    count,
    counted,
    digits,
    milliseconds,
    multiple,
    ratio_in_table,
    scaled,
    score_interval,
    scored,
    size,
)


def clock_section(results: Results, commands: Commands) -> Section:
    """Dense, masked and small in turns on one machine."""
    title = "Dense, masked and small on the clock"
    bench = results.bench
    if bench is None or not bench.rows:
        missing = commands.missing("No latency has been measured.", commands.bench)
        return Section(anchor="clock", title=title, blocks=(missing,))
    settings = _settings(bench)
    drawings = []
    for runtime in dict.fromkeys(name for name, _ in settings):
        batches = [batch for name, batch in settings if name == runtime]
        for start in range(0, len(batches), 2):
            pair = batches[start : start + 2]
            drawings.append(latency_bars(runtime, [(batch, _rows(bench, runtime, batch)) for batch in pair]))
    caption: Text = (
        "Latency relative to the dense model: shorter is faster. The fine line at a bar’s end is the interval; "
        "the figures are speed-ups, grey where no significant difference was found.",
    )
    blocks: list[Block] = [Figure(drawings=tuple(drawings), caption=caption)]
    row = headline_row(bench)
    dense = beside(bench, row, "dense") if row else None
    if row and dense and any(row.samples_ns) and any(dense.samples_ns):
        text = f"Every timed call behind the headline ({row.runtime}, batch {row.batch}), in milliseconds."
        blocks.append(Figure(drawings=(every_call(dense, row),), caption=(text,)))
    blocks.append(_timings(bench, settings))
    facts = [
        (name, value) for name, value in (("threads", bench.threads), ("blocks", bench.blocks)) if value is not None
    ]
    shown = ("rows", "caveats", "threads", "blocks", "environment", "why")
    if facts or bench.facts(without=shown):
        pairs = tuple((name, (str(value),)) for name, value in facts)
        blocks.append(Facts(pairs=(*pairs, *listed(bench.facts(without=shown)).pairs)))
    note: Text = (
        "The candidates take turns, a block of calls each, in shuffled order. ",
        Strong(content="dense again"),
        " is the dense model against itself: a harness that can be believed finds no difference there. "
        "The masked models show what zeros alone are worth.",
    )
    return Section(anchor="clock", title=title, blocks=tuple(blocks), note=note)


def _timings(bench: Bench, settings: list[tuple[str, int]]) -> Table:
    columns = [
        "median",
        "p90",
        "p99",
        "samples/s",
        "peak memory",
        "file",
        "parameters",
        "MACs",
        "speed-up",
        "theoretical",
    ]
    rows: list[tuple[Cell, ...]] = []
    groups: list[tuple[int, Text]] = []
    accented, quiet = set(), set()
    for runtime, batch in settings:
        here = _rows(bench, runtime, batch)
        provider = here[0].provider
        heading: Text = (Code(content=runtime), f", batch {batch}")
        if provider and provider != runtime:
            heading = (*heading, ", run by ", Code(content=provider))
        groups.append((len(rows), heading))
        for row in here:
            if row.candidate == "small":
                accented.add(len(rows))
            elif row.candidate == "dense again":
                quiet.add(len(rows))
            rows.append(
                (
                    (row.candidate,),
                    (milliseconds(row.median_ms),),
                    (milliseconds(row.p90_ms) if row.p90_ms is not None else DASH,),
                    (milliseconds(row.p99_ms) if row.p99_ms is not None else DASH,),
                    (digits(row.throughput) if row.throughput is not None else DASH,),
                    (size(row.peak_memory_bytes) if row.peak_memory_bytes is not None else DASH,),
                    (size(row.file_bytes) if row.file_bytes is not None else DASH,),
                    (count(row.params) if row.params is not None else DASH,),
                    (scaled(row.macs) if row.macs is not None else DASH,),
                    (ratio_in_table(row.speedup),),
                    (multiple(row.theoretical_speedup) if row.theoretical_speedup is not None else DASH,),
                )
            )
    return Table(
        columns=(Column(name=""), *(Column(name=name, numeric=True) for name in columns)),
        rows=tuple(rows),
        groups=tuple(groups),
        accented=frozenset(accented),
        quiet=frozenset(quiet),
        caption="All timings. n. s.: no significant difference, the interval contains 1",
        look=Look.WIDE,
    )


def accuracy_section(results: Results, commands: Commands) -> Section:
    """Accuracy against latency, and every reading of a split."""
    title = "Accuracy against latency"
    blocks: list[Block] = []
    drawings = _scatters(results.bench) if results.bench else ()
    if drawings:
        caption: Text = (
            "Up is better, left is faster. The fine line reaches from the median to the 90th percentile; ",
            "an arrow marks a point below the scale.",
        )
        blocks.append(Figure(drawings=drawings, caption=caption, columns=2))
    rows: list[tuple[Cell, ...]] = []
    for evaluation in results.evaluations:
        share = evaluation.quality
        kind = _kind(share)
        place = " ".join(part for part in (evaluation.data, share.split and f"({share.split})") if part)
        rows.append(
            (
                (evaluation.model,),
                (place or DASH,),
                (kind,),
                (counted(share),),
                (scored(share),),
                (score_interval(share),),
            )
        )
    for row in _first_accuracies(results.bench):
        if row.accuracy is not None:
            split = row.accuracy.split or DASH
            kind = _kind(row.accuracy)
            rows.append(
                (
                    (row.candidate,),
                    (f"bench ({split})",),
                    (kind,),
                    (counted(row.accuracy),),
                    (scored(row.accuracy),),
                    (score_interval(row.accuracy),),
                )
            )
    if rows:
        names = ("model", "data", "measure")
        numeric = ("images", "share", "interval")
        columns = (*(Column(name=n) for n in names), *(Column(name=n, numeric=True) for n in numeric))
        blocks.append(Table(columns=columns, rows=tuple(rows), caption="Every reading"))
    if not rows:
        blocks.append(commands.missing("No accuracy has been measured.", commands.evaluate))
    elif not drawings:
        blocks.append(
            commands.missing("Accuracy and latency have not been measured together.", f"{commands.bench} --data DIR")
        )
    note: Text = (
        "Accuracy is two whole numbers. The interval says how far chance in the choice of test images could move it.",
    )
    return Section(anchor="accuracy", title=title, blocks=tuple(blocks), note=note if rows else ())


def _scatters(bench: Bench) -> tuple[Markup, ...]:
    drawings = []
    for runtime, batch in _settings(bench):
        points = [
            Point(
                candidate=row.candidate,
                median_ms=row.median_ms,
                p90_ms=row.p90_ms,
                share=row.accuracy.value,
            )
            for row in _rows(bench, runtime, batch)
            if row.accuracy and row.accuracy.is_share and row.candidate != "dense again"
        ]
        if len(points) >= 2:
            title = f"{runtime}, batch {batch}"
            drawings.append(accuracy_scatter(title, points))
    return tuple(drawings)


def _kind(quality: Quality) -> str:
    """What was read, and by which truth."""
    if isinstance(quality, Score):
        return f"{quality.named}, as dense" if quality.against_dense else quality.named
    return "agreement with dense" if quality.against_dense else quality.named


def _first_accuracies(bench: Bench | None) -> tuple[TimedRow, ...]:
    """One row per candidate and distinct accuracy: runtimes that agree are not listed again."""
    rows: dict[tuple[object, ...], TimedRow] = {}
    for row in bench.rows if bench else ():
        if row.accuracy and row.candidate != "dense again":
            rows.setdefault((row.candidate, row.accuracy.value, row.accuracy.total, row.accuracy.split), row)
    return tuple(rows.values())


def _settings(bench: Bench) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row.runtime, row.batch) for row in bench.rows))


def _rows(bench: Bench, runtime: str, batch: int) -> list[TimedRow]:
    return [row for row in bench.rows if (row.runtime, row.batch) == (runtime, batch)]
