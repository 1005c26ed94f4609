"""The small network as its exported program, for code that contains the dense widths as numbers.

`mended` takes the dense network's program and replaces the dense widths by the small ones: in views, splits, slices,
paddings, norms, groups, and in the scale of an attention whose heads became narrower. The result is a recorded program
(`graph.recorded`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from compressor.channels.agreement import traced_program
from compressor.channels.labels import Bools, Dim, Labels
from compressor.channels.silenced import survivors_of
from compressor.channels.tracing import Trace
from compressor.errors import SurgeryError
from compressor.graph.exported_program import read_program
from compressor.graph.operators import name_of
from compressor.graph.recorded import RecordedProgram, name_from, numbers_from, plain_from, program_from

SIZED = {"view", "reshape", "_unsafe_view", "expand", "zeros", "ones", "full", "new_zeros", "new_ones", "new_full",
         "empty", "new_empty", "unflatten", "rand", "randn", "broadcast_to", "expand_copy", "view_copy"}  # fmt: skip
CONVOLUTIONS = ("conv", "_convolution", "deform_conv")

Get = Callable[[str], Any]
Put = Callable[[str, Any], None]


def mended(trace: Trace, dense: nn.Module, gone: set[int]) -> dict[str, Any]:
    """Return the recorded program of `dense` without the labels `gone`. Refused: numbers that cannot be mended."""
    recorded = _Mending(trace, dense.state_dict(), trace.labels.marked(gone)).recorded()
    if isinstance(dense, RecordedProgram):  # torch exports only its steps, without the checks and structure around them
        recorded |= {"returns": dense.recorded.get("returns"), "takes": _both(dense, recorded["takes"])}
    return {**recorded, "trainable": [name for name, _ in dense.named_parameters(remove_duplicate=False)]}


def _both(dense: RecordedProgram, takes: dict[str, Any] | None) -> dict[str, Any] | None:
    """The inputs that a program takes whose network was itself a recorded program: the conditions of both."""
    before = dense.recorded.get("takes")
    if before is None or takes is None:
        return before or takes
    inputs = [{**now, "name": then["name"]} for then, now in zip(before["inputs"], takes["inputs"], strict=True)]
    new = [condition for condition in takes["holds"] if condition not in before["holds"]]
    return {"inputs": inputs, "holds": [*before["holds"], *new]}


def program_of_file(program: Any) -> RecordedProgram:
    """Return the module of a `torch.export.ExportedProgram`, with nothing mended."""
    state = {name: tensor.detach() for name, tensor in program.state_dict.items()}
    others = {name: tensor for name, tensor in program.constants.items() if isinstance(tensor, Tensor)}
    trace = Trace(exported=read_program(program, {**others, **state}), labels=Labels())
    recorded = _Mending(trace, state, np.zeros(0, dtype=np.int64)).recorded()
    return program_from({**recorded, "trainable": list(program.graph_signature.parameters)}, state)


def as_program(module: nn.Module, example_inputs: Sequence[Tensor]) -> RecordedProgram:
    """Return the module as its exported program, with nothing mended; both have the same outputs."""
    trace = Trace(exported=traced_program(module, example_inputs), labels=Labels())
    return program_from(mended(trace, module, set()), module.state_dict())


@dataclass(slots=True, eq=False)
class _Mending:
    """Records the program of the dense network without the labels `gone`."""

    trace: Trace
    state: Mapping[str, Tensor]
    gone: Bools
    masks: dict[int, Tensor | None] = field(default_factory=dict)

    def recorded(self) -> dict[str, Any]:
        """Return the program in the form that `graph.recorded` reads."""
        graph = self.trace.exported
        nodes: list[dict[str, Any]] = []
        constants: dict[str, Any] = {}
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                nodes.append(self._placeholder(node, constants))
            elif node.op == "call_function" and not name_of(node.target).startswith("_assert"):
                cuts = self._cut_tables(node, nodes, constants)
                target, args, kwargs = self._call(node)
                nodes.append(
                    {
                        "name": node.name,
                        "call": name_from(target),
                        "args": _renamed(plain_from(args), cuts),
                        "kwargs": _renamed(plain_from(kwargs), cuts),
                    }
                )
        tied: dict[str, str] = {}
        for name, tensor in graph.named.items():
            first = graph.names_of(tensor)[0]
            if name != first and {name, first} <= self.state.keys():
                tied[name] = first
        return {
            "nodes": nodes,
            "outputs": [node.name for node in graph.outputs],
            "returns": graph.returns,
            "takes": None if graph.takes is None else {key: graph.takes[key] for key in ("inputs", "holds")},
            "constants": constants,
            "tied": tied,
        }

    def _placeholder(self, node: fx.Node, constants: dict[str, Any]) -> dict[str, Any]:
        """The record of a placeholder: a stored tensor by name, a constant with its narrowed numbers, or an input."""
        graph = self.trace.exported
        if node.name in graph.tensors and self._is_stored(graph.tensors[node.name][0]):
            return {"name": node.name, "held": graph.names_of(graph.tensors[node.name][1])[0]}
        if node.name in graph.tensors or node.name in graph.constants:
            tensor = graph.tensors[node.name][1] if node.name in graph.tensors else graph.constants[node.name]
            for d, dim in enumerate(self.trace.values[node]):
                mask = survivors_of(self.trace.labels, dim, self.gone)
                if mask is not None:
                    tensor = tensor.index_select(d, mask.nonzero().flatten())
            name = node.name.replace(".", "_")
            constants[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape),
                               "values": numbers_from(tensor)}  # fmt: skip
            return {"name": node.name, "held": f"constants.{name}"}
        return {"name": node.name, "input": True}

    def _cut_tables(self, node: fx.Node, nodes: list[dict[str, Any]], constants: dict[str, Any]) -> dict[str, str]:
        """Cut the constants that an operator reads, just before the operator; return which name replaces which.

        Not earlier, because earlier operators may still write into them.
        """
        cuts: dict[str, str] = {}
        for table in node.all_input_nodes:
            if table not in self.trace.tables or node in self.trace.tables or not self._touched(table):
                continue
            name = table.name
            for d, dim in enumerate(self.trace.values[table]):
                mask = self._mask(dim)
                if mask is None:
                    continue
                kept = mask.nonzero().flatten().tolist()
                index, whole, name = f"kept_{node.name}_{table.name}_{d}", name, f"cut_{node.name}_{table.name}_{d}"
                constants[index] = {"dtype": "int64", "shape": [len(kept)], "values": kept}
                nodes.append({"name": index, "held": f"constants.{index}"})
                args = [{"node": whole}, d, {"node": index}]
                nodes.append({"name": name, "call": "aten.index_select.default", "args": args, "kwargs": {}})
            cuts[table.name] = name
        return cuts

    def _is_stored(self, name: str) -> bool:
        """True if the dense network's state has the tensor; constants of a program are recorded anew."""
        return name in self.state and not name.startswith("constants.")

    def _mask(self, dim: Dim) -> Tensor | None:
        """The positions of a dimension that stay; `None` where all do."""
        if id(dim) not in self.masks:  # the trace keeps every `Dim` alive, so ids stay unique
            self.masks[id(dim)] = survivors_of(self.trace.labels, dim, self.gone)
        return self.masks[id(dim)]

    def _width(self, dim: Dim, dense: int | None) -> int | None:
        """The small width of a dimension."""
        mask = self._mask(dim)
        return dense if mask is None else int(mask.sum())

    def _shape(self, node: fx.Node) -> list[int | None]:
        """The small shape of a node's value; `None` where a size is open."""
        return [self._width(d, n) for d, n in zip(self.trace.values[node], self.trace.shapes[node], strict=True)]

    def _call(self, node: fx.Node) -> tuple[Any, list[Any], dict[str, Any]]:
        """Return the operator and its arguments with small widths in place of the dense ones, by the kind of operator.

        Each kind has its own numbers to mend: the sizes of a view, the parts of a split, the bounds of a slice, the
        amounts of a padding, the repeats of channels, a norm's shape, a convolution's groups, and an attention's scale
        (1/sqrt of the dense head width, where the code leaves it to torch). Operators that see no narrowed dimension
        stay unchanged.
        """
        target, args, kwargs = node.target, list(node.args), dict(node.kwargs)
        name = name_of(target)
        touched = [node, *node.all_input_nodes]
        if node in self.trace.tables or not any(self._touched(n) for n in touched):
            return target, args, kwargs
        schema = [a.name for a in target._schema.arguments] if hasattr(target, "_schema") else []

        def put(argument: str, value: Any) -> None:
            at = schema.index(argument)
            if at < len(args):
                args[at] = value
            else:
                kwargs[argument] = value

        def get(argument: str) -> Any:
            at = schema.index(argument)
            return args[at] if at < len(args) else kwargs.get(argument, target._schema.arguments[at].default_value)  # type: ignore[union-attr]

        if name in SIZED and isinstance(self.trace.shapes.get(node), tuple):
            self._sizes(node, schema, get, put)
        elif name in ("chunk", "split", "split_with_sizes", "tensor_split"):
            d = get("dim")
            parts = list(zip(self.trace.values[node], self.trace.shapes[node], strict=True))
            if any(self._mask(dims[d]) is not None for dims, _ in parts):
                sizes = [self._width(dims[d], shape[d]) for dims, shape in parts]
                return torch.ops.aten.split_with_sizes.default, [args[0], sizes, d], {}
        elif name in ("slice", "narrow", "select", "slice_scatter"):
            self._positions(name, get, put)
        elif name in ("pad", "constant_pad_nd"):
            self._padding(node, args)
        elif name in ("repeat", "tile"):
            counted = "repeats" if name == "repeat" else "dims"
            counts = [1] * (len(self.trace.values[node]) - len(get(counted))) + list(
                get(counted)
            )  # `tile` may have fewer
            wide = zip(counts, self.trace.values[node], self._shape(node), strict=True)
            put(counted, [r if r == 1 or self._mask(dim) is None else n for r, dim, n in wide])
        elif name in ("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm"):
            shape = get("normalized_shape")
            dims, narrow = (of(get("input"))[-len(shape) :] for of in (self.trace.values.__getitem__, self._shape))
            wide = zip(shape, dims, narrow, strict=True)
            put("normalized_shape", [n if self._mask(dim) is None else small for n, dim, small in wide])
        elif name in ("group_norm", "native_group_norm"):
            dense, channels = self.trace.shapes[get("input")][1], self._shape(get("input"))[1]
            groups = "num_groups" if name == "group_norm" else "group"
            if get(groups) == dense:
                put(groups, channels)
            if "C" in schema:
                put("C", channels)
        elif name.startswith(CONVOLUTIONS) and isinstance(get("groups"), int) and get("groups") > 1:
            weight = get("weight")
            mask = self._mask(self.trace.values[weight][0])
            if mask is not None:
                put("groups", int(mask.view(get("groups"), -1).any(dim=1).sum()))
        elif "scaled_dot_product" in name:
            query = get("query")
            if get("scale") is None and self._mask(self.trace.values[query][-1]) is not None:
                kwargs["scale"] = 1 / math.sqrt(self.trace.shapes[query][-1])
        return target, args, kwargs

    def _touched(self, node: fx.Node) -> bool:
        """True if a node's value loses positions."""
        labels = self.trace.values.get(node)
        if labels is None:
            return False
        several = labels if isinstance(labels, list) else [labels]
        return any(self._mask(dim) is not None for dims in several if dims is not None for dim in dims)

    def _sizes(self, node: fx.Node, schema: list[str], get: Get, put: Put) -> None:
        """Mend the sizes of a view or a new tensor.

        A size that is itself a value of the graph becomes -1, which torch computes; a -1 elsewhere in the shape is then
        replaced by its number.
        """
        argument = next((a for a in ("size", "shape", "sizes") if a in schema), None)
        if argument is None:
            return
        sizes, shape, dims = list(get(argument)), self._shape(node), self.trace.values[node]
        first = get("dim") % (len(shape) - len(sizes) + 1) if name_of(node.target) == "unflatten" else 0
        for i, size in enumerate(sizes):
            if self._mask(dims[first + i]) is None:
                continue
            if isinstance(size, int) and size != -1:
                sizes[i] = shape[first + i]
            elif isinstance(size, fx.Node):
                if -1 in sizes:
                    if shape[first + sizes.index(-1)] is None:
                        raise SurgeryError("a shape with channels in two open sizes cannot be mended")
                    sizes = [shape[first + j] if s == -1 else s for j, s in enumerate(sizes)]
                sizes[i] = -1
        put(argument, sizes)

    def _positions(self, name: str, get: Get, put: Put) -> None:
        """Mend the bounds of a slice, the index of a selection."""
        source, d = get("self"), get("dim")
        mask = self._mask(self.trace.values[source][d])
        if mask is None:
            return
        length = len(mask)
        if name == "select":
            put("index", int(mask[: get("index") % length].sum()))
            return
        start = get("start")
        start = 0 if start is None else min(max(start + length if start < 0 else start, 0), length)
        end = start + get("length") if name == "narrow" else get("end")
        end = length if end is None else min(max(end + length if end < 0 else end, 0), length)
        put("start", int(mask[:start].sum()))
        if name == "narrow":
            put("length", int(mask[start:end].sum()))
        elif end < length:  # an open end stays open: the sliced dimension may include the batch
            put("end", int(mask[:end].sum()))

    def _padding(self, node: fx.Node, args: list[Any]) -> None:
        """Mend the amounts of a padding."""
        amounts = list(args[1])
        dims = self.trace.values[node]
        for k in range(len(amounts) // 2):
            mask = self._mask(dims[len(dims) - 1 - k])
            if mask is not None:
                before, after = amounts[2 * k], amounts[2 * k + 1]
                if before < 0 or after < 0:
                    raise SurgeryError("a padding that cuts channels cannot be mended")
                amounts[2 * k] = int(mask[:before].sum())
                amounts[2 * k + 1] = int(mask[len(mask) - after :].sum())
        args[1] = amounts


def _renamed(plain: Any, names: Mapping[str, str]) -> Any:
    """Plain arguments with other names for nodes."""
    if isinstance(plain, list):
        return [_renamed(v, names) for v in plain]
    if isinstance(plain, dict):
        if set(plain) == {"node"}:
            return {"node": names.get(plain["node"], plain["node"])}
        return {k: _renamed(v, names) for k, v in plain.items()}
    return plain
