"""The picture of `compress frontier`: accuracy against measured latency, a line for every way to prune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from compressor.report.drawing import drawing, line, spread, text, ticks
from compressor.report.markup import tag
from compressor.report.wording import percent

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720.0, 420.0, 62.0, 150.0, 66.0, 52.0
NEAR = 0.25  # below the dense network's share by so much a point stands at the lower edge
LOOK = """
svg { background: #fdfdfb; font: 12px system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
text { fill: #1b1c1e; } .title { font-size: 15px; font-weight: 600; } .quiet { fill: #63656a; }
.grid { stroke: #ecece7; } .frame { stroke: #9a9ca1; } .whisker { stroke-width: 1.2; }
polyline { fill: none; stroke-width: 1.8; }
"""
COLOURS = ("#1c5fa8", "#b3541e", "#5f7a2e", "#7a4f9a")


def picture(found: Mapping[str, Any]) -> str:
    """A whole SVG file that shows what `pruning.speed.frontier.frontier` gave."""
    points = [p for p in found["points"] if p.get("speedup") and p.get("quality")]
    dense = found["dense"]
    share = _share(dense)
    slowest = max((1.0, *(1 / p["speedup"]["low"] for p in points)))
    shares = [share, dense["high"], *(q for p in points for q in (_share(p["quality"]), p["quality"]["low"]))]
    lowest = max(0.0, share - NEAR, min(shares) - 0.01)
    ticks_y = ticks(lowest, min(1.0, max(shares) + 0.01), about=6, cover=True)
    low, high, floor = ticks_y[0], ticks_y[-1], HEIGHT - BOTTOM

    def x(latency: float) -> float:
        return float(LEFT + (WIDTH - LEFT - RIGHT) * latency / (1.04 * slowest))

    def y(value: float) -> float:
        return float(floor - 6 if value < low else TOP + (floor - TOP) * (1 - (value - low) / (high - low)))

    target, kind = found["target"], "accuracy" if found["labelled"] else "agreement with the dense network"
    where = f"{target['runtime']}, batch {target['batch']}, threads: {target['threads']}"
    parts: list[str] = [
        tag("style", Markup(LOOK)),
        text(8, 22, f"{found['name']}: {kind} against latency", class_="title"),
        text(8, 42, f"{where}; {found['split']} split of {found['data']}; whiskers: 99 % and 95 %", class_="quiet"),
    ]
    for tick in ticks_y:
        parts.append(line(LEFT, y(tick), WIDTH - RIGHT, y(tick), class_="grid"))
        parts.append(text(LEFT - 8, y(tick) + 4, percent(tick, decimals=1), class_="quiet", text_anchor="end"))
    for tick in ticks(0, 1.04 * slowest, about=6):
        parts.append(line(x(tick), floor, x(tick), floor + 4, class_="frame"))
        parts.append(text(x(tick), floor + 18, f"{tick:g}", class_="quiet", text_anchor="middle"))
    parts.append(line(LEFT, floor, WIDTH - RIGHT, floor, class_="frame"))
    parts.append(text(WIDTH - RIGHT, HEIGHT - 12, "latency, of the dense network's", class_="quiet", text_anchor="end"))
    parts += _dense(x, y, dense)
    arms = list(dict.fromkeys(p["arm"] for p in points))
    ends = []
    for arm, colour in zip(arms, COLOURS, strict=False):
        mine = sorted((p for p in points if p["arm"] == arm), key=lambda p: p["speedup"]["ratio"])
        parts += _line(x, y, mine, colour, low)
        ends.append((y(_share(mine[0]["quality"])), arm, colour))
    heights = spread([e[0] for e in ends], gap=18, low=TOP, high=floor)
    for at, (_, arm, colour) in zip(heights, ends, strict=True):
        parts.append(tag("circle", cx=WIDTH - RIGHT + 14, cy=at - 4, r=4, fill=colour))
        parts.append(text(WIDTH - RIGHT + 24, at, arm, class_="name"))
    said = f"{kind} against latency for {', '.join(arms)}"
    svg = drawing(WIDTH, HEIGHT, said, *parts)
    return str.replace(svg, "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _dense(x: Any, y: Any, dense: Mapping[str, Any]) -> list[str]:
    share = _share(dense)
    return [
        tag("line", x1=x(1), y1=y(dense["low"]), x2=x(1), y2=y(dense["high"]), stroke="#1b1c1e", class_="whisker"),
        tag("circle", tag("title", f"dense: {percent(share)}"), cx=x(1), cy=y(share), r=4.6, fill="#1b1c1e"),
        text(x(1), y(share) - 12, "dense", class_="name", text_anchor="middle"),
    ]


def _line(x: Any, y: Any, points: Sequence[Mapping[str, Any]], colour: str, low: float) -> list[str]:
    places = [(x(1 / p["speedup"]["ratio"]), y(_share(p["quality"]))) for p in points]
    parts: list[str] = [
        tag("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in places), stroke=colour),
    ]
    for p, (a, b) in zip(points, places, strict=True):
        speed, quality = p["speedup"], p["quality"]
        told = f"{p['arm']}: {percent(_share(quality))} at {speed['ratio']:.2f} times the speed"
        below = _share(quality) < low
        parts.append(
            tag("line", x1=x(1 / speed["high"]), y1=b, x2=x(1 / speed["low"]), y2=b, stroke=colour, class_="whisker")
        )
        if not below:
            parts.append(
                tag("line", x1=a, y1=y(quality["low"]), x2=a, y2=y(quality["high"]), stroke=colour, class_="whisker")
            )
        parts.append(tag("circle", tag("title", told), cx=a, cy=b, r=3.6, fill="#fdfdfb" if below else colour,
                         stroke=colour))  # fmt: skip
        if below:
            words = f"{percent(_share(quality), decimals=0)} ↓"
            parts.append(text(a, b - 8, words, class_="quiet", text_anchor="middle"))
    return parts


def _share(quality: Mapping[str, Any]) -> float:
    return float(quality["correct"] if "correct" in quality else quality["agreeing"]) / float(quality["total"])
