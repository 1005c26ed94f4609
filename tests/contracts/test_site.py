"""The site's navigation is docs/index.md, and every page stands in it; `.ci/run` builds the site itself."""

from __future__ import annotations

import re
import runpy
import tomllib
from collections.abc import Callable
from pathlib import Path

import compressor

ROOT = Path(compressor.__file__).parent.parent
DOCS = ROOT / "docs"


def toctrees(text: str) -> str:
    of: Callable[[str], str] = runpy.run_path(str(DOCS / "conf.py"))["toctrees"]
    return of(text)


def test_headings_are_captions_and_lists_are_pages() -> None:
    text = "# Index\n\n## How to\n\n- [A](how-to/a.md): a\n- [B](../B.md), and [C](c.md)\n\n## Why\n\n- [D](d.md)\n"
    first, second = toctrees(text).split("```\n\n")
    assert first == "```{toctree}\n:hidden:\n:caption: How to\n\n/docs/how-to/a\n/B\n"
    assert second == "```{toctree}\n:hidden:\n:caption: Why\n\n/docs/d\n```\n"


def test_every_page_is_in_the_navigation() -> None:
    pages = {f"/{page.relative_to(ROOT).with_suffix('')}" for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"))}
    listed = [line for line in toctrees((DOCS / "index.md").read_text()).splitlines() if line.startswith("/")]
    assert sorted([*listed, "/docs/index"]) == sorted(pages)


def test_every_promise_has_tests_that_are_there() -> None:
    promises = (DOCS / "promises.md").read_text().split("\n- **")[1:]
    assert len(promises) > 10
    for promise in promises:
        tests = re.findall(r"\[`(\w+)`\]\(\.\./(tests/[\w/]+\.py)\)", promise)
        assert tests, promise.partition("\n")[0]
        for name, file in tests:
            assert re.search(rf"^\s*def {name}\(", (ROOT / file).read_text(), re.M), f"{file}::{name}"


def test_the_citation_names_the_package_as_it_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert citation.startswith("cff-version: 1.2.0\n")
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
