"""docs/operators.md says of every operator of torch's core set what is seen of it."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.operator_samples import core
from benchmarks.operators import BROKEN, FILE, FOLLOWED, KINDS, NO_DATA, STAYS, Verdict, verdicts
from compressor.channels.rules import rule_of
from compressor.channels.rules.operators import unknown
from compressor.channels.rules.stated import stated

NAMES = [str(operator).removeprefix("aten.") for operator in core()]
WRITTEN_FOR = re.search(r"^torch ([\d.]+):", FILE.read_text(encoding="utf-8"), re.MULTILINE)
SAME_TORCH = WRITTEN_FOR is not None and WRITTEN_FOR[1] == torch.__version__.partition("+")[0]


def written() -> dict[str, dict[str, str]]:
    """The page: by operator, and by how it stood, what it says."""
    found = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        row = re.fullmatch(r"\| `(\S+)` \| (.*) \|", line)
        if row:
            found[row[1]] = {k: v for k, v in zip(KINDS, row[2].split(" | "), strict=True) if v}
    return found


def as_written(found: dict[str, Verdict]) -> dict[str, str]:
    return {kind: str(verdict) for kind, verdict in found.items()}


@pytest.mark.skipif(not SAME_TORCH, reason="another torch has other operators")
def test_the_page_has_every_operator_of_the_core_set() -> None:
    assert sorted(written()) == sorted(NAMES)


def test_every_operator_is_followed_or_has_no_data_or_a_reason() -> None:
    said = [text for kinds in written().values() for text in kinds.values()]
    assert all(text in (FOLLOWED, NO_DATA) or re.fullmatch(f"{STAYS}: .+", text) for text in said)
    assert not any(BROKEN in text or "Error" in text or "does not know" in text for text in said)


def test_nine_tenths_of_the_core_set_have_a_rule() -> None:
    without = {name for name in NAMES if written().get(name, {}).get("beside") != NO_DATA}
    ruled = {str(op).removeprefix("aten.") for op in core() if rule_of(op) not in (unknown, stated)}
    assert len(without & ruled) >= 0.9 * len(without)
    followed = {name for name, kinds in written().items() if FOLLOWED in kinds.values()}
    assert len(followed) >= 0.9 * len(without)


@pytest.mark.skipif(not SAME_TORCH, reason="another torch has other operators")
def test_the_page_says_of_some_operators_what_is_seen() -> None:
    """Every twelfth; all of them below."""
    some = NAMES[::12]
    page = written()
    assert {name: as_written(v) for name, v in verdicts(some).items()} == {name: page[name] for name in some}


@pytest.mark.slow
@pytest.mark.skipif(not SAME_TORCH, reason="another torch has other operators")
def test_the_page_says_of_every_operator_what_is_seen() -> None:
    assert {name: as_written(v) for name, v in verdicts().items()} == written()
