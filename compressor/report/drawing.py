"""The parts of a drawing: frame, text, lines, round numbers on an axis, labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from compressor.report.markup import tag
from compressor.report.style import ALONE


def ticks(low: float, high: float, *, about: int, cover: bool = False) -> list[float]:
    """Some `about` round numbers between `low` and `high`; with `cover`, the first and the last lie beyond them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    if cover:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    else:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def spread(positions: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """The positions moved apart to at least `gap`, as little as needed, in the same order, within `low` and `high`."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [min(max(positions[i], low), high) for i in order]
    for k in range(1, len(placed)):
        placed[k] = max(placed[k], placed[k - 1] + gap)
    for k in range(len(placed) - 1, -1, -1):
        ceiling = high if k == len(placed) - 1 else placed[k + 1] - gap
        placed[k] = min(placed[k], ceiling)
    result = [0.0] * len(positions)
    for k, i in enumerate(order):
        result[i] = placed[k]
    return result


def drawing(
    width: float, height: float, alt: str, *parts: str, class_: str | None = None, alone: bool = False
) -> Markup:
    """Return the whole drawing; a screen reader reads `alt`; with `alone`, it is a complete file of its own."""
    return tag(
        "svg",
        tag("title", alt),
        *([tag("style", Markup(ALONE))] if alone else []),
        *parts,
        xmlns="http://www.w3.org/2000/svg" if alone else None,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=alt,
        class_=class_,
    )


def text(x: float, y: float, words: str, *, class_: str, text_anchor: str | None = None) -> Markup:
    """Words at a place."""
    return tag("text", words, x=x, y=y, class_=class_.strip(), text_anchor=text_anchor)


def line(x1: float, y1: float, x2: float, y2: float, *, class_: str) -> Markup:
    """A line between two places."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)
