"""What is text stays text."""

from __future__ import annotations

from compressor.report.markup import Markup, tag


def test_only_markup_is_not_escaped() -> None:
    assert tag("p", "a < b", Markup("<b>c</b>"), class_='"x"') == '<p class="&quot;x&quot;">a &lt; b<b>c</b></p>'
