"""The site: every page as it is on GitHub, in one build that refuses a dead link.

    sphinx-build -W --keep-going -n -b html -c docs . docs/_build/html

The sources start at the repository's root, so that README, CONTRIBUTING, CHANGELOG and SECURITY are pages too and their
links are checked. The navigation is that of docs/index.md: its headings are captions, its lists the pages below them.
Nothing is fetched.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "compress"
author = "The compress authors"
copyright = "the compress authors, Apache-2.0"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md"]
exclude_patterns = ["docs/_build", ".*", "build", "dist", "tests", "benchmarks", "compressor", "sample_models"]
nitpicky = True
smartquotes = False  # it would make one dash of the two of an option
html_theme = "furo"
html_title = "compress"
html_copy_source = False
myst_heading_anchors = 4  # GitHub's names for headings, so that links to them work in both


def toctrees(text: str) -> str:
    """Toctrees as docs/index.md lists its pages: hidden, each heading a caption."""
    trees = []
    for section in text.split("\n## ")[1:]:
        caption, _, lists = section.partition("\n")
        pages = [
            posixpath.normpath(f"docs/{link}") for link in re.findall(r"^- \[[^]]+\]\(([^)#]+\.md)\)", lists, re.M)
        ]
        lines = "\n".join(f"/{page.removesuffix('.md')}" for page in pages)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n")
    return "\n".join(trees)


def add_navigation_(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the toctrees to the index alone; on GitHub they would be noise."""
    del app
    if docname == root_doc:
        source[0] += "\n" + toctrees(source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_navigation_)
