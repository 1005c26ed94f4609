"""Plots in the look of the page, drawn by matplotlib; a pixel is the unit, from the upper left corner."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from compressor.errors import ArtifactError
from compressor.files.atomic import whole, write_text
from compressor.report.drawing import drawing, spread
from compressor.report.plots.matplotlib_svg import name_with, printable, shapes
from compressor.report.style import COLOURS, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, RULE, FAINT, PAPER = (COLOURS[name][0] for name in ("ink", "quiet", "rule", "faint", "paper"))
LINES = tuple(light for light, _ in SERIES.values())
LOOK: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.linewidth": 1,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "grid.color": FAINT,
    "grid.linewidth": 1,
    "lines.solid_capstyle": "butt",
    "xtick.color": RULE,
    "xtick.labelcolor": QUIET,
    "xtick.labelsize": 11,
    "xtick.major.size": 4,
    "xtick.major.width": 1,
    "xtick.minor.bottom": False,
    "ytick.labelcolor": QUIET,
    "ytick.labelsize": 11,
    "ytick.left": False,
    "ytick.minor.left": False,
}


def plot(fill: Callable[[Figure], None], *, width: float, height: float, alt: str, alone: bool = True) -> Markup:
    """Return the SVG of the figure that `fill` draws; a screen reader reads `alt`.

    With `alone` the SVG is a whole file with a style sheet of its own; otherwise it stands in a page that has
    `style.STYLE`. The same values give the same bytes, whatever the user's settings of matplotlib.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", LOOK]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the viewer's font has it
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        fill(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg")
    svg = drawing(width, height, printable(alt), *shapes(written.getvalue()), alone=alone)
    return svg + "\n" if alone else svg


def axes(figure: Figure, *, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at this place."""
    across, down = 72 * figure.get_size_inches()
    made = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    made.patch.set_visible(False)
    return made


def title(figure: Figure, content: str) -> None:
    """The plot's title, in the upper left corner."""
    words(figure, 6, 16, content, size=15, colour=INK, weight="bold")


def words(
    figure: Figure, x: float, y: float, content: str, *, size: float = 11, colour: str = QUIET, weight: str = "normal",
    align: str = "left",
) -> None:  # fmt: skip
    """Words on one line, whose base begins (or ends, with `align` right) at this place."""
    across, down = 72 * figure.get_size_inches()
    figure.text(
        x / across, 1 - y / down, printable(content), fontsize=size, color=colour, fontweight=weight, ha=align,
        va="baseline",
    )  # fmt: skip


def line(on: Axes, x: Sequence[float], y: Sequence[float], *, name: str, colour: str) -> None:
    """A line through the points, with its name as the title."""
    on.plot(x, y, color=colour, linewidth=1.8, clip_on=False, gid=name_with([name]))


def dots(
    on: Axes, x: Sequence[float], y: Sequence[float], *, titles: Sequence[str], colour: str, radius: float = 2.6,
    opacity: float = 1.0, hollow: bool = False,
) -> None:  # fmt: skip
    """Dots, each with its title."""
    on.plot(
        x, y, "o", markersize=2 * radius, color=colour, markerfacecolor=PAPER if hollow else colour,
        markeredgewidth=float(hollow), alpha=opacity, clip_on=False, gid=name_with(titles),
    )  # fmt: skip


def cover(low: float, high: float, *, about: int) -> list[float]:
    """At most `about` steps between round numbers, of which the first and the last lie beyond `low` and `high`."""
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(about, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def beside(on: Axes, ends: Sequence[tuple[float, str, str]], *, x: float) -> None:
    """A legend beside the axes at `x`, each name as near as possible to its height; `ends`: height, name, colour."""
    from matplotlib.transforms import IdentityTransform

    figure = on.get_figure(root=True)
    assert figure is not None
    down = float(72 * figure.get_size_inches()[1])
    area = on.get_position()
    heights = [down - float(on.transData.transform((0, y))[1]) for y, _, _ in ends]
    placed = spread(heights, gap=15, low=down * (1 - area.y1), high=down * (1 - area.y0))
    for at, (_, name, colour) in zip(placed, ends, strict=True):
        on.plot([x], [down - at], "o", markersize=7.2, color=colour, markeredgewidth=0, clip_on=False,
                transform=IdentityTransform())  # fmt: skip
        words(figure, x + 8, at + 4, name, colour=INK)


def write_picture(file: Path, content: str) -> None:
    """Write the picture whole or not at all; refused where the file cannot be written."""
    try:
        with whole(file) as part:
            write_text(part, content)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {file}: {error.strerror or error}", hint="choose another place: `--out FILE`"
        ) from error
