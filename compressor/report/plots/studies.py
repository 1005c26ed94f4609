"""A plot of a study: a line and a band for each curve over its seeds, and every seed as a dot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from compressor.report.plots.look import LINES, axes, beside, cover, dots, line, plot, title, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 372, 52, 190, 48, 44
NEAREST = 30  # pixels between the numbers under an axis


def picture(plotted: Mapping[str, Any], *, alone: bool = True) -> Markup:
    """The mean of each curve, a band from its lowest to its highest seed, and the seeds as dots.

    A whole SVG file, or without `alone` a part of a page.
    """
    curves = [c for c in plotted["curves"] if c["points"]]
    names = ", ".join(c["name"] for c in curves) or "no points"
    alt = f"{plotted['title']}: {plotted['y']} against {plotted['x']} for {names}"
    height = HEIGHT if curves else 40
    return plot(partial(_draw, plotted=plotted, curves=curves), width=WIDTH, height=height, alt=alt, alone=alone)


def _draw(figure: Figure, *, plotted: Mapping[str, Any], curves: Sequence[Mapping[str, Any]]) -> None:
    title(figure, plotted["title"])
    if not curves:
        words(figure, 6, 34, "no points")
        return
    words(figure, LEFT - 46, TOP - 14, plotted["y"])
    words(figure, WIDTH - RIGHT, HEIGHT - 6, plotted["x"], align="right")
    on = axes(figure, left=LEFT, top=TOP, width=WIDTH - LEFT - RIGHT, height=HEIGHT - TOP - BOTTOM)
    every_x = sorted({float(p["x"]) for c in curves for p in c["points"]})
    every_y = [float(v) for c in curves for p in c["points"] for v in p["values"]]
    if plotted["logarithmic"] and every_x[0] > 0:
        on.set_xscale("log")
    on.set_xlim(*_room(every_x[0], every_x[-1], logarithmic=on.get_xscale() == "log"))
    if on.get_xscale() == "log" or len(every_x) <= 8:
        on.set_xticks(_apart(on, every_x))
    on.xaxis.set_major_formatter(lambda value, _: _tick(value))
    margin = 0.06 * (max(every_y) - min(every_y)) or 0.5
    heights = cover(min(every_y) - margin, max(every_y) + margin, about=6)
    on.set_ylim(heights[0], heights[-1])
    on.set_yticks(heights, [f"{height:g}" for height in heights])
    ends = []
    for number, one in enumerate(curves):
        colour = LINES[number % len(LINES)]
        _draw_curve(on, one, colour=colour, joined=bool(plotted["joined"]))
        ends.append((statistics.fmean(one["points"][-1]["values"]), one["name"], colour))
    beside(on, ends, x=WIDTH - RIGHT + 12)


def _draw_curve(on: Axes, one: Mapping[str, Any], *, colour: str, joined: bool) -> None:
    x = [float(point["x"]) for point in one["points"]]
    values = [[float(v) for v in point["values"]] for point in one["points"]]
    if joined and len(x) > 1:
        band = [min(v) for v in values] + [max(v) for v in reversed(values)]
        on.fill([*x, *reversed(x)], band, color=colour, alpha=0.13, linewidth=0, clip_on=False)
        line(on, x, [statistics.fmean(v) for v in values], name=one["name"], colour=colour)
    seeds = [(at, value) for at, several in zip(x, values, strict=True) for value in several]
    titles = [f"{one['name']} at {at:.4g}: {value:.4g}" for at, value in seeds]
    dots(on, *zip(*seeds, strict=True), titles=titles, colour=colour, radius=2.4, opacity=0.75)


def _room(low: float, high: float, *, logarithmic: bool) -> tuple[float, float]:
    """The ends of an axis, a little beyond the first and the last value."""
    if logarithmic:
        start, end = _room(math.log10(low), math.log10(high), logarithmic=False)
        return 10**start, 10**end
    margin = 0.03 * ((high - low) or 1.0)
    return low - margin, high + margin


def _apart(on: Axes, places: Sequence[float]) -> list[float]:
    """Those of the places whose numbers have room beside the last one's."""
    kept: list[float] = []
    for place in places:
        if not kept or _pixels(on, place) - _pixels(on, kept[-1]) >= NEAREST:
            kept.append(place)
    return kept


def _pixels(on: Axes, x: float) -> float:
    return float(on.transData.transform((x, 0))[0])


def _tick(place: float) -> str:
    """A place on an axis: three significant digits, thousands in full."""
    return f"{place:,.0f}" if abs(place) >= 1000 else f"{place:.3g}"
