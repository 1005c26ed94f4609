from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import CompressError, RuntimeUnavailable
from compressor.graph.outputs import outputs_of, relative_difference
from compressor.measuring import runtimes
from compressor.measuring.runtimes import Memory, NodeTime, Prepared, Reads, onnxruntime_cpu, onnxruntime_cuda
from compressor.measuring.runtimes._onnxruntime import count_nodes, node_times, nodes_by_provider, open_session
from compressor.measuring.runtimes._torch import torch_threads

ALL = runtimes.names()
HERE = [name for name in ALL if runtimes.load(name).unavailable() is None]
ABSENT = [name for name in ALL if name not in HERE]


class Network(nn.Module):
    """A convolution and a linear layer, from `[batch, 3, 8, 8]` to `[batch, 5]`; dropout shows its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.conv(x).relu()).flatten(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network().train()


@pytest.fixture(scope="module")
def onnx_file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network written by hand: its exporter is tested elsewhere."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array, name) for name, array in state.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    file = tmp_path_factory.mktemp("onnx") / "network.onnx"
    save(model, str(file))
    return file


@pytest.fixture
def inputs() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


@contextmanager
def prepared(name: str, network: nn.Module, file: Path, inputs: tuple[Tensor, ...]) -> Iterator[Prepared]:
    runtime = runtimes.load(name)
    model: nn.Module | Path = file if runtime.reads is Reads.ONNX else network
    with runtime.prepare(model, inputs, threads=1) as ready:
        yield ready


def tensors(output: Any) -> list[Tensor]:
    found = output if isinstance(output, (list, tuple)) else [output]
    return [torch.from_numpy(one) if isinstance(one, np.ndarray) else one.cpu() for one in found]


class TestEveryFile:
    """The contract, kept by every file of the folder."""

    @pytest.mark.parametrize("name", ALL)
    def test_it_says_its_help_and_what_it_is(self, name: str) -> None:
        runtime = runtimes.load(name)
        assert runtime.name == name
        assert runtime.help.endswith(".")
        assert isinstance(runtime.reads, Reads)
        assert isinstance(runtime.memory, Memory)
        assert isinstance(runtime.held, bool)

    @pytest.mark.parametrize("name", ALL)
    def test_it_is_here_or_says_why_not(self, name: str) -> None:
        reason = runtimes.load(name).unavailable()
        assert reason is None or (len(reason) > 10 and not reason.endswith("."))

    @pytest.mark.parametrize("name", ABSENT)
    def test_asking_for_an_absent_one_is_an_error_with_a_hint(self, name: str) -> None:
        with pytest.raises(RuntimeUnavailable, match=f"`{name}` cannot be used here: ") as refused:
            runtimes.usable((name,))
        assert "torch-eager" in (refused.value.hint or "")

    @pytest.mark.parametrize("name", ABSENT)
    def test_preparing_on_an_absent_one_is_no_fallback(
        self, name: str, network: nn.Module, onnx_file: Path, inputs: tuple[Tensor, ...]
    ) -> None:
        with (
            pytest.raises(RuntimeUnavailable, match="cannot be used here") as refused,
            prepared(name, network, onnx_file, inputs),
        ):
            pass
        assert refused.value.hint

    @pytest.mark.parametrize("name", [n for n in HERE if not runtimes.load(n).held])
    def test_it_computes_what_the_network_computes(
        self, name: str, network: nn.Module, onnx_file: Path, inputs: tuple[Tensor, ...]
    ) -> None:
        check_outputs(name, network, onnx_file, inputs)

    @pytest.mark.parametrize("name", [n for n in HERE if not runtimes.load(n).held])
    def test_the_model_and_torchs_threads_are_lent(
        self, name: str, network: nn.Module, onnx_file: Path, inputs: tuple[Tensor, ...]
    ) -> None:
        check_lent(name, network, onnx_file, inputs)

    @pytest.mark.parametrize("name", ALL)
    def test_it_refuses_a_model_of_the_other_kind(
        self, name: str, network: nn.Module, onnx_file: Path, inputs: tuple[Tensor, ...]
    ) -> None:
        runtime = runtimes.load(name)
        model: nn.Module | Path = network if runtime.reads is Reads.ONNX else onnx_file
        with pytest.raises((TypeError, RuntimeUnavailable)), runtime.prepare(model, inputs, threads=1):
            pass


def check_outputs(name: str, network: nn.Module, file: Path, inputs: tuple[Tensor, ...]) -> None:
    network.eval()
    expected = outputs_of(network, inputs)
    network.train()
    with prepared(name, network, file, inputs) as ready:
        answers = [tensors(ready.run()) for _ in range(2)]
        assert ready.provider
    for answer in answers:
        assert all(relative_difference(a, e) < 1e-5 for a, e in zip(answer, expected, strict=True))


def check_lent(name: str, network: nn.Module, file: Path, inputs: tuple[Tensor, ...]) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    given, threads = [t.clone() for t in inputs], torch.get_num_threads()
    network.train()
    with prepared(name, network, file, inputs) as first, prepared(name, network, file, inputs) as second:
        first.run()
        second.run()
        for tensor in inputs:
            tensor.add_(1)  # each preparation has inputs of its own
    assert torch.get_num_threads() == threads
    assert network.training
    assert network.drop.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(torch.equal(a, b + 1) for a, b in zip(inputs, given, strict=True))


class TestDiscovery:
    def test_every_file_is_a_runtime_by_its_name(self) -> None:
        files = {f.stem for f in Path(runtimes.__file__).parent.glob("*.py") if f.stem[0] != "_"}
        assert set(ALL) == {stem.replace("_", "-") for stem in files}
        assert set(ALL) >= {"torch-eager", "torch-compile", "torch-cuda", "onnxruntime-cpu", "onnxruntime-cuda"}

    def test_a_misspelt_name_gets_the_nearest_as_a_hint(self) -> None:
        with pytest.raises(RuntimeUnavailable, match="no runtime called `onnxruntime-cup`") as refused:
            runtimes.load("onnxruntime-cup")
        assert refused.value.hint == "did you mean `onnxruntime-cpu`?"

    def test_by_default_those_that_are_here_are_used(self) -> None:
        assert [runtime.name for runtime in runtimes.usable()] == HERE
        assert "torch-eager" in HERE
        assert "onnxruntime-cpu" in HERE

    def test_what_is_asked_for_is_used_once_in_the_order_asked(self) -> None:
        found = runtimes.usable(("torch-eager", "onnxruntime-cpu", "torch-eager"))
        assert [runtime.name for runtime in found] == ["torch-eager", "onnxruntime-cpu"]

    def test_naming_them_imports_neither_torch_nor_onnxruntime(self) -> None:
        code = (
            "import sys; from compressor.measuring import runtimes; runtimes.names(); "
            "assert not {'torch', 'onnxruntime', 'onnx'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_onnxruntime_is_imported_when_it_is_used(self) -> None:
        files = [f"compressor.measuring.runtimes.{m.name}" for m in pkgutil.iter_modules(runtimes.__path__)]
        code = f"import sys; import {', '.join(files)}; assert 'onnxruntime' not in sys.modules"
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


class TestTorch:
    @pytest.mark.parametrize("threads", [1, 2])
    def test_it_computes_with_as_many_threads_as_asked(
        self, network: nn.Module, inputs: tuple[Tensor, ...], threads: int
    ) -> None:
        with runtimes.load("torch-eager").prepare(network, inputs, threads=threads):
            assert torch.get_num_threads() == threads

    def test_threads_come_back_after_an_error(self) -> None:
        before = torch.get_num_threads()
        with pytest.raises(KeyError), torch_threads(before + 1):
            raise KeyError
        assert torch.get_num_threads() == before

    def test_the_provider_is_where_the_output_lies(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        with runtimes.load("torch-eager").prepare(network, inputs, threads=1) as ready:
            assert ready.provider == "cpu"

    def test_without_a_compiler_nothing_is_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
        assert "C++ compiler" in (runtimes.load("torch-compile").unavailable() or "")

    def test_a_build_without_cuda_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.version, "cuda", None)
        assert runtimes.load("torch-cuda").unavailable() == "this build of torch has no CUDA"


@pytest.mark.slow
@pytest.mark.skipif("torch-compile" not in HERE, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of its own parts
class TestCompiled:
    def test_it_computes_what_the_network_computes(
        self, network: nn.Module, onnx_file: Path, inputs: tuple[Tensor, ...]
    ) -> None:
        check_outputs("torch-compile", network, onnx_file, inputs)

    def test_the_model_and_torchs_threads_are_lent(
        self, network: nn.Module, onnx_file: Path, inputs: tuple[Tensor, ...]
    ) -> None:
        check_lent("torch-compile", network, onnx_file, inputs)

    def test_more_networks_than_dynamo_recompiles_are_all_compiled(
        self, network: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        from torch._dynamo import config

        with config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
            for _ in range(3):
                with runtimes.load("torch-compile").prepare(network, inputs, threads=1) as ready:
                    assert ready.notes == ()

    def test_a_network_that_is_not_one_graph_is_noted(self, inputs: tuple[Tensor, ...]) -> None:
        class Breaks(Network):
            def forward(self, x: Tensor) -> Tensor:
                y = super().forward(x)
                return y + 1 if float(y.sum()) > 0 else y

        with runtimes.load("torch-compile").prepare(Breaks(), inputs, threads=1) as ready:
            assert "not one graph" in ready.notes[0]


class TestOnnxruntime:
    def test_the_session_says_what_runs_it(self, onnx_file: Path, inputs: tuple[Tensor, ...]) -> None:
        with onnxruntime_cpu.prepare(onnx_file, inputs, threads=1) as ready:
            assert ready.provider == "CPUExecutionProvider"

    @pytest.mark.parametrize("threads", [1, 3])
    def test_threads_are_set_on_the_session(self, onnx_file: Path, threads: int) -> None:
        session = open_session(onnx_file, provider=onnxruntime_cpu.PROVIDER, threads=threads)
        assert session.get_session_options().intra_op_num_threads == threads
        assert session.get_session_options().inter_op_num_threads == 1

    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
    def test_its_threads_end_with_its_block(self, onnx_file: Path, inputs: tuple[Tensor, ...]) -> None:
        """They spin on for some 40 ms after a call, and would take the processor from the next candidate."""

        def running() -> int:
            return sum(1 for _ in Path("/proc/self/task").iterdir())

        before = running()
        with onnxruntime_cpu.prepare(onnx_file, inputs, threads=4) as ready:
            ready.run()
            during = running()
            del ready
        assert during == before + 3
        assert running() == before

    def test_the_nodes_of_a_profiled_call_are_counted_by_provider(
        self, onnx_file: Path, inputs: tuple[Tensor, ...]
    ) -> None:
        ran = nodes_by_provider(onnx_file, inputs, provider=onnxruntime_cpu.PROVIDER, threads=1)
        assert list(ran) == ["CPUExecutionProvider"]
        assert ran["CPUExecutionProvider"] >= 3

    def test_a_profile_by_hand(self) -> None:
        events = [
            {"cat": "Session", "args": {}},
            {"cat": "Node", "args": {"provider": "CUDAExecutionProvider"}},
            {"cat": "Node", "args": {"provider": "CUDAExecutionProvider"}},
            {"cat": "Node", "args": {"provider": "CPUExecutionProvider"}},
            {"cat": "Node", "args": {}},
        ]
        assert count_nodes(events) == {"CUDAExecutionProvider": 2, "CPUExecutionProvider": 1}

    def test_another_provider_than_the_one_asked_for_is_refused(
        self, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
        monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
        with pytest.raises(RuntimeUnavailable, match="asked for CUDAExecutionProvider and gives CPU") as refused:
            open_session(onnx_file, provider="CUDAExecutionProvider", threads=1)
        assert refused.value.hint

    @pytest.mark.parametrize(
        "ran", [{"CPUExecutionProvider": 4}, {"CPUExecutionProvider": 3, "CUDAExecutionProvider": 1}]
    )
    def test_nodes_that_ran_on_the_cpu_are_never_called_gpu(
        self, onnx_file: Path, inputs: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch, ran: dict[str, int]
    ) -> None:
        import onnxruntime

        monkeypatch.setattr(onnxruntime_cuda, "unavailable", lambda: None)
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
        monkeypatch.setattr(onnxruntime_cuda, "nodes_by_provider", lambda *_, **__: ran)
        with pytest.raises(RuntimeUnavailable, match="of 4 nodes on the GPU"):
            onnxruntime_cuda.prepare(onnx_file, inputs, threads=1).__enter__()

    def test_a_provider_that_is_merely_listed_is_not_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """onnxruntime-gpu lists its CUDA provider on machines without a GPU."""
        import onnxruntime

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert onnxruntime_cuda.unavailable() is not None

    def test_a_wrong_number_of_inputs_is_refused(self, onnx_file: Path, inputs: tuple[Tensor, ...]) -> None:
        with pytest.raises(CompressError, match="takes 1 inputs, not 2"):
            onnxruntime_cpu.prepare(onnx_file, (*inputs, *inputs), threads=1).__enter__()

    def test_profiles_are_json_without_leftovers(self, onnx_file: Path, tmp_path: Path) -> None:
        session = open_session(onnx_file, provider="CPUExecutionProvider", threads=1, profile=tmp_path / "p")
        session.run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})
        written = Path(session.end_profiling())
        assert written.parent == tmp_path
        assert count_nodes(json.loads(written.read_text()))


@pytest.mark.gpu
class TestGpu:
    @pytest.mark.parametrize("name", ["torch-cuda", "onnxruntime-cuda"])
    def test_it_runs_there(self, name: str, network: nn.Module, onnx_file: Path, inputs: tuple[Tensor, ...]) -> None:
        with prepared(name, network, onnx_file, inputs) as ready:
            ready.run()
            assert "cuda" in ready.provider.lower()


def test_a_profile_s_nodes_have_their_calls_without_the_first_ones_and_half_a_microsecond_more() -> None:
    def event(name: str, us: int) -> dict[str, object]:
        sizes = {"activation_size": "4", "parameter_size": "8", "output_size": "16"}
        return {"cat": "Node", "name": name, "dur": us, "args": {"provider": "CPU", "op_name": "Conv", **sizes}}

    events = [event("a", 9), event("b", 1), {"cat": "Session", "name": "model_run"}, event("a", 5), event("b", 0)]
    found = node_times(events, warmup=1)
    assert [(n.name, n.samples_ns, n.bytes) for n in found] == [("a", (5500,), 28), ("b", (500,), 28)]
    assert NodeTime(name="a", kind="", samples_ns=(1, 2, 3, 4, 5, 6, 7, 800)).typical_ns == 4.5
