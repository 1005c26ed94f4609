"""A program as plain values, and the module that runs it.

A recorded program names operators of torch and torchvision, and their arguments; nothing else is ever looked up, and no
name in it gets into the code that fx writes. Its module is a plain one that trains, exports and prunes like any other,
and needs nobody's class.
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
from compressor.graph.sizes import check_record, check_taken, in_order
from compressor.graph.structures import restored

PLAIN = {"getitem": operator.getitem, "mul": operator.mul, "add": operator.add, "sub": operator.sub,
         "floordiv": operator.floordiv, "mod": operator.mod, "neg": operator.neg, "truediv": operator.truediv,
         "pow": operator.pow, "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
         "gt": operator.gt, "ge": operator.ge}  # fmt: skip
HIGHEST_POWER = 64
DROPPING = {"dropout", "feature_dropout", "alpha_dropout"}

Plain = Mapping[str, Any]


class RecordedProgram(fx.GraphModule):
    """A program as a module: trains (its norms and dropouts switch), moves between devices, and can be copied."""

    recorded: Plain

    def recompile(self) -> Any:
        """What fx writes, between the check of what comes in and the structure of what goes out."""
        code = super().recompile()
        kind = type(self)  # fx makes a class for every module
        steps = kind.forward

        @functools.wraps(steps)
        def forward(self: RecordedProgram, *args: Any, **kwargs: Any) -> Any:
            return self.answered(steps, args, kwargs)

        kind.forward = forward  # as fx does
        return code

    def answered(self, steps: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the program's `steps` give, as the network structured it. Refused: inputs that it was not made for."""
        takes, returns = self.recorded.get("takes"), self.recorded.get("returns")
        if takes is not None:
            args = in_order(takes, args, kwargs)
            check_taken(takes, args)
            kwargs = {}
        given = steps(self, *args, **kwargs)
        if returns is None:  # a record of before there was one
            return given
        return restored(returns, given if isinstance(given, tuple) else (given,))

    def __deepcopy__(self, memo: dict[int, Any]) -> RecordedProgram:
        state = {name: tensor.detach().clone() for name, tensor in self.state_dict(keep_vars=True).items()}
        twin = program_from(self.recorded, state)
        memo[id(self)] = twin
        for mine, other in zip(self.parameters(), twin.parameters(), strict=True):
            other.requires_grad_(mine.requires_grad)
        twin.train(self.training)
        return twin

    def train(self, mode: bool = True) -> RecordedProgram:
        """Norms and dropouts that were trained with do what they did in training."""
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


def check_has_layers(module: nn.Module) -> None:
    """Refused: a network that is kept as its exported program."""
    if isinstance(module, RecordedProgram):
        raise GroupError(
            "the network is kept as its exported program, which has no layers",
            hint="prune it again: `--protect NAME` leaves whole what its class cannot hold narrower",
        )


def _swapped(value: Any, now: Mapping[Any, Any]) -> Any:
    return now.get(value, value) if isinstance(value, (torch.device, torch.dtype)) else value


def program_from(recorded: Plain, state: Mapping[str, Tensor]) -> RecordedProgram:
    """The module of a recorded program, holding `state`: its own tensors by the dense network's names."""
    root = nn.Module()
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    given = 0
    tensors = dict(state)
    for name, plain in recorded["constants"].items():
        key = f"constants.{name}"
        if key not in tensors:
            tensors[key] = tensor_from(plain)
    trainable = frozenset(recorded["trainable"])
    for node in recorded["nodes"]:
        if "held" in node:
            _hold(root, node["held"], tensors[node["held"]], trainable)
            known[node["name"]] = graph.get_attr(node["held"])
        elif "input" in node:
            known[node["name"]] = graph.placeholder(f"input_{given}")  # fx writes it into code: no name from a file
            given += 1
        else:
            called = _looked_up(node["call"])
            args = _value(node["args"], known)
            kwargs = {name: _value(value, known) for name, value in node["kwargs"].items()}
            _check_given(called, args, kwargs)
            known[node["name"]] = graph.call_function(called, tuple(args), kwargs)
    outputs = [known[name] for name in recorded["outputs"]]
    try:  # what is refused is refused now, and not when it runs
        if recorded.get("takes") is not None:
            check_record(recorded["takes"], inputs=given)
        if recorded.get("returns") is not None:
            restored(recorded["returns"], outputs)
    except RecursionError as error:
        raise SurgeryError("a program records an output or a condition that is nested too deeply") from error
    graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
    program = RecordedProgram(root, graph)
    for name, tensor in tensors.items():  # what the program does not read is kept: the state stays whole
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
    found: Tensor = getattr(root.get_submodule(owner), leaf)
    return found


def _hold(root: nn.Module, name: str, tensor: Tensor, trainable: frozenset[str], *, same: Tensor | None = None) -> None:
    *path, leaf = name.split(".")
    if any(not PART.fullmatch(part) or keyword.iskeyword(part) for part in (*path, leaf)):
        raise SurgeryError(f"a program names a tensor `{printable(name)}`, which is no name")
    owner = root
    for part in path:
        if part not in owner._modules:
            _check_free(owner, part, name)
            owner.add_module(part, nn.Module())
        owner = owner._modules[part]  # type: ignore[assignment]  # none is `None`: they were made here
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
    """Refuses a name that every module has for something else: its methods, its class, its tables."""
    if hasattr(owner, part) or (name.startswith(part) and part in _own_names()):
        raise SurgeryError(f"a program names a tensor `{printable(name)}`, and `{part}` is a module's own")


@functools.cache
def _own_names() -> frozenset[str]:
    """What the module of a program holds beside its tensors, at the top."""
    return frozenset(dir(RecordedProgram(nn.Module(), fx.Graph()))) | {"recorded"}


def name_from(target: Any) -> str:
    """An operator's name, by which it is found again."""
    for name, function in PLAIN.items():
        if target is function:
            return name
    if computes(target):
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
    return operation(name)


def _check_given(called: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuses arguments by names that the operator does not have (fx writes them into code), and sums without end."""
    known = {argument.name for argument in called._schema.arguments} if hasattr(called, "_schema") else set()
    if called in PLAIN.values() and called is not operator.getitem:
        _check_numbers(called, args)
    for name in kwargs:
        if name not in known:
            raise SurgeryError(f"a program gives `{called}` an argument `{printable(name)}` that it does not have")


def _check_numbers(called: Any, args: Sequence[Any]) -> None:
    """Refuses what is no sum of sizes and numbers: text times a number, say, or a power that takes days."""
    bounded = called is not operator.pow or (isinstance(args[-1], (int, float)) and abs(args[-1]) <= HIGHEST_POWER)
    if not bounded or not all(isinstance(arg, (fx.Node, int, float)) for arg in args):
        raise SurgeryError(f"a program computes `{called.__name__}` of what are no sizes")


def plain_from(value: Any) -> Any:
    """An argument as JSON has it; refused where it is of no kind that can be read back."""
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
    """A tensor's numbers in order, as JSON has them: it knows no infinity and no complex number."""
    if tensor.is_complex():
        return [plain_from(pair) for pair in torch.view_as_real(tensor).flatten(0, -2).tolist()]
    return [plain_from(value) for value in tensor.flatten().tolist()]


def tensor_from(plain: Plain) -> Tensor:
    """The constant that was written down as its `dtype`, `shape` and `values`."""
    dtype = _value({"dtype": plain["dtype"]}, {})
    values = [_value(value, {}) for value in plain["values"]]
    if dtype.is_complex:
        values = [complex(*value) for value in values]
    return torch.tensor(values, dtype=dtype).view(plain["shape"])


def _value(value: Any, known: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_value(v, known) for v in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"node": str(name)}:
            return known[name]
        case {"dtype": str(name)} | {"memory_format": str(name)} | {"layout": str(name)}:
            found = getattr(torch, name, None)
            if not isinstance(found, (torch.dtype, torch.memory_format, torch.layout)):
                raise SurgeryError(f"a program names `{printable(name)}`, which is no type or layout of a tensor")
            return found
        case {"device": str(name)}:
            return torch.device(name)
        case {"float": str(number)}:
            return float(number)
        case {"slice": [start, stop, step]}:
            return slice(_value(start, known), _value(stop, known), _value(step, known))
        case _:
            raise SurgeryError(f"a program holds a value of no known kind: `{printable(value)}`")
