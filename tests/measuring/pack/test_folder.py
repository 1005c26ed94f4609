"""Packs: written here, run by the script alone, taken back in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.channels.groups import trace
from compressor.errors import ArtifactError
from compressor.measuring.pack.folder import bench_of_pack, range_of, table_of_pack, write_pack
from compressor.measuring.pack.script import inputs_of
from compressor.measuring.runtimes import load
from compressor.measuring.tables.networks import networks_of
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget
from tests.support.topologies import Residual, alive, checkpoint_of

# what a target lacks is missing for the script too
ALONE = """
import sys
for name in ("torch", "torchvision", "onnx", "compressor", "typer", "rich"):
    sys.modules[name] = None
import runpy
sys.argv = ["bench.py", *{arguments}]
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Any]:
    """A pack, what its script measured without torch, and the dense checkpoint."""
    folder = tmp_path_factory.mktemp("pack") / "pack"
    dense = checkpoint_of(alive(Residual()))
    small = prune(dense, Request(budget=ChannelBudget(ratio=0.5), align=1)).checkpoint
    files = write_pack(folder, small, dense, batches=(1, 2), threads=1)
    assert files == sum(1 for p in folder.rglob("*") if p.is_file())
    arguments = ["--networks", "--rounds", "1", "--seconds", "0.1"]
    code = ALONE.format(arguments=arguments, script=str(folder / "bench.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "small" in done.stdout
    return folder, json.loads((folder / "measured.json").read_text()), dense


def test_what_comes_back_is_a_bench_like_any_other(measured: tuple[Path, dict[str, Any], Any]) -> None:
    found = bench_of_pack(measured[1], where="measured.json").to_json()
    assert found["batches"] == [1, 2]
    assert {row["runtime"] for row in found["rows"]} == {"onnxruntime-cpu"}
    candidates = [row["candidate"] for row in found["rows"] if row["batch"] == 1]
    assert candidates[0] == "dense"
    assert {"dense again", "small", "masked weights"} <= set(candidates)
    for row in found["rows"]:
        assert (row["speedup"] is None) == (row["candidate"] == "dense")
        assert len(row["samples_ns"]) == row["blocks"] >= 8
        assert row["median_ms"] > 0
    small = next(row for row in found["rows"] if row["candidate"] == "small")
    assert small["theoretical_speedup"] > 1
    assert any("another machine" in note for note in found["notes"])


def test_a_table_comes_of_it_that_knows_the_network(measured: tuple[Path, dict[str, Any], Any]) -> None:
    folder, values, dense = measured
    table = table_of_pack(folder, values)
    traced = trace(dense.module, dense.example_inputs)
    with networks_of(dense.module, traced, dense.example_inputs, load("onnxruntime-cpu"), batch=1) as networks:
        assert table.describes(networks.keys, networks.signature)
    assert table.target.threads == 1
    assert table.target.batch == 1


def test_a_folder_in_the_way_is_refused(measured: tuple[Path, dict[str, Any], Any]) -> None:
    folder, _, dense = measured
    with pytest.raises(ArtifactError, match="is there already"):
        write_pack(folder, dense, dense, batches=(1,), threads=1)


@pytest.mark.parametrize("broken", [{}, {"rows": []}, {"rows": [{"batch": 1}], "provider": "CPUExecutionProvider"}])
def test_what_no_pack_measured_is_refused(broken: dict[str, Any], measured: tuple[Path, dict[str, Any], Any]) -> None:
    with pytest.raises(ArtifactError, match="not what a pack measured") as caught:
        bench_of_pack(broken, where="x.json")
    assert "bench.py" in str(caught.value.hint)
    with pytest.raises(ArtifactError, match="not what the pack's networks took"):
        table_of_pack(measured[0], broken)


def test_the_script_asks_for_nothing_but_onnxruntime_and_numpy() -> None:
    import ast

    import compressor.measuring.pack.folder

    tree = ast.parse(compressor.measuring.pack.folder.SCRIPT.read_text())
    names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def test_the_script_draws_token_numbers_where_the_example_has_them() -> None:
    ids = range_of(torch.tensor([[7, 19, 12]]))
    assert ids == {"range": [7, 20]}
    assert range_of(torch.rand(1, 3)) == {}
    entry = {"name": "ids", "shape": [1, 3], "dtype": "int64", **ids}
    drawn = inputs_of({"inputs": [entry]}, 200)["ids"]
    assert drawn.shape == (200, 3)
    assert (drawn.min(), drawn.max()) == (7, 19)
