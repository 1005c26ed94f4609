"""What `compress adapt` writes, and what it refuses, in the library and on the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.checkpoint.artifacts import open_artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.loading import load
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import ArtifactError, DataError, GroupError, PlanError, RetrainError
from compressor.jobs import adapt as adapting
from compressor.jobs.adapt import Adaptation, adapt_to, adaptation_from, states_beside
from compressor.planning.costs import count
from tests.support.command_line import ARCH, done, refused
from tests.support.two_domains import source_data, target_data

ASK = ("adapt", "tiny.pt", *ARCH, "--source", "data.npz", "--target", "target.npz")
BRIEF = ("--epochs", 1, "--batch-size", 16)  # without a budget there are no rounds
FEW = ("--epochs", 1, "--round-epochs", 1, "--final-epochs", 1, "--batch-size", 16, "--calibration", 32)


@pytest.fixture
def two(inputs: Path) -> Path:
    """A working folder with the tiny network, its data, and a target without labels: the same in negative."""
    with np.load(inputs / "data.npz") as data:
        np.savez(inputs / "target.npz", images=255 - data["images"])
    return inputs


@pytest.fixture
def tiny(two: Path) -> Checkpoint:
    return load(two / "tiny.pt", arch=ARCH[1], inputs=(ARCH[3],))


def some(tiny: Checkpoint, **wishes: Any) -> Adaptation:
    known: dict[str, Any] = {
        "macs": 0.5, "epochs": 1, "rounds": 2, "round_epochs": 1, "final_epochs": 1, "batch_size": 16,
        "calibration": 32, **wishes,
    }  # fmt: skip
    return adaptation_from(tiny, **known)


class TestCommand:
    @pytest.mark.usefixtures("two", "trusting")
    def test_it_writes_an_artifact_that_other_commands_take(self) -> None:
        results = json.loads(done(*ASK, "--macs", 0.5, *FEW, "--rounds", 2, "--json").stdout)
        dense, small = results["prune"]["achieved"]["macs"]
        assert 0.3 * dense < small <= 0.5 * dense
        assert results["prune"]["criterion"] == "transfer"
        assert [step["step"] for step in results["lineage"]] == ["adapt", "prune", "adapt", "prune", "adapt", "adapt"]
        assert results["adapt"]["target"]["name"] == "target"
        found = load(Path("tiny.compressed"))
        assert count(found.module, found.example_inputs).macs == small
        assert not Path("tiny.compressed.partial").exists()
        assert "correct" in done("evaluate", "--data", "data.npz").stdout
        done("report")
        page = Path("tiny.compressed/report.html").read_text()
        assert "adapt" in page
        assert "target" in page

    @pytest.mark.slow
    @pytest.mark.usefixtures("two")
    def test_it_comes_back_in_a_fresh_process_and_is_retrained(self) -> None:
        shown = done(*ASK, "--macs", 0.5, *FEW, "--rounds", 1).stdout
        assert "surgery proof" in shown
        done("retrain", "--epochs", 1, "--data", "data.npz", "--out", "again.compressed")
        assert [step["step"] for step in load(Path("again.compressed")).lineage][-2:] == ["adapt", "retrain"]

    @pytest.mark.usefixtures("two", "trusting")
    def test_without_a_budget_nothing_is_pruned(self) -> None:
        shown = done(*ASK, *BRIEF)
        assert "adapted to 160 unlabelled images of target" in shown.stdout
        assert "surgery proof" not in shown.stdout
        assert "epoch 1/1: loss" in shown.stderr
        assert "takes labels" in shown.stderr
        dense = load(Path("tiny.pt"), arch=ARCH[1], inputs=(ARCH[3],))
        small = load(Path("tiny.compressed"))
        assert count(small.module, small.example_inputs) == count(dense.module, dense.example_inputs)

    @pytest.mark.usefixtures("two", "trusting")
    def test_classes_of_the_target_that_the_network_does_not_know_do_not_matter(self) -> None:
        torch.save({"state_dict": torch.load("tiny.pt", weights_only=True), "classes": ["a", "b"]}, "tiny.pt")
        with np.load("target.npz") as data:
            np.savez("target.npz", images=data["images"], labels=np.array(["cat", "dog"] * (len(data["images"]) // 2)))
        assert "adapted to" in done(*ASK, *BRIEF).stdout
        words = ("evaluate", "tiny.compressed", "--data", "target.npz")
        refused(*words, says="no class called `cat`", hints="a, b")

    @pytest.mark.parametrize(
        ("options", "says", "hints"),
        [
            (("--target", "tiny.pt"), "tiny.pt is not data that can be read", "a folder of images"),
            (("--macs", 1.5), "must lie between 0 and 1", "--macs 0.5"),
            (("--macs", 0.5, "--rounds", 0), "0 rounds", "--rounds"),
            (("--layer", "body.9"), "no layer called `body.9`", "body."),
            (("--macs", 0.5, "--layer", "body.6"), "neither a linear layer", "--layer"),
            (("--weight", -1), "domain weight", "--weight"),
            (("--lr", 0), "learning rate", "--lr"),
            (("--epochs", 0), "at least one epoch", "--epochs"),
            (("--augment", "flop"), "no augmentation called", "flip"),
            (("--source", "target.npz"), "no labels to train on", "class folders"),
            (("--device", "abacus"), "cannot train on `abacus`", "--device cpu"),
        ],
    )
    @pytest.mark.usefixtures("two")
    def test_what_makes_no_run_is_refused(self, options: tuple[object, ...], says: str, hints: str) -> None:
        given = {
            "--source": "data.npz",
            "--target": "target.npz",
            **dict(zip(options[::2], options[1::2], strict=True)),
        }
        usual = FEW if "--macs" in given else BRIEF
        words = [word for pair in {**dict(zip(usual[::2], usual[1::2], strict=True)), **given}.items() for word in pair]
        refused("adapt", "tiny.pt", *ARCH, *words, says=says, hints=hints)

    @pytest.mark.usefixtures("two", "trusting")
    def test_a_folder_that_is_there_is_not_overwritten_unasked(self) -> None:
        done(*ASK, *BRIEF)
        refused(*ASK, *BRIEF, says="is there already", hints="--force")
        done(*ASK, *BRIEF, "--force", "--seed", 1)
        assert open_artifact(Path("tiny.compressed")).results().to_json()["adapt"]["recipe"]["seed"] == 1


@pytest.mark.usefixtures("trusting")
class TestRun:
    def run(
        self, tiny: Checkpoint, target: Data, folder: str = "out.compressed", *, rounds: int = 1, **options: Any
    ) -> dict[str, Any]:
        plain = dataclasses.replace(tiny, preprocessing=dataclasses.replace(tiny.preprocessing, size=(16, 16)))
        return adapt_to(Path(folder), plain, source_data(), target, some(tiny, rounds=rounds), **options).to_json()

    def test_no_label_of_the_target_changes_the_artifact(self, tiny: Checkpoint) -> None:
        data = target_data()
        assert isinstance(data.train, Images)
        flipped = dataclasses.replace(
            data, train=Images(data.train.images, 1 - data.train.labels), tune=None, test=None
        )
        for name, target in (("a", data), ("b", flipped)):
            self.run(tiny, target, f"{name}.compressed")
        one, other = (load(Path(f"{name}.compressed")).module.state_dict() for name in "ab")
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    def test_an_interrupted_run_goes_on_and_leaves_nothing_behind(self, tiny: Checkpoint) -> None:
        self.run(tiny, target_data(), "whole.compressed")
        began: list[object] = []

        def interrupt(progress: Any) -> None:
            began.append(progress)
            if progress.record is not None and len([p for p in began if p.record]) == 3:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.run(tiny, target_data(), callbacks=(interrupt,))
        assert states_beside(Path("out.compressed")).is_dir()
        self.run(tiny, target_data())
        assert not states_beside(Path("out.compressed")).exists()
        one, other = (load(Path(f"{name}.compressed")).module.state_dict() for name in ("whole", "out"))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    def test_the_place_is_checked_before_anything_is_trained(self, tiny: Checkpoint) -> None:
        Path("out.compressed").write_text("in the way")

        def never(_: object) -> None:
            raise AssertionError("a step was taken")

        with pytest.raises(ArtifactError, match="in the way"):
            self.run(tiny, target_data(), callbacks=(never,))

    def test_a_target_without_training_images_is_refused(self, tiny: Checkpoint) -> None:
        with pytest.raises(DataError, match="no train split"):
            self.run(tiny, dataclasses.replace(target_data(), train=None))


class TestWishes:
    def test_the_defaults_are_the_papers_shape(self, tiny: Checkpoint) -> None:
        made = adaptation_from(tiny)
        assert made.pruning is None
        assert made.alignment.layer == "body.8"
        assert str(made.recipe.schedule.shape) == "inverse"
        assert (made.recipe.schedule.rate, made.recipe.schedule.warmup) == (adapting.RATE, 0.0)

    def test_they_are_written_down_as_plain_values(self, tiny: Checkpoint) -> None:
        told = json.loads(json.dumps(some(tiny, macs=0.75).to_json()))
        assert told["pruning"]["stays"] == 0.75
        assert told["pruning"]["between"]["budget"] == {"epochs": 1}
        assert told["alignment"]["kernels"] == {"count": 5, "factor": 2.0, "width": None}

    @pytest.mark.parametrize(
        ("wrong", "kind"),
        [
            ({"macs": 0.0}, PlanError), ({"calibration": 1}, PlanError), ({"rate": -1.0}, RetrainError),
            ({"epochs": 0}, RetrainError), ({"layer": "nowhere"}, GroupError),
        ],
    )  # fmt: skip
    def test_what_makes_no_run_is_refused(self, tiny: Checkpoint, wrong: dict[str, Any], kind: type) -> None:
        with pytest.raises(kind):
            some(tiny, **wrong)
