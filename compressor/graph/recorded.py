"""A program as plain values, and the module that runs it.

A recorded program names operators of torch and torchvision, and their arguments. Nothing else is ever looked up, and no
name from it enters the code that fx writes. Its module is a plain one that trains, exports and prunes like any other,
and needs no user's class.
"""

from __future__ import annotations

import functools
import keyword
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.errors import GroupError, SurgeryError
from compressor.files.names import PART, printable
from compressor.graph.operators import computes, name_of, operation
from compressor.graph.sizes import check_inputs, check_record, in_order
from compressor.graph.structures import restored

PLAIN = {"getitem": operator.getitem, "mul": operator.mul, "add": operator.add, "sub": operator.sub,
         "floordiv": operator.floordiv, "mod": operator.mod, "neg": operator.neg, "truediv": operator.truediv,
         "pow": operator.pow, "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
         "gt": operator.gt, "ge": operator.ge}  # fmt: skip
HIGHEST_POWER = 64
DROPPING = {"dropout", "feature_dropout", "alpha_dropout"}

Plain = Mapping[str, Any]


class RecordedProgram(fx.GraphModule):
    """A program as a module: it trains (its norms and dropouts switch), moves between devices, and can be copied."""

    recorded: Plain

    def recompile(self) -> Any:
        """Wrap fx's `forward` in the check of its inputs and the structure of its outputs."""
        code = super().recompile()
        kind = type(self)  # fx creates a class for every module
        steps = kind.forward

        @functools.wraps(steps)
        def forward(self: RecordedProgram, *args: Any, **kwargs: Any) -> Any:
            return self.answered(steps, args, kwargs)

        kind.forward = forward  # as fx does
        return code

    def answered(self, steps: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the outputs of the program's `steps` in the network's structure. Refused: inputs that the program does
        not take.
        """
        takes, returns = self.recorded.get("takes"), self.recorded.get("returns")
        if takes is not None:
            args = in_order(takes, args, kwargs)
            check_inputs(takes, args)
            kwargs = {}
        outputs = steps(self, *args, **kwargs)
        if returns is None:  # a record from before this field existed
            return outputs
        return restored(returns, outputs if isinstance(outputs, tuple) else (outputs,))

    def __deepcopy__(self, memo: dict[int, Any]) -> RecordedProgram:
        state = {name: tensor.detach().clone() for name, tensor in self.state_dict(keep_vars=True).items()}
        twin = program_from(self.recorded, state)
        memo[id(self)] = twin
        for mine, other in zip(self.parameters(), twin.parameters(), strict=True):
            other.requires_grad_(mine.requires_grad)
        twin.train(self.training)
        return twin

    def train(self, mode: bool = True) -> RecordedProgram:
        """Set the mode of the module and of its operators: norms and dropouts that were active in training are so
        again.
        """
        super().train(mode)
        for node in self.graph.nodes:
            if node.op == "call_function" and name_of(node.target) in (*DROPPING, "batch_norm"):
                at = 5 if name_of(node.target) == "batch_norm" else 2
                if len(node.args) > at and node.args[3 if at == 5 else 0] is not None:
                    node.args = (*node.args[:at], mode, *node.args[at + 1 :])
        self.recompile()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RecordedProgram:
        before = self._kind()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self._kind() != before:  # the program's operators name the device and type of new tensors
            now = dict(zip(before, self._kind(), strict=True))
            for node in self.graph.nodes:
                node.args = fx.node.map_aggregate(node.args, lambda value: _swapped(value, now))
                node.kwargs = fx.node.map_aggregate(node.kwargs, lambda value: _swapped(value, now))
            self.recompile()
        return self

    def _kind(self) -> tuple[torch.device, torch.dtype]:
        """Device and type of the first real parameter."""
        one = next((t for t in self.parameters() if t.is_floating_point()), torch.empty(0))
        return one.device, one.dtype


def check_has_layers(module: nn.Module) -> None:
    """Refused: a network that is stored as its exported program."""
    if isinstance(module, RecordedProgram):
        raise GroupError(
            "the network is stored as its exported program, which has no layers",
            hint="prune it again: `--protect NAME` leaves whole what its class cannot hold narrower",
        )


def _swapped(value: Any, now: Mapping[Any, Any]) -> Any:
    return now.get(value, value) if isinstance(value, (torch.device, torch.dtype)) else value


def program_from(recorded: Plain, state: Mapping[str, Tensor]) -> RecordedProgram:
    """Return the module of a recorded program with the tensors of `state`, which have the dense network's names."""
    root = nn.Module()
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    count = 0
    tensors = dict(state)
    for name, plain in recorded["constants"].items():
        key = f"constants.{name}"
        if key not in tensors:
            tensors[key] = tensor_from(plain)
    trainable = frozenset(recorded["trainable"])
    for node in recorded["nodes"]:
        if "held" in node:
            _hold(root, node["held"], tensors[node["held"]], trainable)
            nodes[node["name"]] = graph.get_attr(node["held"])
        elif "input" in node:
            nodes[node["name"]] = graph.placeholder(f"input_{count}")  # fx writes it into code: no name from a file
            count += 1
        else:
            function = _operator(node["call"])
            args = _value(node["args"], nodes)
            kwargs = {name: _value(value, nodes) for name, value in node["kwargs"].items()}
            _check_arguments(function, args, kwargs)
            nodes[node["name"]] = graph.call_function(function, tuple(args), kwargs)
    outputs = [nodes[name] for name in recorded["outputs"]]
    try:  # refuse a bad record here, and not when the program runs
        if recorded.get("takes") is not None:
            check_record(recorded["takes"], inputs=count)
        if recorded.get("returns") is not None:
            restored(recorded["returns"], outputs)
    except RecursionError as error:
        raise SurgeryError("a program records an output or a condition that is nested too deeply") from error
    graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
    program = RecordedProgram(root, graph)
    for name, tensor in tensors.items():  # also what the program does not read, so that the state stays whole
        if name not in recorded["tied"]:
            _hold(program, name, tensor, trainable)
    for name, other in recorded["tied"].items():
        _hold(program, name, tensors[other], trainable, same=_tensor(program, other))
    program.recorded = recorded
    program.train(False)
    return program


def _tensor(root: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of this name."""
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(root.get_submodule(owner), leaf)
    return tensor


def _hold(root: nn.Module, name: str, tensor: Tensor, trainable: frozenset[str], *, same: Tensor | None = None) -> None:
    """Register a tensor under its dotted name, with the modules on its path; `same` is a tensor to tie it to."""
    *path, leaf = name.split(".")
    if any(not PART.fullmatch(part) or keyword.iskeyword(part) for part in (*path, leaf)):
        raise SurgeryError(f"a program names a tensor `{printable(name)}`, which is no name")
    owner = root
    for part in path:
        if part not in owner._modules:
            _check_free(owner, part, name)
            owner.add_module(part, nn.Module())
        owner = owner._modules[part]  # type: ignore[assignment]  # none is `None`: they were added here
    if leaf in owner._parameters or leaf in owner._buffers:
        return
    _check_free(owner, leaf, name)
    if isinstance(same, nn.Parameter):
        setattr(owner, leaf, same)
    elif same is not None:
        owner.register_buffer(leaf, same)
    elif name in trainable and (tensor.is_floating_point() or tensor.is_complex()):
        setattr(owner, leaf, nn.Parameter(tensor.detach().clone()))
    else:
        owner.register_buffer(leaf, tensor.detach().clone())


def _check_free(owner: nn.Module, part: str, name: str) -> None:
    """Refuse a name that every module uses for something else: its methods, its class, its tables."""
    if hasattr(owner, part) or (name.startswith(part) and part in _own_names()):
        raise SurgeryError(f"a program names a tensor `{printable(name)}`, and `{part}` is a module's own")


@functools.cache
def _own_names() -> frozenset[str]:
    """The attributes of a program's module apart from its tensors, at the top level."""
    return frozenset(dir(RecordedProgram(nn.Module(), fx.Graph()))) | {"recorded"}


def name_from(target: Any) -> str:
    """Return the name of an operator, by which `_operator` looks it up."""
    for name, function in PLAIN.items():
        if target is function:
            return name
    if computes(target):
        return str(target) if "." in str(target) else f"{target}.default"
    if target is torch.sym_max or target is torch.sym_min or target is torch.sym_sum:
        return f"torch.{target.__name__}"
    raise SurgeryError(f"the program takes a step that cannot be written down: `{target}`")


def _operator(name: str) -> Any:
    """Return the operator called `name`. Refused: one that is neither torch's nor torchvision's."""
    if name in PLAIN:
        return PLAIN[name]
    if name in ("torch.sym_max", "torch.sym_min", "torch.sym_sum"):
        return getattr(torch, name.removeprefix("torch."))
    return operation(name)


def _check_arguments(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse argument names that the operator does not have (fx writes them into code), and unbounded arithmetic."""
    names = {argument.name for argument in function._schema.arguments} if hasattr(function, "_schema") else set()
    if function in PLAIN.values() and function is not operator.getitem:
        _check_numbers(function, args)
    for name in kwargs:
        if name not in names:
            raise SurgeryError(f"a program passes `{function}` an argument `{printable(name)}` that it does not have")


def _check_numbers(function: Any, args: Sequence[Any]) -> None:
    """Refuse arithmetic on anything but sizes and numbers, such as text times a number, and large powers."""
    bounded = function is not operator.pow or (isinstance(args[-1], (int, float)) and abs(args[-1]) <= HIGHEST_POWER)
    if not bounded or not all(isinstance(arg, (fx.Node, int, float)) for arg in args):
        raise SurgeryError(f"a program computes `{function.__name__}` of values that are not sizes")


def plain_from(value: Any) -> Any:
    """Return an argument in the form that JSON can store. Refused: a kind that could not be read back."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [plain_from(v) for v in value]
    if isinstance(value, dict):
        return {k: plain_from(v) for k, v in value.items()}
    for kind in (torch.dtype, torch.memory_format, torch.layout, torch.device):
        if isinstance(value, kind):
            return {kind.__name__: str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, slice):
        return {"slice": [plain_from(value.start), plain_from(value.stop), plain_from(value.step)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise SurgeryError(f"the program holds a value that cannot be written down: `{type(value).__name__}`")


def numbers_from(tensor: Tensor) -> list[Any]:
    """Return a tensor's numbers in order, in the form that JSON can store: it has no infinity and no complex number."""
    if tensor.is_complex():
        return [plain_from(pair) for pair in torch.view_as_real(tensor).flatten(0, -2).tolist()]
    return [plain_from(value) for value in tensor.flatten().tolist()]


def tensor_from(plain: Plain) -> Tensor:
    """Return the constant that was stored as its `dtype`, `shape` and `values`."""
    dtype = _value({"dtype": plain["dtype"]}, {})
    values = [_value(value, {}) for value in plain["values"]]
    if dtype.is_complex:
        values = [complex(*value) for value in values]
    return torch.tensor(values, dtype=dtype).view(plain["shape"])


def _value(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """The argument that `plain_from` wrote; `nodes` are the graph's nodes by recorded name."""
    if isinstance(value, list):
        return [_value(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"node": str(name)}:
            return nodes[name]
        case {"dtype": str(name)} | {"memory_format": str(name)} | {"layout": str(name)}:
            constant = getattr(torch, name, None)
            if not isinstance(constant, (torch.dtype, torch.memory_format, torch.layout)):
                raise SurgeryError(f"a program names `{printable(name)}`, which is no type or layout of a tensor")
            return constant
        case {"device": str(name)}:
            return torch.device(name)
        case {"float": str(number)}:
            return float(number)
        case {"slice": [start, stop, step]}:
            return slice(_value(start, nodes), _value(stop, nodes), _value(step, nodes))
        case _:
            raise SurgeryError(f"a program holds a value of no known kind: `{printable(value)}`")
