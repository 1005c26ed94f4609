"""PyTorch as it is, operator by operator, on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.errors import RuntimeUnavailable
from compressor.measuring.runtimes import Memory, Prepared, Reads
from compressor.measuring.runtimes._torch import device_of, no_gpu, own_copy, torch_threads

READS = Reads.MODULE
MEMORY = Memory.DEVICE
HELD = True  # an idle GPU lowers its clock, so it is not left alone between blocks


def unavailable() -> str | None:
    """Why there is no GPU to compute on."""
    return no_gpu()


@contextmanager
def prepare(model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int) -> Iterator[Prepared]:
    """A copy of the module on the GPU; a call ends when the GPU is done, and its inputs are there already."""
    reason = unavailable()
    if reason is not None:
        raise RuntimeUnavailable(f"`torch-cuda` cannot be used here: {reason}", hint="`torch-eager` runs on the CPU")
    module, own = own_copy(model, inputs, device="cuda")

    def run() -> object:
        with torch.inference_mode():
            output = module(*own)
        torch.cuda.synchronize()
        return output

    with torch_threads(threads):
        provider = device_of(run())
        if "cpu" in provider:
            raise RuntimeUnavailable(f"the network computes on {provider}, and not on the GPU alone")
        yield Prepared(run=run, provider=provider, notes=("inputs and outputs stay on the GPU",))
