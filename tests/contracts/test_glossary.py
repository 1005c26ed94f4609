"""One word per thing: what a user reads (help, refusals, hints) uses the field's words, and no synonym for variety."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import compressor
from compressor import errors
from compressor.cli.main import app

ROOT = Path(compressor.__file__).parent
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group of commands
SYNONYMS = {  # a word that is not used → the word for it
    r"\bfilters?\b": "channel",
    r"\bneurons?\b": "channel",
    r"\bfeature maps?\b": "channel",
    r"\bkernels?\b": "channel",
    r"\b(?:importance|saliency)\b": "score",
    r"\bsparsity\b": "pruning ratio; sparsity is a share of single weights",
    r"\b(?:FLOPs?|GFLOPs?)\b": "MACs",
    r"\b(?:FPS|acceleration)\b": "speed-up, latency, throughput",
    r"\b(?:heal|healing|recover|recovers|recovered|recovery)\b": "repair or retrain",
    r"\bevidence\b": "calibration",
    r"\bhangs on\b": "depends on",
    r"^There:": "with `--while-training`: …",
    r"\bsays? nothing\b": "has no effect",
}
PHRASES = {  # a phrase that may hold such a word, and why
    "soft filter pruning": "the name of a published method (He et al. 2018)",
    "--sparsity": "the option that zeroes single weights",
}
FILES = {  # a word that is right in these files, and why
    "sparsity": ({"masks.py", "mask_criteria.py", "masking.py", "requests.py"}, "the share of single weights"),
    "kernel": ({"mmd.py"}, "a kernel of the maximum mean discrepancy"),
}


def in_help() -> Iterator[tuple[str, str]]:
    """The command's name with its help, and with the help of each of its options."""
    for name, command in COMMANDS.items():
        yield name, command.help
        yield from ((name, option.help) for option in command.params)


def in_refusals(file: Path) -> Iterator[tuple[str, str]]:
    """The file's name with the message and the hint of each of our errors; what is filled in is `…`."""
    refusals = {name for name in vars(errors) if name[0].isupper()}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in refusals:
            for part in [*node.args, *(k.value for k in node.keywords if k.arg == "hint")]:
                yield file.name, text_of(part)


def text_of(node: ast.AST) -> str:
    """The text of a string, or of one with values filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def synonyms_in(text: str, *, file: str = "") -> set[str]:
    """The words in it that are not ours, but for the exceptions."""
    for phrase in [*PHRASES, *(word for word, (files, _) in FILES.items() if file in files)]:
        text = text.replace(phrase, "…")
    return {match[0] for word in SYNONYMS for match in re.finditer(word, text)}


def test_help_has_one_word_per_thing() -> None:
    texts = list(in_help())
    assert len(texts) > 250
    assert {(name, word) for name, text in texts for word in synonyms_in(text)} == set(), f"write instead: {SYNONYMS}"


@pytest.mark.parametrize("package", sorted(p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()))
def test_refusals_have_one_word_per_thing(package: str) -> None:
    texts = [pair for file in (ROOT / package).rglob("*.py") for pair in in_refusals(file)]
    assert {(name, word, text) for name, text in texts for word in synonyms_in(text, file=name)} == set()


def test_a_synonym_is_seen() -> None:
    assert synonyms_in("how many filters leave") == {"filters"}
    assert synonyms_in("There: how long") == {"There:"}
    assert synonyms_in("give `--sparsity 0.9`; soft filter pruning") == set()
    assert synonyms_in("a sparsity of 0.5") == {"sparsity"}
    assert synonyms_in("a sparsity of 0.5", file="masks.py") == set()
