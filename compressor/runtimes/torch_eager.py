"""PyTorch as it is, operator by operator, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.runtimes import Memory, Prepared, Reads
from compressor.runtimes._torch import device_of, own_copy, torch_threads

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
