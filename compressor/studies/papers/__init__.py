"""Studies: one file each, a published experiment that runs again; the file name is the study's name.

A study's docstring has four parts (claim, command, expected, cost); its first line is its help text. A study defines
arms and claims, and calls the library for everything else:

    TITLE: str
    def cells(scale: Scale) -> Sequence[Cell]
    def run(cell: Cell, workspace: Workspace) -> Mapping[str, Any]
    def verdict(results: Results) -> Sequence[Claim]
    def plots(results: Results) -> Sequence[Plot]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from compressor.errors import StudyError
from compressor.plugins import plugin_named, plugin_names

if TYPE_CHECKING:  # naming the studies, as `--help` does, must not import torch
    from compressor.studies.study import Study


def names() -> tuple[str, ...]:
    """Return the names of all studies, sorted; no study is imported."""
    return plugin_names(__path__)


def load(name: str) -> Study:
    """Return the study called `name`; refused: no such study."""
    module = plugin_named(name, package=__name__, names=names(), one="study", many="studies", refusal=StudyError)
    return cast("Study", module)


def help_of(name: str) -> str:
    """Return the first line of a study's docstring, without importing the study."""
    import ast

    file = Path(__path__[0]) / f"{name.replace('-', '_')}.py"
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
