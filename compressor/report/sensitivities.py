"""The picture of `compress sensitivity`: one small chart per channel group, all on the same axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from compressor.errors import ArtifactError
from compressor.files.atomic import whole, write_text
from compressor.report.drawing import drawing, line, text
from compressor.report.markup import tag
from compressor.report.wording import plain

COLUMNS, LEFT, PANEL, GAP, PLOT = 4, 44, 160, 16, 74
WIDTH = LEFT + COLUMNS * (PANEL + GAP)
FLOOR, CEILING = 1e-4, 1.0  # of the error axis, logarithmic: below it a group is free, above it the output is noise
LOOK = """
svg { background: #fdfdfb; font: 11px system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
text { fill: #1b1c1e; } .title { font-size: 15px; font-weight: 600; } .quiet { fill: #63656a; }
.grid { stroke: #ecece7; } .curve { fill: none; stroke: #1c5fa8; stroke-width: 1.6; } .dot { fill: #1c5fa8; }
"""


def picture(found: Mapping[str, Any]) -> str:
    """A whole SVG file that shows what `Sensitivities.to_json` holds."""
    groups: Sequence[Mapping[str, Any]] = found["groups"]
    rows = -(-len(groups) // COLUMNS)
    top, step = 64, PLOT + 52
    parts: list[str] = [
        tag("style", Markup(LOOK)),
        text(8, 20, f"{found['name']}: what the output loses when one group is narrowed", class_="title"),
        text(
            8, 38, f"squared error over the variance, {FLOOR:g} to {CEILING:g}, logarithmic, against the share "
            f"of channels that stay; the others repaired", class_="quiet",
        ),
    ]  # fmt: skip
    for i, group in enumerate(groups):
        parts += _panel(group, left=LEFT + (i % COLUMNS) * (PANEL + GAP), top=top + (i // COLUMNS) * step)
    said = f"Error against width of {len(groups)} channel groups of {found['name']}"
    svg = drawing(WIDTH, top + rows * step, said, *parts)
    return str.replace(svg, "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def write_picture(file: Path, content: str) -> None:
    """Write the picture whole or not at all; refused where the file cannot be written."""
    try:
        with whole(file) as part:
            write_text(part, content)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {file}: {error.strerror or error}", hint="choose another place: `--out FILE`"
        ) from error


def _panel(group: Mapping[str, Any], *, left: float, top: float) -> list[str]:
    channels = group["widths"][0]
    parts: list[str] = [
        text(left, top, group["root"], class_="name"),
        text(left + PANEL, top, plain(channels, key="channels"), class_="quiet", text_anchor="end"),
    ]
    for power in range(5):
        y = top + 8 + PLOT * power / 4
        parts.append(line(left, y, left + PANEL, y, class_="grid"))
        if left == LEFT and power % 2 == 0:
            parts.append(text(left - 5, y + 4, f"{CEILING / 10**power:g}", class_="quiet", text_anchor="end"))
    places = []
    for width, error in zip(group["widths"], group["errors"], strict=True):
        height = (math.log10(max(FLOOR, min(CEILING, error))) - math.log10(FLOOR)) / -math.log10(FLOOR)
        places.append((left + PANEL * (1 - width / channels), top + 8 + PLOT * (1 - height), width, error))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
    parts.append(tag("polyline", points=path, class_="curve"))
    parts += [
        tag("circle", tag("title", f"{width} channels: {error:.3g}"), cx=x, cy=y, r=2.6, class_="dot")
        for x, y, width, error in places
    ]
    parts.append(text(left, top + PLOT + 22, "all stay", class_="quiet"))
    parts.append(text(left + PANEL, top + PLOT + 22, "none", class_="quiet", text_anchor="end"))
    return parts
