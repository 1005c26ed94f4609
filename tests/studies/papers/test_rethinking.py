"""The study `rethinking`: what its arms are, what a cell does, and that every claim can go either way."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import Recipe, Shape, Start
from compressor.cli.study import data_of
from compressor.data.samples import Images
from compressor.data.splits import Data, SplitName
from compressor.planning.costs import Cost, count
from compressor.studies.papers import rethinking
from compressor.studies.papers.rethinking import (
    CAPPED,
    CHANCE,
    CHOOSERS,
    DENSE,
    GLOBAL,
    MAGNITUDE,
    MEASURED,
    PUBLISHED,
    REWIND,
    SCRATCH_B,
    SCRATCH_E,
    SLIMMING,
    SPARSE,
    TUNED,
    UNIFORM,
    WAYS,
    dense_recipe,
    pruned_by,
    recipe_of,
)
from compressor.studies.runner import Folder, results_to_json, run_study
from compressor.studies.study import Cell, Scale, StudyResults, Verdict
from compressor.studies.subjects import subject
from compressor.surgery.masks import magnitude


@functools.cache
def sample() -> Data:
    found: Data = data_of(None, root=None, download=False)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rethinking")


@pytest.fixture(scope="module")
def results(folder: Path) -> StudyResults:
    return run_study("rethinking", Scale.SMOKE, sample, folder, seeds=1)


def dense_cells(scale: Scale) -> dict[str, Cell]:
    return {cell.arm: cell for cell in rethinking.cells(scale) if cell.seed == 0 and not cell.needs}


def cell_of(arm: str, scale: Scale = Scale.SMALL, **values: Any) -> Cell:
    found = [
        c for c in rethinking.cells(scale) if c.arm == arm and all(c.values.get(k) == v for k, v in values.items())
    ]
    return found[0]


@functools.cache
def dense_network() -> Checkpoint:
    cell = dense_cells(Scale.SMALL)[DENSE]
    return subject("sample_models.networks:resnet8", data=sample(), training=dense_recipe(cell))


class TestArms:
    def recipe(self, arm: str, macs: tuple[int, int] = (400, 100)) -> Recipe:
        dense, small = (Cost(params=1, macs=m, bytes=4) for m in macs)
        return recipe_of(cell_of(arm), dense_network(), dense_cost=dense, small_cost=small)

    def rates(self, arm: str) -> list[float]:
        schedule = self.recipe(arm).schedule
        return [round(schedule.at(k / 100), 7) for k in range(100)]

    def test_the_published_fine_tuning_is_a_quarter_of_the_epochs_at_the_dense_runs_last_rate(self) -> None:
        dense = dense_recipe(dense_cells(Scale.SMALL)[DENSE])
        assert set(self.rates(PUBLISHED)) == {round(dense.schedule.at(0.999), 7)} == {0.001}
        assert self.recipe(PUBLISHED).budget.epochs * 4 == dense.budget.epochs
        assert cell_of(PUBLISHED, Scale.PAPER).values["fine_tune_epochs"] == 40

    def test_the_tuned_one_takes_as_long_and_has_a_schedule(self) -> None:
        assert self.recipe(TUNED).budget == self.recipe(PUBLISHED).budget
        assert max(self.rates(TUNED)) == pytest.approx(0.02)
        assert min(self.rates(TUNED)[50:]) < 0.001

    def test_rewinding_repeats_the_dense_rates(self) -> None:
        dense = dense_recipe(dense_cells(Scale.SMALL)[DENSE])
        assert self.rates(REWIND) == [round(dense.schedule.at(k / 100), 7) for k in range(100)]
        assert dense.schedule.shape is Shape.STEP
        assert self.recipe(REWIND).start is Start.TRAINED

    @pytest.mark.parametrize(("arm", "epochs"), [(SCRATCH_E, 8), (SCRATCH_B, 32), (CAPPED, 16)])
    def test_scratch_is_as_long_as_its_name_says_and_never_draws_the_dense_networks_weights(
        self, arm: str, epochs: int
    ) -> None:
        made = self.recipe(arm)
        assert made.budget.epochs == epochs
        assert made.start is Start.FRESH
        assert made.seed not in {cell.seed for scale in Scale for cell in rethinking.cells(scale)}

    def test_only_the_sparse_network_is_penalised(self) -> None:
        dense = dense_cells(Scale.SMALL)
        assert dense_recipe(dense[SPARSE]).bn_l1 > 0
        assert dense_recipe(dense[DENSE]).bn_l1 == 0
        assert all(self.recipe(arm).bn_l1 == 0 for arm in WAYS)


@pytest.mark.parametrize("scale", list(Scale))
def test_slimming_prunes_the_sparse_network_and_all_else_the_dense_one_of_its_seed(scale: Scale) -> None:
    cells = rethinking.cells(scale)
    assert len({cell.key for cell in cells}) == len(cells)
    for cell in cells:
        wanted = SPARSE if cell.values.get("source") == SLIMMING else DENSE
        assert [(n.arm, n.seed) for n in cell.needs] == ([(wanted, cell.seed)] if "source" in cell.values else [])


@pytest.mark.parametrize("source", CHOOSERS)
def test_whoever_chooses_the_widths_leaves_the_macs_of_uniform_pruning(source: str) -> None:
    data, cell = rethinking.images_of(cell_of(SCRATCH_B, Scale.SMOKE), sample()), dense_cells(Scale.SMOKE)[DENSE]
    dense = subject("sample_models.networks:resnet8", data=data, training=dense_recipe(cell), seed=3)
    uniform = pruned_by(UNIFORM, dense, 0.5, data=data, seed=0)
    assert {w / d for w, d in zip(rethinking.widths_of(uniform).values(), (16, 16, 32, 32, 64, 64), strict=True)} == {
        0.5
    }
    pruned = pruned_by(source, dense, 0.5, data=data, seed=0)
    real = count(pruned.checkpoint.module, dense.example_inputs).macs
    assert 0.97 <= real / uniform.small_cost.macs <= 1.0001
    if source not in (SLIMMING, GLOBAL):  # of untrained weights all scales are one, and all norms alike
        assert rethinking.widths_of(pruned) != rethinking.widths_of(uniform)


class TestCells:
    def test_lengths_and_macs_are_those_of_the_arms(self, results: StudyResults) -> None:
        for cell, row in results.where(source=UNIFORM):
            assert row["macs"] == pytest.approx(0.2528, abs=1e-3)
            expected = {PUBLISHED: 1, TUNED: 1, REWIND: 2, SCRATCH_E: 2, SCRATCH_B: 7, CAPPED: 4}
            assert row["epochs"] == expected[cell.arm]
        budget = results.where(SCRATCH_B)
        assert all(1.7 < row["epochs"] * row["macs"] <= 2.0 for _, row in budget)
        assert all(row["macs"] < 0.256 for _, row in results.where(CAPPED))
        assert all(0.1 < row["macs"] < 0.4 for _, row in results.where(source=MAGNITUDE))

    def test_one_replicate_decides_nothing(self, results: StudyResults, folder: Path) -> None:
        found = results_to_json("rethinking", Scale.SMOKE, results, data=sample(), command="")
        assert {claim["verdict"] for claim in found["claims"]} == {"inconclusive"}
        assert len(found["plots"]) == 3
        assert all(plot["curves"] for plot in found["plots"])
        assert len(list(folder.glob("*.json"))) == len(results)

    @pytest.mark.parametrize("arm", [PUBLISHED, SCRATCH_E])
    def test_the_test_split_is_read_once_and_behind_the_mask_everything_is_zero(
        self, results: StudyResults, folder: Path, monkeypatch: pytest.MonkeyPatch, arm: str
    ) -> None:
        seen: list[tuple[str, Checkpoint]] = []
        percent = rethinking.percent_correct

        def spied(network: Checkpoint, data: Data, split: SplitName) -> float:
            seen.append((str(split), network))
            return percent(network, data, split)

        monkeypatch.setattr(rethinking, "percent_correct", spied)
        cell = next(iter(results.where(arm, source=MAGNITUDE).rows))
        place = Folder(folder, sample())
        place._cell = cell
        row = rethinking.run(cell, place)
        assert row == results.rows[cell]
        place.state_file.unlink()
        (tested,) = [network for split, network in seen if split == "test"]
        state = place.state_of(cell.needs[0])
        dense = subject(str(cell.values["ref"]), data=rethinking.images_of(cell, sample()), state=state)
        mask = magnitude(dense.module, sparsity=0.9, protect=("fc",))
        weights = {n: tested.module.get_parameter(n) for n in mask.kept}
        assert all(not bool(weights[n][~kept].any()) and bool(weights[n][kept].all()) for n, kept in mask.kept.items())
        kept_on = [
            float(torch.corrcoef(torch.stack([weights[n][k], dense.module.get_parameter(n)[k]]).detach())[0, 1])
            for n, k in mask.kept.items()
            if int(k.sum()) > 30
        ]
        assert (statistics.fmean(kept_on) > 0.9) == (arm == PUBLISHED)  # scratch inherits nothing

    def test_images_are_cut_and_made_smaller_and_the_same_for_all_seeds(self) -> None:
        cell = cell_of(SCRATCH_E, Scale.SMOKE)
        first, second = (rethinking.images_of(c, sample()) for c in (cell, dataclasses.replace(cell, seed=1)))
        assert first.sizes == {"train": 128, "tune": 64, "test": 100}
        assert isinstance(first.train, Images)
        assert isinstance(second.train, Images)
        assert first.train.images.shape == (128, 1, 14, 14)
        assert torch.equal(first.train.images, second.train.images)


def made_up(accuracy: Callable[[Cell], float], *, spread: float = 0.1) -> StudyResults:
    """Results of the small scale: an arm's accuracy, with seeds `spread` apart."""
    rows: dict[Cell, Mapping[str, Any]] = {}
    for cell in rethinking.cells(Scale.SMALL):
        rows[cell] = {"accuracy": accuracy(cell) + spread * (cell.seed - 1), "macs": 0.25, "epochs": 8}
    return StudyResults(rows=rows)


def verdicts(results: StudyResults) -> list[Verdict]:
    return [claim.verdict for claim in rethinking.verdict(results)]


AS_CLAIMED = {PUBLISHED: 85.0, TUNED: 88.0, REWIND: 88.5, SCRATCH_E: 82.0, SCRATCH_B: 86.0, CAPPED: 85.5}
BETTER = {GLOBAL: 0.2, SLIMMING: 0.5, MEASURED: 1.0, UNIFORM: 0.7, CHANCE: -2.0}


def as_claimed(cell: Cell) -> float:
    better = BETTER.get(str(cell.values.get("source")), 0.0) if cell.arm == CAPPED else 0.0
    return AS_CLAIMED.get(cell.arm, 87.0) + better


def the_opposite(cell: Cell) -> float:
    return 170.0 - as_claimed(cell)


class TestVerdict:
    def test_every_claim_can_be_reproduced(self) -> None:
        assert verdicts(made_up(as_claimed)) == [Verdict.REPRODUCED] * 6

    def test_every_claim_can_be_contradicted(self) -> None:
        assert verdicts(made_up(the_opposite)) == [Verdict.CONTRADICTED] * 6

    def test_seeds_that_differ_more_than_arms_decide_nothing(self) -> None:
        assert set(verdicts(made_up(as_claimed, spread=30.0))) == {Verdict.INCONCLUSIVE}

    def test_scratch_may_be_worse_by_a_deviation_and_no_more(self) -> None:
        def of(gap: float) -> list[Any]:
            found = made_up(lambda c: 85.0 + (gap if c.arm in (SCRATCH_B, CAPPED) else 0.0), spread=1.0)
            return [f for f in rethinking.verdict(found)[0].findings if f.interval is not None]

        assert [f.bound for f in of(0.0)] == [pytest.approx(-1.0)] * 5
        assert {f.verdict for f in of(2.0)} == {Verdict.REPRODUCED}
        assert {f.verdict for f in of(-4.0)} == {Verdict.CONTRADICTED}

    def test_the_first_claim_is_about_channels_whoever_chose_them(self) -> None:
        quantities = [finding.quantity for finding in rethinking.verdict(made_up(as_claimed))[0].findings]
        assert quantities == [
            "scratch-b minus fine-tune-published, l1-norm uniform at 0.3",
            "scratch-b minus fine-tune-published, l1-norm uniform at 0.5",
            "scratch-b-capped minus fine-tune-published, slimming at 0.5",
            "scratch-b-capped minus fine-tune-published, obs measured at 0.5",
            "scratch-b-capped minus fine-tune-published, l1-norm uniform at 0.7",
        ]

    def test_architectures_are_ranked_the_best_first_and_against_chance(self) -> None:
        assert [source for source, _ in rethinking.ranked(made_up(as_claimed))] == [
            MEASURED, UNIFORM, SLIMMING, GLOBAL, CHANCE,
        ]  # fmt: skip
        findings = rethinking.verdict(made_up(as_claimed))[-1].findings
        assert [f.quantity.partition(" minus")[0] for f in findings] == [MEASURED, UNIFORM, SLIMMING, GLOBAL]
        assert findings[0].interval is not None
        assert findings[0].interval.estimate == pytest.approx(3.0)

    def test_plots_show_every_arm_and_the_ranking(self) -> None:
        channels, weights, ranking = rethinking.plots(made_up(as_claimed))
        assert {c.name for c in channels.curves} == {DENSE, *WAYS}
        assert [p.x for c in channels.curves if c.name == SCRATCH_E for p in c.points] == [0.3, 0.5, 0.7]
        assert {c.name for c in weights.curves} == {DENSE, PUBLISHED, TUNED, SCRATCH_E}
        assert [(c.name, c.points[0].x) for c in ranking.curves][:2] == [(MEASURED, 1), (UNIFORM, 2)]
