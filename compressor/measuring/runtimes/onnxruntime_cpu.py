"""onnxruntime on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from compressor.measuring.runtimes import Memory, NodeTime, Prepared, Reads
from compressor.measuring.runtimes._onnxruntime import feed, open_session, profiled

READS = Reads.ONNX
MEMORY = Memory.PROCESS
# A session is opened for each block and closed after it: its threads go on spinning for some 40 ms after a call, and
# would take the processor from the next candidate.
HELD = False
PROVIDER = "CPUExecutionProvider"


def unavailable() -> str | None:
    """Why there is no onnxruntime."""
    return None if importlib.util.find_spec("onnxruntime") else "onnxruntime is not installed"


@contextmanager
def prepare(model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int) -> Iterator[Prepared]:
    """A session of its own on the ONNX file."""
    session = open_session(model, provider=PROVIDER, threads=threads)
    own = feed(session, inputs)
    yield Prepared(run=lambda: session.run(None, own), provider=session.get_providers()[0])


def profile(
    model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int, warmup: int, calls: int
) -> list[NodeTime]:
    """By onnxruntime's profiler, in a session of its own."""
    return profiled(model, inputs, provider=PROVIDER, threads=threads, warmup=warmup, calls=calls)
