"""The first thing a reader sees: the measured speed-up, how sure it is, and what it cost."""

from __future__ import annotations

from compressor.report.charts import paired_bar
from compressor.report.document import (
    Block,
    BulletList,
    Cell,
    Code,
    Column,
    Headline,
    Look,
    Paragraph,
    Section,
    Strong,
    Subheading,
    Table,
    Text,
    Tone,
)
from compressor.report.missing import Commands
from compressor.results.artifact import Results
from compressor.results.quality import Counted, Quality, Score
from compressor.results.timing import Bench, TimedRow
from compressor.words import (
    count,
    counted,
    decimals_of,
    interval,
    milliseconds,
    multiple,
    scaled,
    scored,
    size,
    speedup_with_interval,
)

BAR = 150  # units wide: what a table's cell has room for
ZEROS = {"masked weights": "Zeros in single weights", "masked channels": "The removed channels as zeros in place"}


def headline_row(bench: Bench | None) -> TimedRow | None:
    """The setting that the headline speaks of: ONNX at the smallest batch where it was measured, never the best one.

    Of a masked network, which has no small model, the row of its masked weights.
    """
    for candidate in ("small", "masked weights"):
        rows = [row for row in bench.rows if row.candidate == candidate and row.speedup] if bench else []
        if rows:
            onnx = [row for row in rows if row.runtime.startswith("onnxruntime")]
            return min(onnx or rows, key=lambda row: row.batch)
    return None


def beside(bench: Bench, row: TimedRow, candidate: str) -> TimedRow | None:
    """Another candidate of the same runtime and batch size."""
    same = (r for r in bench.rows if (r.runtime, r.batch, r.candidate) == (row.runtime, row.batch, candidate))
    return next(same, None)


def result_section(results: Results, commands: Commands) -> Section:
    """The headline, the table of what it cost, and the caveats."""
    row = headline_row(results.bench)
    blocks: list[Block] = []
    if results.bench is None or row is None:
        blocks.append(commands.missing("No speed-up has been measured.", commands.bench))
    else:
        blocks += _claims(results.bench, row)
    table = _scoreboard(results, row)
    if table.rows:
        blocks.append(table)
    if not any(_shares(results, row)):
        blocks.append(commands.missing("No accuracy has been measured.", commands.evaluate))
    if results.bench is not None and results.bench.caveats:
        blocks.append(Subheading(title="Caveats of this measurement", tone=Tone.CAUTION))
        blocks.append(BulletList(items=tuple((caveat,) for caveat in results.bench.caveats), tone=Tone.CAUTION))
    note: Text = ()
    if row is not None and results.bench is not None:
        settings = len({(r.runtime, r.batch) for r in results.bench.rows if r.candidate == row.candidate})
        chosen = "ONNX at the smallest batch" if row.runtime.startswith("onnxruntime") else "the smallest batch"
        others = " It is the only setting measured." if settings == 1 else f" All {settings} settings stand below."
        note = (f"The headline is {chosen}, whichever setting is fastest.{others}",)
    return Section(anchor="result", title="Result", blocks=tuple(blocks), note=note)


def _claims(bench: Bench, row: TimedRow) -> list[Block]:
    speedup = row.speedup
    if speedup is None:  # pragma: no cover  # `headline_row` gives rows with one
        return []
    where: Text = ("on ", Code(content=row.runtime), f" at batch {row.batch}")
    if row.provider and row.provider != row.runtime:
        where = (*where, ", run by ", Code(content=row.provider))
    detail: Text = (f"interval {interval(speedup)}, ", *where)
    figure = multiple(speedup.ratio, decimals=decimals_of(speedup))
    model = "small" if row.candidate == "small" else "masked"
    tone = Tone.PLAIN if speedup.resolved and speedup.ratio > 1 else Tone.CAUTION
    if not speedup.resolved:
        claim = f"no significant difference in latency between the {model} and the dense model: the interval contains 1"
    elif speedup.ratio < 1:
        claim = f"the dense model’s speed, measured: the {model} model is slower"
    else:
        claim = "as fast as the dense model, measured"
    blocks: list[Block] = [Headline(figure=figure, claim=claim, detail=detail, tone=tone)]
    null = beside(bench, row, "dense again")
    if null is not None and null.speedup is not None and null.speedup.resolved:
        ratio = speedup_with_interval(null.speedup)
        text = f"The null check failed here: the dense model against itself came out at {ratio}. "
        blocks.append(Paragraph(text=(text, "Differences of this size mean nothing."), tone=Tone.CAUTION))
    spans = tuple(span for name in ZEROS if name != row.candidate for span in _masked(name, beside(bench, row, name)))
    if spans:
        blocks.append(Paragraph(text=spans))
    return blocks


def _masked(name: str, row: TimedRow | None) -> Text:
    if row is None or row.speedup is None:
        return ()
    ratio = speedup_with_interval(row.speedup)
    zeros = ZEROS[name]
    if not row.speedup.resolved:
        return (f"{zeros} gave ", Strong(content=ratio), ": no significant difference. ")
    comparison = "faster" if row.speedup.ratio > 1 else "slower"
    return (f"{zeros} gave ", Strong(content=ratio), f": {comparison} than dense. ")


def _scoreboard(results: Results, row: TimedRow | None) -> Table:
    model = "masked" if row is not None and row.candidate != "small" else "small"
    rows: list[tuple[Cell, ...]] = []
    reference = beside(results.bench, row, "dense") if results.bench and row else None
    if row and reference:
        shown = (milliseconds(reference.median_ms), milliseconds(row.median_ms))
        note = f"{speedup_with_interval(row.speedup)} measured" if row.speedup else ""
        rows.append(_line("latency", (reference.median_ms, row.median_ms), shown=shown, note=note))
    theoretical = f"{multiple(row.theoretical_speedup)} theoretical" if row and row.theoretical_speedup else ""
    for name, pair, words, note in (
        ("MACs", results.achieved("macs") or _counted(reference, row, "macs"), scaled, theoretical),
        ("parameters", results.achieved("params") or _counted(reference, row, "params"), count, ""),
        ("channels", results.achieved("channels"), count, ""),
        ("file", _counted(reference, row, "file_bytes"), size, ""),
    ):
        if pair is not None:
            rows.append(_line(name, pair, shown=(words(pair[0]), words(pair[1])), note=note))
    dense, small = _shares(results, row)
    if dense or small:
        rows.append(_quality(dense, small))
    columns = (
        Column(name=""),
        Column(name="dense", numeric=True),
        Column(name=model, numeric=True),
        Column(name="side by side", drawn=True),
        Column(name="ratio or count"),
    )
    return Table(columns=columns, rows=tuple(rows), caption="Before and after", look=Look.BOARD)


def _line(name: str, pair: tuple[float, float], *, shown: tuple[str, str], note: str) -> tuple[Cell, ...]:
    alt = f"{name}: {shown[0]} before, {shown[1]} after"
    bar = paired_bar(*pair, whole=max(pair), alt=alt, width=BAR)
    return ((name,), (shown[0],), (Strong(content=shown[1]),), bar, (note,))


def _quality(dense: Quality | None, small: Quality | None) -> tuple[Cell, ...]:
    known = [share for share in (dense, small) if share is not None]
    agreement = any(share.against_dense for share in known)
    if any(isinstance(one, Score) for one in known):
        return _score(dense, small)
    shown = tuple(scored(share) if share else "not measured" for share in (dense, small))
    if len({(share.total, share.split) for share in known}) == 1 and len(known) == 2:
        counts = " and ".join(count(one.count) for one in known if isinstance(one, Counted))
        counts += f" of {count(known[0].total)}"
        counts += f", {known[0].split} split" if known[0].split else ""
    else:
        counts = ", ".join(counted(share) + (f" ({share.split} split)" if share.split else "") for share in known)
    name = "agreement" if agreement else "accuracy"
    note = f"{counts} answered as dense does" if agreement else counts
    sizes = tuple(share.value if share else 0.0 for share in (dense, small))
    bar = paired_bar(*sizes, whole=1.0, alt=f"{name}: {shown[0]} before, {shown[1]} after", width=BAR)
    return ((name,), (shown[0],), (Strong(content=shown[1]),), bar, (note,))


def _score(dense: Quality | None, small: Quality | None) -> tuple[Cell, ...]:
    """A task's score; the bars are as long as the larger one."""
    known = [one for one in (dense, small) if one is not None]
    shown = tuple(scored(one) if one else "not measured" for one in (dense, small))
    sizes = tuple(max(0.0, one.value) if one else 0.0 for one in (dense, small))
    whole = 1.0 if known[0].is_share else max((*sizes, 1e-12))
    name = known[0].named
    note = ", ".join(f"{counted(one)}, {one.split} split" if one.split else counted(one) for one in known[-1:])
    if any(one.against_dense for one in known):
        note += ", against the dense network's outputs"
    elif not known[0].is_better_high:
        note += "; less is better"
    bar = paired_bar(*sizes, whole=whole, alt=f"{name}: {shown[0]} before, {shown[1]} after", width=BAR)
    return ((name,), (shown[0],), (Strong(content=shown[1]),), bar, (note,))


def _shares(results: Results, row: TimedRow | None) -> tuple[Quality | None, Quality | None]:
    """Dense and small: the latest readings of one kind, so that both were read on the same images where possible."""
    latest = {evaluation.model: evaluation.quality for evaluation in results.evaluations}
    reference = beside(results.bench, row, "dense") if results.bench and row else None
    timed = (reference.accuracy if reference else None, row.accuracy if row else None)
    read = (latest.get("dense"), latest.get("small"))
    if all(read) or not all(timed):
        return (read[0] or timed[0], read[1] or timed[1]) if not any(read) else read
    return timed


def _counted(dense: TimedRow | None, small: TimedRow | None, quantity: str) -> tuple[int, int] | None:
    if dense is None or small is None:
        return None
    before, after = getattr(dense, quantity), getattr(small, quantity)
    return (int(before), int(after)) if before is not None and after is not None else None
