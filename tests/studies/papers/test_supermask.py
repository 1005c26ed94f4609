"""The study of supermasks: it runs, its cells are what it says, and its verdicts follow from the numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compressor.cli.study import data_of
from compressor.data.splits import Data
from compressor.studies import papers as studies
from compressor.studies.papers import supermask
from compressor.studies.papers.supermask import TICKET, TRAINED, UNTRAINED, _named, cells, plots, verdict
from compressor.studies.runner import Folder, results_to_json, run_study
from compressor.studies.study import Cell, Scale, StudyResults, Verdict
from compressor.surgery.mask_criteria import MaskCriterion
from compressor.training.lottery.treatments import Kept, PrunedWeights


def data() -> Data:
    found: Data = data_of(None, root=None, download=False)
    return found


def made_up(by: float) -> StudyResults:
    """Accuracies in which what the paper finds is true by `by` points, with little noise."""
    rank = {"rewind": 3, "by-direction": 4, "reinitialise": 0, "reshuffle": 0, "constant": 0}  # signed ones: 4
    of_pruned = {"zero": 0, "by-direction": 1, "random": -1, "freeze": -2, "reversed": -3}

    def row(cell: Cell) -> Mapping[str, Any]:
        values: Any = cell.values
        noise = 0.01 * (cell.seed - 2)
        if cell.arm == "dense":
            points = 84.0
        elif cell.arm == "learned":
            points = 84 + by * values["rescaled"]
        elif cell.arm == "untrained":
            place = {"large-final-same-sign": 2, "large-final": 1}.get(values["criterion"], 0)
            points = 60 + by * (place + (values["kept"] == "signed-constant"))
        else:
            points = 80 + by * (rank.get(values["kept"], 4) + of_pruned[values["pruned"]])
            points -= by * (values["criterion"] in ("random", "movement"))
        number = points + noise * (1 + len(str(values)) % 3)
        return {"accuracy": number, "densities": [0.5, 0.25], "accuracies": [number, number], "density": 0.5}

    return StudyResults(rows={cell: row(cell) for cell in cells(Scale.SMALL)})


def test_the_smoke_scale_runs_and_says_everything(tmp_path: Path) -> None:
    results = run_study("supermask", Scale.SMOKE, data, tmp_path, seeds=1)
    assert len(results) == 1 + len(UNTRAINED) + len(TRAINED) + 4
    for cell, row in results:
        assert 0 <= row["accuracy"] <= 100
        assert "test" not in cell.values
        if cell.arm == "untrained":
            best = row["tuned"].index(max(row["tuned"]))  # chosen on the tuning split, read on the test split
            assert row["accuracy"] == row["accuracies"][best]
        if cell.arm == "learned":
            assert len(row["draws"]) == 10
    trained = {row["sparsity"] for _, row in results.where("trained")}
    assert len(trained) == 1  # every treatment keeps as many
    assert trained.pop() == pytest.approx(1 - (0.1 * 265_200 + 0.1**0.4722 * 1000) / 266_200, abs=1e-4)
    found = results_to_json("supermask", Scale.SMOKE, results, data=data(), command="compress study supermask")
    assert {claim["verdict"] for claim in found["claims"]} == {"inconclusive"}  # one seed has no interval
    assert len(found["plots"]) == 5
    assert all(curve["points"] for plot in found["plots"] for curve in plot["curves"])


def test_the_verdicts_follow_the_numbers() -> None:
    assert {claim.verdict for claim in verdict(made_up(2.0))} == {Verdict.REPRODUCED}
    assert {claim.verdict for claim in verdict(made_up(-3.0))} == {Verdict.CONTRADICTED}


def test_no_arm_is_run_twice_and_all_that_a_claim_needs_is_run() -> None:
    for scale in Scale:
        found = cells(scale)
        assert len({cell.key for cell in found}) == len(found)
    assert TICKET in TRAINED
    assert all(claim.findings for claim in verdict(made_up(1.0)))


def test_the_published_scale_prunes_level_by_level_and_the_small_one_at_once() -> None:
    published = [c for c in cells(Scale.PAPER) if c.arm == "trained" and c.seed == 0]
    ticket = [c for c in published if all(c.values[k] == v for k, v in _named(*TICKET).items())]
    assert [c.values["density"] for c in ticket[:3]] == [0.8, 0.64, 0.512]
    assert [[n.arm for n in c.needs] for c in ticket[:2]] == [["dense"], ["dense", "trained"]]
    assert ticket[2].needs[1] is ticket[1]
    assert all([n.arm for n in c.needs] == ["dense"] for c in cells(Scale.SMALL) if c.arm == "trained")


def test_levels_are_nested_and_hand_on_their_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = dataclasses.replace(supermask.SIZES[Scale.SMOKE], densities=(0.5, 0.2), iterative=True)
    monkeypatch.setattr(
        supermask, "TRAINED", ((MaskCriterion.MOVEMENT, Kept.REWIND, PrunedWeights.ZERO),)
    )  # not nested by itself
    monkeypatch.setattr(supermask, "UNTRAINED", ())
    monkeypatch.setattr(supermask, "LEARNED", ())
    monkeypatch.setitem(supermask.SIZES, Scale.SMOKE, size)
    results = run_study("supermask", Scale.SMOKE, data, tmp_path, seeds=1)
    first, second = (Folder(tmp_path, data()).state_of(c) for c in results.where("trained").rows)
    for name in ("1.weight", "3.weight", "5.weight"):
        kept, fewer = first[f"mask.{name}"], second[f"mask.{name}"]
        assert not bool((fewer & ~kept).any())
        assert int(fewer.sum()) < int(kept.sum())
        assert not bool(second[name][~fewer].any())


def test_it_is_listed_with_its_first_line() -> None:
    assert "supermask" in studies.names()
    assert "Zhou et al. 2019" in studies.help_of("supermask")
    for part in ("**Claim:**", "**Command:**", "**Expected:**", "**Cost:**"):
        assert part in (supermask.__doc__ or "")


def test_a_plot_has_every_arm() -> None:
    drawn = plots(made_up(1.0))
    assert len(drawn[0].curves) == len(UNTRAINED)
    assert len(drawn[2].curves) == 7
    assert len(drawn[3].curves) == 6
