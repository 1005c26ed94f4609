"""Every refusal that a user can meet in these files says what to do next."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import compressor
from compressor import errors
from compressor.errors import CompressError

PACKAGE = Path(compressor.__file__).parent
REFUSALS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, CompressError)}
# files whose errors come from what a user gives, and not from a network that does not come out right
FILES = (
    "checkpoint/artifact_writing",
    "checkpoint/architectures", "checkpoint/artifacts", "checkpoint/loading", "checkpoint/reading",
    "checkpoint/recipes", "checkpoint/sparse", "data/arrays", "data/batches", "data/image_files", "data/preprocessing",
    "data/repeats", "data/samples", "data/sources", "data/splits",
    "files/json_files", "measuring/onnx_network", "measuring/quality", "measuring/benchmark", "measuring/pack/folder",
    "measuring/tables/table", "studies/runner", "training/events_in_training", "training/loop", "training/resume",
    *(f"cli/{file.stem}" for file in sorted((PACKAGE / "cli").glob("*.py"))),
)  # fmt: skip


def without_hint(source: str) -> list[int]:
    """The lines that raise one of our errors without a hint."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in REFUSALS
        and not any(keyword.arg == "hint" for keyword in node.exc.keywords)
    ]


@pytest.mark.parametrize("name", FILES)
def test_a_refusal_has_a_hint(name: str) -> None:
    assert without_hint((PACKAGE / f"{name}.py").read_text(encoding="utf-8")) == []


def test_one_without_is_seen() -> None:
    assert without_hint("raise DataError('no')\nraise DataError('no', hint='so')\nraise ValueError('no')") == [1]
