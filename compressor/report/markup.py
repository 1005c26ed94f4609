"""Tags of HTML and SVG, in which whatever is not markup already is escaped."""

from __future__ import annotations

from markupsafe import Markup, escape

VOID = frozenset({"meta", "br", "hr", "col", "wbr", "link"})


def tag(element: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element. `class_` gives `class`, `text_anchor` gives `text-anchor`; attributes that are `None` are left out.

    Coordinates keep one decimal: a tenth of a pixel is below what a screen or a printer shows.
    """
    pairs = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if element in VOID:
        return Markup(f"<{element}{pairs}>")
    return Markup(f"<{element}{pairs}>{joined(*children)}</{element}>")


def joined(*parts: str) -> Markup:
    """The parts one after another, each escaped unless it is markup."""
    return Markup("").join(parts)


def _attribute(value: str | float) -> str:
    return str(escape(value)) if isinstance(value, str) else f"{value:.1f}".rstrip("0").rstrip(".")
