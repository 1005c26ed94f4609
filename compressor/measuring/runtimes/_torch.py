"""Shared by the torch runtimes: a copy of the module, torch's threads, and the device of the outputs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.graph.copies import copy_of
from compressor.graph.outputs import tensors_in
from compressor.measuring.runtimes import NodeTime


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set the number of torch's threads; restore it at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def own_copy(
    model: nn.Module | Path, inputs: Sequence[Tensor], *, device: str = "cpu"
) -> tuple[nn.Module, list[Tensor]]:
    """Return copies of the module, in eval mode, and of its inputs, on `device`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"torch runs a module, not {model}")
    return copy_of(model).to(device).eval(), [t.detach().clone().to(device) for t in inputs]


def profiled(model: nn.Module | Path, inputs: Sequence[Tensor], *, warmup: int, calls: int) -> list[NodeTime]:
    """Return the time of each module without children, by its path, on the CPU; two calls of one module are added."""
    module, own = own_copy(model, inputs)
    leaves = {name: m for name, m in module.named_modules() if not list(m.children())}
    started: dict[str, int] = {}
    samples_of: dict[str, list[int]] = {}
    moved: dict[str, int] = {}
    number = 0

    def begin(name: str) -> None:
        started[name] = time.perf_counter_ns()

    def end(name: str, seen: object) -> None:
        elapsed = time.perf_counter_ns() - started[name]
        samples = samples_of.setdefault(name, [0] * (warmup + calls))
        samples[number] += elapsed
        if number == 0:
            tensors = [*tensors_in(seen), *leaves[name].parameters()]
            moved[name] = moved.get(name, 0) + sum(t.numel() * t.element_size() for t in tensors)

    for name, leaf in leaves.items():
        leaf.register_forward_pre_hook(lambda _, __, n=name: begin(n))
        leaf.register_forward_hook(lambda _, inputs, output, n=name: end(n, (inputs, output)))
    with torch.inference_mode():
        for number in range(warmup + calls):  # noqa: B007  # the hooks read it
            module(*own)
    return [
        NodeTime(
            name=name,
            kind=type(leaves[name]).__name__,
            samples_ns=tuple(samples[warmup:]),
            bytes=moved[name],
            provider="cpu",
        )
        for name, samples in samples_of.items()
    ]


def device_of(output: object) -> str:
    """Return the device of the outputs; for a GPU with its name."""
    devices = sorted({t.device for t in tensors_in(output)}, key=str)
    return ", ".join(f"{d} ({torch.cuda.get_device_name(d)})" if d.type == "cuda" else str(d) for d in devices)


def no_gpu() -> str | None:
    """Return why torch cannot compute on a GPU here; `None` if it can."""
    if torch.version.cuda is None:
        return "this build of torch has no CUDA"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"
