"""The small network as its exported program, where numbers written in the Python code hold the dense widths.

`mended` takes the dense network's program and puts the small widths where the dense ones stood: in views, splits,
slices, paddings, norms, groups, and the scale of an attention whose heads became narrower. What comes back is a plain
module that trains, exports and prunes like any other, and needs nobody's class. A `Recorded` program is plain values:
names of operators and their arguments; only operators of torch and torchvision are ever looked up.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, fx, nn

from compressor.coupling import Dim, Labels
from compressor.errors import SurgeryError
from compressor.rules import name_of
from compressor.silence import left
from compressor.tracing import Trace, exported, read_program

PLAIN = {"getitem": operator.getitem, "mul": operator.mul, "add": operator.add, "sub": operator.sub,
         "floordiv": operator.floordiv, "mod": operator.mod, "neg": operator.neg, "truediv": operator.truediv,
         "pow": operator.pow, "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
         "gt": operator.gt, "ge": operator.ge}  # fmt: skip
SIZED = {"view", "reshape", "_unsafe_view", "expand", "zeros", "ones", "full", "new_zeros", "new_ones", "new_full",
         "empty", "new_empty", "unflatten", "rand", "randn", "broadcast_to"}  # fmt: skip
DROPPING = {"dropout", "feature_dropout", "alpha_dropout"}
torchvision.extension._has_ops()  # its operators are registered by the import

Plain = Mapping[str, Any]
Get = Callable[[str], Any]
Put = Callable[[str, Any], None]


class MendedProgram(fx.GraphModule):
    """A program as a module: trains (its norms and dropouts switch), moves between devices, and can be copied."""

    recorded: Plain

    def __deepcopy__(self, memo: dict[int, Any]) -> MendedProgram:
        state = {name: tensor.detach().clone() for name, tensor in self.state_dict(keep_vars=True).items()}
        twin = program_from(self.recorded, state)
        memo[id(self)] = twin
        for mine, other in zip(self.parameters(), twin.parameters(), strict=True):
            other.requires_grad_(mine.requires_grad)
        twin.train(self.training)
        return twin

    def train(self, mode: bool = True) -> MendedProgram:
        """Norms and dropouts that were trained with do what they did in training."""
        super().train(mode)
        for node in self.graph.nodes:
            if node.op == "call_function" and name_of(node.target) in (*DROPPING, "batch_norm"):
                at = 5 if name_of(node.target) == "batch_norm" else 2
                if len(node.args) > at and node.args[3 if at == 5 else 0] is not None:
                    node.args = (*node.args[:at], mode, *node.args[at + 1 :])
        self.recompile()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MendedProgram:
        before = self._kind()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self._kind() != before:  # the program has device and type of what it makes written into it
            now = dict(zip(before, self._kind(), strict=True))
            for node in self.graph.nodes:
                node.args = fx.node.map_aggregate(node.args, lambda value: _swapped(value, now))
                node.kwargs = fx.node.map_aggregate(node.kwargs, lambda value: _swapped(value, now))
            self.recompile()
        return self

    def _kind(self) -> tuple[torch.device, torch.dtype]:
        one = next((t for t in self.parameters() if t.is_floating_point()), torch.empty(0))
        return one.device, one.dtype


def _swapped(value: Any, now: Mapping[Any, Any]) -> Any:
    return now.get(value, value) if isinstance(value, (torch.device, torch.dtype)) else value


def mended(trace: Trace, dense: nn.Module, gone: set[int]) -> dict[str, Any]:
    """The program of `dense` without the labels `gone`, recorded. Refused: numbers that cannot be mended."""
    recorded = _Mending(trace, dense.state_dict(), np.array(sorted(gone), dtype=np.int64)).recorded()
    return {**recorded, "trainable": [name for name, _ in dense.named_parameters(remove_duplicate=False)]}


def program_of_file(found: Any) -> MendedProgram:
    """The module of a `torch.export.ExportedProgram`, with nothing mended."""
    state = {name: tensor.detach() for name, tensor in found.state_dict.items()}
    others = {name: tensor for name, tensor in found.constants.items() if isinstance(tensor, Tensor)}
    trace = Trace(exported=read_program(found, {**others, **state}), labels=Labels())
    recorded = _Mending(trace, state, np.zeros(0, dtype=np.int64)).recorded()
    return program_from({**recorded, "trainable": list(found.graph_signature.parameters)}, state)


def as_program(module: nn.Module, example_inputs: Sequence[Tensor]) -> MendedProgram:
    """The module as its exported program, with nothing mended; it says what the module says."""
    trace = Trace(exported=exported(module, example_inputs), labels=Labels())
    return program_from(mended(trace, module, set()), module.state_dict())


@dataclass(slots=True, eq=False)
class _Mending:
    trace: Trace
    state: Mapping[str, Tensor]
    gone: Any
    masks: dict[int, Tensor | None] = field(default_factory=dict)

    def recorded(self) -> dict[str, Any]:
        graph = self.trace.exported
        nodes: list[dict[str, Any]] = []
        constants: dict[str, Any] = {}
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                nodes.append(self._placeholder(node, constants))
            elif node.op == "call_function" and not name_of(node.target).startswith("_assert"):
                target, args, kwargs = self._call(node)
                nodes.append({"name": node.name, "call": _said(target), "args": _plain(args), "kwargs": _plain(kwargs)})
        tied: dict[str, str] = {}
        for name, tensor in graph.held.items():
            first = graph.names_of(tensor)[0]
            if name != first and {name, first} <= self.state.keys():
                tied[name] = first
        outputs = [node.name for node in graph.outputs]
        return {"nodes": nodes, "outputs": outputs, "constants": constants, "tied": tied}

    def _placeholder(self, node: fx.Node, constants: dict[str, Any]) -> dict[str, Any]:
        graph = self.trace.exported
        if node.name in graph.tensors and self._is_held(graph.tensors[node.name][0]):
            return {"name": node.name, "held": graph.names_of(graph.tensors[node.name][1])[0]}
        if node.name in graph.tensors or node.name in graph.constants:
            tensor = graph.tensors[node.name][1] if node.name in graph.tensors else graph.constants[node.name]
            for d, dim in enumerate(self.trace.values[node]):
                mask = left(self.trace.labels, dim, self.gone)
                if mask is not None:
                    tensor = tensor.index_select(d, mask.nonzero().flatten())
            name = node.name.replace(".", "_")
            constants[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape),
                               "values": tensor.flatten().tolist()}  # fmt: skip
            return {"name": node.name, "held": f"constants.{name}"}
        return {"name": node.name, "input": True}

    def _is_held(self, name: str) -> bool:
        """Whether the weights' file of the dense network has it; a program's own constants are written down again."""
        return name in self.state and not name.startswith("constants.")

    def _mask(self, dim: Dim) -> Tensor | None:
        if id(dim) not in self.masks:  # the trace holds every `Dim` for as long as this lives
            self.masks[id(dim)] = left(self.trace.labels, dim, self.gone)
        return self.masks[id(dim)]

    def _width(self, dim: Dim, dense: int) -> int:
        mask = self._mask(dim)
        return dense if mask is None else int(mask.sum())

    def _shape(self, node: fx.Node) -> list[int]:
        """The small network's shape of a node's value."""
        return [self._width(d, n) for d, n in zip(self.trace.values[node], self.trace.shapes[node], strict=True)]

    def _call(self, node: fx.Node) -> tuple[Any, list[Any], dict[str, Any]]:
        target, args, kwargs = node.target, list(node.args), dict(node.kwargs)
        name = name_of(target)
        touched = [node, *node.all_input_nodes]
        if not any(self._touched(n) for n in touched):
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
        elif name in ("slice", "narrow", "select"):
            self._positions(name, get, put)
        elif name in ("pad", "constant_pad_nd"):
            self._padding(node, args)
        elif name in ("repeat", "tile"):
            counted = "repeats" if name == "repeat" else "dims"
            wide = zip(get(counted), self.trace.values[node], self._shape(node), strict=True)
            put(counted, [r if r == 1 or self._mask(dim) is None else n for r, dim, n in wide])
        elif name in ("layer_norm", "rms_norm"):
            shape = get("normalized_shape")
            put("normalized_shape", self._shape(node)[-len(shape) :])
        elif name == "group_norm":
            if get("num_groups") == self.trace.shapes[node][1]:
                put("num_groups", self._shape(node)[1])
        elif name.startswith("conv") and get("groups") > 1:
            weight = get("weight")
            mask = self._mask(self.trace.values[weight][0])
            if mask is not None:
                put("groups", int(mask.view(get("groups"), -1).any(dim=1).sum()))
        elif name == "scaled_dot_product_attention":
            query = get("query")
            if get("scale") is None and self._mask(self.trace.values[query][-1]) is not None:
                kwargs["scale"] = 1 / math.sqrt(self.trace.shapes[query][-1])
        return target, args, kwargs

    def _touched(self, node: fx.Node) -> bool:
        known = self.trace.values.get(node)
        if known is None:
            return False
        several = known if isinstance(known, list) else [known]
        return any(self._mask(dim) is not None for dims in several if dims is not None for dim in dims)

    def _sizes(self, node: fx.Node, schema: list[str], get: Get, put: Put) -> None:
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
                    sizes = [shape[first + j] if s == -1 else s for j, s in enumerate(sizes)]
                sizes[i] = -1
        put(argument, sizes)

    def _positions(self, name: str, get: Get, put: Put) -> None:
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
        else:
            put("end", int(mask[:end].sum()))

    def _padding(self, node: fx.Node, args: list[Any]) -> None:
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


def program_from(recorded: Plain, state: Mapping[str, Tensor]) -> MendedProgram:
    """The module of a recorded program, holding `state`: its own tensors by the dense network's names."""
    root = nn.Module()
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    given = 0
    tensors = dict(state)
    for name, plain in recorded["constants"].items():
        key = f"constants.{name}"
        if key not in tensors:
            tensors[key] = torch.tensor(plain["values"], dtype=getattr(torch, plain["dtype"])).view(plain["shape"])
    trainable = frozenset(recorded["trainable"])
    for node in recorded["nodes"]:
        if "held" in node:
            _hold(root, node["held"], tensors[node["held"]], trainable)
            known[node["name"]] = graph.get_attr(node["held"])
        elif "input" in node:
            known[node["name"]] = graph.placeholder(
                f"input_{given}"
            )  # fx writes names into code: none comes from a file
            given += 1
        else:
            called = _looked_up(node["call"])
            args, kwargs = _filled(node["args"], known), _filled(node["kwargs"], known)
            _check_named(called, kwargs)
            known[node["name"]] = graph.call_function(called, tuple(args), kwargs)
    outputs = [known[name] for name in recorded["outputs"]]
    graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
    program = MendedProgram(root, graph)
    for name, tensor in tensors.items():  # what the program does not read is kept: the state stays whole
        if name not in recorded["tied"]:
            _hold(program, name, tensor, trainable)
    for name, other in recorded["tied"].items():
        _hold(program, name, tensors[other], trainable, same=program.get_parameter(other))
    program.recorded = recorded
    program.train(False)
    return program


def _hold(
    root: nn.Module, name: str, tensor: Tensor, trainable: frozenset[str], *, same: nn.Parameter | None = None
) -> None:
    *path, leaf = name.split(".")
    if not all(re.fullmatch(r"\w+", part, flags=re.ASCII) for part in (*path, leaf)):
        raise SurgeryError(f"a program names a tensor `{name[:60]}`, which is no name")
    owner = root
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if hasattr(owner, leaf):
        return
    if same is not None:
        setattr(owner, leaf, same)
    elif name in trainable and tensor.is_floating_point():
        setattr(owner, leaf, nn.Parameter(tensor.detach().clone()))
    else:
        owner.register_buffer(leaf, tensor.detach().clone())


def _said(target: Any) -> str:
    """An operator's name, by which it is found again."""
    for name, function in PLAIN.items():
        if target is function:
            return name
    if hasattr(target, "_schema"):
        return str(target) if "." in str(target) else f"{target}.default"
    if target is torch.sym_max or target is torch.sym_min or target is torch.sym_sum:
        return f"torch.{target.__name__}"
    raise SurgeryError(f"the program takes a step that cannot be written down: `{target}`")


def _looked_up(name: str) -> Any:
    """The operator called `name`; refused where it is none of torch's or torchvision's."""
    if name in PLAIN:
        return PLAIN[name]
    if name in ("torch.sym_max", "torch.sym_min", "torch.sym_sum"):
        return getattr(torch, name.removeprefix("torch."))
    library, _, rest = name.partition(".")
    operation, _, overload = rest.partition(".")
    if library not in ("aten", "torchvision", "prims"):
        raise SurgeryError(f"a program names `{name[:60]}`, which is no operator of torch or torchvision")
    try:
        found = getattr(getattr(getattr(torch.ops, library), operation), overload or "default")
    except AttributeError as error:
        raise SurgeryError(f"this torch has no operator `{name[:60]}`", hint="update torch") from error
    if not isinstance(found, torch._ops.OpOverload):
        raise SurgeryError(f"a program names `{name[:60]}`, which is no operator of torch or torchvision")
    if any(argument.name == "filename" for argument in found._schema.arguments):
        raise SurgeryError(f"a program names `{name[:60]}`, which reads or writes files")
    return found


def _check_named(called: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuses arguments by names that the operator does not have: fx writes them into code."""
    known = {argument.name for argument in called._schema.arguments} if hasattr(called, "_schema") else set()
    for name in kwargs:
        if name not in known:
            raise SurgeryError(f"a program gives `{called}` an argument `{name[:60]}` that it does not have")


def _plain(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    for kind in (torch.dtype, torch.memory_format, torch.layout, torch.device):
        if isinstance(value, kind):
            return {kind.__name__: str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, slice):
        return {"slice": [_plain(value.start), _plain(value.stop), _plain(value.step)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise SurgeryError(f"the program holds a value that cannot be written down: `{type(value).__name__}`")


def _filled(value: Any, known: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_filled(v, known) for v in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"node": str(name)}:
            return known[name]
        case {"dtype": str(name)} | {"memory_format": str(name)} | {"layout": str(name)}:
            found = getattr(torch, name, None)
            if not isinstance(found, (torch.dtype, torch.memory_format, torch.layout)):
                raise SurgeryError(f"a program names `{name[:60]}`, which is no type or layout of a tensor")
            return found
        case {"device": str(name)}:
            return torch.device(name)
        case {"float": str(number)}:
            return float(number)
        case {"slice": [start, stop, step]}:
            return slice(_filled(start, known), _filled(stop, known), _filled(step, known))
        case _:
            return {k: _filled(v, known) for k, v in value.items()}
