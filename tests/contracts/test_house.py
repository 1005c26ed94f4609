"""The house: a folder for each stage, few enough modules in each, and names that bind what they say."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import compressor

ROOT = Path(compressor.__file__).parent
MOST_MODULES, MOST_AT_TOP, MOST_PACKAGES = 25, 12, 17
FOLDERS = sorted({f.parent for f in ROOT.rglob("*.py")})


def test_the_top_reads_as_the_pipeline() -> None:
    modules = [f for f in ROOT.glob("*.py") if f.name != "__init__.py"]
    packages = [f for f in FOLDERS if f.parent == ROOT]
    assert 0 < len(modules) <= MOST_AT_TOP
    assert 0 < len(packages) <= MOST_PACKAGES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_folder_is_small_enough_to_read(folder: Path) -> None:
    assert len([f for f in folder.glob("*.py") if f.name != "__init__.py"]) <= MOST_MODULES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_package_says_what_it_is(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert len(text.partition("\n")[0]) > 20


def test_importing_a_module_binds_the_module() -> None:
    """`import compressor.a.b as m`, in a process in which no test has imported anything before."""
    code = """
import importlib, pkgutil, sys, compressor
names = [m.name for m in pkgutil.walk_packages(compressor.__path__, "compressor.")]
for name in names:
    if not name.endswith("pack.script"):  # a program for another machine, which runs when it is imported
        importlib.import_module(name)
parts = {n: n.rpartition(".") for n in names if n in sys.modules}
hidden = [n for n, (package, _, leaf) in parts.items() if getattr(sys.modules[package], leaf) is not sys.modules[n]]
print(len(names), hidden)
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    count, _, hidden = found.stdout.strip().partition(" ")
    assert int(count) > 200
    assert hidden == "[]"


def test_public_names_have_types_and_those_are_what_is_imported() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and isinstance(n.test, ast.Name))
    typed = {
        alias.asname: getattr(importlib.import_module(str(line.module)), alias.name)
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert sorted(map(str, typed)) == sorted(compressor.__all__)
    for name, value in typed.items():
        assert getattr(compressor, str(name)) is value


PACKAGES = {folder.name for folder in FOLDERS if folder.parent == ROOT}


def modules_named(text: str) -> set[str]:
    """What prose in backticks names by package and module: `planning.walk`, say."""
    named = re.findall(r"`((?:\w+\.)+\w+)`", text)
    return {n for n in named if n.partition(".")[0] in PACKAGES and not n.endswith((".html", ".md", ".json"))}


def is_there(name: str) -> bool:
    """Whether a module has that name, or one has what it ends with."""
    file = ROOT.joinpath(*name.split("."))
    if file.with_suffix(".py").is_file() or (file / "__init__.py").is_file():
        return True
    home, _, leaf = name.rpartition(".")
    module = ROOT.joinpath(*home.split(".")).with_suffix(".py")
    return module.is_file() and re.search(rf"^(?:def|class) {leaf}\b|^{leaf}\b", module.read_text(), re.M) is not None


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_module_that_prose_names_is_there(folder: Path) -> None:
    named = {(file.name, name) for file in folder.glob("*.py") for name in modules_named(file.read_text())}
    assert {(file, name) for file, name in named if not is_there(name)} == set()


def test_one_that_is_not_there_is_seen() -> None:
    assert modules_named("see `planning.walk`, `planning.gone` and `x.y`") == {"planning.walk", "planning.gone"}
    assert is_there("planning.walk")
    assert is_there("planning.walk.program_of")
    assert not is_there("planning.gone")
    assert not is_there("planning.walk.gone")
