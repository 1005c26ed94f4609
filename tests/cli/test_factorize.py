"""`compress factorize` as a user types it, and every command that takes what it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor.checkpoint.artifacts import Artifact, open_artifact
from compressor.report.changes import factorized_section
from compressor.results.artifact import Results
from compressor.words import SPACE, percent
from tests.support.command_line import ARCH, done, make_inputs, refused, run, snapshot

FOLDER = "tiny.factors.compressed"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which a tiny network was factorised once, and what the command said."""
    folder = tmp_path_factory.mktemp("factors")
    make_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COMPRESS_STATE_DIR", str(folder / "state"))
        return folder, str(done("factorize", "tiny.pt", *ARCH, "--macs", 0.7).stdout)


@pytest.fixture
def factors(written: tuple[Path, str], workdir: Path) -> Path:
    """The working folder with the factorised artifact in it."""
    shutil.copytree(written[0], workdir, dirs_exist_ok=True)
    return workdir


def results_of(folder: str) -> dict[str, Any]:
    return open_artifact(Path(folder)).results().to_json()


@pytest.mark.usefixtures("factors")
class TestArtifact:
    def test_what_is_written_and_said(self, written: tuple[Path, str]) -> None:
        section = results_of(FOLDER)["factorize"]
        assert section["requested"] == {"macs": 0.7}
        assert section["align"] == 8
        before, after = section["achieved"]["macs"]
        assert after <= 0.7 * before
        assert section["proof"]["largest_relative_difference"] < 1e-10
        (layer,) = section["layers"]
        assert (layer["layer"], layer["kind"], layer["rank"] % 8) == ("body.3", "spatial", 0)
        for told in (
            "body.3",
            percent(layer["energy"], decimals=1).replace(SPACE, " "),
            "left alone: body.8",
            f"wrote {FOLDER}",
            "proof: ",
        ):
            assert told in written[1]

    def test_the_report_shows_ranks_and_proof(self) -> None:
        findings = Results.from_json(results_of(FOLDER))
        assert findings.factorizing is not None
        assert "body.3: rank " in str(factorized_section(findings.factorizing))
        done("report", FOLDER)
        text = Path(FOLDER, "report.md").read_text()
        assert "Low-rank layers" in text
        assert "product of the two that it became" in text
        assert "Nothing has been pruned here" not in text

    def test_it_is_retrained_and_that_exported_and_judged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.delattr(Artifact, "dense")  # what the dense network cost is on record
            done("retrain", FOLDER, "--data", "data.npz", "--epochs", 1, "--out", "r.compressed")
        results = results_of("r.compressed")
        assert [step["step"] for step in results["lineage"]] == ["factorize", "retrain"]
        before, after = (open_artifact(Path(f)).checkpoint().module.state_dict() for f in (FOLDER, "r.compressed"))
        assert before.keys() == after.keys()
        assert not torch.equal(before["body.3.0.weight"], after["body.3.0.weight"])
        done("export", "r.compressed")
        done("evaluate", "r.compressed/model.onnx", "--data", "data.npz")
        assert results_of("r.compressed")["export"]["largest_relative_difference"] < 1e-3

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["scratch-b", "rewind-weights", "rewind-lr"])
    def test_the_other_ways_to_retrain(self, how: str) -> None:
        rewind = ("--rewind-to", "tiny.pt") if how == "rewind-weights" else ()
        length = ("--dense-epochs", 1) if how == "scratch-b" else ("--epochs", 1, "--dense-epochs", 2)
        done("retrain", FOLDER, "--data", "data.npz", "--how", how, *length, *rewind, "--out", "r.compressed")
        assert results_of("r.compressed")["lineage"][-1]["how"] == how

    @pytest.mark.slow
    def test_it_is_timed_and_quantised_and_pruned(self) -> None:
        found = json.loads(done("bench", FOLDER, "--batch", 1, "--blocks", 8, "--json").stdout)
        assert {"dense", "small"} <= {row["candidate"] for row in found["rows"]}
        done("quantize", FOLDER, "--data", "data.npz", "--images", 16, "--batch", 1)
        done("prune", FOLDER, "--ratio", 0.25, "--out", "p.compressed")
        done("factorize", "p.compressed", "--rank", 4, "--out", "q.compressed")
        assert open_artifact(Path("q.compressed")).checkpoint().surgery is not None


@pytest.mark.usefixtures("inputs")
class TestRequests:
    def test_a_dry_run_writes_nothing(self, inputs: Path) -> None:
        before = snapshot(inputs)
        found = json.loads(done("factorize", "tiny.pt", *ARCH, "--how", "separable", "--dry-run", "--json").stdout)
        assert snapshot(inputs) == before
        assert {layer["kind"] for layer in found["factorize"]["layers"]} == {"separable"}
        assert found["factorize"]["requested"] == {"rank": 1}

    @pytest.mark.parametrize(
        ("arguments", "says", "hints"),
        [
            ((), "no budget", "--macs 0.5"),
            (("--macs", 0.5, "--rank", 2), "several budgets", "--macs 0.5"),
            (("--macs", 2), "between 0 and 1", "--macs"),
            (("--energy", 0), "between 0 and 1", "--energy"),
            (("--macs", 0.5, "--how", "spacial"), "`spacial`", "`spatial`"),
            (("--macs", 0.001), "the lowest ranks leave", "--align"),
            (("--macs", 0.5, "--protect", "head*"), "`--protect head*` matches no layer", "body"),
            (("--energy", 0.5, "--how", "svd", "--protect", "body.8"), "nothing to factorise by svd", "--how"),
        ],
    )
    def test_wrong_ones_are_refused(self, arguments: tuple[object, ...], says: str, hints: str) -> None:
        refused("factorize", "tiny.pt", *ARCH, *arguments, says=says, hints=hints)

    def test_a_pickled_module_is_rebuilt_from_its_skeleton(self) -> None:
        torch.manual_seed(0)
        torch.save(nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten()), "whole.pt")
        done("factorize", "whole.pt", "--input", "1x1x16x16", "--rank", 4)
        module = open_artifact(Path("whole.factors.compressed")).checkpoint().module
        assert tuple(module.state_dict()["2.0.weight"].shape) == (4, 16, 3, 1)

    def test_an_exported_program_has_no_layers(self) -> None:
        program = torch.export.export(nn.Sequential(nn.Conv2d(1, 16, 3)).eval(), (torch.zeros(1, 1, 16, 16),))
        torch.export.save(program, "net.pt2")
        refused("factorize", "net.pt2", "--macs", 0.5, says="an exported program", hints="--arch")

    def test_a_rank_of_nothing_is_a_usage_error(self) -> None:
        assert run("factorize", "tiny.pt", "--rank", 0).exit_code == 2

    def test_a_folder_in_the_way_is_refused(self) -> None:
        Path("taken").mkdir()
        Path("taken/notes").touch()
        refused("factorize", "tiny.pt", *ARCH, "--macs", 0.7, "--out", "taken", says="in the way", hints="--out")
