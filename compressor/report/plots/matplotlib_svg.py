"""The shapes and words of an SVG by matplotlib, without its ids and fonts: colours become classes of the style sheet.

matplotlib names what it draws (`line2d_7`, `m54a860dac2`) the same in every file, and several plots stand in one page;
its fonts are those of its own machine. So nothing here refers to a name: a marker is drawn where it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

from markupsafe import Markup

from compressor.report.markup import tag
from compressor.report.style import COLOURS, SERIES

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
TITLES = "titles:"
CLASSES = {light: name for name, (light, _) in (COLOURS | SERIES).items()}


def name_with(titles: Sequence[str]) -> str:
    """The name (matplotlib's `gid`) of something that has these titles, one for each of its shapes."""
    return TITLES + json.dumps([printable(title) for title in titles])


def printable(content: str) -> str:
    """The content without what no XML may hold, such as a terminal's control characters."""
    return re.sub("[^\t -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", content)


def shapes(written: str) -> list[Markup]:
    """Every shape and every text, in the order of drawing; refused (`ValueError`): fewer or more shapes than titles."""
    root = ElementTree.fromstring(written)
    markers = {str(path.get("id")): str(path.get("d")) for defs in root.iter(f"{SVG}defs") for path in defs}
    return list(_shapes(root, markers))


def _shapes(node: ElementTree.Element, markers: Mapping[str, str]) -> Iterator[Markup]:
    name = str(node.get("id", ""))
    if name.startswith(TITLES):
        drawn = [
            child for child in node.iter() if child.tag in {f"{SVG}path", f"{SVG}use"} and "id" not in child.attrib
        ]
        titles = json.loads(name.removeprefix(TITLES))
        drawn_shapes = [_shape(child, markers, title) for child, title in zip(drawn, titles, strict=True)]
        yield tag("g", *drawn_shapes, **_colours(_declared(drawn[0])))  # what has a name has one colour
    elif node.tag in {f"{SVG}path", f"{SVG}use", f"{SVG}text"}:
        declared = _declared(node)
        if "stroke" in declared or declared.get("fill") != "none":
            yield _shape(node, markers, **_colours(declared))
    elif node.tag != f"{SVG}defs":
        for child in node:
            yield from _shapes(child, markers)


def _shape(node: ElementTree.Element, markers: Mapping[str, str], title: str | None = None, **look: str) -> Markup:
    inside = () if title is None else (tag("title", title),)
    x, y = (float(node.get(axis, 0)) for axis in "xy")
    if node.tag == f"{SVG}text":
        declared = _declared(node)
        anchor = declared.get("text-anchor")
        return tag("text", node.text or "", x=x, y=y, text_anchor=anchor, style=_font(declared), **look)
    if node.tag == f"{SVG}path":
        return tag("path", *inside, d=_path(str(node.get("d"))), **look)
    marker = markers[node.get(LINK, "").removeprefix("#")]
    if "C" in marker:  # a circle: four curves, the first of which begins straight below the middle
        return tag("circle", *inside, cx=x, cy=y, r=float(marker.split()[2]), **look)
    return tag("path", *inside, d=_path(marker), transform=f"translate({x:.1f} {y:.1f})", **look)


def _declared(node: ElementTree.Element) -> dict[str, str]:
    return dict(re.findall(r"([\w-]+):\s*([^;]+)", node.get("style", "")))


def _path(path: str) -> str:
    """The path with one decimal, which is below what a screen shows."""
    short = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), path)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", short)


def _colours(declared: Mapping[str, str]) -> dict[str, str]:
    """Attributes that a style sheet may overrule, and the classes by which it does."""
    kept = {k.replace("-", "_"): v for k, v in declared.items() if re.match("fill|stroke|opacity", k)}
    classes = [f"{part}-{CLASSES[kept[part]]}" for part in ("fill", "stroke") if kept.get(part) in CLASSES]
    return kept | ({"class_": " ".join(classes)} if classes else {})


def _font(declared: Mapping[str, str]) -> str:
    """Size and weight, which must stand against a page's rule for all texts; the family is the page's."""
    text = f"{declared.get('font', '')} {declared.get('font-weight', '')} {declared.get('font-size', '')}"
    size, weight = re.search(r"[\d.]+px", text), re.search(r"\b(bold|[1-9]00)\b(?!px)", text)
    assert size is not None
    return f"font-size: {size[0]}" + ("" if weight is None else f"; font-weight: {weight[0]}")
