"""The picture of `compress frontier`: accuracy against measured latency, a line for every way to prune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from markupsafe import Markup

from compressor.report.plots.look import INK, LINES, QUIET, axes, beside, cover, dots, line, plot, title, words
from compressor.results.frontier import Frontier
from compressor.results.quality import Quality
from compressor.results.timing import Speedup
from compressor.words import digits, percent, scored

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 62, 150, 66, 52
NEAR = 0.25  # below the dense network's share by so much a point stands at the lower edge


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dot:
    """A point that was reached."""

    speedup: Speedup
    quality: Quality


def picture(curve: Frontier) -> Markup:
    """A whole SVG file that shows the frontier."""
    by_arm: dict[str, list[_Dot]] = {}
    for point in curve.points:
        if point.speedup is not None and point.quality is not None:
            by_arm.setdefault(point.arm, []).append(_Dot(speedup=point.speedup, quality=point.quality))
    fill = partial(_draw, curve=curve, by_arm=by_arm)
    return plot(fill, width=WIDTH, height=HEIGHT, alt=f"{_kind(curve)} against latency for {', '.join(by_arm)}")


def _kind(curve: Frontier) -> str:
    return curve.dense.named if curve.labelled else "agreement with the dense network"


def _draw(figure: Figure, *, curve: Frontier, by_arm: Mapping[str, Sequence[_Dot]]) -> None:
    target, dense = curve.target, curve.dense
    where = f"{target['runtime']}, batch {target['batch']}, threads: {target['threads']}"
    title(figure, f"{curve.name}: {_kind(curve)} against latency")
    words(figure, 6, 36, f"{where}; {curve.split} split of {curve.data}; whiskers: 99 % and 95 %", size=12)
    words(figure, WIDTH - RIGHT, HEIGHT - 12, "latency, of the dense network's", align="right")
    on = axes(figure, left=LEFT, top=TOP, width=WIDTH - LEFT - RIGHT, height=HEIGHT - TOP - BOTTOM)
    points = [p for mine in by_arm.values() for p in mine]
    on.set_xlim(0, 1.04 * max((1.0, *(1 / p.speedup.low for p in points))))
    on.xaxis.set_major_formatter("{x:g}")
    shares = [dense.value, dense.high, *(q for p in points for q in (p.quality.value, p.quality.low))]
    margin = 0.01 if dense.is_share else 0.02 * abs(dense.value)
    lowest, highest = min(shares) - margin, max(shares) + margin
    if dense.is_share:
        lowest, highest = max(0.0, dense.value - NEAR, lowest), min(1.0, highest)
    heights = cover(lowest, highest, about=6)
    on.set_ylim(heights[0], heights[-1])
    on.set_yticks(heights, [_written(dense, height) for height in heights])
    _draw_dense(on, dense)
    ends = []
    for (arm, mine), colour in zip(by_arm.items(), LINES, strict=False):
        fastest_last = sorted(mine, key=lambda p: p.speedup.ratio)
        _draw_arm(on, fastest_last, arm=arm, colour=colour)
        ends.append((_height(on, fastest_last[0]), arm, colour))
    beside(on, ends, x=WIDTH - RIGHT + 14)


def _written(quality: Quality, value: float) -> str:
    """A height of the axis in the score's notation."""
    return percent(value, decimals=1) if quality.is_share else digits(value)


def _draw_dense(on: Axes, dense: Quality) -> None:
    share = dense.value
    _whisker(on, (1, 1), dense.interval, colour=INK)
    dots(on, [1], [share], titles=[f"dense: {scored(dense)}"], colour=INK, radius=4.6)
    on.annotate("dense", (1, share), (0, 9), textcoords="offset points", ha="center", color=INK, fontsize=11)


def _draw_arm(on: Axes, points: Sequence[_Dot], *, arm: str, colour: str) -> None:
    line(on, [_latency(p) for p in points], [_height(on, p) for p in points], name=arm, colour=colour)
    for p in points:
        speed, quality, share = p.speedup, p.quality, p.quality.value
        x, y, below = _latency(p), _height(on, p), share < on.get_ylim()[0]
        _whisker(on, (1 / speed.high, 1 / speed.low), (y, y), colour=colour)
        if not below:
            _whisker(on, (x, x), quality.interval, colour=colour)
        title = f"{arm}: {scored(quality)} at {speed.ratio:.2f} times the speed"
        dots(on, [x], [y], titles=[title], colour=colour, radius=3.6, hollow=below)
        if below:
            on.annotate(f"{_written(quality, share)} ↓", (x, y), (0, 8), textcoords="offset points", ha="center",
                        color=QUIET, fontsize=11)  # fmt: skip


def _whisker(on: Axes, x: tuple[float, float], y: tuple[float, float], *, colour: str) -> None:
    on.plot(x, y, color=colour, linewidth=1.2, clip_on=False)


def _latency(point: _Dot) -> float:
    return 1 / point.speedup.ratio


def _height(on: Axes, point: _Dot) -> float:
    """Where the point stands: at its share, or where that lies below the axis a little above its end."""
    low, high = on.get_ylim()
    share = point.quality.value
    return share if share >= low else low + 6 * (high - low) / (HEIGHT - TOP - BOTTOM)
