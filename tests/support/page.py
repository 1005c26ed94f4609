"""Reading the report as a browser would, strictly."""

from __future__ import annotations

from html.parser import HTMLParser

from compressor.report.markup import VOID


class Page(HTMLParser):
    """A strict reader: every tag that opens is closed, in order; keeps what a reader sees and what a drawing says."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.drawings: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.titled = 0
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        assert len(found) == len(attributes), f"an attribute stands twice in <{name}>"
        self.tags.add(name)
        if self.open and self.open[-1] == "svg" and name == "title":
            self.titled += 1
        if name == "svg":
            self.drawings.append(found)
        self.ids += [str(found["id"])] if "id" in found else []
        self.links += [str(value) for key, value in found.items() if key in {"href", "src", "data", "action"}]
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open, f"</{name}> closes nothing"
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
