"""The picture of `compress sensitivity`: one small chart per channel group, all on the same axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from compressor.report.plots.look import INK, LINES, axes, dots, line, plot, title, words
from compressor.words import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, LEFT, PANEL, GAP, PLOT = 4, 54, 158, 16, 74
TOP, STEP = 72, PLOT + 52
WIDTH = LEFT + COLUMNS * (PANEL + GAP)
FLOOR, CEILING = 1e-4, 1.0  # of the error axis, logarithmic: below it a group is free, above it the output is noise


def picture(sensitivities: Mapping[str, Any]) -> Markup:
    """A whole SVG file that shows what `Sensitivities.to_json` holds."""
    groups: Sequence[Mapping[str, Any]] = sensitivities["groups"]
    alt = f"Error against width of {len(groups)} channel groups of {sensitivities['name']}"
    height = TOP + -(-len(groups) // COLUMNS) * STEP
    return plot(partial(_draw, name=sensitivities["name"], groups=groups), width=WIDTH, height=height, alt=alt)


def _draw(figure: Figure, *, name: str, groups: Sequence[Mapping[str, Any]]) -> None:
    title(figure, f"{name}: what the output loses when one group is narrowed")
    words(
        figure, 6, 36, f"squared error over the variance, {FLOOR:g} to {CEILING:g}, logarithmic, against the share of "
        "channels that stay; the others repaired", size=12,
    )  # fmt: skip
    for i, group in enumerate(groups):
        row, column = divmod(i, COLUMNS)
        _draw_group(figure, group, left=LEFT + column * (PANEL + GAP), top=TOP + row * STEP)


def _draw_group(figure: Figure, group: Mapping[str, Any], *, left: float, top: float) -> None:
    channels = group["widths"][0]
    words(figure, left, top - 8, group["root"], colour=INK)
    words(figure, left + PANEL, top - 8, plain(channels, key="channels"), align="right")
    on = axes(figure, left=left, top=top, width=PANEL, height=PLOT)
    on.set_yscale("log")
    on.set_ylim(FLOOR, CEILING)
    powers = range(5)
    labelled = [power for power in powers if left == LEFT and power % 2 == 0]
    on.set_yticks([CEILING / 10**p for p in powers], [f"{CEILING / 10**p:g}" if p in labelled else "" for p in powers])
    on.set_xlim(0, 1)
    on.set_xticks([])
    for spine in on.spines.values():
        spine.set_visible(False)  # the lowest line of the grid is the axis
    x = [1 - width / channels for width in group["widths"]]
    y = [max(FLOOR, min(CEILING, error)) for error in group["errors"]]
    titles = [f"{width} channels: {error:.3g}" for width, error in zip(group["widths"], group["errors"], strict=True)]
    line(on, x, y, name=group["root"], colour=LINES[0])
    dots(on, x, y, titles=titles, colour=LINES[0])
    words(figure, left, top + PLOT + 14, "all stay")
    words(figure, left + PANEL, top + PLOT + 14, "none", align="right")
