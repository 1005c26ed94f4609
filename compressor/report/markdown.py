"""A document as Markdown: the same words and numbers, without the drawings."""

from __future__ import annotations

import re

from markupsafe import Markup

from compressor.report.document import (
    Block,
    BulletList,
    Cell,
    Code,
    Document,
    Facts,
    Figure,
    Folded,
    Headline,
    Paragraph,
    Section,
    Span,
    Strong,
    Subheading,
    Table,
    Text,
    Tone,
)

SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def markdown(document: Document) -> str:
    """The whole file."""
    parts = [f"# {_escaped(document.title)}", _text(document.subtitle)]
    for section in document.sections:
        parts += _section(section)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section) -> list[str]:
    parts = [f"## {_escaped(section.title)}", *(_block(block) for block in section.blocks)]
    return [*parts, _text(section.note)] if section.note else parts


def _block(block: Block) -> str:
    match block:
        case Paragraph(text=text, tone=tone):
            return f"> {_text(text)}" if tone in {Tone.MISSING, Tone.CAUTION} else _text(text)
        case Subheading(title=title):
            return f"### {_escaped(title)}"
        case Headline(figure=figure, claim=claim, detail=detail):
            return f"**{_escaped(figure)}** {_escaped(claim)} ({_text(detail)})"
        case BulletList(items=items, ordered=ordered):
            return "\n".join(f"{f'{i}.' if ordered else '-'} {_text(item)}" for i, item in enumerate(items, start=1))
        case Facts(pairs=pairs):
            return _rows([(("",), ("",)), *(((name,), value) for name, value in pairs)], numeric=(False, False))
        case Figure():
            return ""
        case Table():
            return _table(block)
        case Folded(blocks=blocks):
            return "\n\n".join(_block(inner) for inner in blocks)


def _table(table: Table) -> str:
    shown = [i for i, column in enumerate(table.columns) if not column.drawn]
    numeric = tuple(table.columns[i].numeric for i in shown)
    headings: tuple[Cell, ...] = tuple((table.columns[i].name,) for i in shown)
    starts = [*(start for start, _ in table.groups), len(table.rows)] if table.groups else [0, len(table.rows)]
    names = [f"{_text(name)}:" for _, name in table.groups] or [f"{_escaped(table.caption)}:" if table.caption else ""]
    parts: list[str] = []
    for name, start, end in zip(names, starts[:-1], starts[1:], strict=True):
        rows = [headings, *(tuple(row[i] for i in shown) for row in table.rows[start:end])]
        parts += [name, _rows(rows, numeric=numeric)]
    return "\n\n".join(part for part in parts if part)


def _rows(rows: list[tuple[Cell, ...]], *, numeric: tuple[bool, ...]) -> str:
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    rule = "| " + " | ".join("---:" if right else "---" for right in numeric) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(cell: Cell) -> str:
    return "" if isinstance(cell, Markup) else _text(cell)


def _text(text: Text) -> str:
    return "".join(map(_span, text)).strip()


def _span(span: Span) -> str:
    match span:
        case Code(content=content):
            return _code(content)
        case Strong(content=content):
            return f"**{_escaped(content)}**"
        case _:
            return _escaped(span)


def _code(content: str) -> str:
    """A code span that its own backticks cannot end, nor a bar split a table's cell."""
    line = " ".join(content.split()).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}" if longest else f"{fence}{line}{fence}"


def _escaped(content: str) -> str:
    return SPECIAL.sub(r"\\\1", re.sub(r"[\r\n]+", " ", content))
