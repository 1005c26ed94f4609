"""Whatever is wrong in a file, its reader reads it or refuses it: no other exception, nothing run, nothing written.

A fault is read again by `python -m tests.attacks.mutants READER --seed 0 --first INDEX --count 1 --keep DIR`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import CheckpointError
from tests.attacks.mutants import LIMIT, Outcome, opened, watched
from tests.attacks.mutations import CANARY, PICKLE, Form, mutated
from tests.attacks.readers import READERS, Reader

SEED = 0
IN_ALL, SLOWLY = 200, 5000
ROOT = Path(__file__).parents[2]
OPEN: dict[str, str] = {}  # faults that are known, by what is to be mended
PART = {name: max(2, IN_ALL * r.weight // sum(o.weight for o in READERS.values())) for name, r in READERS.items()}


def faults(found: list[Outcome]) -> str:
    return "\n".join(f"{o.index}: {o.verdict}: {o.detail} <- {o.mutation}" for o in found if not o.right)


@pytest.mark.parametrize("name", READERS)
def test_a_mutant_is_read_or_refused(name: str, tmp_path: Path) -> None:
    with opened(READERS[name], tmp_path) as fuzzed:
        found = [fuzzed.outcome(SEED, index) for index in range(PART[name])]
    assert not faults(found), faults(found)
    assert any(o.verdict == "refused" for o in found) or len(found) < 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", READERS)
def test_many_mutants_are_read_or_refused(name: str) -> None:
    count = -(-SLOWLY // len(READERS))
    found = in_children(name, seed=1, count=count)
    assert len(found) == count
    assert not faults(found), faults(found)


def in_children(name: str, *, seed: int, count: int) -> list[Outcome]:
    """The outcomes in processes of their own: one that dies has met a mutant that kills it, and another goes on."""
    found: list[Outcome] = []
    while len(found) < count:
        first = len(found)
        command = [sys.executable, "-m", "tests.attacks.mutants", name, "--all", f"--seed={seed}", f"--first={first}",
                   f"--count={count - first}"]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60 + LIMIT * count,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        found += [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
        if done.returncode not in (0, 1):
            said = done.stderr.strip().splitlines()[-1:]
            found.append(
                Outcome(
                    reader=name, seed=seed, index=len(found), mutation="?", verdict="raised", detail=f"died: {said}"
                )
            )
    return found


# The fuzzer itself


def reader_that(read: Any) -> Reader:
    """A reader of a small JSON file that is wrong as a reader can be."""
    return Reader(
        name="wrong", file="x.json", form=Form.JSON, read=read,
        make=lambda folder: (folder / "x.json").write_text('{"a": [1, 2], "b": "c"}'),
    )  # fmt: skip


def verdicts(read: Any, folder: Path, count: int = 12) -> set[str]:
    good = True

    def late(place: Path) -> None:  # the good file is read first, and must be
        nonlocal good
        if good:
            good = False
        else:
            read(place)

    with opened(reader_that(late), folder) as fuzzed:
        return {fuzzed.outcome(SEED, index).verdict for index in range(count)}


def test_an_exception_that_is_not_ours_is_seen(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        raise KeyError(folder)

    assert verdicts(read, tmp_path) == {"raised"}


def test_a_refusal_is_right(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        raise CheckpointError(str(folder))

    assert verdicts(read, tmp_path) == {"refused"}


def test_a_command_is_seen_and_does_not_run(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        del folder
        try:
            os.system(f"touch {CANARY}")
        except Exception:  # as a reader does that catches all
            raise CheckpointError("no") from None

    assert verdicts(read, tmp_path) == {"ran"}
    assert not list(tmp_path.rglob(CANARY))


def test_a_file_written_elsewhere_is_seen(tmp_path: Path) -> None:
    (tmp_path / "fuzzed").mkdir()
    assert verdicts(lambda _: (tmp_path / "other").write_text(""), tmp_path / "fuzzed") == {"wrote"}
    assert not (tmp_path / "other").exists()


def test_what_asks_for_all_memory_gets_none(tmp_path: Path) -> None:
    assert verdicts(lambda _: bytearray(2**44), tmp_path, count=2) == {"raised"}


def test_what_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(folder: Path) -> None:
        while folder:
            pass

    monkeypatch.setattr("tests.attacks.mutants.LIMIT", 0.05)
    assert verdicts(read, tmp_path, count=2) == {"slow"}


def test_the_same_seed_gives_the_same_mutant(tmp_path: Path) -> None:
    def mutants(folder: Path) -> list[tuple[bytes, str]]:
        with opened(READERS["measured.json"], folder) as fuzzed:
            return [fuzzed.mutant(3, index) for index in range(40)]

    one = mutants(tmp_path / "one")
    assert one == mutants(tmp_path / "other")
    assert len({content for content, _ in one}) > 30


def test_hostile_content_is_drawn(tmp_path: Path) -> None:
    with opened(READERS["net.pt2"], tmp_path) as fuzzed:
        drawn = [mutated(fuzzed.good, Form.ZIP, random.Random(index))[0] for index in range(400)]
    assert any(PICKLE in content for content in drawn)
    assert any(b"__import__" in content for content in drawn)


def test_nothing_is_watched_outside(tmp_path: Path) -> None:
    with watched(tmp_path):
        pass
    (tmp_path / "x").write_text("")
    assert subprocess.run([sys.executable, "-c", ""], check=False).returncode == 0
