"""PyTorch as it is, operator by operator, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.measuring.runtimes import Memory, NodeTime, Prepared, Reads
from compressor.measuring.runtimes._torch import device_of, own_copy, profiled, torch_threads

READS = Reads.MODULE
MEMORY = Memory.PROCESS
HELD = False


def unavailable() -> str | None:
    """Never: torch is a dependency."""
    return None


@contextmanager
def prepare(model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int) -> Iterator[Prepared]:
    """A copy of the module in inference mode."""
    module, own = own_copy(model, inputs)

    def run() -> object:
        with torch.inference_mode():
            return module(*own)

    with torch_threads(threads):
        yield Prepared(run=run, provider=device_of(run()))


def profile(
    model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int, warmup: int, calls: int
) -> list[NodeTime]:
    """Module by module, those that hold no others; what is computed outside of them is nobody's."""
    with torch_threads(threads):
        return profiled(model, inputs, warmup=warmup, calls=calls)
