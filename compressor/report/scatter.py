"""Accuracy against latency: one dot a candidate, labelled where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from compressor.report.charts import kind
from compressor.report.drawing import drawing, line, spread, text, ticks
from compressor.report.markup import tag
from compressor.words import milliseconds, percent

NEAR = 0.10  # of the best accuracy: what the scale covers


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One candidate's place in a scatter: its latency, the slow tail, and its accuracy as a share."""

    candidate: str
    median_ms: float
    p90_ms: float | None
    share: float


def accuracy_scatter(title: str, points: Sequence[Point]) -> Markup:
    """Accuracy against latency for one setting; a fine line reaches from the median to the 90th percentile.

    The scale is that of the points near the best one. Those more than ten points of a hundred below it stand at the
    lower edge with an arrow, so that they do not flatten the difference that matters.
    """
    width, height, left, right, top, bottom = 348.0, 236.0, 46.0, 8.0, 30.0, 38.0
    slowest = 1.08 * max(max(p.median_ms, p.p90_ms or 0.0) for p in points)
    near = [p.share for p in points if p.share >= max(q.share for q in points) - NEAR]
    margin = 0.25 * (max(near) - min(near)) or 0.005
    ticks_y = ticks(max(0.0, min(near) - margin), min(1.0, max(near) + margin), about=5, cover=True)
    low, high, floor = ticks_y[0], ticks_y[-1], height - bottom

    def x(ms: float) -> float:
        return left + (width - left - right) * ms / slowest

    def y(share: float) -> float:
        return floor - 8 if share < low else top + (floor - top) * (1 - (share - low) / (high - low))

    parts: list[str] = [text(0, 13, title, class_="panel")]
    for tick in ticks_y:
        parts.append(line(left, y(tick), width - right, y(tick), class_="tick"))
        parts.append(text(left - 6, y(tick) + 3.5, _percent_tick(tick, ticks_y), class_="axis", text_anchor="end"))
    for tick in ticks(0, slowest, about=5):
        parts.append(line(x(tick), floor, x(tick), floor + 4, class_="frame"))
        parts.append(text(x(tick), floor + 15, f"{tick:g}", class_="axis", text_anchor="middle"))
    parts.append(line(left, floor, width - right, floor, class_="frame"))
    parts.append(text(width - right, height - 6, "median latency, ms per batch", class_="axis", text_anchor="end"))
    placed = [
        Placed(
            point=point,
            x=x(point.median_ms),
            y=y(point.share),
            tail=x(point.p90_ms or point.median_ms),
            below=point.share < low,
        )
        for point in sorted(points, key=lambda p: ("masked", "dense", "small").index(kind(p.candidate)))
    ]
    parts += _placed_points(placed, low=top - 4, high=floor - 8, middle=left + 0.5 * (width - left))
    alt = f"Accuracy against latency, {title}: " + "; ".join(
        f"{p.candidate}: {percent(p.share)} at {milliseconds(p.median_ms)}" for p in points
    )
    return drawing(width, height, alt, *parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A point in the coordinates of its drawing."""

    point: Point
    x: float
    y: float
    tail: float
    below: bool  # the scale: it stands at the edge, with an arrow


def _placed_points(placed: Sequence[Placed], *, low: float, high: float, middle: float) -> list[str]:
    """Dots and their labels, which stand on the side where there is room and never on each other."""
    parts: list[str] = []
    for rightwards in (True, False):
        side = [p for p in placed if (p.x < middle) == rightwards]
        heights = spread([p.y for p in side], gap=13, low=low, high=high)
        parts += [
            _placed_point(p, label_y=at, side=1 if rightwards else -1) for p, at in zip(side, heights, strict=True)
        ]
    return parts


def _placed_point(placed: Placed, *, label_y: float, side: int) -> Markup:
    point, look = placed.point, kind(placed.point.candidate)
    start = placed.x if side < 0 else max(placed.x, placed.tail)
    text_x = start + side * 13
    words = f"{point.candidate} {percent(point.share)}" + (" ↓" if placed.below else "")
    return tag(
        "g",
        tag("title", f"{point.candidate}: {percent(point.share)} at {milliseconds(point.median_ms)}"),
        line(start + side * 4, placed.y, text_x - side * 2, label_y, class_="leader"),
        line(placed.x, placed.y, placed.tail, placed.y, class_="whisker"),
        tag("circle", cx=placed.x, cy=placed.y, r=4.8 if look == "small" else 4.2, class_=f"dot {look}"),
        text(text_x, label_y + 3.5, words, class_=f"label {look}", text_anchor="start" if side > 0 else "end"),
    )


def _percent_tick(tick: float, all_ticks: Sequence[float]) -> str:
    step = all_ticks[1] - all_ticks[0] if len(all_ticks) > 1 else 0.1
    return percent(tick, decimals=0 if step > 0.0099 else (1 if step > 0.00099 else 2))
