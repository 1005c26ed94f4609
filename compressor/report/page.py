"""A document as one HTML page that needs nothing beside it: no script, no font, no picture from elsewhere."""

from __future__ import annotations

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
    Tone,
)
from compressor.report.markup import joined, tag
from compressor.report.style import STYLE

COLUMNS = {1: "", 2: " two", 3: " three"}


def page(document: Document) -> str:
    """The whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", document.title),
        tag("style", Markup(STYLE)),
    )
    links = [tag("a", section.title, href=f"#{section.anchor}") for section in document.sections]
    header = tag(
        "header",
        tag("h1", document.title),
        tag("p", *map(_span, document.subtitle), class_="subtitle"),
        tag("nav", *links, aria_label="sections"),
    )
    main = tag("main", *(_section(section) for section in document.sections))
    footer = tag("footer", "The same in words and tables: report.md. Every sample: results.json.")
    body = tag("body", header, main, footer)
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _section(section: Section) -> Markup:
    note = tag("aside", *map(_span, section.note), class_="note") if section.note else Markup("")
    heading = tag("h2", section.title)
    return tag("section", heading, note, *map(_block, section.blocks), Markup("\n"), id=section.anchor)


def _block(block: Block) -> Markup:
    match block:
        case Paragraph(text=text, tone=tone):
            return tag("p", *map(_span, text), class_=None if tone is Tone.PLAIN else tone)
        case Subheading(title=title, tone=tone):
            return tag("h3", title, class_=None if tone is Tone.PLAIN else tone)
        case Headline(figure=figure, claim=claim, detail=detail, tone=tone):
            words = tag("div", tag("p", claim, class_="claim"), tag("p", *map(_span, detail), class_="detail"))
            return tag("div", tag("span", figure, class_="figure"), words, class_=f"headline {tone}")
        case BulletList(items=items, ordered=ordered, tone=tone):
            lines = [tag("li", *map(_span, item)) for item in items]
            return tag("ol" if ordered else "ul", *lines, class_=None if tone is Tone.PLAIN else tone)
        case Facts(pairs=pairs):
            return tag("dl", *(joined(tag("dt", name), tag("dd", *map(_span, value))) for name, value in pairs))
        case Figure(drawings=drawings, caption=caption, columns=columns):
            figcaption = tag("figcaption", *map(_span, caption)) if caption else Markup("")
            return tag("figure", tag("div", *drawings, class_="drawings" + COLUMNS[columns]), figcaption)
        case Table():
            return _table(block)
        case Folded(summary=summary, blocks=blocks):
            return tag("details", tag("summary", summary), *map(_block, blocks))


def _table(table: Table) -> Markup:
    headings = [tag("th", c.name, scope="col", class_="numeric" if c.numeric else None) for c in table.columns]
    opening = dict(table.groups)
    rows: list[Markup] = []
    for i, row in enumerate(table.rows):
        if i in opening:
            heading = tag("th", *map(_span, opening[i]), colspan=len(table.columns), scope="colgroup")
            rows.append(tag("tr", heading))
        cells = [
            tag("td", _cell(cell), class_="numeric" if column.numeric else None)
            for cell, column in zip(row, table.columns, strict=True)
        ]
        look = "accented" if i in table.accented else ("quiet" if i in table.quiet else None)
        rows.append(tag("tr", *cells, class_=look))
    caption = tag("caption", table.caption) if table.caption else Markup("")
    whole = tag("table", caption, tag("thead", tag("tr", *headings)), tag("tbody", *rows))
    return tag("div", whole, class_=f"scroll {table.look}".strip())


def _cell(cell: Cell) -> Markup:
    return cell if isinstance(cell, Markup) else joined(*map(_span, cell))


def _span(span: Span) -> Markup:
    match span:
        case Code(content=content):
            return tag("code", content)
        case Strong(content=content):
            return tag("strong", content)
        case _:
            return joined(span)
