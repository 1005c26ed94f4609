"""What every study keeps to, found by discovery; what it says of its smoke run is in its own file of tests."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from pathlib import Path

import pytest

from compressor.data.samples import Images
from compressor.data.sources import SAMPLE_FILE, load_data
from compressor.errors import StudyError
from compressor.studies import papers as studies
from compressor.studies.runner import in_order, run_study
from compressor.studies.study import Scale
from tests.contracts.test_readme import mistakes, words_of
from tests.support.command_line import done, interrupted, refused

NAMES = studies.names()
PARTS = ("**Claim:**", "**Command:**", "**Expected:**", "**Cost:**")


@pytest.mark.parametrize("name", NAMES)
def test_a_study_says_claim_command_expectation_and_cost(name: str) -> None:
    text = studies.load(name).__doc__ or ""
    assert studies.help_of(name) == text.partition("\n")[0]
    places = [text.find(part) for part in PARTS]
    assert -1 not in places
    assert places == sorted(places)
    commands = [words_of(line) for line in re.findall(r"`(compress study [^`]+)`", " ".join(text.split()))]
    assert ["study", name] in [words[:2] for words in commands if words]
    assert [m for words in commands if words for m in mistakes(words)] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", Scale)
def test_every_cell_has_a_name_of_its_own_and_belongs_to_the_study(name: str, scale: Scale) -> None:
    cells = in_order(studies.load(name).cells(scale))
    assert cells
    assert len({cell.key for cell in cells}) == len(cells)
    assert {cell.study for cell in cells} == {name}
    assert all(needed.seed <= cell.seed for cell in cells for needed in cell.needs)  # so that `--seeds` keeps it
    assert all(re.fullmatch(r"[\w.+-]+", cell.key) for cell in cells)  # it is a file's name


@pytest.mark.parametrize("name", NAMES)
def test_what_is_to_be_compared_has_replicates(name: str) -> None:
    seeds = {cell.seed for cell in studies.load(name).cells(Scale.SMALL)}
    assert len(seeds) >= 3
    assert seeds == set(range(len(seeds)))  # `--seeds` takes the first ones


def test_a_name_that_there_is_not_is_refused() -> None:
    with pytest.raises(StudyError, match="no study called `lotery`"):
        studies.load("lotery")


def test_without_a_name_all_are_listed() -> None:
    said = done("study").stdout
    assert all(name in said for name in NAMES)


def test_a_study_in_two_processes_is_interrupted_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["study", "transfer-pruning", "--scale", "smoke", "--jobs", "2", "--seeds", "1"]
    cells = tmp_path / "transfer-pruning.study" / "cells"
    interrupted(command, when="1/", then=0.1)
    finished = {p: p.stat().st_mtime_ns for p in cells.glob("*.json")}
    going = done(*command)
    assert "inconclusive" in going.stdout  # one seed decides nothing
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    assert 0 < len(finished) < len([*cells.glob("*.json")])
    told = [line.split()[0] for line in going.stderr.splitlines() if re.match(r"\d+/", line)]
    assert len(told) == len([*cells.glob("*.json")]) - len(finished)
    written = {p.name for p in (tmp_path / "transfer-pruning.study").iterdir()}
    assert {"results.json", "report.html", "report.md", "plot-1.svg", "cells"} <= written
    assert not [p for p in cells.iterdir() if ".part" in p.name]


FROM_THE_TEST_SPLIT = {
    "families": {"accuracy"},
    "lottery-ticket": {"test", "test_at_stop"},
    "rethinking": {"accuracy"},
    "stability": {"accuracy"},
    "supermask": {"accuracy", "accuracies", "draws"},
    "transfer-pruning": {"source", "target"},
}
ENOUGH = {  # arms; of other studies all
    "families": ("dense", "masked 0.9", "int8", "early exit 90"),
    "lottery-ticket": ("dense", "ticket"),
    "rethinking": ("dense", "fine-tune-published"),
    "stability": ("unpruned", "smallest-seldom"),
    "transfer-pruning": ("tcp",),
}


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_is_the_test_splits_and_nothing_else_hangs_on_its_labels(
    name: str, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = studies.load(name)
    arms = {c.arm: c for c in reversed(study.cells(Scale.SMOKE)) if c.seed == 0}
    few = [arms[arm] for arm in ENOUGH.get(name, arms)]
    monkeypatch.setattr(study, "cells", lambda _: few)
    data = load_data(str(samples / SAMPLE_FILE))
    assert isinstance(data.test, Images)
    turned = dataclasses.replace(data, test=Images(data.test.images, (data.test.labels + 1) % 10))
    sides = {"a": data, "b": turned}
    first, second = (run_study(name, Scale.SMOKE, partial(sides.__getitem__, n), tmp_path / n) for n in sides)
    for cell, before in first:
        after = second.rows[cell]
        other = {key for key in before if before[key] != after[key]}
        assert other == FROM_THE_TEST_SPLIT[name] & before.keys(), cell.arm
        kept = [tmp_path / side / f"{cell.key}.safetensors" for side in sides]
        assert len({file.read_bytes() if file.exists() else b"" for file in kept}) == 1


def test_wrong_words_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = NAMES[0]
    refused("study", "rethinkin", says="no study called `rethinkin`", hints="rethinking")
    refused("study", name, "--scale", "tiny", says="no scale called `tiny`", hints="small")
    refused("study", name, "--task", "regression", says="`--task`", hints="leave it out")
    refused("study", name, "--data", "nowhere/", says="nowhere", hints="a folder of images")
