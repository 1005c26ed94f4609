"""What is text stays text."""

from __future__ import annotations

from markupsafe import Markup

from compressor.report.markup import tag


def test_only_markup_is_not_escaped() -> None:
    assert tag("p", "a < b", Markup("<b>c</b>"), class_='"x"') == '<p class="&#34;x&#34;">a &lt; b<b>c</b></p>'
