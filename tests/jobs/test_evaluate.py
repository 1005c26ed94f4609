from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.artifacts import open_artifact
from compressor.checkpoint.loading import load
from compressor.cli.main import app
from compressor.data.sources import load_data
from compressor.data.splits import SplitName
from compressor.errors import DataError
from compressor.jobs.evaluate import chosen_split
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.surgery.plan import ChannelBudget

SAMPLES = Path(__file__).parents[2] / "sample_models"
RESNET = SAMPLES / "fashion_resnet20.pt"
COUNT = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned artifact; a few test images as an .npz, in class folders, and without labels."""
    folder = tmp_path_factory.mktemp("made")
    test = load_data(str(SAMPLES / "fashion_sample.npz")).split(SplitName.TEST)
    dense = load(RESNET)
    assert dense.classes is not None
    images, labels = [], []
    for index in range(COUNT):
        image, label = test[index]
        images.append(image.numpy())
        labels.append(label)
        picture = Image.fromarray(image[0].numpy())
        for place in (folder / "classes" / dense.classes[label].replace(" ", "_").upper(), folder / "flat"):
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{index:03}.png")
    np.savez(folder / "few.npz", test_images=np.stack(images), test_labels=np.array(labels))
    pruned = prune(dense, Request(budget=ChannelBudget(ratio=0.25)))
    source = {"path": str(RESNET), "sha256": dense.sha256}
    write_artifact(
        folder / "net.compressed",
        pruned.checkpoint,
        source=source,
        results=Results.from_json({"schema": 1, "prune": pruned.result.to_json()}),
        verify=False,
    )
    return folder


def evaluate(*words: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def rows_of(*words: object) -> list[dict[str, Any]]:
    result = evaluate(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]  # JSON is what it is


class TestAccuracy:
    def test_a_checkpoint_is_counted_the_same_on_every_form_of_the_data(self, made: Path) -> None:
        array = rows_of(RESNET, "--data", made / "few.npz")
        folder = rows_of(RESNET, "--data", made / "classes", "--split", "all")
        assert [(r["model"], r["total"], r["split"]) for r in array + folder] == [
            ("network", COUNT, "test"),
            ("network", COUNT, "all"),
        ]
        assert array[0]["correct"] == folder[0]["correct"] > 0.8 * COUNT

    def test_an_artifact_is_judged_beside_its_dense_network_and_remembers_it(self, made: Path) -> None:
        for _ in range(2):  # the second takes the first one's place
            small, dense = rows_of(made / "net.compressed", "--data", made / "few.npz")
        assert (small["model"], dense["model"]) == ("small", "dense")
        assert dense["correct"] > 0.8 * COUNT
        assert dense["low"] < dense["correct"] / COUNT < dense["high"]
        assert open_artifact(made / "net.compressed").results().to_json()["evaluate"] == [small, dense]

    def test_an_onnx_file_says_what_its_network_says(self, made: Path) -> None:
        exported = CliRunner().invoke(app, ["export", str(made / "net.compressed"), "--onnx", "--json"])
        assert exported.exit_code == 0, exported.stderr
        said = json.loads(exported.stdout)
        assert Path(said["file"]) == made / "net.compressed" / "model.onnx"
        assert said["largest_relative_difference"] <= 1e-4
        found = open_artifact(made / "net.compressed").results().to_json()["export"]
        assert found == {k: v for k, v in said.items() if k != "file"}
        onnx_row, _ = rows_of(said["file"], "--data", made / "classes", "--split", "all")
        small, _ = rows_of(made / "net.compressed", "--data", made / "classes", "--split", "all")
        assert onnx_row == {**small, "model": "onnx"}

    def test_the_newest_artifact_is_taken_and_said(self, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(made)
        result = evaluate("--data", "few.npz")
        assert result.exit_code == 0
        assert "taking the newest artifact here: net.compressed" in result.stderr
        assert f" / {COUNT} correct" in result.stdout
        assert "small: " in result.stdout
        assert "dense: " in result.stdout

    def test_a_drawn_split_is_said_to_be_drawn(self, made: Path) -> None:
        result = evaluate(RESNET, "--data", made / "classes")
        assert result.exit_code == 0
        assert "no test split of its own" in result.stderr
        assert " / 6 correct" in result.stdout


class TestAgreement:
    def test_without_labels_it_is_agreement_and_says_so(self, made: Path) -> None:
        (row,) = rows_of(made / "net.compressed", "--data", made / "flat", "--split", "all")
        assert row["total"] == COUNT
        assert row["relative_error"] > 0
        assert "correct" not in row
        shown = evaluate(made / "net.compressed", "--data", made / "flat", "--split", "all")
        assert f"{row['agreeing']} / {COUNT} agree with the dense network" in shown.stdout
        assert "agreement with the dense network, not accuracy" in shown.stderr

    def test_a_network_agrees_with_itself(self, made: Path) -> None:
        (row,) = rows_of(RESNET, "--data", made / "flat", "--dense", RESNET, "--split", "all")
        assert (row["agreeing"], row["relative_error"]) == (COUNT, 0.0)

    def test_without_a_dense_network_there_is_nothing_to_say(self, made: Path) -> None:
        result = evaluate(RESNET, "--data", made / "flat")
        assert result.exit_code == 1
        assert "no labels" in result.stderr
        assert "--dense PATH" in result.stderr


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--data", "nowhere"), "there is no data called `nowhere`"),
            (("--data", "few.npz", "--split", "train"), "few has no train split"),
            (("--data", "few.npz", "--split", "tset"), "there is no split called `tset`"),
            (("--data", "few.npz", "--mean", "0.5"), "a mean without a deviation"),
            (("--data", "few.npz", "--mean", "x", "--std", "1"), "not numbers"),
            (("--data", "strange"), "the network has no class called `fox`"),
        ],
    )
    def test_one_message_and_a_way_out(
        self, made: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(made)
        (made / "strange" / "fox").mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28)).save(made / "strange" / "fox" / "1.png")
        result = evaluate(RESNET, *words)
        assert result.exit_code == 1
        assert said in " ".join(result.stderr.split())
        assert "hint: " in result.stderr
        assert result.stdout == ""

    def test_another_tools_onnx_file_needs_data(self, made: Path, tmp_path: Path) -> None:
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("GlobalAveragePool", ["x"], ["p"]), onnx.helper.make_node("Flatten", ["p"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, ["n", 1, 28, 28])],
            [onnx.helper.make_tensor_value_info("y", 1, ["n", 1])],
        )
        proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
        (tmp_path / "mean.onnx").write_bytes(proto.SerializeToString())
        result = evaluate(tmp_path / "mean.onnx")
        assert result.exit_code == 1
        assert "mean comes without data" in result.stderr
        result = evaluate(tmp_path / "mean.onnx", "--data", made / "few.npz")
        assert "labels from 0 to 9 do not fit" in result.stderr


class TestSplit:
    def test_the_default_is_the_test_split_where_there_is_one(self, tmp_path: Path) -> None:
        images = np.arange(12 * 16, dtype=np.uint8).reshape(12, 4, 4)
        both = {"train_images": images[:9], "test_images": images[9:]}
        np.savez(tmp_path / "both.npz", **both)
        data = load_data(str(tmp_path / "both.npz"))
        assert (chosen_split(data, None)[0], len(chosen_split(data, None)[1])) == ("test", 3)
        assert len(chosen_split(data, "all")[1]) == 12
        with pytest.raises(DataError):
            chosen_split(data, "testing")

    def test_without_one_it_is_the_tune_split(self, tmp_path: Path) -> None:
        images = np.arange(11 * 16.0).reshape(11, 4, 4) / 176
        np.savez(tmp_path / "d.npz", train_images=images[:9], val_images=images[9:])
        assert chosen_split(load_data(str(tmp_path / "d.npz")), None)[0] == "tune"


@pytest.mark.usefixtures("trusting")
def test_a_masked_artifact_gets_a_sparse_file_too(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["prune", str(RESNET), "--sparsity", "0.9", "--out", str(tmp_path / "m.compressed")]
    )
    assert result.exit_code == 0, result.stderr
    result = CliRunner().invoke(app, ["export", str(tmp_path / "m.compressed"), "--json"])
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    sparse = tmp_path / "m.compressed" / "model.sparse.onnx"
    assert said["sparse"]["bytes"] == sparse.stat().st_size < said["bytes"]
    assert "not time" in said["sparse"]["statement"]


def test_export_of_a_plain_checkpoint_goes_where_one_stands(workdir: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(RESNET), "--opset", "18"])
    assert result.exit_code == 0, result.stderr
    assert "opset 18, any batch size" in result.stdout
    assert [p.name for p in workdir.glob("*.onnx")] == ["fashion_resnet20.onnx"]
    refused = CliRunner().invoke(app, ["export", str(RESNET), "--opset", "99"])
    assert refused.exit_code == 1
    assert "opset 99 cannot be written" in refused.stderr
    folder = CliRunner().invoke(app, ["export", str(RESNET), "--out", str(workdir)])
    assert folder.exit_code == 1
    assert "is a folder" in folder.stderr


def test_torch_threads_are_those_asked_for(made: Path) -> None:
    before = torch.get_num_threads()
    try:
        assert evaluate(RESNET, "--data", made / "few.npz", "--threads", "1").exit_code == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
