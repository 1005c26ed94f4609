from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from compressor.checkpoint.artifact_writing import add_results, write_artifact
from compressor.checkpoint.artifacts import Artifact, open_artifact
from compressor.checkpoint.loading import load
from compressor.checkpoint.recipes import How
from compressor.cli import retrain as command_file
from compressor.cli.main import app
from compressor.data.sources import load_data
from compressor.errors import ArtifactError, RetrainError
from compressor.jobs import retrain as retraining
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.results.changes import Pruning
from compressor.results.parity import Parity
from compressor.surgery.masks import apply_mask_, magnitude
from compressor.surgery.plan import ChannelBudget
from compressor.training.loop import Progress
from compressor.training.ways import Wishes

SIZES = {"train": 40, "tune": 10, "test": 10}
RESNET = Path(__file__).parents[2] / "sample_models" / "fashion_resnet20.pt"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pruned artifact, a masked one, and a few images; copied by nobody, so: not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    generator = np.random.default_rng(0)
    images = {f"{s}_images": generator.integers(0, 256, (n, 28, 28), dtype=np.uint8) for s, n in SIZES.items()}
    labels = {f"{s}_labels": generator.integers(0, 10, n) for s, n in SIZES.items()}
    np.savez(folder / "few.npz", **images, **labels)
    dense = load(RESNET)
    source = {"path": str(RESNET), "sha256": dense.sha256}
    pruned = prune(dense, Request(budget=ChannelBudget(ratio=0.5)))
    results = {
        "schema": 1,
        "prune": pruned.result.to_json(),
        "export": {"opset": 20, "bytes": 1, "largest_relative_difference": 0.0},
        "bench": {"old": 1},
        "evaluate": [],
        "quantize": {"float_bytes": 2, "int8_bytes": 1},
    }
    measured = Results.from_json(results)
    write_artifact(folder / "net.compressed", pruned.checkpoint, source=source, results=measured, verify=False)
    module = load(RESNET).module
    mask = magnitude(module, sparsity=0.9)
    apply_mask_(module, mask)
    masked = load(RESNET)
    write_artifact(
        folder / "masked.compressed", type(masked)(**{**fields_of(masked), "module": module}),
        source=source, results=Results.from_json({"schema": 1, "mask": {}}), verify=False, mask=mask,
    )  # fmt: skip
    return folder


def fields_of(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def prepared(artifact: Artifact, how: How = How.FINE_TUNE, **options: Any) -> retraining.Retraining:
    wishes = options.pop("wishes", Wishes(epochs=2, batch_size=16) if how is How.FINE_TUNE else Wishes())
    return retraining.prepare(artifact, how, wishes=wishes, **options)


class TestPrepare:
    def test_the_place_is_beside_the_artifact_and_named_after_the_way(self, made: Path) -> None:
        plan = prepared(open_artifact(made / "net.compressed"))
        assert plan.folder == made / "net.fine-tune.compressed"
        assert plan.state_file == made / "net.fine-tune.compressed.partial" / "train.state"

    def test_standing_inside_the_artifact_changes_nothing(self, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(made / "net.compressed")
        place = retraining.default_folder(open_artifact(Path()), How.SCRATCH_E)
        assert place.resolve() == made / "net.scratch-e.compressed"

    def test_scratch_b_reads_the_costs_from_the_results(self, made: Path) -> None:
        artifact = open_artifact(made / "net.compressed")
        dense, small = artifact.results().to_json()["prune"]["achieved"]["macs"]
        assert prepared(artifact, How.SCRATCH_B).recipe.budget.epochs == 12 * dense // small

    def test_a_place_that_is_taken_is_refused_unless_forced(self, made: Path) -> None:
        artifact = open_artifact(made / "net.compressed")
        with pytest.raises(ArtifactError, match="is there already"):
            prepared(artifact, folder=made / "masked.compressed")
        prepared(artifact, folder=made / "masked.compressed", force=True)

    def test_a_teacher_is_the_dense_network(self, made: Path) -> None:
        teacher = prepared(open_artifact(made / "net.compressed"), taught=True).teacher
        assert teacher is not None
        assert torch.equal(teacher.get_parameter("conv1.weight"), load(RESNET).module.get_parameter("conv1.weight"))
        softer = prepared(open_artifact(made / "net.compressed"), taught=True, wishes=Wishes(epochs=2, temperature=2.5))
        assert softer.recipe.temperature == 2.5
        assert retraining.wants_teacher("dense")
        assert not retraining.wants_teacher(None)
        with pytest.raises(RetrainError, match="no teacher called `resnet152`"):
            retraining.wants_teacher("resnet152")


class TestRun:
    def test_the_artifact_says_what_was_done_and_drops_what_is_no_longer_true(self, made: Path, tmp_path: Path) -> None:
        artifact = open_artifact(made / "net.compressed")
        plan = prepared(artifact, folder=tmp_path / "out.compressed")
        entry = retraining.run(plan, load_data(str(made / "few.npz")), command="compress retrain").to_json()
        results = open_artifact(tmp_path / "out.compressed").results().to_json()
        assert set(results) == {"schema", "name", "prune", "retrain", "lineage"}
        assert results["retrain"] == [json.loads(json.dumps(entry))]
        assert (entry["how"], entry["epochs"], entry["images"], entry["command"]) == (
            "fine-tune",
            2,
            40,
            "compress retrain",
        )
        assert entry["notes"] == list(plan.recipe.notes)
        assert [step["step"] for step in results["lineage"]] == ["prune", "retrain"]
        small = open_artifact(tmp_path / "out.compressed").checkpoint()
        assert small.training == artifact.checkpoint().training
        assert [p.name for p in tmp_path.iterdir()] == ["out.compressed"]

    @pytest.mark.usefixtures("trusting")
    def test_a_mask_survives_retraining(self, made: Path, tmp_path: Path) -> None:
        plan = prepared(open_artifact(made / "masked.compressed"), folder=tmp_path / "out.compressed")
        retraining.run(plan, load_data(str(made / "few.npz")))
        artifact = open_artifact(tmp_path / "out.compressed")
        mask, module = artifact.mask(), artifact.checkpoint().module
        assert mask is not None
        assert mask.sparsity == pytest.approx(0.9, abs=1e-4)
        for name, kept in mask.kept.items():
            assert not bool(module.get_parameter(name)[~kept].any())


class TestCommand:
    def invoke(self, *words: str) -> Any:
        return CliRunner().invoke(app, ["retrain", *words])

    @pytest.mark.usefixtures("trusting")
    def test_an_interrupted_command_says_where_it_was_kept_and_goes_on(
        self, made: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        @contextlib.contextmanager
        def interrupting() -> Iterator[Any]:
            def press(progress: Progress) -> None:
                if (progress.epoch, progress.iteration) == (1, 1):
                    raise KeyboardInterrupt

            yield press

        words = (str(made / "net.compressed"), "--epochs", "2", "--batch-size", "16", "--data", str(made / "few.npz"))
        with monkeypatch.context() as patched:
            patched.setattr(command_file, "progress_bar", interrupting)
            stopped = self.invoke(*words, "--out", "a.compressed")
        assert stopped.exit_code == 130
        assert "a.compressed.partial/train.state" in stopped.stderr.replace("\n", "")
        assert not (workdir / "a.compressed").exists()
        resumed = self.invoke(*words, "--out", "a.compressed", "--json")
        assert resumed.exit_code == 0, resumed.stderr
        assert "going on from" in resumed.stderr
        assert "epoch 1/2" not in resumed.stderr
        assert "epoch 2/2" in resumed.stderr
        assert len(json.loads(resumed.stdout)["history"]) == 2
        plan = prepared(open_artifact(made / "net.compressed"), folder=workdir / "b.compressed")
        whole = retraining.run(plan, load_data(str(made / "few.npz")))
        assert whole.to_json()["history"] == json.loads(resumed.stdout)["history"]
        ours, theirs = (load(workdir / f"{n}.compressed").module.state_dict() for n in "ab")
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        assert sorted(p.name for p in workdir.iterdir() if p.name != "state") == ["a.compressed", "b.compressed"]

    @pytest.mark.parametrize(
        ("words", "said", "hint"),
        [
            (("--how", "finetune"), "no way to retrain called `finetune`", "fine-tune"),
            (("--schedule", "cosin"), "no schedule called `cosin`", "cosine"),
            (("--optimiser", "adam"), "no optimiser called `adam`", "adamw"),
            (("--augment", "flop"), "no augmentation called `flop`", "flip"),
            (("--teacher", "me"), "no teacher called `me`", "--teacher dense"),
            (("--temperature", "4"), "a temperature softens a teacher's scores", "--teacher dense"),
            (("--teacher", "dense", "--temperature", "0"), "a temperature must be positive", "--temperature 4"),
            (("--how", "scratch-e", "--epochs", "3"), "follows from the dense network", "--dense-epochs"),
            (("--lr", "-1"), "must be positive", "--lr"),
            (("--epochs", "0"), "`--epochs` of 0", "--epochs 3"),
            (("--how", "rewind-weights"), "needs an early checkpoint", "--rewind-to"),
            (("--data", "nowhere.npz"), "nowhere.npz is not there", ""),
            (("--device", "gpu"), "cannot train on `gpu`", "--device cpu"),
            (("--out", "few.npz"), "is in the way", "--out"),
        ],
    )
    def test_wrong_wishes_are_refused_before_anything_is_written(
        self, made: Path, words: tuple[str, ...], said: str, hint: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(made)
        before = sorted(made.rglob("*"))
        result = self.invoke("net.compressed", "--data", "few.npz", *words)
        assert result.exit_code == 1
        stderr = " ".join(result.stderr.split())
        assert said in stderr
        assert hint in stderr
        assert result.stdout == ""
        assert sorted(made.rglob("*")) == before

    def test_names_in_wishes_are_understood(self) -> None:
        from compressor.training.ways import wishes_from

        wishes = wishes_from(shape="step", optimiser="adamw", augment="none", epochs=2)
        assert (wishes.shape, wishes.optimiser, wishes.augment, wishes.epochs) == ("step", "adamw", (), 2)
        assert wishes_from(augment="flip, crop").augment == ("flip", "crop")
        assert wishes_from().augment is None


def test_add_results_keeps_what_is_there(made: Path, tmp_path: Path) -> None:
    """What `record` and `export` rely on."""
    plan = open_artifact(made / "net.compressed")
    write_artifact(
        tmp_path / "x.compressed",
        plan.checkpoint(),
        source=plan.recipe["source"],
        results=Results.from_json({"schema": 1, "prune": {}}),
        verify=False,
    )
    parity = Parity(opset=20, bytes=1, largest_relative_difference=0.0)
    add_results(tmp_path / "x.compressed", export=parity)
    assert open_artifact(tmp_path / "x.compressed").results() == Results(pruning=Pruning(), export=parity)
