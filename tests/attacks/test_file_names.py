"""A name out of a file is never a path: what is written by default lies in the working folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import compressor
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.files.names import file_name_from, is_name, printable
from compressor.jobs import factorize as factorizing
from compressor.jobs import prune as pruning
from compressor.jobs import quantize as quantizing
from tests.support.topologies import Residual, alive, checkpoint_of

NAMES = {
    "../../../h/ESCAPED": "ESCAPED", "/etc/passwd": "passwd", "..": "network", "": "network", "a/..": "network",
    "..\\x": "x", "C:\\x\\y": "y", "-rf": "rf", "~root": "root", ".hidden": "hidden", "a\nb": "a_b", "a\0b": "a_b",
    "a\x1b[31mb": "a_[31mb", "net": "net", "net-2.v1": "net-2.v1", "a b": "a b", "x" * 5000: "x" * 200,
    "é" * 300: "é" * 100, "network./": "network", "\u202ea": "_a", "a?*": "a__",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_a_path_or_a_shell_would_read_is_gone(name: str) -> None:
    assert file_name_from(name) == NAMES[name]


@pytest.mark.parametrize("name", [None, 3, ["a"], {}])
def test_what_is_no_text_is_a_name_all_the_same(name: Any) -> None:
    given = file_name_from(name)
    assert given
    assert "/" not in given


PLACES: list[Callable[[Checkpoint], Path]] = [
    pruning.default_folder,
    factorizing.default_folder,
    quantizing.default_folder,
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/../../x", "..", "\\\\host\\x"])
def test_default_outputs_lie_in_the_working_folder(place: Callable[[Checkpoint], Path], name: str) -> None:
    found = place(dataclasses.replace(checkpoint_of(alive(Residual())), name=name))
    assert found.parent == Path()
    assert ".." not in found.parts


def test_every_default_name_goes_through_one_function() -> None:
    """A new default output that forgets it shows here."""
    root = Path(compressor.__file__).parent
    written = [file for file in root.rglob("*.py") if 'Path(f"{checkpoint.name}' in file.read_text(encoding="utf-8")]
    assert written == []


def test_names_print_as_they_are() -> None:
    assert printable("a\rb\x1b[2J‮") == "a\\rb\\x1b[2J\\u202e"
    assert len(printable("x" * 1000)) < 100
    assert is_name("layer1.0.conv-1")
    assert not is_name("layer1..conv")
