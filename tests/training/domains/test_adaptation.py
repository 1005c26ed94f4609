from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import Schedule, Shape, Step
from compressor.data.domains import TargetDomain, target_of
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.errors import GroupError, RetrainError
from compressor.training.domains.adaptation import Alignment, JointLoss, adapt, alignment_of, domain_weight
from compressor.training.domains.mmd import mmd
from compressor.training.loop import Progress, train
from tests.support.two_domains import (
    PREPROCESSING,
    RECIPE,
    bars,
    checkpoint,
    network,
    same_bytes,
    source_data,
    state_of,
    target_data,
)

ALIGNMENT = Alignment(layer="11")


def joint(**fields: Any) -> JointLoss:
    known: dict[str, Any] = {
        "target": target_of(target_data()), "alignment": ALIGNMENT, "recipe": RECIPE, "size": (8, 8),
        "preprocessing": PREPROCESSING,
    }  # fmt: skip
    return JointLoss(**{**known, **fields})


def adapted(start: Checkpoint | None = None, target: TargetDomain | None = None, **options: Any) -> Checkpoint:
    known: dict[str, Any] = {"recipe": RECIPE, "alignment": ALIGNMENT, **options}
    return adapt(start or checkpoint(), source_data(), target or target_of(target_data()), **known)


class TestWeight:
    @pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.0), (0.5, 0.98661), (1.0, 0.99991)])
    def test_it_rises_as_in_the_paper(self, progress: float, expected: float) -> None:
        assert domain_weight(progress) == pytest.approx(expected, abs=1e-5)
        assert domain_weight(progress) == pytest.approx(math.tanh(5 * progress), abs=1e-12)  # the same, otherwise said

    def test_a_network_that_is_adapted_already_keeps_the_whole_weight(self) -> None:
        assert Alignment(layer="fc", weight=0.3).at(0.0) == 0
        assert Alignment(layer="fc", weight=0.3, rising=False).at(0.0) == 0.3

    @pytest.mark.parametrize("wrong", [-1.0, math.inf, math.nan])
    def test_one_that_is_no_weight_is_refused(self, wrong: float) -> None:
        with pytest.raises(RetrainError, match="domain weight"):
            Alignment(layer="fc", weight=wrong)


class TestSchedule:
    def test_the_rate_falls_as_in_the_paper(self) -> None:
        schedule = Schedule(rate=0.01, shape=Shape.INVERSE, warmup=0.0)
        for p in (0.0, 0.3, 1.0):
            assert schedule.at(p) == pytest.approx(0.01 / (1 + 10 * p) ** 0.75)


class TestJointLoss:
    def test_it_is_the_cross_entropy_and_the_weighted_discrepancy(self) -> None:
        """In eval mode both domains are independent: two passes must say what the joint one says."""
        module, loss = network(), joint()
        images = bars(16, seed=7)
        inputs = PREPROCESSING(images.images)
        others = loss.target.batch(3, size=16, preprocessing=PREPROCESSING, seed=RECIPE.seed)
        body = module[:11]
        expected = functional.cross_entropy(module(inputs), images.labels)
        expected = expected + domain_weight(3 / 8) * mmd(body(inputs), body(others))
        found = loss(module, inputs, images.labels, step=3, steps=8)
        torch.testing.assert_close(found, expected)
        without = joint(alignment=Alignment(layer="11", weight=0.0))
        assert float(without(module, inputs, images.labels, step=3, steps=8).detach()) < float(found.detach())

    def test_the_batch_norms_see_both_domains(self) -> None:
        module = network().train()
        source = bars(16, seed=7)
        loss = joint(alignment=Alignment(layer="11", weight=0.0))
        loss(module, PREPROCESSING(source.images), source.labels, step=0, steps=8)
        alone = network().train()
        alone(PREPROCESSING(source.images))
        assert not torch.equal(module[1].running_mean, alone[1].running_mean)

    def test_images_of_another_shape_are_refused(self) -> None:
        wider = TargetDomain(Images(torch.zeros(20, 1, 9, 9, dtype=torch.uint8)), name="wider")
        loss = joint(target=wider, preprocessing=Preprocessing())
        with pytest.raises(RetrainError, match="target images"):
            loss(network(), torch.zeros(4, 1, 8, 8), torch.zeros(4).long(), step=0, steps=1)


class TestAdapt:
    def test_no_label_of_the_target_changes_anything(self) -> None:
        """The target with its labels flipped, and with none at all, gives the same bytes."""
        data = target_data()
        assert isinstance(data.train, Images)
        flipped = dataclasses.replace(data, train=Images(data.train.images, 1 - data.train.labels))
        none = dataclasses.replace(data, train=Images(data.train.images))
        first = adapted(target=target_of(data))
        for other in (flipped, none):
            assert same_bytes(first.module, adapted(target=target_of(other)).module)

    def test_its_images_do(self) -> None:
        first, other = adapted(), adapted(target=target_of(source_data()))
        assert not same_bytes(first.module, other.module)

    def test_the_features_of_both_domains_come_closer_than_without_the_loss(self) -> None:
        recipe = dataclasses.replace(RECIPE, budget=Step(epochs=6))
        apart = {}
        for weight in (0.0, 1.0):
            module = adapted(recipe=recipe, alignment=Alignment(layer="11", weight=weight)).module
            features = [module[:11](PREPROCESSING(d.tune.images)) for d in (source_data(), target_data())]  # type: ignore[union-attr]
            apart[weight] = float(mmd(*(f.detach() for f in features)))
        assert apart[1.0] < 0.5 * apart[0.0]

    def test_without_a_target_it_is_training_on_the_source(self) -> None:
        found = adapt(checkpoint(), source_data(), None, recipe=RECIPE, alignment=ALIGNMENT)
        plain = train(network(), source_data(), recipe=RECIPE, preprocessing=PREPROCESSING)
        assert same_bytes(found.module, plain.module)
        assert found.lineage[-1]["target"] is None

    def test_the_checkpoint_stays_as_it_was_and_the_lineage_says_what_was_done(self) -> None:
        start = checkpoint()
        before = state_of(start.module)
        found = adapted(start)
        assert all(torch.equal(t, before[n]) for n, t in start.module.state_dict().items())
        entry: Any = found.lineage[-1]
        assert (entry["step"], entry["epochs"], len(entry["history"])) == ("adapt", 2, 2)
        assert entry["target"] == {"name": target_data().name, "images": 64}
        assert entry["alignment"]["layer"] == "11"

    def test_an_interrupted_run_resumes_bit_by_bit(self, tmp_path: Path) -> None:
        state = tmp_path / "a.state"
        with pytest.raises(InterruptedError):
            adapted(state_file=state, callbacks=(interrupt(1, 2),))
        assert same_bytes(adapted().module, adapted(state_file=state).module)

    def test_the_state_of_another_target_or_weight_is_refused(self, tmp_path: Path) -> None:
        state = tmp_path / "a.state"
        adapted(state_file=state)
        for other in ({"target": target_of(source_data())}, {"alignment": Alignment(layer="11", weight=0.5)}):
            with pytest.raises(RetrainError, match="another objective"):
                adapted(state_file=state, **other)
        with pytest.raises(RetrainError, match="another objective"):
            train(network(), source_data(), recipe=RECIPE, preprocessing=PREPROCESSING, state_file=state)

    def test_a_source_without_labels_is_refused(self) -> None:
        data = dataclasses.replace(source_data(), train=Images(bars(20, seed=0).images))
        with pytest.raises(RetrainError, match="no labels to train on"):
            adapt(checkpoint(), data, target_of(target_data()), recipe=RECIPE, alignment=ALIGNMENT)

    def test_batches_of_one_image_are_refused(self) -> None:
        with pytest.raises(RetrainError, match="one image"):
            adapted(recipe=dataclasses.replace(RECIPE, batch_size=1))

    def test_an_objective_leaves_no_place_for_a_teacher(self) -> None:
        with pytest.raises(ValueError, match="no place for a teacher"):
            train(
                network(), source_data(), recipe=RECIPE, preprocessing=PREPROCESSING, teacher=network(),
                objective=joint(),
            )  # fmt: skip


class TestAlignment:
    def test_it_is_on_the_last_linear_layer_unless_another_is_named(self) -> None:
        assert alignment_of(checkpoint()).layer == "11"
        assert alignment_of(checkpoint(), layer="9").layer == "9"
        with pytest.raises(GroupError, match="no layer called `fc`"):
            alignment_of(checkpoint(), layer="fc")

    def test_another_layer_is_another_loss(self) -> None:
        assert not same_bytes(adapted().module, adapted(alignment=Alignment(layer="9")).module)

    def test_a_layer_that_runs_twice_is_refused(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(64, 64)
                self.head = nn.Linear(64, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y: torch.Tensor = self.head(self.fc(self.fc(x.flatten(1))))
                return y

        with pytest.raises(GroupError, match="ran 2 times"):
            adapted(checkpoint(Twice()), alignment=Alignment(layer="fc", rising=False))


def interrupt(epoch: int, iteration: int) -> Callable[[Progress], None]:
    def callback(progress: Progress) -> None:
        if (progress.epoch, progress.iteration) == (epoch, iteration):
            raise InterruptedError

    return callback
