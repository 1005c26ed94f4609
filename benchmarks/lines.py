"""Quantities against a number, as lines with their points in panels: a whole SVG file from plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from compressor.report.drawing import drawing, line, spread, text, ticks
from compressor.report.markup import tag

PANEL, PLOT, COLUMNS = 300, 130, 2
LEFT, RIGHT, TOP, STEP = 52, 84, 60, PLOT + 84
LOOK = """
svg { background: #fdfdfb; font: 11px system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
text { fill: #1b1c1e; font-variant-numeric: tabular-nums; } .title { font-size: 15px; font-weight: 600; }
.panel { font-weight: 600; } .axis { fill: #63656a; } .tick { stroke: #ecece7; } .frame { stroke: #dcdcd6; }
.curve { fill: none; stroke-width: 1.6; } .first.curve { stroke: #1c5fa8; } .second.curve { stroke: #a9aaa6; }
.first.dot { fill: #1c5fa8; } .second.dot { fill: #a9aaa6; }
.first.label { fill: #1c5fa8; } .second.label { fill: #63656a; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its name, and its points by rising x."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One or two lines on one pair of axes, both from zero."""

    title: str
    across: str  # what x is
    series: tuple[Series, ...]


def picture(title: str, below: str, panels: Sequence[Panel]) -> str:
    """A whole SVG file: panels two in a row, under a title and a line of what there is to know of it."""
    filled = [panel for panel in panels if any(series.points for series in panel.series)]
    rows = -(-len(filled) // COLUMNS)
    parts: list[str] = [
        tag("style", Markup(LOOK)),
        text(8, 20, title, class_="title"),
        text(8, 38, below, class_="axis"),
    ]
    for i, panel in enumerate(filled):
        parts += _panel(panel, left=LEFT + i % COLUMNS * (LEFT + PANEL + RIGHT), top=TOP + 14 + i // COLUMNS * STEP)
    said = f"{title}: " + "; ".join(_said(panel) for panel in filled)
    svg = drawing(COLUMNS * (LEFT + PANEL + RIGHT), TOP + rows * STEP, said, *parts)
    return str.replace(svg, "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _panel(panel: Panel, *, left: float, top: float) -> list[str]:
    everything = [point for series in panel.series for point in series.points]
    widest, floor = max(x for x, _ in everything), top + PLOT
    heights = ticks(0, max(y for _, y in everything) or 1.0, about=4, cover=True)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return left + PANEL * point[0] / widest, floor - PLOT * point[1] / heights[-1]

    parts: list[str] = [text(left, top - 12, panel.title, class_="panel")]
    for tick in heights:
        y = place((0, tick))[1]
        parts.append(line(left, y, left + PANEL, y, class_="tick"))
        parts.append(text(left - 6, y + 4, f"{tick:g}", class_="axis", text_anchor="end"))
    for tick in ticks(0, widest, about=5):
        x = place((tick, 0))[0]
        parts.append(line(x, floor, x, floor + 4, class_="frame"))
        parts.append(text(x, floor + 16, f"{tick:,g}", class_="axis", text_anchor="middle"))
    parts.append(line(left, floor, left + PANEL, floor, class_="frame"))
    parts.append(text(left + PANEL, floor + 34, panel.across, class_="axis", text_anchor="end"))
    drawn = [(look, series) for look, series in zip(("first", "second"), panel.series, strict=False) if series.points]
    ends = [place(series.points[-1])[1] for _, series in drawn]
    for (look, series), label_y in zip(drawn, spread(ends, gap=13, low=top, high=floor), strict=True):
        places = [place(point) for point in series.points]
        parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), class_=f"curve {look}"))
        for (x, y), point in zip(places, series.points, strict=True):
            told = tag("title", f"{series.name}: {point[1]:.3g} at {point[0]:,g}")
            parts.append(tag("circle", told, cx=x, cy=y, r=2.8, class_=f"dot {look}"))
        parts.append(text(places[-1][0] + 7, label_y + 4, series.name, class_=f"label {look}"))
    return parts


def _said(panel: Panel) -> str:
    lines = (
        f"{series.name} {', '.join(f'{y:.3g} at {x:,g}' for x, y in series.points)}"
        for series in panel.series if series.points
    )  # fmt: skip
    return f"{panel.title} by {panel.across}: {'; '.join(lines)}"
