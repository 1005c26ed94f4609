"""A study's page: the verdict of each claim with the interval that decided it, the pictures, and every cell."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from compressor.report.document import (
    Block,
    Code,
    Column,
    Document,
    Facts,
    Figure,
    Folded,
    Paragraph,
    Section,
    Span,
    Strong,
    Table,
    Text,
    Tone,
)
from compressor.report.drawing import drawing, line, spread, text, ticks
from compressor.report.markup import tag
from compressor.report.wording import digits

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720.0, 372.0, 52.0, 190.0, 48.0, 44.0
COLOURS = ("#1c5fa8", "#b3541e", "#5f7a2e", "#7a4f9a", "#8a8b87", "#a8862a", "#2f8f8f", "#b03a62")
LOOK = """
svg { background: #fdfdfb; font: 12px system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
text { fill: #1b1c1e; } .title { font-size: 15px; font-weight: 600; } .quiet { fill: #63656a; }
.grid { stroke: #ecece7; } .frame { stroke: #9a9ca1; } polyline { fill: none; stroke-width: 1.8; }
"""


def document(found: Mapping[str, Any]) -> Document:
    """The page of what `studies.runner.told` gave."""
    data = found["data"]
    sizes = ", ".join(f"{n:,} to {name}" for name, n in data["sizes"].items())
    about: list[Block] = [Paragraph(text=spans(part)) for part in str(found["about"]).split("\n\n")]
    return Document(
        title=found["title"],
        subtitle=(f"{found['study']}, scale {found['scale']}, on {data.get('name', 'data')}{sizes and ': '}{sizes}",),
        sections=(
            Section(
                anchor="verdict",
                title="Verdict",
                blocks=tuple(block for claim in found["claims"] for block in _claim(claim)),
                note=(
                    "A claim is ", Strong(content="reproduced"), " where every interval lies wholly on the side that "
                    "it claims, ", Strong(content="contradicted"), " where one lies wholly on the other, and ",
                    Strong(content="inconclusive"), " otherwise.",
                ),
            ),
            Section(
                anchor="pictures",
                title="Pictures",
                blocks=tuple(Figure(drawings=(plot_drawing(plot),), caption=()) for plot in found["plots"]),
                note=("Lines join means over seeds; bands reach from the lowest to the highest seed, dots are seeds.",),
            ),
            Section(anchor="about", title="What was run", blocks=(*about, *_cells(found["cells"]))),
            Section(anchor="provenance", title="Provenance", blocks=(_provenance(found),)),
        ),
    )  # fmt: skip


def spans(words: str) -> Text:
    """A docstring's paragraph, with `**weight**` and code in backticks as what they mean."""
    parts = re.split(r"(\*\*[^*]+\*\*|`[^`]+`)", words.replace("\n", " "))
    made: list[Span] = []
    for part in (part for part in parts if part):
        if part.startswith("**"):
            made.append(Strong(content=part.strip("*")))
        else:
            made.append(Code(content=part.strip("`")) if part.startswith("`") else part)
    return tuple(made)


def _claim(claim: Mapping[str, Any]) -> list[Block]:
    source = f" ({claim['source']})" if claim["source"] else ""
    tone = {"reproduced": Tone.PLAIN, "contradicted": Tone.CAUTION}.get(claim["verdict"], Tone.QUIET)
    blocks: list[Block] = [
        Paragraph(text=(Strong(content=claim["verdict"]), f": {claim['claim']}{source}"), tone=tone),
        Table(
            columns=(
                Column(name="quantity"), Column(name="claimed"), Column(name="measured", numeric=True),
                Column(name="interval", numeric=True), Column(name="n", numeric=True), Column(name="verdict"),
            ),
            rows=tuple(tuple((cell,) for cell in finding_cells(finding)) for finding in claim["findings"]),
            caption="",
        ),
    ]  # fmt: skip
    if claim["why"]:
        blocks.append(Paragraph(text=(claim["why"],)))
    return blocks


def finding_cells(finding: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    """A finding in words: quantity, what is claimed, what was measured, its interval, replicates, verdict."""
    interval, unit = finding["interval"], finding["unit"]
    claimed = f"{finding['claimed']} {digits(finding['bound'])} {unit}".strip()
    if interval is None:
        return finding["quantity"], claimed, "–", "too few replicates", "–", finding["verdict"]
    bounds = f"{digits(interval['low'])} to {digits(interval['high'])}"
    return (
        finding["quantity"], claimed, digits(interval["estimate"]), bounds, str(interval["n"]), finding["verdict"],
    )  # fmt: skip


def _cells(cells: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Every cell's plain numbers, one table for each arm."""
    blocks: list[Block] = []
    for arm in dict.fromkeys(cell["arm"] for cell in cells):
        mine = [cell for cell in cells if cell["arm"] == arm]
        values = list(dict.fromkeys(name for cell in mine for name in cell["values"]))
        numbers = [
            name
            for name in dict.fromkeys(name for cell in mine for name in cell["result"])
            if any(isinstance(cell["result"].get(name), (int, float)) for cell in mine)
        ]
        rows = tuple(
            (
                (str(cell["seed"]),),
                *((_said(cell["values"].get(name)),) for name in values),
                *((_said(cell["result"].get(name)),) for name in numbers),
            )
            for cell in mine
        )
        columns = (Column(name="seed", numeric=True), *(Column(name=n, numeric=True) for n in (*values, *numbers)))
        table = Table(columns=columns, rows=rows, caption=arm)
        blocks.append(Folded(summary=f"{arm}: {len(mine)} cells", blocks=(table,)))
    return blocks


def _said(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "–" if value is None else ("yes" if value else "no")
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _provenance(found: Mapping[str, Any]) -> Block:
    facts: list[tuple[str, Text]] = [("command", (Code(content=found["command"]),))]
    facts += [(str(name), (str(value),)) for name, value in found["environment"].items() if name != "command"]
    return Facts(pairs=tuple(facts))


def picture(plot: Mapping[str, Any]) -> str:
    """A plot as a whole SVG file."""
    svg = plot_drawing(plot, look=LOOK)
    return str.replace(svg, "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def plot_drawing(plot: Mapping[str, Any], *, look: str = "") -> Markup:
    """The mean of each curve, a band from its lowest to its highest seed, and the seeds as dots."""
    curves = [c for c in plot["curves"] if c["points"]]
    title = [text(0, 16, plot["title"], class_="title")]
    if not curves:
        return drawing(WIDTH, 40, plot["title"], *title, text(0, 34, "no points", class_="quiet"))
    every_x = [float(p["x"]) for c in curves for p in c["points"]]
    every_y = [float(v) for c in curves for p in c["points"] for v in p["values"]]
    logarithmic = bool(plot["logarithmic"]) and min(every_x) > 0
    start, end = (_log(min(every_x)), _log(max(every_x))) if logarithmic else (min(every_x), max(every_x))
    room = (end - start) or 1.0
    start, end = start - 0.03 * room, end + 0.03 * room
    margin = 0.06 * (max(every_y) - min(every_y)) or 0.5
    ticks_y = ticks(min(every_y) - margin, max(every_y) + margin, about=6, cover=True)
    low, high, floor = ticks_y[0], ticks_y[-1], HEIGHT - BOTTOM

    def x(value: float) -> float:
        at = _log(value) if logarithmic else value
        return float(LEFT + (WIDTH - LEFT - RIGHT) * (at - start) / (end - start))

    def y(value: float) -> float:
        return float(TOP + (floor - TOP) * (1 - (value - low) / (high - low)))

    parts: list[str] = [tag("style", Markup(look))] if look else []
    parts += title
    for tick in ticks_y:
        parts.append(line(LEFT, y(tick), WIDTH - RIGHT, y(tick), class_="tick grid"))
        parts.append(text(LEFT - 6, y(tick) + 4, f"{tick:g}", class_="axis quiet", text_anchor="end"))
    places = sorted(set(every_x)) if logarithmic or len(set(every_x)) <= 8 else ticks(start, end, about=6)
    last = -math.inf
    for place in places:
        if x(place) - last < 30:
            continue
        last = x(place)
        parts.append(line(x(place), floor, x(place), floor + 4, class_="frame"))
        parts.append(text(x(place), floor + 17, _tick(place), class_="axis quiet", text_anchor="middle"))
    parts.append(line(LEFT, floor, WIDTH - RIGHT, floor, class_="frame"))
    parts.append(text(WIDTH - RIGHT, HEIGHT - 6, plot["x"], class_="axis quiet", text_anchor="end"))
    parts.append(text(LEFT - 46, TOP - 14, plot["y"], class_="axis quiet"))
    ends = []
    for number, one in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        points = [(x(p["x"]), [y(v) for v in p["values"]]) for p in one["points"]]
        parts += _drawn(one, points, colour=colour, joined=bool(plot["joined"]))
        ends.append((statistics.fmean(points[-1][1]), one["name"], colour))
    heights = spread([e[0] for e in ends], gap=15, low=TOP, high=floor)
    for at, (_, name, colour) in zip(heights, ends, strict=True):
        parts.append(tag("circle", cx=WIDTH - RIGHT + 12, cy=at - 4, r=3.6, fill=colour))
        parts.append(text(WIDTH - RIGHT + 20, at, name, class_="axis name"))
    said = f"{plot['title']}: {plot['y']} against {plot['x']} for " + ", ".join(c["name"] for c in curves)
    return drawing(WIDTH, HEIGHT, said, *parts)


def _tick(place: float) -> str:
    """A place on an axis: three significant digits, thousands in full."""
    return f"{place:,.0f}" if abs(place) >= 1000 else f"{place:.3g}"


def _drawn(
    one: Mapping[str, Any], points: Sequence[tuple[float, Sequence[float]]], *, colour: str, joined: bool
) -> list[str]:
    parts: list[str] = []
    if joined and len(points) > 1:
        band = [(a, min(v)) for a, v in points] + [(a, max(v)) for a, v in reversed(points)]
        parts.append(tag("path", d=_path(band) + "Z", fill=colour, stroke="none", opacity="0.13"))
        parts.append(
            tag("path", d=_path([(a, statistics.fmean(v)) for a, v in points]), fill="none", stroke=colour,
                stroke_width="1.8")
        )  # fmt: skip
    for (a, values), point in zip(points, one["points"], strict=True):
        told = f"{one['name']} at {point['x']:.4g}: " + ", ".join(f"{v:.4g}" for v in point["values"])
        dots = [tag("circle", cx=a, cy=b, r=2.4, fill=colour, opacity="0.75") for b in values]
        parts.append(tag("g", tag("title", told), *dots))
    return parts


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _log(value: float) -> float:
    return math.log10(value)
