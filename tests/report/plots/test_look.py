from __future__ import annotations

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from compressor.report.plots import look
from compressor.report.plots.look import axes, beside, cover, dots, line, plot, words
from compressor.report.plots.matplotlib_svg import name_with, shapes
from compressor.report.style import ALONE, STYLE
from tests.support.picture import Picture


def fill(figure: Figure) -> None:
    on = axes(figure, left=50, top=20, width=200, height=100)
    on.set_xlim(0, 4)
    on.set_ylim(0, 10)
    line(on, [0, 1, 4], [10, 5, 0], name="falling", colour=look.LINES[0])
    dots(on, [0, 1, 4], [10, 5, 0], titles=["a", "b", "c"], colour=look.LINES[1], radius=3)
    beside(on, [(1.0, "low", look.LINES[0]), (1.1, "higher", look.LINES[1])], x=260)
    words(figure, 10, 15, "words", size=13, weight="bold")


def drawn(*, alone: bool = True) -> str:
    return plot(fill, width=300, height=150, alt="a & b", alone=alone)


def test_shapes_stand_where_the_axes_say_in_pixels() -> None:
    found = Picture(drawn())
    assert found.lines == {"falling": [(50, 20), (100, 70), (250, 120)]}
    assert [(d.x, d.y, d.radius, d.title) for d in found.titled] == [
        (50, 20, 3, "a"), (100, 70, 3, "b"), (250, 120, 3, "c"),
    ]  # fmt: skip
    assert (10, 15, "words") in found.words
    assert found.said == "a & b"


def test_names_beside_the_axes_stand_apart_and_near_what_they_name() -> None:
    low, higher = (next(y for _, y, t in Picture(drawn()).words if t == name) for name in ("low", "higher"))
    assert low - higher == pytest.approx(15, abs=0.2)
    assert abs(low - 114) < 15


def test_a_plot_refers_to_no_name_and_brings_no_font() -> None:
    """Several of them stand in one page."""
    found = Picture(drawn(alone=False))
    assert found.attributes.isdisjoint({"id", "{http://www.w3.org/1999/xlink}href", "clip-path", "font-family"})
    assert found.names == {"svg", "title", "g", "path", "circle", "text"}
    assert "font-family" not in drawn(alone=False)


def test_every_colour_follows_light_and_dark() -> None:
    found = Picture(drawn())
    assert {"fill-series-2", "stroke-series-1", "stroke-faint", "fill-quiet", "fill-ink"} <= found.classes
    for name in found.classes:
        assert f"svg .{name} {{" in ALONE
        assert f"svg .{name} {{" in STYLE


def test_the_users_settings_change_nothing_and_are_left_alone() -> None:
    before = drawn()
    mine = {"text.usetex": True, "axes.grid.axis": "both", "lines.linewidth": 9, "figure.dpi": 31, "svg.hashsalt": "x"}
    with mpl.rc_context(mine):
        assert drawn() == before
        assert {name: mpl.rcParams[name] for name in mine} == mine


@pytest.mark.parametrize("content", ["a <b> & c", "$x$", "重み", "bell\x07 and \udce9", ""])
def test_words_are_words_whatever_they_hold(content: str) -> None:
    def fill(figure: Figure) -> None:
        on = axes(figure, left=50, top=20, width=200, height=100)
        words(figure, 10, 15, content)
        line(on, [0, 1], [0, 1], name=content, colour=look.INK)

    found = Picture(plot(fill, width=300, height=150, alt=content))
    shown = content.replace("\x07", "\ufffd").replace("\udce9", "\ufffd")
    assert shown in [*found.texts, ""]
    assert list(found.lines) == [shown]


def test_covering_numbers_are_round_and_reach_beyond_both_ends() -> None:
    assert cover(83.7, 86.2, about=6) == [83.5, 84, 84.5, 85, 85.5, 86, 86.5]
    assert cover(0, 0.11, about=4)[-1] >= 0.11


def test_a_title_too_few_is_refused() -> None:
    def fill(figure: Figure) -> None:
        on = axes(figure, left=0, top=0, width=100, height=100)
        on.plot([0, 1], [0, 1], "o", gid=name_with(["one"]))

    with pytest.raises(ValueError, match="zip"):
        plot(fill, width=100, height=100, alt="")
    assert shapes('<svg xmlns="http://www.w3.org/2000/svg"/>') == []
