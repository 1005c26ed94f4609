"""The limits of a machine, measured on the runtime itself: arithmetic, memory, and starting an operator.

Roofline (Williams et al. 2009, doi:10.1145/1498765.1498785): an operator takes at least its MACs over the peak rate,
and at least its bytes over the bandwidth; here also at least the time of starting it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compressor.files.leftovers import temporary
from compressor.measuring.runtimes import Reads, Runtime

SIDE = 768  # of the multiplied matrices
ELEMENTS = 16 * 2**20  # read and written: more than caches hold
STARTS = 64
CALLS = 7


class Ceiling(StrEnum):
    """What limits an operator."""

    COMPUTE = "compute"
    MEMORY = "memory"
    LAUNCH = "launch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """MACs and bytes per nanosecond, and the nanoseconds of an operator with almost no work."""

    macs_per_ns: float
    bytes_per_ns: float
    launch_ns: float

    def over(self, *, macs: float, moved: float, operators: int) -> tuple[Ceiling, float]:
        """Return what limits an operator with this work, and its least time in nanoseconds."""
        least = {
            Ceiling.COMPUTE: macs / self.macs_per_ns,
            Ceiling.MEMORY: moved / self.bytes_per_ns,
            Ceiling.LAUNCH: operators * self.launch_ns,
        }
        limit = max(least, key=lambda c: least[c])
        return limit, least[limit]

    def to_json(self) -> dict[str, float]:
        """Return plain values."""
        return {
            "gmacs_per_s": self.macs_per_ns,
            "gbytes_per_s": self.bytes_per_ns,
            "launch_us": self.launch_ns / 1e3,
        }


def ceilings(runtime: Runtime, *, threads: int) -> Ceilings:
    """Return the limits measured on the runtime: a large matrix product, a large sign change, a chain of tiny ones."""
    product = torch.rand(SIDE, SIDE), torch.rand(ELEMENTS // 1024, 1024), torch.rand(1, 8)
    kinds: tuple[list[nn.Module], ...] = (
        [nn.Linear(SIDE, SIDE, bias=False)], [_Negative()], [_Negative() for _ in range(STARTS)],
    )  # fmt: skip
    best = []
    with temporary("ceilings") as folder:
        for k, (inputs, layers) in enumerate(zip(product, kinds, strict=True)):
            model: nn.Module | Path = nn.Sequential(*layers)
            if runtime.reads is Reads.ONNX:
                model = _onnx(Path(folder) / f"{k}.onnx", layers, inputs)
            best.append(_fastest(runtime, model, inputs, threads=threads))
    arithmetic, memory, starts = best
    return Ceilings(
        macs_per_ns=SIDE**3 / arithmetic,
        bytes_per_ns=2 * 4 * ELEMENTS / memory,
        launch_ns=starts / STARTS,
    )


class _Negative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


def _onnx(file: Path, layers: Sequence[nn.Module], inputs: Tensor) -> Path:
    """An ONNX file of these layers."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, last = [], [], "x"
    for k, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            weights.append(numpy_helper.from_array(np.ascontiguousarray(layer.weight.detach().numpy().T), "w"))
            nodes.append(helper.make_node("MatMul", [last, "w"], [f"y{k}"], name=f"n{k}"))
        else:
            nodes.append(helper.make_node("Neg", [last], [f"y{k}"], name=f"n{k}"))
        last = f"y{k}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(inputs.shape)) for name in ("x", last)]
    graph = helper.make_graph(nodes, "ceiling", [ends[0]], [ends[1]], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    file.write_bytes(model.SerializeToString())
    return file


def _fastest(runtime: Runtime, model: nn.Module | Path, inputs: Tensor, *, threads: int) -> float:
    """The median of a few calls, of the better of two preparations."""
    medians = []
    for _ in range(2):
        with runtime.prepare(model, (inputs,), threads=threads) as prepared:
            prepared.run()
            samples = []
            for _ in range(CALLS):
                started = time.perf_counter_ns()
                prepared.run()
                samples.append(time.perf_counter_ns() - started)
        medians.append(statistics.median(samples))
    return max(1.0, float(min(medians)))
