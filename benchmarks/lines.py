"""Quantities against a number, as lines with their points in panels: a whole SVG file from plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from compressor.report.plots.look import INK, axes, beside, cover, dots, line, plot, title, words
from compressor.report.style import SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL, PLOT, COLUMNS = 300, 130, 2
LEFT, RIGHT, TOP, STEP = 52, 84, 60, PLOT + 84
COLOURS = (SERIES["series-1"][0], SERIES["series-5"][0])


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


def picture(heading: str, below: str, panels: Sequence[Panel]) -> str:
    """A whole SVG file: panels two in a row, under a title and a line of what there is to know of it."""
    filled = [panel for panel in panels if any(series.points for series in panel.series)]
    alt = f"{heading}: " + "; ".join(_alt(panel) for panel in filled)
    fill = partial(_draw, heading=heading, below=below, panels=filled)
    height = TOP + -(-len(filled) // COLUMNS) * STEP
    return plot(fill, width=COLUMNS * (LEFT + PANEL + RIGHT), height=height, alt=alt)


def _draw(figure: Figure, *, heading: str, below: str, panels: Sequence[Panel]) -> None:
    title(figure, heading)
    words(figure, 6, 36, below)
    for i, panel in enumerate(panels):
        row, column = divmod(i, COLUMNS)
        _draw_panel(figure, panel, left=LEFT + column * (LEFT + PANEL + RIGHT), top=TOP + 14 + row * STEP)


def _draw_panel(figure: Figure, panel: Panel, *, left: float, top: float) -> None:
    points = [point for series in panel.series for point in series.points]
    words(figure, left, top - 12, panel.title, colour=INK, weight="bold")
    words(figure, left + PANEL, top + PLOT + 34, panel.across, align="right")
    on = axes(figure, left=left, top=top, width=PANEL, height=PLOT)
    heights = cover(0, max(y for _, y in points) or 1.0, about=4)
    on.set_xlim(0, max(x for x, _ in points))
    on.set_ylim(0, heights[-1])
    on.set_yticks(heights, [f"{height:g}" for height in heights])
    on.xaxis.set_major_formatter("{x:,g}")
    ends = []
    for series, colour in zip(panel.series, COLOURS, strict=False):
        if series.points:
            x, y = zip(*series.points, strict=True)
            line(on, x, y, name=series.name, colour=colour)
            told = [f"{series.name}: {b:.3g} at {a:,g}" for a, b in series.points]
            dots(on, x, y, titles=told, colour=colour, radius=2.8)
            ends.append((y[-1], series.name, colour))
    beside(on, ends, x=left + PANEL + 12)


def _alt(panel: Panel) -> str:
    lines = (
        f"{series.name} {', '.join(f'{y:.3g} at {x:,g}' for x, y in series.points)}"
        for series in panel.series if series.points
    )  # fmt: skip
    return f"{panel.title} by {panel.across}: {'; '.join(lines)}"
