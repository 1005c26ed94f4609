"""`compress quantize` as a user types it: what is written, said of accuracy and speed, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor.checkpoint.artifacts import open_artifact
from compressor.cli.quantize import show
from compressor.environment import saturates_int8
from compressor.jobs import quantize as quantizing
from compressor.measuring.onnx_network import load_onnx
from compressor.measuring.turns import Measurement
from compressor.report.integers import int8_section
from compressor.results.artifact import Results
from tests.support.command_line import ARCH, done, refused, run, snapshot


def timed(*_: object, batch: int, **__: object) -> tuple[Measurement, Measurement]:
    """Calls that take no time: float 100 nanoseconds and more, int8 50 and more."""
    blocks = {ns: tuple((ns + i,) * 3 for i in range(20)) for ns in (100, 50)}
    dense, small = (Measurement(name=f"{ns}", batch_size=batch, samples_ns=blocks[ns]) for ns in blocks)
    return dense, small


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "timed_in_turns", timed)


@pytest.fixture(scope="module")
def said(made: Path) -> str:
    """What the command says that puts the int8 file into the pruned artifact."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setenv("COMPRESS_STATE_DIR", str(made / "state"))
        patch.setattr(quantizing, "timed_in_turns", timed)
        return str(done("quantize", "--data", "data.npz", "--images", 32).stdout)


@pytest.fixture
def quantised(said: str, pruned: Path) -> Path:
    """The working folder with the artifact and its int8 file in it."""
    assert said
    return pruned


def results_of(folder: str) -> dict[str, Any]:
    return open_artifact(Path(folder)).results().to_json()


@pytest.mark.usefixtures("clock", "quantised")
class TestArtifact:
    def test_the_file_joins_it_with_everything_measured(self, said: str) -> None:
        section = results_of("tiny.compressed")["quantize"]
        how = section["how"]
        assert {n: how[n] for n in ("images", "per_channel", "reduce_range", "target", "seed")} == {
            "images": 32, "per_channel": True, "reduce_range": None, "target": "here", "seed": 0,
        }  # fmt: skip
        assert how["bits"] == (7 if saturates_int8() else 8)
        assert how["why"] in said
        assert section["data"]["images"] == 32
        assert section["int8_bytes"] == Path("tiny.compressed/model.int8.onnx").stat().st_size
        assert section["float_bytes"] == Path("tiny.compressed/model.onnx").stat().st_size
        assert [(row["batch"], row["candidate"]) for row in section["rows"]] == [
            (1, "float"), (1, "int8"), (64, "float"), (64, "int8"),
        ]  # fmt: skip
        assert all(len(row["samples_ns"]) == 20 for row in section["rows"])
        assert section["agreement"]["split"] == section["accuracy"]["int8"]["split"] == "tune"
        assert "1.84× (" in said  # the median of (100 + i) / (50 + i)
        assert "agreement with the float network" in said
        assert open_artifact(Path("tiny.compressed")).checkpoint().name == "tiny"

    def test_without_labels_it_is_agreement_alone_and_the_float_file_is_taken_as_it_is(self) -> None:
        done("export", "--opset", 18)
        before = Path("tiny.compressed/model.onnx").read_bytes()
        np.savez("plain.npz", images=np.load("data.npz")["images"])
        found = json.loads(done("quantize", "--data", "plain.npz", "--images", 8, "--per-tensor", "--json").stdout)
        assert found["accuracy"] is None
        assert found["how"]["per_channel"] is False
        assert Path(found.pop("file")).exists()
        results = results_of("tiny.compressed")
        assert found == results["quantize"]
        assert Path("tiny.compressed/model.onnx").read_bytes() == before
        assert results["export"]["opset"] == 18

    def test_another_normalisation_is_exported_anew(self) -> None:
        done("quantize", "--data", "data.npz", "--images", 8, "--mean", 0.5, "--std", 0.25)
        for name in ("model.onnx", "model.int8.onnx"):
            assert load_onnx(Path("tiny.compressed") / name).preprocessing.mean == (0.5,)

    def test_out_is_another_artifact_and_this_one_stays(self) -> None:
        before = snapshot(Path("tiny.compressed"))
        done("quantize", "tiny.compressed", "--data", "data.npz", "--images", 8, "--out", "b.compressed")
        assert snapshot(Path("tiny.compressed")) == before
        assert {"prune", "export", "quantize"} <= results_of("b.compressed").keys()
        assert results_of("b.compressed")["quantize"]["how"]["images"] == 8

    def test_its_reading_stands_beside_the_float_files(self) -> None:
        for file in ("model.onnx", "model.int8.onnx"):
            done("evaluate", f"tiny.compressed/{file}", "--data", "data.npz")
        assert {"onnx", "int8"} <= {e["model"] for e in results_of("tiny.compressed")["evaluate"]}

    @pytest.mark.parametrize(
        ("low", "high", "told", "warned"),
        [
            (1.5, 2.0, "1.73× (1.50 to 2.00)", False),
            (0.5, 0.6, "0.55× (0.50 to 0.60), slower", True),
            (0.9, 1.2, "no significant", True),
        ],
    )
    def test_what_the_clock_says_is_said(
        self, low: float, high: float, told: str, warned: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        results = results_of("tiny.compressed")
        for row in results["quantize"]["rows"][1::2]:
            row["speedup"] = {"ratio": (low * high) ** 0.5, "low": low, "high": high}
        found = Results.from_json(results).quantizing
        assert found is not None
        show(Path("model.int8.onnx"), found)
        printed = capsys.readouterr()
        assert told in printed.out
        assert ("int8 is not faster here" in printed.err) == warned
        assert ("not faster than float" in str(int8_section(found))) == warned

    def test_the_report_has_a_section_of_it(self) -> None:
        done("report", "tiny.compressed")
        assert "In 8-bit integers" in Path("tiny.compressed/report.md").read_text()


@pytest.mark.usefixtures("inputs")
def test_a_checkpoint_becomes_an_artifact_timed_on_the_clock() -> None:
    arguments = ("--data", "data.npz", "--images", 16, "--batch", 1, "--threads", 1)
    assert "wrote tiny.int8.compressed/model.int8.onnx" in done("quantize", "tiny.pt", *ARCH, *arguments).stdout
    artifact = open_artifact(Path("tiny.int8.compressed"))
    dense, small = artifact.dense().module, artifact.checkpoint().module
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), small.parameters(), strict=True))
    row = artifact.results().to_json()["quantize"]["rows"][1]
    assert row["speedup"]["low"] <= row["speedup"]["ratio"] <= row["speedup"]["high"]
    assert min(ns for block in row["samples_ns"] for ns in block) > 1000
    assert load_onnx(artifact.folder / "model.int8.onnx").name == "tiny"


@pytest.mark.usefixtures("inputs")
class TestRefusals:
    def test_no_images(self) -> None:
        refused("quantize", "tiny.pt", *ARCH, says="int8 needs images", hints="--data DIR")

    def test_a_test_split_alone(self) -> None:
        held = np.load("data.npz")
        np.savez("test.npz", test_images=held["images"], test_labels=held["labels"])
        refused("quantize", "tiny.pt", *ARCH, "--data", "test.npz", says="only a test split", hints="tuning")

    def test_a_network_that_gives_no_class_scores(self) -> None:
        torch.save(nn.Conv2d(1, 2, 3), "maps.pt")
        refused(
            "quantize", "maps.pt", "--input", "1x1x16x16", "--data", "data.npz", says="not class scores", hints="judged"
        )

    def test_a_folder_in_the_way(self) -> None:
        Path("taken").mkdir()
        Path("taken/notes").touch()
        refused("quantize", "tiny.pt", *ARCH, "--data", "data.npz", "--out", "taken", says="in the way", hints="--out")

    @pytest.mark.parametrize("arguments", [("--images", 0), ("--batch", "one"), ("--batch", "0")])
    def test_numbers_that_are_none(self, arguments: tuple[object, ...]) -> None:
        assert run("quantize", "tiny.pt", *arguments).exit_code == 2
