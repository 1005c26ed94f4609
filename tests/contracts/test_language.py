"""Plain English: phrases and names that a reader whose English is a second language stumbles over do not come back."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

import compressor

ROOT = Path(compressor.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

PHRASES = {
    r"\bhangs? on\b": "depends on",
    r"\bThere: ": "with `--while-training`: …",
    r"\b(?:is|are) lent\b": "is used and restored",
    r"\bwhat (?:is|it) told\b": "the noun: a text, a reason, …",
    r"\bstumbles? over\b": "fails at",
    r"\bsays so nowhere\b": "does not record it",
}
NAMELESS = {"found", "told", "said", "given"}  # they name no noun: call a plan `plan`, a text `text`


def tokens_of(text: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(text).readline))


def phrases_in(text: str) -> set[str]:
    """The banned phrases in strings, docstrings and comments, however their lines are broken."""
    kinds = (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    prose = " ".join(re.sub(r"\s+", " ", t.string) for t in tokens_of(text) if t.type in kinds)
    return {match[0] for phrase in PHRASES for match in re.finditer(phrase, prose)}


def nameless_in(text: str) -> set[str]:
    """The banned identifiers: variables, arguments, attributes, functions."""
    return {t.string for t in tokens_of(text) if t.type == tokenize.NAME} & NAMELESS


def package_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("package", sorted({package_of(f) for f in FILES}))
def test_no_phrase_is_hard_to_read(package: str) -> None:
    hard = {f.name: phrases_in(f.read_text()) for f in FILES if package_of(f) == package}
    assert {name: phrases for name, phrases in hard.items() if phrases} == {}, f"write instead: {PHRASES}"


@pytest.mark.parametrize("package", sorted({package_of(f) for f in FILES}))
def test_names_are_nouns(package: str) -> None:
    nameless = {f.name: nameless_in(f.read_text()) for f in FILES if package_of(f) == package}
    left = {name: names for name, names in nameless.items() if names}
    assert left == {}


def test_what_is_hard_to_read_is_seen() -> None:
    assert phrases_in('"""A time that hangs\n    on values."""\n') == {"hangs on"}
    assert phrases_in("x = 1  # it hangs on y\n") == {"hangs on"}
    assert phrases_in("hangs_on = 1\n") == set()
    assert nameless_in("found = text.said\n") == {"found", "said"}
    assert nameless_in("held_found = 'found'  # given\n") == set()
