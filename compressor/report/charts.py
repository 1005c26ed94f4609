"""Drawings as inline SVG: plain values in, markup out; colours and type come from the page's style sheet.

A drawing is at most 720 units wide, the width of the text column, so that its type stays the size of the text's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from compressor.report.drawing import drawing, line, spread, text, ticks
from compressor.report.markup import joined, tag
from compressor.results.timing import Speedup, TimedRow
from compressor.words import interval, milliseconds, multiple, speedup_with_interval

WIDTH = 720
NAMES = 118  # room for the candidates' names
ROW = 19
LONGEST = 2.0  # a bar of more than twice the dense latency is cut, and its label says how long it is

ORDER = ("dense", "dense again", "masked weights", "masked channels", "small")
KINDS = {
    "dense": "dense",
    "dense again": "again",
    "masked weights": "masked",
    "masked channels": "masked",
    "small": "small",
}


def kind(candidate: str) -> str:
    """The style-sheet class of a candidate."""
    return KINDS.get(candidate, "masked")


def latency_bars(runtime: str, panels: Sequence[tuple[int, Sequence[TimedRow]]]) -> Markup:
    """Latency relative to dense, one panel per batch size, one bar per candidate, with the interval as a whisker."""
    names = sorted({row.candidate for _, rows in panels for row in rows}, key=_rank)
    top, height = 46, 46 + ROW * len(names) + 22
    gap, labels = 18, 138
    room = (WIDTH - NAMES - gap * (len(panels) - 1)) / len(panels)
    parts: list[str] = [text(0, 14, runtime, class_="head")]
    parts += [text(0, top + ROW * i + 13, name, class_=f"name {kind(name)}") for i, name in enumerate(names)]
    for number, (batch, rows) in enumerate(panels):
        left = NAMES + number * (room + gap)
        parts.append(_bar_panel(batch, rows, names=names, left=left, top=top, plot=room - labels))
    alt = f"Latency on {runtime} relative to the dense model, by batch size: " + "; ".join(
        f"batch {batch}, {row.candidate}: {_alt(row)}" for batch, rows in panels for row in rows
    )
    return drawing(WIDTH, height, alt, *parts)


def _bar_panel(
    batch: int, rows: Sequence[TimedRow], *, names: Sequence[str], left: float, top: float, plot: float
) -> Markup:
    by_name = {row.candidate: row for row in rows}
    reference = by_name.get("dense")
    longest = max([1.1, *(min(LONGEST, _relative(row, reference)[2]) for row in rows)])
    scale = plot / longest
    bottom = top + ROW * len(names)
    heading = f"batch {batch}" + (f" · dense {milliseconds(reference.median_ms)}" if reference else "")
    parts: list[str] = [text(left, top - 12, heading, class_="panel")]
    for tick in (0.0, 0.5, 1.0, 1.5, 2.0):
        if tick <= longest:
            at = left + tick * scale
            parts.append(line(at, top - 2, at, bottom + 3, class_="one" if tick == 1 else "tick"))
            parts.append(text(at, bottom + 15, f"{tick:g}", class_="axis", text_anchor="middle"))
    for i, name in enumerate(names):
        y = top + ROW * i
        if name not in by_name:
            parts.append(text(left + 3, y + 13, "not measured", class_="label quiet"))
            continue
        row = by_name[name]
        relative, low, high = _relative(row, reference)
        end = min(relative, longest) * scale
        bar = [tag("rect", x=left, y=y + 4, width=end, height=ROW - 8, class_=f"bar {kind(name)}")]
        if high > low:
            middle = y + ROW / 2
            low_x, high_x = left + min(low, longest) * scale, left + min(high, longest) * scale
            bar.append(line(low_x, middle, high_x, middle, class_="whisker"))
            bar += [line(x, middle - 3, x, middle + 3, class_="whisker") for x in (low_x, high_x)]
        if relative > longest:
            bar.append(text(left + end - 2, y + 14, "»", class_="cut", text_anchor="end"))
        resolved = row.speedup is not None and row.speedup.resolved
        clear = ("small" if name == "small" else "") if resolved else "quiet"
        bar.append(text(left + plot + 6, y + 13.5, _bar_label(row), class_=f"label {clear}"))
        parts.append(tag("g", tag("title", f"{name}, batch {batch}: {_alt(row)}"), *bar))
    return joined(*parts)


def _bar_label(row: TimedRow) -> str:
    if row.speedup is not None:
        return speedup_with_interval(row.speedup)
    return "reference" if row.candidate == "dense" else milliseconds(row.median_ms)


def _alt(row: TimedRow) -> str:
    text = f"{milliseconds(row.median_ms)} median"
    if row.speedup is None:
        return text
    remark = "" if row.speedup.resolved else ", no significant difference"
    return f"{text}, speed-up {multiple(row.speedup.ratio)}, interval {interval(row.speedup)}{remark}"


def _relative(row: TimedRow, reference: TimedRow | None) -> tuple[float, float, float]:
    """Where the bar ends and its whisker lies: the speed-up's inverse, the bounds change places."""
    speedup: Speedup | None = row.speedup
    if speedup is not None and speedup.low > 0:
        return 1 / speedup.ratio, 1 / speedup.high, 1 / speedup.low
    at = row.median_ms / reference.median_ms if reference and reference.median_ms > 0 else 1.0
    return at, at, at


def paired_bar(before: float, after: float, *, whole: float, alt: str, width: int = 180) -> Markup:
    """The dense figure as a pale bar, the small one inside it in colour."""
    scale = (width - 1) / whole if whole > 0 else 0.0
    return drawing(
        width,
        12,
        alt,
        tag("rect", x=0, y=1, width=before * scale, height=10, class_="bar before"),
        tag("rect", x=0, y=3.5, width=after * scale, height=5, class_="bar small"),
        class_="inline",
    )


def every_call(dense: TimedRow, small: TimedRow, *, most: int = 2400) -> Markup:
    """Each timed call of two candidates in the order of the blocks: drift, outliers and spread at a glance."""
    height, left, top, bottom = 176, 44, 12, 26
    right = 122 if small.candidate == "small" else 168  # room for the longer name
    ceiling = 1.15 * max(row.p99_ms or row.median_ms for row in (dense, small))
    blocks = max(len(dense.samples_ns), len(small.samples_ns))
    slot = (WIDTH - left - right) / blocks

    def y(ms: float) -> float:
        return top + (height - top - bottom) * (1 - min(ms, ceiling) / ceiling)

    parts: list[str] = []
    for tick in ticks(0, ceiling, about=4):
        parts.append(line(left, y(tick), WIDTH - right, y(tick), class_="tick"))
        parts.append(text(left - 6, y(tick) + 3.5, f"{tick:g}", class_="axis", text_anchor="end"))
    for row, side in ((dense, 0.08), (small, 0.54)):
        every = math.ceil(sum(len(block) for block in row.samples_ns) / most)
        strokes = [
            f"M{left + slot * (b + side + 0.4 * (c + 0.5) / len(block)):.1f} {y(sample / 1e6):.1f}h0"
            for b, block in enumerate(row.samples_ns)
            for c, sample in enumerate(block)
            if c % every == 0
        ]
        parts.append(tag("path", d="".join(strokes), class_=f"calls {kind(row.candidate)}"))
    medians = spread([y(dense.median_ms), y(small.median_ms)], gap=13, low=top, high=height - bottom)
    for row, at in zip((dense, small), medians, strict=True):
        parts.append(
            line(left, y(row.median_ms), WIDTH - right + 4, y(row.median_ms), class_=f"median {kind(row.candidate)}")
        )
        words = f"{row.candidate} {milliseconds(row.median_ms)}"
        parts.append(text(WIDTH - right + 8, at + 4, words, class_=f"label {kind(row.candidate)}"))
    parts.append(text(left, height - 6, f"{blocks} blocks, in the order in which they ran", class_="axis"))
    alt = (
        f"Every timed call in {blocks} blocks: dense around {milliseconds(dense.median_ms)}, "
        f"small around {milliseconds(small.median_ms)}"
    )
    return drawing(WIDTH, height, alt, *parts)


def curve(title: str, values: Sequence[float], *, first: int, shown: Sequence[str]) -> Markup:
    """One quantity over the epochs; its first and last values are written at its ends."""
    width, height, left, right, top, bottom = 232, 122, 3, 3, 28, 30
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = (width - left - right) / max(1, len(values) - 1)
    spots = [
        (left + step * i, top + (height - top - bottom) * (1 - (value - low) / span)) for i, value in enumerate(values)
    ]
    parts: list[str] = [
        text(0, 13, title, class_="panel"),
        line(left, height - bottom + 8, width - right, height - bottom + 8, class_="frame"),
    ]
    if len(spots) > 1:
        parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in spots), class_="curve"))
    for i, (x, y) in enumerate(spots):
        if len(spots) <= 12 or i in {0, len(spots) - 1}:  # more would hide the line
            point = tag("title", f"epoch {first + i}: {shown[i]}")
            parts.append(tag("circle", point, cx=x, cy=y, r=2.6, class_="dot small"))
    ends = ((0, "start"),) if len(spots) == 1 else ((0, "start"), (len(spots) - 1, "end"))
    for i, anchor in ends:
        words = (f"epoch {first + i}: ", tag("tspan", shown[i], class_="value"))
        at = left if anchor == "start" else width - right
        parts.append(tag("text", *words, x=at, y=height - 3, class_="axis", text_anchor=anchor))
    alt = f"{title} by epoch: from {shown[0]} to {shown[-1]} in {len(values)} epochs"
    return drawing(width, height, alt, *parts)


def _rank(candidate: str) -> tuple[int, str]:
    return (ORDER.index(candidate) if candidate in ORDER else len(ORDER), candidate)
