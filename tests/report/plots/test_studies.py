from __future__ import annotations

import itertools
from typing import Any

import pytest

from compressor.report.plots.studies import picture
from tests.support.picture import Picture


def studied(*, logarithmic: bool = False, joined: bool = True) -> dict[str, Any]:
    """Two curves over three places, with two seeds each."""
    curves = [
        {"name": "ticket", "points": [{"x": x, "values": [90 - x / 9, 91 - x / 7]} for x in (1.0, 10.0, 60.0)]},
        {"name": "rewound <2>", "points": [{"x": 10.0, "values": [80.0, 82.0]}, {"x": 60.0, "values": [70.5, 71.5]}]},
        {"name": "nothing", "points": []},
    ]
    return {
        "title": "Tickets", "x": "weights left, %", "y": "accuracy, %", "curves": curves, "joined": joined,
        "logarithmic": logarithmic,
    }  # fmt: skip


@pytest.mark.parametrize("logarithmic", [False, True])
def test_every_seed_is_a_dot_where_the_axes_say_so(logarithmic: bool) -> None:
    plotted = studied(logarithmic=logarithmic)
    found = Picture(picture(plotted))
    x, y = found.scale("x", logarithmic=logarithmic), found.scale("y")
    shift = abs(y(4) - y(0))  # a label's base line stands some 4 pixels below its tick
    expected = [(p["x"], v) for c in plotted["curves"] for p in c["points"] for v in p["values"]]
    seen = [(x(dot.x), y(dot.y)) for dot in found.titled]
    for (a, b), (at, value) in zip(seen, expected, strict=True):
        assert a == pytest.approx(at, rel=0.02, abs=0.3 if not logarithmic else 0.0)
        assert b == pytest.approx(value, abs=shift + 0.1)
    assert "ticket at 10: 88.89" in [dot.title for dot in found.titled]


def test_a_line_joins_the_means_and_every_curve_is_named() -> None:
    found = Picture(picture(studied()))
    assert list(found.lines) == ["ticket", "rewound <2>"]
    for name, points in found.lines.items():
        seeds = [d for d in found.titled if str(d.title).startswith(name)]
        means = [(a.x, (a.y + b.y) / 2) for a, b in zip(seeds[::2], seeds[1::2], strict=True)]
        assert points == [pytest.approx(mean, abs=0.11) for mean in means]
    assert {"Tickets", "weights left, %", "accuracy, %", "ticket", "rewound <2>"} <= set(found.texts)
    assert found.said == "Tickets: accuracy, % against weights left, % for ticket, rewound <2>"


def test_what_is_not_joined_has_dots_alone() -> None:
    found = Picture(picture(studied(joined=False)))
    assert found.lines == {}
    assert len(found.titled) == 10


def test_a_plot_without_points_says_so() -> None:
    found = Picture(picture(studied() | {"curves": []}))
    assert "no points" in found.texts
    assert found.dots == []


def test_numbers_under_the_axis_leave_room_for_each_other() -> None:
    plotted = studied(logarithmic=True)
    plotted["curves"] = [{"name": "a", "points": [{"x": 90 + i, "values": [1.0]} for i in range(40)]}]
    found = Picture(picture(plotted))
    floor = max(y for _, y, t in found.words if t.isdecimal())
    places = [x for x, y, _ in found.words if y == floor]
    assert len(places) >= 6
    assert min(b - a for a, b in itertools.pairwise(places)) >= 29
