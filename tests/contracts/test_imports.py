"""What costs time is imported when it is used, and not before."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "torch_pruning", "timm", "safetensors", "PIL")


def imported_by(code: str) -> set[str]:
    """The heavy packages that a fresh process has imported once it ran `code`."""
    tell = f"import sys; print('imported:', *(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{tell}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_probe_sees_an_import() -> None:
    assert imported_by("import numpy") == {"numpy"}


@pytest.mark.parametrize(
    "name", ["compressor", "compressor.errors", "compressor.cli.main", "compressor.checkpoint.artifacts"]
)
def test_importing_costs_nothing(name: str) -> None:
    assert imported_by(f"import {name}") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["prune", "--help"], ["bench", "--help"], ["--version"], []])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["compress", *{arguments!r}]
from compressor.cli.main import main
try:
    main()
except SystemExit:
    pass
"""
    assert imported_by(code) == set()


@pytest.mark.parametrize("arguments", [["prune"], ["prune", "model.pt", "--ratio", "abc"], ["retrian"]])
def test_a_misspelt_command_line_is_refused_before_torch_is_imported(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["compress", *{arguments!r}]
from compressor.cli.main import main
try:
    main()
except SystemExit as end:
    assert end.code == 2, end.code
"""
    assert imported_by(code) == set()


def test_help_answers_at_once() -> None:
    script = Path(sys.executable).parent / "compress"
    spent = []
    for _ in range(3):
        before = os.times()
        started = time.perf_counter()
        subprocess.run([str(script), "--help"], capture_output=True, check=True)
        after = os.times()
        computing = after.children_user + after.children_system - before.children_user - before.children_system
        spent.append(min(computing, time.perf_counter() - started))  # on a busy machine waiting is not ours
    assert min(spent) < 0.6


def test_a_public_name_is_never_hidden_by_the_module_of_its_name() -> None:
    code = (
        "import types, compressor\n"
        "from compressor import prune, load\n"  # which import `compressor.surgery.shrinking` and others on the way
        "import compressor.training.retraining, compressor.measuring.quality, compressor.measuring.benchmark\n"
        "hidden = [n for n in compressor.__all__ if isinstance(getattr(compressor, n), types.ModuleType)]\n"
        "assert not hidden, hidden\n"
        "from compressor.training.retraining import starting_module"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_reading_an_artifact_imports_neither_torchvision_nor_sympy(pruned: Path) -> None:
    """They take as long as torch itself, in the process that reads each new artifact back."""
    code = """
import sys
from pathlib import Path
from compressor.checkpoint.artifacts import load_artifact
load_artifact(Path("tiny.compressed"))
print("imported:", *({"torch", "torchvision", "sympy", "scipy", "matplotlib"} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=pruned, check=True)
    assert found.stdout.split() == ["imported:", "torch"]
