from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.data.samples import Images
from compressor.data.sources import load_data
from compressor.data.splits import Data
from compressor.studies import papers as studies
from compressor.studies.papers import transfer_pruning as study
from compressor.studies.runner import Folder, in_order, results_to_json, run_study
from compressor.studies.study import Cell, Scale, StudyResults, Verdict


@functools.cache
def sample(folder: Path) -> Data:
    return load_data(str(folder / "fashion_sample.npz"))


@pytest.fixture(scope="module")
def results(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    folder = tmp_path_factory.mktemp("study")
    found = run_study("transfer-pruning", Scale.SMOKE, lambda: sample(samples), folder, seeds=1)
    assert not [f for f in folder.iterdir() if f.suffix not in (".json", ".safetensors")]
    return found


def cell_of(arm: str, removed: float | None = None, *, scale: Scale = Scale.SMOKE) -> Cell:
    return next(
        c for c in in_order(study.cells(scale)) if c.arm == arm and c.values.get("removed") == removed and c.seed == 0
    )


class TestCells:
    def test_every_arm_trains_as_many_epochs_from_the_same_first_network(self, results: StudyResults) -> None:
        """As it is planned: the first network's, the start's, and what follows."""
        v: Mapping[str, Any] = study.VALUES[Scale.SMALL]
        rest = v["rounds"] * v["between"] + v["final"]
        late = v["rounds"] * v["between"] + (v["adapting"] + v["final"])
        assert v["first"] + v["adapting"] + rest == v["first"] + late
        for cell, _ in results:
            if "removed" in cell.values:
                chain = [cell.needs[0], *cell.needs[0].needs]
                assert chain[-1] == cell_of("first")
                assert len(chain) == (1 if cell.arm == "two-stage" else 2)

    def test_every_budget_is_met(self, results: StudyResults) -> None:
        for cell, row in results:
            if "removed" in cell.values:
                gone = float(cell.values["removed"] or 0)
                assert row["macs"] == 1 if not gone else 0.9 * (1 - gone) < row["macs"] <= 1 - gone

    def test_the_small_scale_has_five_seeds_of_every_arm(self) -> None:
        cells = study.cells(Scale.SMALL)
        assert len(cells) == len(set(cells)) == 5 * sum(map(len, study.AT.values()))
        assert not {c.key for c in in_order(cells)} & {c.key for c in in_order(study.cells(Scale.PAPER))}


class TestNoLabelOfTheTarget:
    @pytest.mark.parametrize("arm", ["tcp", pytest.param("two-stage", marks=pytest.mark.slow)])
    def test_changes_a_network_or_what_it_says(
        self, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: StudyResults, arm: str
    ) -> None:
        """With its training and tuning labels turned round, the result is the same; its test labels are read once."""
        real = study.parted

        def turned_round(*arguments: Any, **options: Any) -> tuple[Data, Data]:
            source, target = real(*arguments, **options)
            held = {name: getattr(target, name) for name in ("train", "tune")}
            turned = {name: Images(s.images, 9 - s.labels) for name, s in held.items()}
            return source, dataclasses.replace(target, **turned)

        monkeypatch.setattr(study, "parted", turned_round)
        place = Folder(tmp_path, sample(samples))
        wanted = cell_of(arm, 0.5)
        rows = {cell: place.run(cell) for cell in in_order([wanted])}
        assert rows[wanted] == results.rows[wanted]

    def test_but_its_images_do(self, results: StudyResults) -> None:
        with_it, without = (results.rows[cell_of(arm, 0.5)]["target"] for arm in ("tcp", "without-target"))
        assert with_it != without


class TestVerdict:
    MEANS: Mapping[tuple[str, float], float] = {
        ("tcp", 0.0): 50.0, ("tcp", 0.25): 50.0, ("tcp", 0.5): 48.0, ("without-target", 0.0): 33.0,
        ("without-target", 0.25): 32.0, ("without-target", 0.5): 31.0, ("statistics", 0.5): 35.0,
        ("two-stage", 0.5): 40.0,
    }  # fmt: skip

    def made_up(self, **moved: float) -> StudyResults:
        """Results whose seeds differ by the same in every arm, and by a little of their own."""
        rows = {}
        for cell in study.cells(Scale.SMALL):
            key = (cell.arm, float(cell.values["removed"] or 0))
            shift = moved.get(f"{key[0].replace('-', '_')}_{round(100 * key[1])}", 0.0)
            own = 0.05 * ((cell.seed * 7 + len(key[0]) + round(100 * key[1])) % 3)
            rows[cell] = {"target": self.MEANS[key] + shift + 0.5 * cell.seed + own, "source": 80.0}
        return StudyResults(rows=rows)

    def verdicts(self, results: StudyResults) -> list[Verdict]:
        return [claim.verdict for claim in study.verdict(results)]

    def test_the_papers_outcome_reproduces_its_claims(self) -> None:
        yes = Verdict.REPRODUCED
        assert self.verdicts(self.made_up()) == [yes, yes, Verdict.INCONCLUSIVE, yes, yes, yes]
        assert self.verdicts(self.made_up(tcp_25=1.0))[2] is yes

    @pytest.mark.parametrize(
        ("moved", "which"),
        [
            ({"without_target_0": 20.0}, 0), ({"tcp_25": -5.0}, 1), ({"tcp_25": -5.0}, 2),
            ({"without_target_50": 20.0}, 3), ({"two_stage_50": 20.0}, 4), ({"statistics_50": 20.0}, 5),
        ],
    )  # fmt: skip
    def test_the_other_outcome_contradicts_them(self, moved: dict[str, float], which: int) -> None:
        assert self.verdicts(self.made_up(**moved))[which] is Verdict.CONTRADICTED

    def test_the_bound_is_the_deviation_of_the_unpruned_network(self) -> None:
        claim = study.verdict(self.made_up())[1]
        unpruned = list(self.made_up().by_seed("target", "tcp", removed=0.0).values())
        assert claim.findings[0].bound == pytest.approx(-float(torch.tensor(unpruned, dtype=torch.float64).std()))

    def test_one_seed_decides_nothing(self, results: StudyResults) -> None:
        assert set(self.verdicts(results)) == {Verdict.INCONCLUSIVE}


def test_the_page_has_the_parts_and_both_pictures(samples: Path, results: StudyResults) -> None:
    found = results_to_json("transfer-pruning", Scale.SMOKE, results, data=sample(samples), command="compress study")
    assert all(part in found["about"] for part in ("**Claim:**", "**Command:**", "**Expected:**", "**Cost:**"))
    for plot in found["plots"]:
        assert [len(one["points"]) for one in plot["curves"]] == [3, 3, 1, 1]
    assert "transfer-pruning" in studies.names()
