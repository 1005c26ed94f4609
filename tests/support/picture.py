"""Reading a plot as a viewer would: its words, its dots and lines, and what they stand for on its axes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

NAMESPACE = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    x: float
    y: float
    radius: float
    title: str | None


class Picture:
    """What an SVG shows; strictly, in that it must be XML."""

    def __init__(self, svg: str) -> None:
        root = ElementTree.fromstring(svg)
        self.names = {element.tag.removeprefix(NAMESPACE) for element in root.iter()}
        self.attributes = {name for element in root.iter() for name in element.attrib}
        self.classes = {c for element in root.iter() for c in element.get("class", "").split()}
        self.said = root.get("aria-label")
        self.words: list[tuple[float, float, str]] = []
        self.dots: list[Dot] = []
        self.lines: dict[str, list[tuple[float, float]]] = {}
        for element in root.iter():
            title = next((child.text or "" for child in element if child.tag == f"{NAMESPACE}title"), None)
            if element.tag == f"{NAMESPACE}text":
                self.words.append((float(element.attrib["x"]), float(element.attrib["y"]), element.text or ""))
            elif element.tag == f"{NAMESPACE}circle":
                x, y, radius = (float(element.attrib[name]) for name in ("cx", "cy", "r"))
                self.dots.append(Dot(x=x, y=y, radius=radius, title=title))
            elif element.tag == f"{NAMESPACE}path" and title is not None:
                numbers = [float(number) for number in re.findall(r"-?[\d.]+", element.attrib["d"])]
                self.lines[title] = list(zip(numbers[::2], numbers[1::2], strict=True))

    @property
    def texts(self) -> list[str]:
        return [content for _, _, content in self.words]

    @property
    def titled(self) -> list[Dot]:
        """The dots of the plot; a legend's have no title."""
        return [dot for dot in self.dots if dot.title is not None]

    def scale(self, axis: str, *, logarithmic: bool = False) -> Callable[[float], float]:
        """From places in the drawing to values, by the numbers that stand along an axis (`x` or `y`)."""
        numbers = [
            (x, y, float(re.sub(r"[\s%,]", "", content)))
            for x, y, content in self.words if re.fullmatch(r"-?[\d.,]+(\s%)?", content)
        ]  # fmt: skip
        across = [number for number in numbers if number[1] == max(y for _, y, _ in numbers)]
        beside = [number for number in numbers if number not in across]
        # a label's base line stands a little below the middle of its line: the same amount for all
        places = [(x, value) for x, _, value in across] if axis == "x" else [(y, value) for _, y, value in beside]
        values = [float(np.log10(value) if logarithmic else value) for _, value in places]
        slope, start = np.polyfit([at for at, _ in places], values, 1)

        def value_at(place: float) -> float:
            found = float(slope * place + start)
            return float(10**found) if logarithmic else found

        return value_at
