"""What a report is made of, before it is HTML or Markdown: sections of paragraphs, tables, figures and facts."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from compressor.words import label, plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A name or a command, set as code."""

    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Strong:
    """Words with weight."""

    content: str


Span = str | Code | Strong
Text = tuple[Span, ...]


class Tone(enum.StrEnum):
    """How a paragraph speaks."""

    PLAIN = "plain"
    QUIET = "quiet"
    CAUTION = "caution"
    MISSING = "missing"


class Look(enum.StrEnum):
    """How much room a table takes."""

    TEXT = ""
    BOARD = "board"  # few rows in larger type
    WIDE = "wide"  # over the margin too


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """A few sentences."""

    text: Text
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Subheading:
    """A heading inside a section."""

    title: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class BulletList:
    """A list of short statements."""

    items: tuple[Text, ...]
    ordered: bool = False
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Names and values, one a line."""

    pairs: tuple[tuple[str, Text], ...]


def listed(facts: Iterable[tuple[str, Any]]) -> Facts:
    """Keys and plain values as names and words."""
    return Facts(pairs=tuple((label(key), (plain(value, key=key),)) for key, value in facts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Drawings side by side. Markdown leaves them out: their numbers stand in a table of the same section."""

    drawings: tuple[Markup, ...]
    caption: Text
    columns: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A table's column; `numeric` ones are set flush right."""

    name: str
    numeric: bool = False
    drawn: bool = False  # holds drawings, which Markdown leaves out


Cell = Text | Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of cells; a row may open a group, and `quiet` rows recede."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    groups: tuple[tuple[int, Text], ...] = ()  # before row number so-and-so stands this heading
    quiet: frozenset[int] = frozenset()
    accented: frozenset[int] = frozenset()
    look: Look = Look.TEXT

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns: {row}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One figure in large type, what it claims, and how sure it is."""

    figure: str
    claim: str
    detail: Text
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """Blocks that a screen shows on demand; on paper they are left out, and the summary says what they hold."""

    summary: str
    blocks: tuple[Block, ...]


Block = Paragraph | Subheading | BulletList | Facts | Figure | Table | Headline | Folded


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, its blocks, and a note on how to read them, which stands in the margin."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]
    note: Text = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A whole report."""

    title: str
    subtitle: Text
    sections: tuple[Section, ...]
