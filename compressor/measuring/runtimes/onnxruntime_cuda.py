"""onnxruntime on an NVIDIA GPU, by its CUDA provider."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from compressor.errors import RuntimeUnavailable
from compressor.measuring.runtimes import Memory, Prepared, Reads
from compressor.measuring.runtimes._onnxruntime import feed, nodes_by_provider, open_session
from compressor.measuring.runtimes._torch import no_gpu

READS = Reads.ONNX
MEMORY = Memory.UNKNOWN_DEVICE
HELD = True  # opening a session tries out convolution algorithms, for seconds
PROVIDER = "CUDAExecutionProvider"


def unavailable() -> str | None:
    """Why its CUDA provider cannot run: the package lists the provider on machines without a GPU, too."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed"
    import onnxruntime

    if PROVIDER not in onnxruntime.get_available_providers():
        return "this build of onnxruntime has no CUDA provider: install onnxruntime-gpu"
    return no_gpu()


@contextmanager
def prepare(model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int) -> Iterator[Prepared]:
    """A session on the GPU, its inputs and outputs there too; refused where the nodes run elsewhere.

    What ran where is read from a profiled call: a session that lists the provider may still compute on the CPU.
    """
    reason = unavailable()
    if reason is not None:
        raise RuntimeUnavailable(
            f"`onnxruntime-cuda` cannot be used here: {reason}", hint="`onnxruntime-cpu` runs on the CPU"
        )
    import onnxruntime

    onnxruntime.preload_dlls()  # the CUDA and cuDNN that come with torch
    ran = nodes_by_provider(model, inputs, provider=PROVIDER, threads=threads)
    on_gpu = ran.get(PROVIDER, 0)
    elsewhere = {provider: count for provider, count in ran.items() if provider != PROVIDER}
    if on_gpu <= sum(elsewhere.values()):
        raise RuntimeUnavailable(
            f"onnxruntime ran {on_gpu} of {sum(ran.values())} nodes on the GPU",
            hint="its CUDA provider lacks these operators; measure on `onnxruntime-cpu`",
        )
    session = open_session(model, provider=PROVIDER, threads=threads)
    binding = session.io_binding()
    for name, value in feed(session, inputs).items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")

    def run() -> object:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    notes = [f"{count} of {sum(ran.values())} nodes ran on {provider}" for provider, count in elsewhere.items()]
    yield Prepared(run=run, provider=session.get_providers()[0], notes=("inputs and outputs stay on the GPU", *notes))
