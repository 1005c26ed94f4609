from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.checkpoint.recipes import Step
from compressor.data.domains import TargetDomain, target_of
from compressor.data.samples import Images
from compressor.errors import PlanError
from compressor.planning.costs import count
from compressor.pruning.transfer.rounds import TransferPruning, Transferred, prune_while_adapting
from compressor.surgery.plan import plan_from_json
from compressor.surgery.surgery import operate
from compressor.training.domains.adaptation import Alignment
from compressor.training.loop import Progress
from tests.support.two_domains import (
    RECIPE,
    checkpoint,
    same_bytes,
    source_data,
    state_of,
    target_data,
    trained_network,
)

SHORT = dataclasses.replace(RECIPE, budget=Step(epochs=1))
ALIGNMENT = Alignment(layer="11")


def pruning(**fields: Any) -> TransferPruning:
    known: dict[str, Any] = {"stays": 0.5, "between": SHORT, "final": RECIPE, "rounds": 2, "images": 48}
    return TransferPruning(**{**known, **fields})


def transferred(target: TargetDomain | None = None, **options: Any) -> Transferred:
    known: dict[str, Any] = {"alignment": ALIGNMENT, "pruning": pruning(), **options}
    return prune_while_adapting(
        checkpoint(trained_network()), source_data(), target or target_of(target_data()), **known
    )


@pytest.fixture(scope="module")
def done() -> Transferred:
    return transferred()


class TestWhatStays:
    def test_the_budget_is_met_by_the_network_itself(self, done: Transferred) -> None:
        dense, small = (count(c.module, c.example_inputs).macs for c in (checkpoint(), done.checkpoint))
        assert 0.4 * dense < small <= 0.5 * dense
        assert done.pruned.result.to_json()["achieved"]["macs"] == [dense, small]

    def test_every_round_takes_the_same_factor(self) -> None:
        shares = [pruning(stays=0.512, rounds=3).share_after(n) for n in (1, 2, 3)]
        assert shares == pytest.approx([0.8, 0.64, 0.512])

    def test_every_round_is_proved_and_told_as_one_pruning(self, done: Transferred) -> None:
        assert all(level.proof.largest_relative_difference < 1e-6 for level in done.pruned.levels)
        told = done.pruned.result.to_json()
        assert (told["requested"], told["criterion"], told["levels"]) == ({"macs": 0.5}, "transfer", 2)
        gone = sum(level.plan.count for level in done.pruned.levels)
        assert told["achieved"]["channels"][0] - told["achieved"]["channels"][1] == gone
        last = {w["layer"]: w["out"] for w in told["widths"]}
        assert last["0"] == [8, done.checkpoint.module[0].out_channels]  # type: ignore[index]
        assert last["11"] == [2, 2]

    def test_the_surgery_of_all_rounds_makes_the_small_shapes_out_of_the_dense_network(self, done: Transferred) -> None:
        assert done.checkpoint.surgery is not None
        small = operate(checkpoint().module, done.checkpoint.surgery)
        shapes = {n: t.shape for n, t in done.checkpoint.module.state_dict().items()}
        assert {n: t.shape for n, t in small.state_dict().items()} == shapes

    def test_the_lineage_tells_every_stage(self, done: Transferred) -> None:
        assert [step["step"] for step in done.checkpoint.lineage] == [*["prune", "adapt"] * 2, "adapt"]
        plans: Any = [step["plans"] for step in done.checkpoint.lineage if step["step"] == "prune"]
        assert all(plan_from_json(plan).count for (plan,) in plans)
        seeds = [step["recipe"]["seed"] for step in done.checkpoint.lineage if step["step"] == "adapt"]  # type: ignore[index]
        assert len(set(seeds)) == 3  # an order of its own for every stage

    def test_the_checkpoint_stays_as_it_was(self) -> None:
        start = checkpoint()
        before = state_of(start.module)
        prune_while_adapting(
            start, source_data(), target_of(target_data()), alignment=ALIGNMENT, pruning=pruning(rounds=1)
        )
        assert all(torch.equal(t, before[n]) for n, t in start.module.state_dict().items())
        assert start.surgery is None

    def test_a_round_that_the_one_before_has_overshot_removes_nothing_and_still_trains(self) -> None:
        found = transferred(pruning=pruning(stays=0.95, rounds=3, align=4))
        steps = [step["step"] for step in found.checkpoint.lineage]
        assert steps.count("prune") < 3
        assert steps.count("adapt") == 4

    def test_protected_layers_and_least_widths_are_kept(self) -> None:
        found = transferred(pruning=pruning(protect=("0",), min_channels=7, stays=0.7, rounds=1))
        widths = {w["layer"]: w["out"][1] for w in found.pruned.result.to_json()["widths"]}
        assert widths["0"] == 8
        assert widths["4"] >= 7
        assert widths["9"] >= 7


class TestChoices:
    def test_no_label_of_the_target_changes_anything(self, done: Transferred) -> None:
        data = target_data()
        assert isinstance(data.train, Images)
        flipped = dataclasses.replace(data, train=Images(data.train.images, 1 - data.train.labels))
        assert same_bytes(done.checkpoint.module, transferred(target_of(flipped)).checkpoint.module)

    def test_the_target_decides_what_leaves(self) -> None:
        """From the same weights, before any training: on the source alone other channels leave."""
        deep, start = pruning(stays=0.25, rounds=1, final=None), checkpoint(trained_network())
        both, alone = (
            prune_while_adapting(start, source_data(), target, alignment=ALIGNMENT, pruning=deep).pruned.levels[0].plan
            for target in (target_of(target_data()), None)
        )
        assert both != alone

    def test_the_weight_is_whole_from_the_first_round_on(self, done: Transferred) -> None:
        told: Any = [s["alignment"] for s in done.checkpoint.lineage if s["step"] == "adapt"]
        assert [t["rising"] for t in told] == [False] * 3
        assert ALIGNMENT.rising


class TestInterruption:
    def test_an_interrupted_run_goes_on_bit_by_bit(self, tmp_path: Path, done: Transferred) -> None:
        with pytest.raises(InterruptedError):
            transferred(states=tmp_path, callbacks=(interrupt(3),))
        seen: list[Progress] = []
        found = transferred(states=tmp_path, callbacks=(seen.append,))
        assert same_bytes(found.checkpoint.module, done.checkpoint.module)
        assert len([p for p in seen if p.record]) == 2  # those of the last training: what was done is not done again


class TestRefusals:
    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"stays": 1.0}, "must lie between 0 and 1"),
            ({"stays": 0.0}, "must lie between 0 and 1"),
            ({"rounds": 0}, "0 rounds"),
            ({"images": 1}, "1 image"),
        ],
    )
    def test_values_that_make_no_run(self, wrong: dict[str, Any], said: str) -> None:
        with pytest.raises(PlanError, match=said):
            pruning(**wrong)

    def test_a_budget_that_cannot_be_met(self) -> None:
        with pytest.raises(PlanError, match="cannot be met"):
            transferred(pruning=pruning(stays=0.01, rounds=1))


def interrupt(stage: int) -> Callable[[Progress], None]:
    """Raises in the first iteration of the stage (a round, or the last training)."""
    begun: list[Progress] = []

    def callback(progress: Progress) -> None:
        if (progress.epoch, progress.iteration) == (0, 0):
            begun.append(progress)
            if len(begun) == stage:
                raise InterruptedError

    return callback
