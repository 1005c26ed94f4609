from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from compressor.channels.groups import trace
from compressor.checkpoint.artifacts import open_artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.loading import load
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import ExportError, RuntimeUnavailable
from compressor.graph.input_spec import random_like
from compressor.graph.outputs import outputs_of, relative_difference
from compressor.jobs.prune import prune_to
from compressor.measuring import candidates as candidates_module
from compressor.measuring import peak_memory as memory
from compressor.measuring.benchmark import bench, missed
from compressor.measuring.candidates import (
    CandidateName,
    Candidates,
    Onnx,
    candidates_of,
    composed,
    equal_mask,
    with_onnx,
)
from compressor.measuring.machine import Conditions
from compressor.measuring.peak_memory import Load, peak_memory
from compressor.measuring.runtimes import Memory, Prepared, Reads, Runtime
from compressor.pruning.pipeline import Pruned, prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.results.parity import Parity
from compressor.results.timing import Bench, Speedup, TimedRow
from compressor.surgery.masks import apply_mask_, magnitude
from compressor.surgery.plan import ChannelBudget, PruningPlan
from tests.support.topologies import alive, checkpoint_of, plain

NAMES = [str(name) for name in CandidateName]
CALM = Conditions(cores=2, busy_cores=0.0, load_average=0.0, governor=None)

bench_module = importlib.import_module("compressor.measuring.benchmark")  # the package has the function under that name


@pytest.fixture(scope="module")
def dense() -> Checkpoint:
    return checkpoint_of(alive(plain()))


@pytest.fixture(scope="module")
def pruned(dense: Checkpoint) -> Pruned:
    return prune(dense, Request(budget=ChannelBudget(ratio=0.5), align=1))


@pytest.fixture(scope="module")
def small(pruned: Pruned) -> Checkpoint:
    return pruned.checkpoint


@contextmanager
def prepare(model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int) -> Iterator[Prepared]:
    assert isinstance(model, nn.Module)
    assert threads >= 1
    assert inputs
    yield Prepared(run=lambda: None, provider="nobody", notes=("nothing is computed",))


FAKE = Runtime(
    name="fake",
    help="Computes nothing.",
    reads=Reads.MODULE,
    memory=Memory.UNKNOWN_DEVICE,
    held=False,
    unavailable=lambda: None,
    prepare=prepare,
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime on which every network takes no time: what is around the timing is tested at once."""
    monkeypatch.setattr(bench_module, "usable", lambda _: (FAKE,))


class TestCandidates:
    def test_there_are_five_in_the_order_of_the_tables(self, small: Checkpoint, dense: Checkpoint) -> None:
        assert [c.name for c in candidates_of(small, dense).all] == NAMES

    def test_the_masked_network_has_as_many_parameters_as_the_small_one(
        self, small: Checkpoint, dense: Checkpoint
    ) -> None:
        by_name = {c.name: c for c in candidates_of(small, dense).all}
        masked, little = by_name[CandidateName.MASKED_WEIGHTS], by_name[CandidateName.SMALL]
        zeros = sum(int((p == 0).sum()) for p in masked.module.parameters())
        assert masked.params == little.params == by_name[CandidateName.DENSE].params - zeros

    def test_masked_channels_compute_what_the_small_network_does(self, small: Checkpoint, dense: Checkpoint) -> None:
        by_name = {c.name: c.module for c in candidates_of(small, dense).all}
        inputs = random_like(dense.example_inputs)
        silent, little = (outputs_of(by_name[n], inputs)[0] for n in ("masked channels", "small"))
        assert relative_difference(little, silent) < 1e-5

    def test_levels_and_a_second_pruning_add_up(self, dense: Checkpoint) -> None:
        once = prune(dense, Request(budget=ChannelBudget(ratio=0.5), align=1, levels=2)).checkpoint
        twice = prune(once, Request(budget=ChannelBudget(ratio=0.3), align=1)).checkpoint
        by_name = {c.name: c.module for c in candidates_of(twice, dense).all}
        inputs = random_like(dense.example_inputs)
        assert relative_difference(*(outputs_of(by_name[n], inputs)[0] for n in ("small", "masked channels"))) < 1e-5

    def test_a_network_that_was_pruned_before_is_compared_as_it_was(self, dense: Checkpoint) -> None:
        first = prune(dense, Request(budget=ChannelBudget(ratio=0.5), align=1)).checkpoint
        second = prune(first, Request(budget=ChannelBudget(ratio=0.3), align=1)).checkpoint
        by_name = {c.name: c for c in candidates_of(second, first).all}
        inputs = random_like(dense.example_inputs)
        outputs = [outputs_of(by_name[n].module, inputs)[0] for n in ("small", "masked channels")]
        assert relative_difference(*outputs) < 1e-5
        assert by_name[CandidateName.DENSE].params == sum(p.numel() for p in first.module.parameters())

    def test_plans_compose_by_the_channels_that_are_left(self, dense: Checkpoint) -> None:
        groups = trace(dense.module, dense.example_inputs).groups
        root = groups[0].root
        plans = [PruningPlan(removed={root: (0, 2)}), PruningPlan(removed={root: (0, 1, 13)})]
        assert composed(plans, groups).removed[root] == (0, 1, 2, 3, 15)

    def test_masked_macs_are_those_of_weights_that_are_not_zero(self) -> None:
        module = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Flatten(), nn.Linear(4 * 144, 2, bias=False))
        dense = checkpoint_of(alive(module))
        masked = copy.deepcopy(dense.module)
        mask = magnitude(masked, sparsity=0.5, scope="uniform")
        apply_mask_(masked, mask)
        found = candidates_of(dataclasses.replace(dense, module=masked), dense, mask=mask)
        assert [c.name for c in found.all] == ["dense", "dense again", "masked weights"]
        assert found.all[2].macs * 2 == found.dense.macs == 144 * 12 + 1152
        assert found.all[2].params == 6 + 576

    @pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
    def test_an_equal_mask_is_exact(self, dense: Checkpoint, kept: float) -> None:
        total = sum(p.numel() for p in dense.module.parameters())
        wanted = round(kept * total)
        assert total - equal_mask(dense.module, params=wanted).removed == wanted

    def test_without_a_record_of_channels_that_candidate_is_left_out_and_said_so(
        self, small: Checkpoint, dense: Checkpoint
    ) -> None:
        found = candidates_of(dataclasses.replace(small, lineage=()), dense)
        assert CandidateName.MASKED_CHANNELS not in [c.name for c in found.all]
        assert any("masked channels" in note for note in found.notes)

    def test_the_networks_are_lent(self, small: Checkpoint, dense: Checkpoint) -> None:
        before = {k: v.clone() for k, v in dense.module.state_dict().items()}
        candidates_of(small, dense)
        assert all(torch.equal(v, before[k]) for k, v in dense.module.state_dict().items())

    def test_all_are_exported_by_one_function_and_dense_again_is_dense(
        self, small: Checkpoint, dense: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        exported: dict[str, Checkpoint] = {}

        def export(checkpoint: Checkpoint, file: Path) -> Parity:
            exported[file.name] = checkpoint
            fixed = None if file.name == "small.onnx" else "it has to be"
            return Parity(
                largest_relative_difference=0, outputs=1, batches=1, batch_sizes=(1,), opset=20, bytes=1, note=fixed
            )

        monkeypatch.setattr(candidates_module, "export_onnx", export)
        before = candidates_of(small, dense)
        found = {c.name: c for c in with_onnx(before, small, dense, tmp_path, say=lambda _: None).all}
        assert len(exported) == 4
        assert found[CandidateName.DENSE].onnx == found[CandidateName.DENSE_AGAIN].onnx
        for candidate in before.distinct:
            onnx = found[candidate.name].onnx
            assert onnx is not None
            assert exported[onnx.file.name].module is candidate.module
            assert onnx.batch == (None if candidate.name is CandidateName.SMALL else 1)


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> list[Load]:
    folder = tmp_path_factory.mktemp("memory")
    little, large = nn.Linear(1000, 10), nn.Linear(1000, 20_000)
    for name, module in {"little": little, "large": large}.items():
        torch.save(module, folder / f"{name}.pt")
    torch.save([torch.zeros(1, 1000)], folder / "inputs.pt")
    (folder / "broken.pt").write_text("no module")

    def load_of(name: str) -> Load:
        inputs = str(folder / "inputs.pt")
        return Load(runtime="torch-eager", model=str(folder / f"{name}.pt"), inputs=inputs, threads=1)

    return [load_of(name) for name in ("large", "little", "broken", "large", "little")]


@pytest.mark.skipif(memory.unmeasurable() is not None, reason="peak memory is read on Linux")
class TestMemory:
    def test_it_is_the_growth_of_a_process_of_its_own(self, loads: list[Load]) -> None:
        large, little, broken, again, little_again = peak_memory(loads)
        assert broken is None
        assert large is not None
        assert little is not None
        assert again is not None
        assert little_again is not None
        weights = 1000 * 20_000 * 4
        assert weights <= large < 1.3 * weights
        assert again == pytest.approx(large, rel=0.05)
        assert little < 0.1 * large  # a large one before it leaves nothing behind
        assert little_again < 0.1 * large

    def test_where_no_system_says_it_nothing_is_claimed(
        self, loads: list[Load], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "STATUS", Path("/nowhere"))
        assert peak_memory(loads) == (None,) * len(loads)
        assert memory.unmeasurable()


@pytest.fixture(scope="module")
def result(small: Checkpoint, dense: Checkpoint) -> dict[str, Any]:
    """A real bench of a tiny network; nothing here asserts how long anything took."""
    return bench(
        small,
        dense,
        runtimes=("onnxruntime-cpu", "torch-eager"),
        batches=(1, 3),
        threads=1,
        blocks=8,
        look=lambda: CALM,
    ).to_json()


class TestBench:
    def test_every_candidate_has_a_row_for_every_setting(self, result: dict[str, Any]) -> None:
        found = [(row["runtime"], row["batch"], row["candidate"]) for row in result["rows"]]
        assert found == [(r, b, c) for r in ("onnxruntime-cpu", "torch-eager") for b in (1, 3) for c in NAMES]

    def test_every_sample_is_in_it(self, result: dict[str, Any]) -> None:
        for row in result["rows"]:
            assert len(row["samples_ns"]) == row["blocks"] == 8
            assert {len(block) for block in row["samples_ns"]} == {row["calls_per_block"]}
            assert all(isinstance(sample, int) and sample > 0 for block in row["samples_ns"] for sample in block)
            assert row["throughput"] == pytest.approx(row["batch"] * 1e3 / row["median_ms"])

    def test_the_providers_are_what_really_ran(self, result: dict[str, Any]) -> None:
        assert {row["runtime"]: row["provider"] for row in result["rows"]} == {
            "onnxruntime-cpu": "CPUExecutionProvider",
            "torch-eager": "cpu",
        }

    def test_speedups_are_against_dense_with_an_interval(self, result: dict[str, Any]) -> None:
        for row in result["rows"]:
            if row["candidate"] == "dense":
                assert row["speedup"] is None
            else:
                assert 0 < row["speedup"]["low"] <= row["speedup"]["ratio"] <= row["speedup"]["high"] < math.inf

    def test_the_theoretical_speedup_is_the_ratio_of_macs(self, result: dict[str, Any], pruned: Pruned) -> None:
        rows = {row["candidate"]: row for row in result["rows"]}
        assert rows["small"]["theoretical_speedup"] == pruned.dense_cost.macs / pruned.small_cost.macs
        assert rows["dense"]["theoretical_speedup"] == 1

    def test_only_onnx_rows_have_a_file(self, result: dict[str, Any]) -> None:
        sizes = {(row["runtime"], row["candidate"]): row["file_bytes"] for row in result["rows"]}
        assert sizes["onnxruntime-cpu", "small"] < sizes["onnxruntime-cpu", "dense"]
        assert sizes["onnxruntime-cpu", "masked weights"] == pytest.approx(sizes["onnxruntime-cpu", "dense"], rel=0.02)
        assert sizes["torch-eager", "small"] is None

    @pytest.mark.skipif(memory.unmeasurable() is not None, reason="peak memory is read on Linux")
    def test_peak_memory_is_measured_once_for_dense(self, result: dict[str, Any]) -> None:
        for row in result["rows"]:
            assert (row["peak_memory_bytes"] is None) == (row["candidate"] == "dense again")

    def test_it_is_json_that_the_report_reads(self, result: dict[str, Any]) -> None:
        plain = json.loads(json.dumps(result, allow_nan=False))
        found = Results.from_json({"schema": 1, "bench": plain}).bench
        assert found is not None
        assert len(found.rows) == len(result["rows"])
        assert result["threads"] == result["environment"]["threads"] == 1

    def test_few_blocks_are_a_caveat_in_words(self, result: dict[str, Any]) -> None:
        assert any(caveat.startswith("few blocks: torch-eager, batch 3: 8 blocks") for caveat in result["caveats"])

    def test_a_runtime_that_is_not_here_is_an_error(self, small: Checkpoint, dense: Checkpoint) -> None:
        with pytest.raises(RuntimeUnavailable, match="no runtime called"):
            bench(small, dense, runtimes=("tensorrt",))

    @pytest.mark.usefixtures("fake")
    def test_a_loaded_machine_is_a_caveat(self, small: Checkpoint, dense: Checkpoint) -> None:
        looks = iter((CALM, dataclasses.replace(CALM, busy_cores=1.5)))
        found = bench(small, dense, batches=(1,), blocks=8, look=lambda: next(looks)).to_json()
        assert any("other processes took 1.5 of 2 cores" in caveat for caveat in found["caveats"])
        assert found["machine_before"]["busy_cores"] == 0
        assert found["machine_after"]["busy_cores"] == 1.5

    @pytest.mark.usefixtures("fake")
    def test_what_a_runtime_notes_and_why_memory_is_unknown_are_said(
        self, small: Checkpoint, dense: Checkpoint
    ) -> None:
        found = bench(small, dense, batches=(1, 2), blocks=8, look=lambda: CALM).to_json()
        assert "fake: nothing is computed" in found["notes"]
        assert f"peak memory on fake: {Memory.UNKNOWN_DEVICE}" in found["notes"]
        assert all(row["peak_memory_bytes"] is None for row in found["rows"])

    @pytest.mark.usefixtures("fake")
    def test_a_masked_artifact_is_compared_with_dense_alone(self, dense: Checkpoint) -> None:
        module = copy.deepcopy(dense.module)
        mask = magnitude(module, sparsity=0.9)
        apply_mask_(module, mask)
        found = bench(
            dataclasses.replace(dense, module=module), dense, mask=mask, batches=(1,), blocks=8, look=lambda: CALM
        ).to_json()
        assert [row["candidate"] for row in found["rows"]] == ["dense", "dense again", "masked weights"]

    @pytest.mark.usefixtures("fake")
    @pytest.mark.parametrize("labelled", [True, False])
    def test_quality_is_measured_once_per_candidate(self, small: Checkpoint, dense: Checkpoint, labelled: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (20, 3, 12, 12), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 5, (20,), generator=generator) if labelled else None
        images = Images(pixels, labels)
        data = Data(name="noise", source="here", train=None, tune=None, test=images)
        found = bench(small, dense, data=data, batches=(1, 2), blocks=8, look=lambda: CALM).to_json()
        by_name = {row["candidate"]: row["accuracy"] for row in found["rows"]}
        count = "correct" if labelled else "agreeing"
        assert {reading["total"] for reading in by_name.values()} == {20}
        assert by_name["masked channels"][count] == by_name["small"][count]
        assert by_name["dense again"] == by_name["dense"]
        assert by_name["dense"]["split"] == "test"
        if not labelled:
            assert by_name["dense"]["agreeing"] == 20

    def test_a_batch_that_a_file_does_not_take_is_left_out(
        self, small: Checkpoint, dense: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        @contextmanager
        def ready(model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int) -> Iterator[Prepared]:
            assert (isinstance(model, Path), len(inputs[0]), threads) == (True, 1, 1)
            yield Prepared(run=lambda: None, provider="nobody")

        def fixed(candidates: Candidates, *_: object, **__: object) -> Candidates:
            one = Onnx(file=Path(__file__), batch=1)
            return dataclasses.replace(candidates, all=tuple(dataclasses.replace(c, onnx=one) for c in candidates.all))

        reader = dataclasses.replace(FAKE, reads=Reads.ONNX, prepare=ready)
        monkeypatch.setattr(bench_module, "usable", lambda _: (reader,))
        monkeypatch.setattr(bench_module, "with_onnx", fixed)
        found = bench(small, dense, batches=(1, 64), threads=1, blocks=8, look=lambda: CALM).to_json()
        assert {row["batch"] for row in found["rows"]} == {1}
        assert "left out: fake, batch 64: the ONNX file takes batches of 1 only" in found["caveats"]
        with pytest.raises(RuntimeUnavailable, match="nothing could be timed: fake, batch 64"):
            bench(small, dense, batches=(64,), threads=1, blocks=8, look=lambda: CALM)

    def test_a_network_that_cannot_be_exported_is_timed_on_the_others(
        self, small: Checkpoint, dense: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise ExportError("no such operator")

        reader = dataclasses.replace(FAKE, name="fake-onnx", reads=Reads.ONNX)
        monkeypatch.setattr(bench_module, "usable", lambda _: (FAKE, reader))
        monkeypatch.setattr(bench_module, "with_onnx", refuse)
        found = bench(small, dense, batches=(1,), blocks=8, look=lambda: CALM).to_json()
        assert {row["runtime"] for row in found["rows"]} == {"fake"}
        assert "left out: fake-onnx: no such operator" in found["caveats"]
        with pytest.raises(ExportError):
            bench(small, dense, runtimes=("fake", "fake-onnx"), batches=(1,), blocks=8)


class TestMissed:
    def rows(self, *bounds: float, candidate: str = "small") -> Bench:
        dense = TimedRow(runtime="r", batch=1, candidate="dense", median_ms=1.0)
        speedups = [Speedup(ratio=low + 0.1, low=low, high=low + 0.2) for low in bounds]
        return Bench(rows=(dense, *(dataclasses.replace(dense, candidate=candidate, speedup=s) for s in speedups)))

    def test_the_whole_interval_must_reach_it_in_every_setting(self) -> None:
        assert missed(self.rows(2.0, 2.5), at_least=2.0) == []
        assert missed(self.rows(1.95, 2.5), at_least=2.0) == ["r, batch 1: 2.05× (1.95 to 2.15)"]

    def test_a_masked_artifact_is_judged_by_its_masked_row(self) -> None:
        assert missed(self.rows(0.9, candidate="masked weights"), at_least=1.0)


@pytest.fixture(scope="module")
def artifact(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "it.compressed"
    prune_to(folder, load(samples / "fashion_resnet20.pt"), Request(budget=ChannelBudget(ratio=0.5)))
    return folder


class TestCommand:
    @pytest.fixture
    def run(self, artifact: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
        """The command on a real artifact, with a bench that was run before; what it was asked is in `calls`."""
        from compressor.cli.main import app

        calls: list[dict[str, Any]] = []

        def canned(small: Checkpoint, dense: Checkpoint, **asked: Any) -> Bench:
            assert sum(p.numel() for p in small.module.parameters()) < sum(p.numel() for p in dense.module.parameters())
            calls.append(asked)
            return Bench.from_json(result)

        monkeypatch.setattr(bench_module, "bench", canned)

        def invoke(*arguments: str) -> Any:
            done = CliRunner().invoke(app, ["bench", str(artifact), *arguments])
            assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
            done.calls = calls  # type: ignore[attr-defined]  # beside what the runner says
            return done

        return invoke

    def test_options_reach_the_library(self, run: Any) -> None:
        done = run("--batch", "1,8", "--threads", "2", "--runtimes", "onnxruntime-cpu, torch-eager", "--blocks", "20")
        assert done.exit_code == 0
        asked = done.calls[0]
        assert asked["batches"] == (1, 8)
        assert (asked["threads"], asked["blocks"]) == (2, 20)
        assert asked["runtimes"] == ("onnxruntime-cpu", "torch-eager")
        assert asked["data"] is None

    def test_the_tables_and_not_the_caveats_go_to_stdout(self, run: Any, result: dict[str, Any]) -> None:
        done = run()
        for text in ("onnxruntime-cpu, batch 3, threads: 1", "dense again", "masked channels", "theoretical"):
            assert text in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 120
        assert "…" not in done.stdout  # no cell is cut off
        assert not [caveat for caveat in result["caveats"] if caveat in done.stdout]
        assert all(caveat in done.stderr for caveat in result["caveats"])

    def test_it_is_written_to_the_artifact(self, run: Any, artifact: Path, result: dict[str, Any]) -> None:
        run()
        assert open_artifact(artifact).results().to_json()["bench"] == json.loads(json.dumps(result))

    def test_json_is_all_there_is_on_stdout(self, run: Any, result: dict[str, Any]) -> None:
        assert json.loads(run("--json").stdout) == json.loads(json.dumps(result))

    def test_a_missed_gate_is_exit_code_3_and_says_where(self, run: Any) -> None:
        done = run("--min-speedup", "1000")
        assert done.exit_code == 3
        assert "not 1000 times as fast as dense: onnxruntime-cpu, batch 1" in done.stderr
        assert run("--min-speedup", "0.0001").exit_code == 0

    @pytest.mark.parametrize(
        "wrong",
        [
            ("--batch", "0"),
            ("--batch", "a"),
            ("--batch", "1,,2"),
            ("--blocks", "7"),
            ("--runtimes", ""),
            ("--runtimes", "a,"),
        ],
    )
    def test_wrong_numbers_are_usage_errors(self, run: Any, wrong: tuple[str, str]) -> None:
        done = run(*wrong)
        assert done.exit_code == 2
        assert not done.calls

    def test_a_gpu_that_is_not_there_is_an_error_with_a_hint(
        self, artifact: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from compressor.cli.main import app

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        done = CliRunner().invoke(app, ["bench", str(artifact), "--runtimes", "onnxruntime-cuda"])
        assert done.exit_code == 1
        assert "`onnxruntime-cuda` cannot be used here" in done.stderr
        assert "hint: usable here: onnxruntime-cpu" in done.stderr
