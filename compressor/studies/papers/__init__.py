"""Studies: one file each, a published experiment that runs again; the file name is the study's name.

A study's docstring has four parts (claim, command, expected, cost) and its first line is its help. It names arms and
claims, and what it runs is the library's:

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
    """The names of all studies, sorted; nothing of theirs is imported."""
    return plugin_names(__path__)


def load(name: str) -> Study:
    """The study called `name`; refused where there is none."""
    module = plugin_named(name, package=__name__, names=names(), one="study", many="studies", refusal=StudyError)
    return cast("Study", module)


def help_of(name: str) -> str:
    """The first line of a study's docstring, read without importing it."""
    import ast

    file = Path(__path__[0]) / f"{name.replace('-', '_')}.py"
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
