"""The commands about latency, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import ARCH, DONE, REFUSED, USAGE, done, make_inputs, run

NET = ("tiny.pt", *ARCH)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


def test_a_table_is_measured_and_pruned_with(folder: Path) -> None:
    said = done("measure-table", *NET, "--threads", 1, "--out", "t.json").stdout
    assert "multiples of" in said
    assert "whole networks" in said
    table = json.loads((folder / "t.json").read_text())
    assert table["target"]["threads"] == 1
    table["target"]["hardware"] = "another machine"
    (folder / "t.json").write_text(json.dumps(table))
    found = run("prune", *NET, "--speedup", 1.05, "--table", "t.json", "--align", 1, "--out", "a.compressed", "--json")
    # on so small a network almost all is overhead: the plan may be out of reach, and says so
    assert found.exit_code in (DONE, REFUSED)
    if found.exit_code == DONE:
        results = json.loads(found.stdout)
        assert results["latency"]["speedup"] is None
        assert results["latency"]["hardware"] == "another machine"
        assert results["prune"]["requested"] == {"speedup": 1.05}


@pytest.mark.usefixtures("folder")
def test_a_speed_that_overhead_forbids_is_refused_with_what_can_be_had() -> None:
    found = run("prune", *NET, "--speedup", 50, "--threads", 1)
    assert found.exit_code == REFUSED
    assert "50.00 times the speed cannot be reached on onnxruntime-cpu" in found.stderr
    assert "times as fast" in found.stderr
    assert "hint: what is left of its time" in found.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("prune", *NET, "--speedup", 0.5), REFUSED, "more than 1"),
        (("prune", *NET, "--latency", "4"), REFUSED, "a number with its unit"),
        (("prune", *NET, "--speedup", 2, "--ratio", 0.5), REFUSED, "several budgets"),
        (("prune", *NET, "--speedup", 2, "--on", "onnxruntime-gpu"), REFUSED, "no runtime called"),
        (("prune", *NET, "--speedup", 2, "--levels", 2), REFUSED, "one level"),
        (("prune", *NET, "--speedup", 2, "--table", "data.npz"), REFUSED, "data.npz"),
        (("prune", *NET, "--max-drop", 1), REFUSED, "images"),
        (("frontier", *NET, "--speedups", "0.5,2", "--data", "data.npz"), USAGE, "numbers above 1"),
        (("frontier", *NET), REFUSED, "takes images"),
        (("measure-table", *NET, "--pack", "x"), REFUSED, "give both"),
        (("measure-table", *NET, "--on", "torch-compile"), REFUSED, "does not say what its operators take"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[object, ...], code: int, said: str) -> None:
    found = run(*arguments)
    assert found.exit_code == code, found.stderr
    assert said in " ".join(found.stderr.split())


def test_a_bench_says_why_and_a_pack_is_written_and_read(folder: Path) -> None:
    done("prune", *NET, "--ratio", 0.5, "--out", "small.compressed")
    options = ("--batch", 1, "--threads", 1, "--runtimes", "onnxruntime-cpu", "--blocks", 8)
    said = done("bench", "small.compressed", *options, "--why").stdout
    found = json.loads((folder / "small.compressed" / "results.json").read_text())["bench"]
    assert {row["layer"] for row in found["why"]["rows"]} == {"body.0", "body.3", "body.8"}
    assert "held by" in said
    assert "GMACs/s" in said
    report = done("report", "small.compressed")
    assert report.exit_code == DONE
    assert "Where the time goes" in (folder / "small.compressed" / "report.html").read_text()
    assert "wrote pack" in done("bench", "small.compressed", "--batch", 1, "--threads", 1, "--pack", "pack").stdout
    spec = json.loads((folder / "pack" / "pack.json").read_text())
    rows = [{**c, "batch": 1, "samples_ns": [[1000, 1001]] * 8} for c in spec["candidates"]]
    measured = {
        "provider": "CPUExecutionProvider", "threads": 1, "hardware": "a phone", "onnxruntime": "1", "python": "3",
        "platform": "Linux", "rows": rows,
    }  # fmt: skip
    (folder / "measured.json").write_text(json.dumps(measured))
    back = json.loads(done("bench", "small.compressed", "--read", "measured.json", "--json").stdout)
    assert back["environment"]["cpu"] == "a phone"
    assert json.loads((folder / "small.compressed" / "results.json").read_text())["bench"] == back
    assert run("bench", "small.compressed", "--read", "data.npz").exit_code == REFUSED


@pytest.mark.slow
def test_a_frontier_is_drawn(folder: Path) -> None:
    done(
        "frontier", *NET, "--speedups", "1.05", "--no-baselines", "--threads", 1, "--data", "data.npz",
        "--calibration", 64,
    )  # fmt: skip
    assert (folder / "tiny.frontier" / "frontier.svg").read_text().startswith("<svg")
