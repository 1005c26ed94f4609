"""The command line of repair and sensitivity: what is on by default, what the results say, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compressor.checkpoint.loading import load
from compressor.data.samples import first
from compressor.data.sources import load_data
from compressor.data.splits import SplitName
from compressor.surgery.masks import maskable
from compressor.training.loop import correct_in
from tests.support.command_line import ARCH, done, refused


class TestRepair:
    @pytest.mark.usefixtures("inputs")
    def test_it_is_on_by_default_where_there_is_data_and_says_what_it_did(self) -> None:
        result = done("prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--data", "data.npz", "--json")
        results = json.loads(result.stdout)
        assert results["prune"]["criterion"] == "obs"
        assert results["repair"]["how"] == "least-squares"
        assert results["repair"]["data"] == "data"
        before, after = results["repair"]["rise"]
        assert after < before
        assert [step["step"] for step in results["lineage"]] == ["prune", "repair"]

    @pytest.mark.usefixtures("inputs")
    def test_without_data_nothing_is_repaired_and_l1_norm_judges(self) -> None:
        results = json.loads(done("prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--json").stdout)
        assert results["prune"]["criterion"] == "l1-norm"
        assert "repair" not in results

    @pytest.mark.usefixtures("inputs")
    def test_a_budget_of_macs_is_shared_by_measurement_where_there_is_data(self) -> None:
        result = done("prune", "tiny.pt", *ARCH, "--macs", 0.5, "--align", 1, "--data", "data.npz", "--json")
        prune = json.loads(result.stdout)["prune"]
        assert prune["scope"] == "measured"
        dense, small = prune["achieved"]["macs"]
        assert small <= 0.5 * dense
        assert {curve["root"] for curve in prune["curves"]} == {"body.0", "body.3"}

    @pytest.mark.usefixtures("inputs")
    @pytest.mark.parametrize("how", ["mean", "batch-norm", "least-squares", "distill"])
    def test_every_repair_writes_an_artifact_that_evaluates(self, how: str) -> None:
        done("prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--data", "data.npz", "--repair", how, "--calibration", 64)
        done("evaluate", "--data", "data.npz")
        done("report")
        assert "Repair before any retraining" in Path("tiny.compressed/report.html").read_text()

    @pytest.mark.usefixtures("inputs")
    def test_without_data_the_images_are_synthetic_and_the_results_say_so(self) -> None:
        result = done("prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--repair", "least-squares", "--json")
        assert json.loads(result.stdout)["repair"]["data"] == "synthetic images"

    @pytest.mark.usefixtures("inputs")
    def test_without_data_a_mean_comes_from_the_batch_norms(self) -> None:
        result = done("prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--repair", "mean", "--json")
        repair = json.loads(result.stdout)["repair"]
        assert repair["data"] == "the batch norms"
        assert repair["rise"] == [None, None]

    @pytest.mark.usefixtures("inputs")
    def test_a_normalisation_that_is_given_stays_with_the_network(self) -> None:
        ask = ("prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--data", "data.npz", "--json")
        plain = json.loads(done(*ask, "--dry-run").stdout)["repair"]["rise"]
        given = json.loads(done(*ask, "--mean", "0.5", "--std", "0.25").stdout)["repair"]["rise"]
        assert given != plain
        assert json.loads(Path("tiny.compressed/recipe.json").read_text())["preprocessing"]["mean"] == [0.5]

    @pytest.mark.usefixtures("inputs")
    def test_a_mean_alone_is_refused(self) -> None:
        ask = ("prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--data", "data.npz", "--mean", "0.5")
        refused(*ask, says="a mean without a deviation", hints="--std")

    @pytest.mark.usefixtures("inputs")
    def test_a_misspelt_repair_is_refused(self) -> None:
        refused(
            "prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--repair", "least-square", says="no repair called",
            hints="least-squares",
        )  # fmt: skip

    @pytest.mark.usefixtures("inputs")
    def test_measuring_without_data_is_refused(self) -> None:
        refused("prune", "tiny.pt", *ARCH, "--macs", 0.5, "--scope", "measured", says="needs images", hints="--data")

    @pytest.mark.usefixtures("inputs")
    @pytest.mark.parametrize("how", ["mean", "batch-norm", "least-squares", "distill"])
    def test_every_repair_takes_masked_weights(self, how: str) -> None:
        ask = ("prune", "tiny.pt", *ARCH, "--sparsity", 0.5, "--data", "data.npz", "--calibration", 64, "--dry-run")
        results = json.loads(done(*ask, "--repair", how, "--json").stdout)
        assert results["repair"]["how"] == how
        assert results["repair"]["data"] == "data"
        assert [step["step"] for step in results["lineage"]] == ["mask", "repair"]

    @pytest.mark.usefixtures("inputs")
    def test_masked_weights_without_data_or_without_repair_are_left_as_they_are(self) -> None:
        for ask in ((), ("--data", "data.npz", "--repair", "none")):
            results = json.loads(done("prune", "tiny.pt", *ARCH, "--sparsity", 0.5, *ask, "--dry-run", "--json").stdout)
            assert "repair" not in results

    @pytest.mark.usefixtures("inputs")
    def test_a_mean_of_single_weights_takes_images(self) -> None:
        ask = ("prune", "tiny.pt", *ARCH, "--sparsity", 0.5, "--repair", "mean")
        refused(*ask, says="by mean needs images", hints="--data")

    @pytest.mark.usefixtures("inputs")
    def test_masked_weights_are_repaired_on_synthetic_images_where_there_are_no_others(self) -> None:
        ask = ("prune", "tiny.pt", *ARCH, "--sparsity", 0.5, "--repair", "least-squares", "--calibration", 64)
        assert json.loads(done(*ask, "--dry-run", "--json").stdout)["repair"]["data"] == "synthetic images"

    @pytest.mark.parametrize(
        ("option", "says"),
        [(("--repair", "least"), "no repair called"), (("--memory", 0), "must be positive")],
    )
    @pytest.mark.usefixtures("inputs")
    def test_what_means_nothing_is_refused_for_masks_too(self, option: tuple[object, ...], says: str) -> None:
        refused("prune", "tiny.pt", *ARCH, "--sparsity", 0.5, "--data", "data.npz", *option, says=says, hints="")

    @pytest.mark.parametrize(
        "option",
        [
            ("--scope", "measured"), ("--scope", "isomorphic"), ("--criterion", "taylor"), ("--align", 8),
            ("--min-channels", 4), ("--levels", 3), ("--largest",), ("--head-features",),
        ],
    )  # fmt: skip
    @pytest.mark.usefixtures("inputs")
    def test_what_only_channels_have_is_refused_for_single_weights(self, option: tuple[object, ...]) -> None:
        refused("prune", "tiny.pt", *ARCH, "--sparsity", 0.5, *option, says=str(option[0]), hints="--ratio")

    @pytest.mark.usefixtures("workdir")
    def test_a_sample_model_without_nine_weights_of_ten_works_again(self, samples: Path) -> None:
        """On 500 test images: chance as it was masked, above 80 % with 64 images to fit (91 % of 10,000 with 512)."""
        model, data = samples / "fashion_resnet20.pt", samples / "fashion_sample.npz"
        ask = ("prune", model, "--sparsity", 0.9, "--scope", "global", "--data", data, "--calibration", 64)
        shown = done(*ask).stdout
        assert "90.00 %, asked 90.00 %" in shown
        assert "repair: least-squares on 64 images of fashion_sample; output error" in shown
        artifact = load(Path("fashion_resnet20.compressed"))
        weights = [p.detach().flatten() for p in maskable(artifact.module).values()]
        assert int((torch.cat(weights) == 0).sum()) == int(0.9 * sum(len(w) for w in weights))
        done("report")
        assert "Repair before any retraining" in Path("fashion_resnet20.compressed/report.html").read_text()
        test = first(load_data(str(data)).split(SplitName.TEST), 500, seed=0)
        assert correct_in(artifact.module.eval(), test, preprocessing=artifact.preprocessing) > 400

    @pytest.mark.usefixtures("inputs")
    def test_a_memory_budget_of_nothing_is_refused(self) -> None:
        refused("prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--memory", 0, says="must be positive", hints="--memory")


class TestSensitivity:
    @pytest.mark.usefixtures("inputs")
    def test_it_gives_a_table_a_picture_and_json_that_agree(self) -> None:
        shown = done("sensitivity", "tiny.pt", *ARCH, "--data", "data.npz", "--align", 4).stdout
        found = json.loads(done("sensitivity", "tiny.pt", *ARCH, "--data", "data.npz", "--align", 4, "--json").stdout)
        picture = Path("tiny.sensitivity.svg").read_text()
        assert picture.startswith("<svg xmlns=")
        for group in found["groups"]:
            assert group["root"] in shown
            assert group["root"] in picture
            assert group["errors"][0] == 0
            assert len(group["errors"]) == len(group["widths"])
            assert group["widths"] == sorted(group["widths"], reverse=True)
        assert found["data"]["fitted"] > found["data"]["probed"] > 0

    @pytest.mark.usefixtures("inputs")
    def test_without_images_it_is_refused(self) -> None:
        refused("sensitivity", "tiny.pt", *ARCH, says="takes images", hints="--data")

    @pytest.mark.usefixtures("inputs")
    def test_a_picture_that_cannot_be_written_is_refused(self) -> None:
        refused(
            "sensitivity", "tiny.pt", *ARCH, "--data", "data.npz", "--out", "gone/p.svg", says="cannot write",
            hints="--out",
        )  # fmt: skip
