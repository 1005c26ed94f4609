"""One network at any widths, in a runtime's form, and the weight that each of its operators' time counts with.

For a runtime that reads ONNX, a narrow network is the dense one's graph with other shapes
(`measuring.tables.skeletons`), or an export of its own if its views contain widths. For a runtime that reads modules it
is a shrunk module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compressor.channels.groups import Traced
from compressor.errors import ExportError, RuntimeUnavailable
from compressor.files.leftovers import temporary
from compressor.graph.input_spec import random_like
from compressor.measuring.runtimes import NodeTime, Reads, Runtime
from compressor.measuring.tables.skeletons import Operator, Skeleton, narrowed, owner_of, skeleton_of
from compressor.planning.widths import Layer, Numbers, Sizes
from compressor.surgery.plan import PruningPlan
from compressor.surgery.shrinking import shrink


class Networks:
    """A network at any widths, in a runtime's form; its files are in `folder`."""

    def __init__(
        self, module: nn.Module, traced: Traced, example_inputs: Sequence[Tensor], runtime: Runtime, folder: Path,
        *, batch: int = 1,
    ) -> None:  # fmt: skip
        """Refused: a network that the runtime cannot read."""
        self.module, self.traced, self.runtime, self.folder = module, traced, runtime, folder
        self.example_inputs = tuple(example_inputs)
        self.sizes = Sizes(module, traced.groups)
        self.batch = batch
        self.skeleton: Skeleton | None = None
        self._owners: dict[Path, Mapping[str, str]] = {}  # of networks with an export of their own
        self._slices = False
        if runtime.reads is Reads.ONNX:
            self.skeleton = skeleton_of(module, example_inputs, batch=batch)
            self.operators: tuple[Operator, ...] = self.skeleton.operators
            self._slices = self._runs_narrow()
        else:
            self.operators = module_operators(module, example_inputs)
        self.layers = tuple(
            Layer(tensor=o.tensor, reads=0 if o.swapped else 1, writes=1 if o.swapped else 0) for o in self.operators
        )
        self.keys = tuple(o.key for o in self.operators)

    @property
    def quick(self) -> bool:
        """True if narrow networks come from the dense one's graph, without an export each."""
        return self.runtime.reads is Reads.MODULE or self._slices

    @property
    def signature(self) -> str:
        """A key that is equal for networks with the same operators in the same order."""
        return hashlib.sha256(json.dumps(self.keys).encode()).hexdigest()[:16]

    def inputs(self) -> tuple[Tensor, ...]:
        """Return random inputs of the target's batch size."""
        return tuple(random_like(self.example_inputs, batch=self.batch, seed=0))

    def at(self, row: Numbers) -> nn.Module | Path:
        """Return the network at these widths `[groups]`."""
        if self.runtime.reads is Reads.MODULE:
            return self._small(row)
        name = hashlib.sha256(row.tobytes()).hexdigest()[:16]
        file = self.folder / f"{name}.onnx"
        if not file.exists():
            file.write_bytes(self._onnx(row, file))
        return file

    def owners(self, model: nn.Module | Path) -> Mapping[str, str] | None:
        """Return, for a network from `at`, the weight that each node's time counts with.

        `None` for a module, whose profile has the names of weights. A network with an export of its own has node names
        of its own.
        """
        if self.skeleton is None or isinstance(model, nn.Module):
            return None
        return self._owners.get(model, self.skeleton.owners)

    def by_operator(self, times: Sequence[NodeTime], model: nn.Module | Path) -> Numbers:
        """Return the time of each operator in a network from `at`, with the operators that belong to it: ns
        `[operators]`.
        """
        return by_operator(times, [o.tensor for o in self.operators], self.owners(model))

    def _length(self, row: Numbers) -> Callable[[str, int], int]:
        return lambda tensor, dim: round(float(self.sizes.at(tensor, dim, row[None])[0]))

    def _onnx(self, row: Numbers, file: Path) -> bytes:
        assert self.skeleton is not None
        if self._slices:
            return narrowed(self.skeleton, self._length(row))
        skeleton = skeleton_of(self._small(row), self.example_inputs, batch=self.batch)
        self._owners[file] = skeleton.owners
        return skeleton.proto

    def _small(self, row: Numbers) -> nn.Module:
        if (row >= self.sizes.dense).all():
            return self.module
        widths = {g.root: max(1, int(w)) for g, w in zip(self.traced.groups, row, strict=True)}
        plan = PruningPlan(removed={g.root: tuple(range(widths[g.root], g.channels)) for g in self.traced.groups})
        return shrink(self.module, self.traced, plan, self.example_inputs)[0]

    def _runs_narrow(self) -> bool:
        """True if the graph also runs at other widths."""
        assert self.skeleton is not None
        row = np.maximum(1, np.round(self.sizes.dense * 0.5))
        file = self.folder / "narrow.onnx"
        file.write_bytes(narrowed(self.skeleton, self._length(row)))
        try:
            with self.runtime.prepare(file, self.inputs(), threads=1) as prepared:
                prepared.run()
        except RuntimeUnavailable:
            raise
        except Exception:  # the runtime can raise anything for a graph whose shapes do not fit
            return False
        return True


def owned(times: Sequence[NodeTime], tensors: Sequence[str], owners: Mapping[str, str] | None) -> list[str]:
    """Return the weight that each node's time counts with: the previous one's where its own name matches none of
    `tensors`.

    `owners` is the result of `Networks.owners`.
    """
    names, last, weights = set(tensors), tensors[0], []
    for node in times:
        owner = f"{node.name}.weight" if owners is None else owner_of(node.name, owners)
        last = owner if owner is not None and owner in names else last
        weights.append(last)
    return weights


def by_operator(times: Sequence[NodeTime], tensors: Sequence[str], owners: Mapping[str, str] | None) -> Numbers:
    """Return the time of these weights' operators, with the operators that belong to them: nanoseconds `[tensors]`."""
    number = {tensor: k for k, tensor in enumerate(tensors)}
    total_ns = np.zeros(len(tensors))
    for node, tensor in zip(times, owned(times, tensors, owners), strict=True):
        total_ns[number[tensor]] += node.typical_ns
    return total_ns


@contextmanager
def networks_of(
    module: nn.Module, traced: Traced, example_inputs: Sequence[Tensor], runtime: Runtime, *, batch: int
) -> Iterator[Networks]:
    """Yield a network at any widths, with a temporary folder for its files."""
    with temporary("widths") as folder:
        yield Networks(module, traced, example_inputs, runtime, Path(folder), batch=batch)


def module_operators(module: nn.Module, example_inputs: Sequence[Tensor]) -> tuple[Operator, ...]:
    """Return the modules with a weight, keyed by their description without widths."""
    shapes: dict[str, str] = {}
    handles = []
    named = {name: m for name, m in module.named_modules() if isinstance(getattr(m, "weight", None), nn.Parameter)}
    named = {name: m for name, m in named.items() if m.weight.ndim > 1}

    def seen(name: str, x: Tensor) -> None:
        shapes.setdefault(name, "x".join(map(str, x.shape[2:] if x.ndim > 3 else x.shape[1:-1])) or "1")

    for name, one in named.items():
        handles.append(one.register_forward_pre_hook(lambda _, args, n=name: seen(n, args[0])))
    try:
        with torch.inference_mode():
            module(*example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    operators = []
    for name, positions in shapes.items():
        one = named[name]
        words = [type(one).__name__]
        for attribute in ("kernel_size", "stride", "dilation"):
            value = getattr(one, attribute, None)
            if value is not None:
                words.append(f"{attribute} {value}")
        if getattr(one, "groups", 1) > 1:
            words.append("grouped")
        swapped = bool(getattr(one, "transposed", False))
        operators.append(Operator(tensor=f"{name}.weight", key=f"{' '.join(words)} on {positions}", swapped=swapped))
    if not operators:
        raise ExportError("no module of this network holds a weight", hint="ask on `onnxruntime-cpu`")
    return tuple(operators)
