"""The lowest versions that the package declares are those that the tests run with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTERS, SITE = {"ruff", "mypy", "import-linter", "types-psutil"}, {"sphinx", "furo", "myst-parser"}
WITHOUT_TESTS = LINTERS | SITE  # `.ci/lowest` runs the tests alone


def declared() -> dict[str, str]:
    """Package → the lowest version that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    found: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(one for extra in extras for one in extra)]:
        package, lowest = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:;.*)?", requirement).groups()  # type: ignore[union-attr]
        assert found.setdefault(package, lowest) == lowest, f"{package} has two lowest versions"
    return found


def constrained() -> dict[str, str]:
    lines = (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("#")[0].strip() for line in lines]
    return dict(pin.split("==") for pin in pins if pin)  # type: ignore[misc]  # pairs


def numbers(version: str) -> tuple[int, ...]:
    parts = [int(n) for n in version.split(".")]
    return tuple(parts + [0] * (4 - len(parts)))


@pytest.mark.parametrize("package", sorted(declared().keys() - WITHOUT_TESTS - {"onnxruntime"}))
def test_the_lowest_version_of_a_package_is_the_one_that_is_tested(package: str) -> None:
    assert numbers(constrained()[package]) == numbers(declared()[package])


def test_both_builds_of_onnxruntime_have_one_bound() -> None:
    assert declared()["onnxruntime"] == declared()["onnxruntime-gpu"]
