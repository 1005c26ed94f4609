"""The command line: what each command prints and writes, and how each wrong input ends."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from tests.support.command_line import (
    ARCH,
    GATE_MISSED,
    INTERRUPTED,
    NET,
    USAGE,
    done,
    full_disk,
    interrupted,
    make_inputs,
    refused,
    run,
    snapshot,
)


class TestModelFile:
    @pytest.mark.parametrize("command", ["inspect", "evaluate", "export"])
    @pytest.mark.usefixtures("workdir")
    def test_a_missing_one_is_refused(self, command: str) -> None:
        refused(command, "gone.pt", says="gone.pt is not there", hints="check the path")

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("empty.pt", b"", "empty.pt is empty"),
            ("text.pt", b"these are not weights\n" * 9, "text.pt is a text file"),
            ("noise.pt", bytes(range(256)) * 9, "noise.pt is not a checkpoint"),
            ("empty.safetensors", b"", "empty.safetensors is empty"),
            ("noise.safetensors", bytes(range(256)), "not a complete safetensors file"),
            ("net.onnx", b"\x08\x07", "net.onnx is an ONNX file"),
        ],
    )
    @pytest.mark.usefixtures("workdir")
    def test_one_that_is_no_checkpoint_is_refused(self, name: str, content: bytes, says: str) -> None:
        Path(name).write_bytes(content)
        refused("prune", name, "--ratio", 0.5, says=says, hints="")

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
    @pytest.mark.usefixtures("workdir")
    def test_one_that_is_cut_short_is_refused(self, samples: Path, share: float) -> None:
        whole = (samples / "fashion_mobilenet_v2.pt").read_bytes()
        Path("cut.pt").write_bytes(whole[: int(len(whole) * share)])
        refused("inspect", "cut.pt", says="cut.pt", hints="copy it again")

    @pytest.mark.usefixtures("workdir")
    def test_one_without_weights_is_refused(self) -> None:
        torch.save({"epoch": 3, "note": "no weights"}, "other.pt")
        refused("inspect", "other.pt", says="epoch, note", hints="state_dict")

    @pytest.mark.usefixtures("inputs")
    def test_a_state_of_an_unknown_network_asks_for_arch(self) -> None:
        refused("inspect", "tiny.pt", says="not how the network is built", hints="--arch")

    @pytest.mark.usefixtures("inputs")
    def test_a_state_that_does_not_fit_its_architecture_names_the_keys(self) -> None:
        told = refused("inspect", "tiny.pt", "--arch", "torchvision:resnet18", says="conv1.weight", hints="--arch")
        assert "body.0.weight" in told.stderr
        told = refused(
            "inspect", "tiny.pt", *ARCH, "--arch-arg", "width=8", says="of another shape", hints="--arch-arg"
        )
        assert "body.0.weight (file 16x1x3x3, network 8x1x3x3)" in told.stderr

    @pytest.mark.parametrize(
        ("arguments", "says", "hints"),
        [
            (["--arch", "resnet18"], "`resnet18` is not an architecture", "torchvision:resnet18"),
            (["--arch", "torchvision:resnet81"], "no `resnet81`", "did you mean `resnet18`?"),
            (["--arch", "gone.py:Net"], "no file gone.py", "--arch"),
            (["--arch", "net.py:Nett"], "no `Nett`", "did you mean `Net`?"),
            (["--arch", "no.such.package:make"], "cannot import `no.such.package`", "installed"),
            (["--arch", "net.py:Net", "--arch-arg", "width"], "is not of the form k=v", "--arch-arg"),
            (["--arch", "net.py:Net", "--arch-arg", "depth=3"], "depth", "--arch-arg"),
        ],
    )
    @pytest.mark.usefixtures("inputs")
    def test_a_wrong_architecture_is_refused(self, arguments: list[str], says: str, hints: str) -> None:
        refused("inspect", "tiny.pt", *arguments, says=says, hints=hints)

    @pytest.mark.parametrize(
        ("shape", "says"),
        [
            ("banana", "`banana` is not a shape"),
            ("1x1x0x16", "is not a shape"),
            ("1x3x16x16", "does not run on 1x3x16x16"),
            ("16x16", "does not run on 16x16"),
        ],
    )
    @pytest.mark.usefixtures("inputs")
    def test_a_wrong_input_shape_is_refused(self, shape: str, says: str) -> None:
        refused("inspect", "tiny.pt", "--arch", "net.py:Net", "--input", shape, says=says, hints="")

    @pytest.mark.usefixtures("inputs")
    def test_an_input_shape_that_cannot_be_told_is_asked_for(self) -> None:
        refused("inspect", "tiny.pt", "--arch", "net.py:Net", says="several sizes", hints="--input 1x1x")

    @pytest.mark.usefixtures("inputs")
    def test_weights_that_are_not_finite_are_refused_by_name(self) -> None:
        state = torch.load("tiny.pt", weights_only=True)
        state["body.3.weight"][0, 0, 0, 0] = float("nan")
        torch.save(state, "nan.pt")
        refused("prune", "nan.pt", *ARCH, "--ratio", 0.5, says="`body.3.weight`", hints="earlier checkpoint")

    @pytest.mark.usefixtures("inputs")
    def test_a_network_with_nothing_prunable_is_refused(self) -> None:
        torch.save(nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), "flat.pt")
        for command in (["inspect", "flat.pt"], ["prune", "flat.pt", "--ratio", 0.5]):
            refused(*command, "--input", "1x9", says="nothing", hints="")

    @pytest.mark.usefixtures("workdir")
    def test_a_pickle_that_could_run_code_is_refused_with_both_ways_on(self) -> None:
        torch.save({"state_dict": {"w": torch.ones(2)}, "path": Path("x")}, "path.pt")
        told = refused("inspect", "path.pt", says="could run code", hints="--trust-pickle")
        assert "pathlib" in told.stderr
        assert "--arch" in told.stderr


class TestPruneRequest:
    @pytest.mark.parametrize("option", ["--ratio", "--macs", "--params", "--sparsity"])
    @pytest.mark.parametrize(
        "value", ["0", "1", "-1", "1.5"]
    )  # no option takes NaN or infinity: test_wrong_invocations
    @pytest.mark.usefixtures("inputs")
    def test_a_share_outside_of_0_to_1_is_refused(self, option: str, value: str) -> None:
        refused("prune", "tiny.pt", *ARCH, f"{option}={value}", says="between 0 and 1", hints=option)

    @pytest.mark.parametrize("option", ["--ratio", "--macs", "--params", "--sparsity", "--seed", "--min-channels"])
    def test_a_word_in_place_of_a_number_is_a_usage_error(self, inputs: Path, option: str) -> None:
        before = snapshot(inputs)
        result = run("prune", "tiny.pt", option, "abc")
        assert result.exit_code == USAGE
        assert option in result.stderr
        assert result.stdout == ""
        assert snapshot(inputs) == before

    @pytest.mark.parametrize("arguments", [["prune"], ["prune", "tiny.pt", "--ratoi", "0.5"], ["prnue"]])
    @pytest.mark.usefixtures("inputs")
    def test_a_misspelt_command_line_is_a_usage_error(self, arguments: list[str]) -> None:
        assert run(*arguments).exit_code == USAGE

    @pytest.mark.parametrize(
        ("arguments", "says", "hints"),
        [
            ([], "no budget", "--ratio 0.5"),
            (["--ratio", "0.5", "--macs", "0.5"], "several budgets: --ratio, --macs", "set one"),
            (["--ratio", "0.5", "--criterion", "l1-nrom"], "l1-nrom", "did you mean `l1-norm`?"),
            (["--ratio", "0.5", "--scope", "globl"], "globl", "did you mean `global`?"),
            (["--ratio", "0.5", "--align", "much"], "much", "--align 8"),
            (["--ratio", "0.5", "--align", "0"], "`0`", "--align 8"),
            (["--ratio", "0.5", "--levels", "0"], "0", "--levels"),
            (["--ratio", "0.5", "--protect", "nothing*"], "nothing*", "body"),
            (["--ratio", "0.5", "--protect", "*"], "nothing", ""),
            (["--ratio", "0.5", "--criterion", "taylor"], "taylor", "--data"),
        ],
    )
    @pytest.mark.usefixtures("inputs")
    def test_a_wrong_request_is_refused(self, arguments: list[str], says: str, hints: str) -> None:
        refused("prune", "tiny.pt", *ARCH, *arguments, says=says, hints=hints)


class TestPlaceToWrite:
    def test_an_artifact_that_is_there_stays_unless_forced(self, pruned: Path) -> None:
        ask = ("prune", "tiny.pt", *ARCH, "--ratio", 0.25, "--align", 1)
        refused(*ask, says="tiny.compressed is there already", hints="--force")
        before = snapshot(pruned)
        done(*ask, "--force")
        assert snapshot(pruned) != before
        assert not list(pruned.glob("*.old-*")) + list(pruned.glob("*.part-*"))

    @pytest.mark.parametrize("force", [[], ["--force"]])
    def test_what_is_no_artifact_is_never_replaced(self, inputs: Path, force: list[str]) -> None:
        (inputs / "mine").mkdir()
        (inputs / "mine" / "thesis.txt").write_text("years of work")
        ask = ("prune", "tiny.pt", *ARCH, "--ratio", 0.5, *force, "--out")
        refused(*ask, "mine", says="mine is in the way", hints="--out")
        refused(*ask, "net.py", says="net.py is in the way", hints="--out")
        refused(*ask, "net.py/below", says="net.py", hints="--out")

    @pytest.mark.parametrize("left", [0, 2_000])
    @pytest.mark.usefixtures("inputs")
    def test_a_full_disk_leaves_nothing_half_written(self, left: int) -> None:
        with full_disk(left):
            refused("prune", "tiny.pt", *ARCH, "--ratio", 0.5, says="cannot write", hints="space")

    @pytest.mark.usefixtures("pruned")
    def test_a_full_disk_keeps_the_artifact_that_was_to_be_replaced(self) -> None:
        with full_disk(2_000):
            refused("prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--force", says="cannot write", hints="space")

    @pytest.mark.usefixtures("pruned")
    def test_a_full_disk_while_exporting_leaves_no_file(self) -> None:
        with full_disk(2_000):
            refused("export", "tiny.compressed", says="cannot write", hints="")

    @pytest.mark.usefixtures("pruned")
    def test_a_full_disk_while_retraining_leaves_the_artifact(self) -> None:
        with full_disk(2_000):
            refused("retrain", "--data", "data.npz", "--epochs", 1, says="cannot write", hints="space")

    @pytest.mark.usefixtures("pruned")
    def test_export_does_not_write_over_a_folder(self) -> None:
        refused("export", "tiny.compressed", "--out", ".", says="is a folder", hints="--out model.onnx")


class TestArtifact:
    @pytest.mark.parametrize("command", ["retrain", "export", "bench", "report", "evaluate"])
    @pytest.mark.usefixtures("workdir")
    def test_without_one_a_command_says_how_to_make_it(self, command: str) -> None:
        refused(command, says="no artifact in this folder", hints="compress prune")

    @pytest.mark.parametrize("command", ["retrain", "export", "bench", "report", "evaluate"])
    @pytest.mark.usefixtures("workdir")
    def test_a_folder_that_is_none_is_refused(self, command: str) -> None:
        Path("other").mkdir()
        refused(command, "other", says="other is not an artifact", hints="compress prune")

    def test_one_that_was_changed_is_refused(self, pruned: Path) -> None:
        with (pruned / "tiny.compressed" / "model.safetensors").open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"\x77")
        refused("export", says="was changed", hints="prune again")

    def test_code_named_by_arch_once_is_trusted_for_this_user_only(
        self, pruned: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "Net" in done("inspect", "tiny.compressed").stdout
        monkeypatch.setenv("COMPRESS_STATE_DIR", str(pruned / "state" / "of somebody else"))
        refused("inspect", "tiny.compressed", says="would run that code", hints="--arch")
        assert "Net" in done("inspect", "tiny.compressed", *ARCH[:2]).stdout
        assert "Net" in done("inspect", "tiny.compressed").stdout

    @pytest.mark.usefixtures("pruned")
    def test_code_that_changed_is_trusted_no_more(self, made: Path) -> None:
        (made / "net.py").write_text(NET + "\nprint('something else')\n")
        try:
            refused("inspect", "tiny.compressed", says="is not the file", hints="--arch")
        finally:
            (made / "net.py").write_text(NET)


class TestData:
    @pytest.mark.parametrize(
        ("source", "says", "hints"),
        [
            ("gone/folder", "gone/folder is not there", "a folder of images"),
            ("bare", "no images in bare", "*.png"),
            ("fashionmnits", "fashionmnits", "did you mean `fashionmnist`?"),
            ("FashionMNIST", "where is FashionMNIST?", "--data-root"),
            ("net.py:make", "no function `make`", ""),
            ("net.py", "names no function", "net.py:function"),
            ("cut.npz", "cut.npz", ""),
        ],
    )
    @pytest.mark.usefixtures("pruned")
    def test_what_cannot_be_read_is_refused(self, source: str, says: str, hints: str) -> None:
        Path("bare").mkdir()
        Path("cut.npz").write_bytes(Path("data.npz").read_bytes()[:500])
        for command in ("evaluate", "retrain"):
            refused(command, "tiny.compressed", "--data", source, says=says, hints=hints)

    @pytest.mark.usefixtures("pruned")
    def test_an_image_that_is_cut_short_is_named(self) -> None:
        for number in range(8):
            place = Path("images") / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 16), 30 * number).save(place / f"{number}.png")
        broken = Path("images/a/4.png")
        broken.write_bytes(broken.read_bytes()[:50])
        ask = ("evaluate", "tiny.compressed", "--data", "images", "--split", "all")
        refused(*ask, says="images/a/4.png", hints="remove or repair it")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
    @pytest.mark.usefixtures("pruned")
    def test_a_folder_that_may_not_be_read_is_refused(self) -> None:
        Path("locked").mkdir(mode=0)
        refused("evaluate", "tiny.compressed", "--data", "locked", says="cannot read locked", hints="")

    @pytest.mark.usefixtures("pruned")
    def test_a_network_whose_data_nobody_knows_asks_for_it(self) -> None:
        for command in ("evaluate", "retrain"):
            refused(command, says="comes without data", hints="--data")

    @pytest.mark.usefixtures("pruned")
    def test_an_unknown_split_is_refused(self) -> None:
        refused("evaluate", "--data", "data.npz", "--split", "tset", says="tset", hints="did you mean `test`?")


class TestRetrainAndBenchRequests:
    @pytest.mark.parametrize(
        ("arguments", "says", "hints"),
        [
            (["--how", "finetune"], "finetune", "did you mean `fine-tune`?"),
            (["--epochs", "0"], "0", ""),
            (["--epochs", "-3"], "-3", ""),
            (["--lr", "-1"], "-1", ""),
            (["--schedule", "cosin"], "cosin", "did you mean `cosine`?"),
            (["--optimiser", "adam"], "adam", "did you mean `adamw`?"),
            (["--augment", "flop"], "flop", "did you mean `flip`?"),
            (["--device", "gpu"], "gpu", ""),
            (["--teacher", "mrs-brown"], "mrs-brown", "--teacher dense"),
            (["--how", "rewind-weights"], "dense network's training", ""),
            (["--how", "scratch-e"], "dense network's training", "--dense-epochs"),
            (["--rewind-to", "gone.pt"], "gone.pt is not there", "check the path"),
        ],
    )
    @pytest.mark.usefixtures("pruned")
    def test_a_wrong_way_to_retrain_is_refused(self, arguments: list[str], says: str, hints: str) -> None:
        refused("retrain", "--data", "data.npz", *arguments, says=says, hints=hints)

    @pytest.mark.parametrize(
        ("arguments", "says", "hints"),
        [
            (["--runtimes", "onnxruntime-cpuu"], "onnxruntime-cpuu", "did you mean `onnxruntime-cpu`?"),
            (["--runtimes", "torch-eager,onxruntime-cuda"], "onxruntime-cuda", "did you mean `onnxruntime-cuda`?"),
            (["--runtimes", "torch-eager", "--dense", "gone.pt"], "gone.pt", "--dense"),
        ],
    )
    @pytest.mark.usefixtures("pruned")
    def test_a_wrong_bench_is_refused(self, arguments: list[str], says: str, hints: str) -> None:
        refused("bench", *arguments, says=says, hints=hints)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
    @pytest.mark.usefixtures("pruned")
    def test_a_gpu_that_is_not_there_is_an_error_and_no_fallback(self) -> None:
        for runtime in ("onnxruntime-cuda", "torch-cuda"):
            refused("bench", "--runtimes", runtime, says=runtime, hints="")
        refused("retrain", "--data", "data.npz", "--device", "cuda", says="cuda", hints="")

    @pytest.mark.parametrize("batch", ["0", "1,-4", "many", "1,,2", ""])
    @pytest.mark.usefixtures("pruned")
    def test_a_wrong_batch_size_is_a_usage_error(self, batch: str) -> None:
        result = run("bench", "--batch", batch)
        assert result.exit_code == USAGE
        assert "--batch" in result.stderr


class TestOutput:
    @pytest.mark.usefixtures("workdir")
    def test_json_is_alone_on_stdout(self, samples: Path) -> None:
        result = done(
            "prune",
            samples / "fashion_mobilenet_v2.pt",
            "--ratio",
            0.5,
            "--criterion",
            "activation",
            "--dry-run",
            "--json",
        )
        found = json.loads(result.stdout)
        assert found["prune"]["requested"] == {"ratio": 0.5}
        assert "the sample that ships" in result.stderr

    def test_a_dry_run_writes_nothing(self, inputs: Path) -> None:
        before = snapshot(inputs)
        result = done("prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--dry-run")
        assert "nothing was written" in result.stderr
        assert snapshot(inputs) == before

    @pytest.mark.usefixtures("pruned")
    def test_inspect_says_in_json_what_can_be_pruned(self) -> None:
        found = json.loads(done("inspect", "tiny.pt", *ARCH, "--json").stdout)
        assert [g["channels"] for g in found["groups"]] == [16, 32]
        assert found["input"] == [[1, 1, 16, 16]]
        assert [a["layer"] for a in found["left_alone"]] == ["body.8"]
        assert [row["ratio"] for row in found["would_leave"]] == sorted(row["ratio"] for row in found["would_leave"])
        small = json.loads(done("inspect", "tiny.compressed", "--json").stdout)
        assert [g["channels"] for g in small["groups"]] == [8, 16]

    @pytest.mark.usefixtures("inputs")
    def test_requested_and_achieved_stand_side_by_side(self) -> None:
        text = done("prune", "tiny.pt", *ARCH, "--macs", 0.5, "--align", 1, "--dry-run").stdout
        assert "asked" in text
        assert "50.0 %" in text

    @pytest.mark.usefixtures("pruned")
    def test_a_pipe_gets_no_escape_codes(self) -> None:
        result = done("inspect", "tiny.pt", *ARCH)
        assert "\x1b" not in result.stdout + result.stderr

    @pytest.mark.parametrize("colourless", [False, True])
    @pytest.mark.usefixtures("workdir")
    def test_no_color_is_honoured_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch, colourless: bool) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")  # as if stderr were a terminal
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        if colourless:
            monkeypatch.setenv("NO_COLOR", "1")
        text = run("inspect", "gone.pt").stderr
        assert "is not there" in text
        assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", text)) is not colourless

    def test_the_version_is_that_of_the_package(self) -> None:
        assert re.fullmatch(r"compress \d+\.\d+\.\d+\n", done("--version").stdout)


class TestFromPruneToReport:
    def test_every_command_takes_the_newest_artifact_and_adds_to_it(self, pruned: Path) -> None:
        entry = json.loads(done("retrain", "--data", "data.npz", "--epochs", 1, "--json").stdout)
        assert entry["how"] == "fine-tune"
        folder = pruned / "tiny.fine-tune.compressed"
        exported = done("export")
        assert "taking the newest artifact here: tiny.fine-tune.compressed" in exported.stderr
        assert (folder / "model.onnx").is_file()
        judged = json.loads(done("evaluate", "--data", "data.npz", "--json").stdout)
        assert {j["model"] for j in judged} == {"small", "dense"}
        onnx = json.loads(done("evaluate", folder / "model.onnx", "--data", "data.npz", "--json").stdout)
        assert onnx[0]["correct"] == next(j["correct"] for j in judged if j["model"] == "small")
        gate = run("bench", "--batch", 1, "--runtimes", "onnxruntime-cpu", "--blocks", 8, "--min-speedup", 1000)
        assert gate.exit_code == GATE_MISSED
        assert "not 1000 times as fast as dense" in gate.stderr
        done("report")
        assert (folder / "report.html").is_file()
        results = json.loads((folder / "results.json").read_text())
        assert {"prune", "retrain", "export", "bench", "evaluate", "lineage", "environment"} <= results.keys()
        assert not [p for p in pruned.rglob("*") if ".part" in p.name or p.name.endswith(".partial")]

    def test_a_masked_network_stays_masked(self, inputs: Path) -> None:
        masked = json.loads(done("prune", "tiny.pt", *ARCH, "--sparsity", 0.9, "--json").stdout)["mask"]
        assert masked["scope"] == "uniform"  # unless it is asked for otherwise
        assert masked["zeros"] / masked["weights"] == pytest.approx(0.9, abs=1e-3)
        assert masked["stored_bytes"] < masked["dense_bytes"]
        done("retrain", "--data", "data.npz", "--epochs", 1)
        from compressor.checkpoint.loading import load

        state = load(inputs / "tiny.fine-tune.compressed").module.state_dict()
        zeros = sum(int((v == 0).sum()) for k, v in state.items() if k.endswith("weight") and v.ndim > 1)
        assert zeros >= masked["zeros"]


class TestInterruption:
    @pytest.mark.parametrize(
        ("command", "place"),
        [
            (["prune", "tiny.pt", *ARCH, "--ratio", "0.5"], "compressor.jobs.prune.write_artifact"),
            (["prune", "tiny.pt", *ARCH, "--ratio", "0.5"], "compressor.checkpoint.artifact_writing._read_back"),
            (["export", "tiny.compressed"], "compressor.jobs.export.export_onnx"),
            (["bench", "--runtimes", "torch-eager"], "compressor.measuring.benchmark.timed"),
            (["evaluate", "--data", "data.npz"], "compressor.jobs.evaluate.evaluate"),
        ],
    )
    def test_ctrl_c_leaves_everything_as_it_was(
        self, pruned: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], place: str
    ) -> None:
        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        owner, _, name = place.rpartition(".")
        monkeypatch.setattr(importlib.import_module(owner), name, stop)
        if command[0] == "prune":
            command = [*command, "--force"]
        before = snapshot(pruned)
        result = run(*command)
        assert result.exit_code == INTERRUPTED
        assert "interrupted" in result.stderr
        assert snapshot(pruned) == before

    def test_a_run_that_is_interrupted_goes_on_with_the_same_command(self, pruned: Path) -> None:
        make_inputs(pruned, images=600)
        shutil.rmtree(pruned / "state")
        before = snapshot(pruned / "tiny.compressed")
        ask = ["retrain", "tiny.compressed", "--data", "data.npz", "--epochs", "12", "--batch-size", "8"]
        done("inspect", "tiny.pt", *ARCH)  # names net.py, and so trusts it
        told = interrupted(ask, when="epoch 1/", then=0)  # in the second epoch, or in one soon after on a busy machine
        assert "the state after the last whole epoch is kept" in told
        assert "go on with the same command: compress retrain" in told
        assert snapshot(pruned / "tiny.compressed") == before
        assert not (pruned / "tiny.fine-tune.compressed").exists()
        finished = done(*ask)
        assert "going on from" in finished.stderr
        assert "epoch 1/" not in finished.stderr
        assert (pruned / "tiny.fine-tune.compressed").is_dir()
        assert not list(pruned.glob("*.partial"))

    @pytest.mark.slow
    def test_a_sample_model_that_is_interrupted_in_its_first_epoch_stays_as_it_was(
        self, samples: Path, workdir: Path
    ) -> None:
        done("prune", samples / "fashion_mobilenet_v2.pt", "--ratio", 0.75)
        before = snapshot(workdir)
        told = interrupted(["retrain", "--epochs", "3"], when="fine-tune on", then=3)
        assert "go on with the same command: compress retrain --epochs 3" in told
        assert snapshot(workdir) == before
