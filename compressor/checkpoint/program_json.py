"""Convert the JSON of an exported program (torch's `ExportedProgram`, schema 8) to a recorded program of plain values.

A node of the JSON names an operator, its arguments and its results; nothing else is read. Open sizes are results of
operators (`aten.sym_size.int`, products of them), so the expressions beside them, which torch's own reader evaluates as
Python, are not needed. Code, traces, guards and call signatures in the file are ignored.

Nested graphs (of `torch.no_grad()` in the network's code, for example) are inlined where they are called.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compressor.errors import CheckpointError
from compressor.files.names import printable
from compressor.graph.operators import operation
from compressor.graph.recorded import PLAIN

DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
          9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16",
          29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu",
          34: "uint32", 35: "uint64"}  # fmt: skip
MEMORY_FORMATS = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
STRIDED = 7
CHECKS = (
    "torch.ops.aten._assert_",
    "torch.ops.aten.sym_constrain_range",
)  # their checks are covered by the comparison with the module
WRAPPERS = {
    "torch.ops.higher_order.wrap_with_set_grad_enabled": 1,
    "torch.ops.higher_order.wrap_with_autocast": 4,
}  # → the argument that is the graph
NOT_FINITE = {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}
KEYWORD = 2  # the argument was passed by name
DEEPEST = 20  # levels of nested graphs
TRUST = "`--trust-pickle` lets torch read it, if you trust the file's origin: torch's reader runs code from it"

Plain = dict[str, Any]


class MalformedError(Exception):
    """The JSON has a form that torch does not write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor of the file that the program reads, by its name there; a constant is neither parameter nor buffer."""

    name: str
    parameter: bool
    constant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramInput:
    """An input of the program: its name, its type, its sizes on the example, and its fixed sizes.

    `fixed` has `None` where the exporter left a size open, and for the batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    fixed: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadProgram:
    """The content of the JSON: nodes and outputs for `graph.recorded`, the tensors they read, the program's inputs."""

    nodes: tuple[Plain, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Stored]  # by the name of the node that reads it
    inputs: tuple[ProgramInput, ...]
    returns: Plain | None = None  # the structure of its output, if of dicts, lists and tuples

    @property
    def takes(self) -> Plain:
        """The inputs that the program accepts, in the form of `graph.sizes`."""
        named = [one.name for one in self.inputs]
        good = len(set(named)) == len(named) and all(name.isidentifier() and name.isascii() for name in named)
        names = named if good else [f"input_{number}" for number in range(len(named))]
        inputs = [{"name": n, "shape": list(t.fixed)} for n, t in zip(names, self.inputs, strict=True)]
        return {"inputs": inputs, "holds": []}


def program_in(plain: object) -> ReadProgram:
    """Return the program in the JSON. Refused: a form that torch does not write, or that only torch's own reader
    rebuilds.
    """
    program = _mapping(plain)
    major = _mapping(program.get("schema_version")).get("major")
    if major != 8:
        raise CheckpointError(
            f"its program has schema {printable(major)}, and this version reads 8",
            hint="export it again with torch 2.9 or newer",
        )
    return _Reader().program(_mapping(program.get("graph_module")))


@dataclass(slots=True)
class _Reader:
    """Collects nodes, tensors and inputs while it walks through the graph; `values` maps the file's names to recorded
    values.
    """

    nodes: list[Plain] = field(default_factory=list)
    tensors: dict[str, Stored] = field(default_factory=dict)
    inputs: list[ProgramInput] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def program(self, module: Mapping[str, Any]) -> ReadProgram:
        """Return the program of the JSON's graph module."""
        graph, signature = _mapping(module.get("graph")), _mapping(module.get("signature"))
        values: Plain = {}
        arguments, specs = _list(graph.get("inputs")), _list(signature.get("input_specs"))
        if len(arguments) != len(specs):
            raise MalformedError("inputs and their description differ in number")
        metas = _mapping(graph.get("tensor_values"))
        for argument, spec in zip(arguments, specs, strict=True):
            self._input(argument, *_one(spec), values, metas)
        self._steps(graph, values, depth=0)
        outputs = [
            output
            for output, spec in zip(_list(graph.get("outputs")), _list(signature.get("output_specs")), strict=False)
            if _one(spec)[0] == "user_output"
        ]
        open_sizes = ("as_sym_int", "as_sym_float", "as_sym_bool")
        leaves: list[Plain] = []
        names: list[str] = []
        for output in outputs:
            value = _value(output, values)
            if _one(output)[0] == "as_tensor" or (_one(output)[0] in open_sizes and isinstance(value, dict)):
                leaves.append({"output": len(names)})
                names.append(value["node"])
            else:
                leaves.append({"number": value["float"]} if isinstance(value, dict) else {"value": value})
        if not any(_one(output)[0] == "as_tensor" for output in outputs):
            raise CheckpointError("its program returns no tensor", hint="compress needs a network that returns tensors")
        return ReadProgram(
            nodes=tuple(self.nodes),
            outputs=tuple(names),
            tensors=self.tensors,
            inputs=tuple(self.inputs),
            returns=_returns(module, leaves),
        )

    def _input(
        self, argument: object, kind: str, spec: Mapping[str, Any], values: Plain, metas: Mapping[str, Any]
    ) -> None:
        """Add an input, or a tensor that the program reads."""
        if kind == "constant_input":
            return  # a number or text that is written in the program already
        if kind == "user_input" and _one(argument)[0] != "as_tensor":
            if _one(argument)[0] in ("as_int", "as_float", "as_bool", "as_none", "as_string"):
                return
            raise CheckpointError("its program takes an input that is no tensor", hint="export it with tensors alone")
        if kind not in ("user_input", "parameter", "buffer", "tensor_constant"):
            raise CheckpointError(f"its program takes `{printable(kind)}`, which JSON cannot hold", hint=TRUST)
        name = _text(_mapping(_one(argument)[1]).get("name"))
        node = self._named()
        values[name] = {"node": node}
        if kind == "user_input":
            self.inputs.append(_program_input(name, _mapping(metas.get(name))))
            self.nodes.append({"name": node, "input": True})
        else:
            key = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
            stored = _text(spec.get(key[kind]))
            self.tensors[node] = Stored(name=stored, parameter=kind == "parameter", constant=kind == "tensor_constant")
            self.nodes.append({"name": node, "held": stored})

    def _steps(self, graph: Mapping[str, Any], values: Plain, *, depth: int) -> None:
        """Add the nodes of a graph."""
        if depth > DEEPEST:
            raise MalformedError("graphs within graphs, too deep")
        for step in map(_mapping, _list(graph.get("nodes"))):
            target = _text(step.get("target"))
            if target.startswith(CHECKS):
                continue
            if target in WRAPPERS:
                self._inlined(target, step, values, depth)
            else:
                self._call(target, step, values)

    def _inlined(self, target: str, step: Mapping[str, Any], values: Plain, depth: int) -> None:
        """Add the nodes of a nested graph in place of its call."""
        arguments = [_mapping(i).get("arg") for i in _list(step.get("inputs"))]
        at = WRAPPERS[target]
        if len(arguments) <= at:
            raise MalformedError("a wrapped graph without its graph")
        settings = [_value(a, values) for a in arguments[:at]]
        if at == WRAPPERS["torch.ops.higher_order.wrap_with_autocast"] and settings[0] == "cpu" and settings[2]:
            raise CheckpointError(
                "parts of this network run in a lower precision by themselves (`torch.autocast`)",
                hint="take the autocast out of its code: it belongs to the caller",
            )
        kind, wrapped = _one(arguments[at])
        inner = _mapping(_mapping(wrapped).get("graph")) if kind == "as_graph" else {}
        names = [_text(_mapping(_one(i)[1]).get("name")) for i in _list(inner.get("inputs"))]
        passed = [_value(a, values) for a in arguments[at + 1 :]]
        if len(names) != len(passed):
            raise MalformedError("a wrapped graph with other arguments than it takes")
        within = dict(zip(names, passed, strict=True))
        self._steps(inner, within, depth=depth + 1)
        outputs = [_value(output, within) for output in _list(inner.get("outputs"))]
        results = [r for output in _list(step.get("outputs")) for r in _results(output)]
        for name, value in zip(results, outputs, strict=False):
            if name is not None:
                values[name] = value

    def _call(self, target: str, step: Mapping[str, Any], values: Plain) -> None:
        """Add the call of an operator."""
        inputs = [_mapping(i) for i in _list(step.get("inputs"))]
        name = _operator_name(target)
        kwargs: Plain = {}
        if name in PLAIN or name.startswith("torch."):
            args = [_value(i.get("arg"), values) for i in inputs]
        else:
            args, kwargs = _arguments(operation(name), inputs, values)
        node = self._named()
        self.nodes.append({"name": node, "call": name, "args": args, "kwargs": kwargs})
        self._name_results({"node": node}, _list(step.get("outputs")), values)

    def _name_results(self, value: Plain, outputs: Sequence[object], values: Plain) -> None:
        """Name the results of an operator: one value, a list, or several values."""
        if len(outputs) == 1 and _one(outputs[0])[0] != "as_tensors":
            for name in _results(outputs[0]):
                if name is not None:
                    values[name] = value
            return
        listed = _list(_one(outputs[0])[1]) if len(outputs) == 1 else []
        parts: Sequence[object] = [{"as_tensor": part} for part in listed] if len(outputs) == 1 else outputs
        for position, part in enumerate(parts):
            kind = _one(part)[0]
            if kind == "as_none":
                continue
            node = self._named()
            self.nodes.append({"name": node, "call": "getitem", "args": [value, position], "kwargs": {}})
            self._name_results({"node": node}, [part], values)

    def _named(self) -> str:
        """A new name for a node."""
        return f"v{next(self.numbers)}"


def _operator_name(target: str) -> str:
    """The name of an operator in recorded programs. Refused: other operators."""
    if target.startswith("torch.ops."):
        name = target.removeprefix("torch.ops.")
        if name.split(".")[0] in ("aten", "torchvision", "prims"):
            return name
        raise CheckpointError(
            f"its program calls `{printable(name)}`, which is none of torch's or torchvision's own operators",
            hint=TRUST,
        )
    plain = target.removeprefix("_operator.")
    if plain != target and plain in PLAIN:
        return plain
    if target in ("torch.sym_max", "torch.sym_min"):
        return target
    raise CheckpointError(f"its program takes a step that is no operator: `{printable(target)}`", hint=TRUST)


def _arguments(operator: Any, inputs: Sequence[Mapping[str, Any]], values: Plain) -> tuple[list[Any], Plain]:
    """The arguments in their original form: by position up to the first gap, then by name."""
    by_name = {_text(i.get("name")): i for i in inputs}
    if len(by_name) != len(inputs):
        raise MalformedError("an argument twice")
    args: list[Any] = []
    kwargs: Plain = {}
    for argument in operator._schema.arguments:
        one = by_name.pop(argument.name, None)
        if one is None:
            continue
        value = _value(one.get("arg"), values)
        first = len(args) == operator._schema.arguments.index(argument)
        if first and not argument.kwarg_only and one.get("kind") != KEYWORD:
            args.append(value)
        else:
            kwargs[argument.name] = value
    if by_name:
        raise CheckpointError(
            f"its program passes `{operator}` an argument `{printable(next(iter(by_name)))}` that it does not have",
            hint="export it again with this version of torch",
        )
    return args, kwargs


def _value(argument: object, values: Plain) -> Any:
    """An argument in the form of a recorded program."""
    kind, value = _one(argument)
    match kind, value:
        case "as_none", _:
            return None
        case ("as_int", int()) | ("as_bool", bool()) | ("as_string", str()):
            return value
        case "as_float", _:
            return _float(value)
        case "as_tensor", {"name": str(name)}:
            return _computed(name, values)
        case (("as_sym_int" | "as_sym_float" | "as_sym_bool"), dict()):
            return _symbolic(value, values)
        case (("as_sym_ints" | "as_sym_floats" | "as_sym_bools"), list()):
            return [_symbolic(v, values) for v in value]
        case "as_tensors", list():
            return [_computed(_text(_mapping(v).get("name")), values) for v in value]
        case "as_nested_tensors", list():
            return [[_computed(_text(_mapping(v).get("name")), values) for v in _list(part)] for part in value]
        case "as_optional_tensors", list():
            return [_value(v, values) for v in value]
        case "as_optional_tensor", dict():
            return _value(value, values)
        case "as_floats", list():
            return [_float(v) for v in value]
        case (("as_ints" | "as_bools" | "as_strings"), list()):
            if all(isinstance(v, (int, bool, str)) for v in value):
                return list(value)
        case (("as_int_lists" | "as_float_lists"), list()):
            return [[_float(v) if isinstance(v, (str, float)) else _integer(v) for v in _list(part)] for part in value]
        case "as_scalar_type", int() if value in DTYPES:
            return {"dtype": DTYPES[value]}
        case "as_memory_format", int() if value in MEMORY_FORMATS:
            return {"memory_format": MEMORY_FORMATS[value]}
        case "as_layout", int() if value == STRIDED:
            return {"layout": "strided"}
        case "as_device", dict():
            return {"device": "cpu"}  # where the weights are read to, wherever it was exported
        case (("as_graph" | "as_custom_obj" | "as_operator" | "as_complex" | "as_string_to_argument"), _):
            raise CheckpointError(f"its program holds `{kind}`, which this reader does not build", hint=TRUST)
    raise MalformedError(f"an argument of kind {printable(kind)}")


def _results(output: object) -> list[str | None]:
    """The names in one output."""
    kind, value = _one(output)
    match kind, value:
        case "as_none", _:
            return [None]
        case ("as_tensor", {"name": str(name)}) | (
            ("as_sym_int" | "as_sym_float" | "as_sym_bool"),
            {"as_name": str(name)},
        ):
            return [name]
        case "as_tensors", list():
            return [_text(_mapping(v).get("name")) for v in value]
    raise MalformedError(f"a result of kind {printable(kind)}")


def _symbolic(value: object, values: Plain) -> Any:
    """A size, number or flag that may be the result of an operator."""
    kind, content = _one(value)
    if kind == "as_name":
        return _computed(_text(content), values)
    if kind == "as_int":
        return _integer(content)
    if kind == "as_float":
        return _float(content)
    if kind == "as_bool" and isinstance(content, bool):
        return content
    raise MalformedError(f"a size of kind {printable(kind)}")


def _program_input(name: str, meta: Mapping[str, Any]) -> ProgramInput:
    """The input `name` with its type and sizes."""
    dtype, sizes = meta.get("dtype"), _list(meta.get("sizes"))
    if dtype not in DTYPES:
        raise MalformedError("an input of no known type")
    shape = tuple(_size(size) for size in sizes)
    if any(size < 0 for size in shape):
        raise MalformedError("an input of negative size")
    fixed = tuple(
        n if d and _one(size)[0] == "as_int" else None for d, (n, size) in enumerate(zip(shape, sizes, strict=True))
    )
    return ProgramInput(name=name, dtype=DTYPES[dtype], shape=shape, fixed=fixed)


def _returns(module: Mapping[str, Any], leaves: list[Plain]) -> Plain | None:
    """The structure around the outputs; `None` if the file has none, or one with classes other than dicts, lists and
    tuples.
    """
    remaining = iter(leaves)
    try:
        top = next(e for e in _list(module.get("module_call_graph")) if _mapping(e).get("fqn") == "")
        version, spec = json.loads(_text(_mapping(_mapping(top).get("signature")).get("out_spec")))
        structure = _around(spec, remaining, depth=0)
    except (MalformedError, StopIteration, ValueError, TypeError, RecursionError):
        return None
    return structure if version == 1 and next(remaining, None) is None else None


def _around(spec: object, remaining: Iterator[Plain], *, depth: int) -> Plain:
    """The structure of one node of torch's output spec."""
    plain = _mapping(spec)
    kind, children = plain.get("type"), _list(plain.get("children_spec"))
    if depth > DEEPEST:
        raise MalformedError("an output nested too deep")
    if kind is None and not children:
        return next(remaining)
    inner = [_around(child, remaining, depth=depth + 1) for child in children]
    if kind in ("builtins.list", "builtins.tuple"):
        return {kind.removeprefix("builtins."): inner}
    keys = json.loads(_text(plain.get("context")))
    if kind == "builtins.dict" and len(keys) == len(inner) and all(isinstance(key, (str, int)) for key in keys):
        return {"dict": [[key, value] for key, value in zip(keys, inner, strict=True)]}
    raise MalformedError("an output of another class")


def _size(plain: object) -> int:
    """A size on the example: a number, or the example's size where it is open."""
    kind, value = _one(plain)
    if kind == "as_int":
        return _integer(value)
    hint = _mapping(value).get("hint")
    return _integer(hint["as_int"]) if isinstance(hint, dict) and "as_int" in hint else 2


def sizes_in(plain: object) -> tuple[int, ...]:
    """Return sizes, strides or the offset of a tensor in the file: numbers alone."""
    sizes = []
    for one in _list(plain):
        kind, value = _one(one)
        if kind != "as_int":
            raise MalformedError("a stored tensor of open size")
        sizes.append(_integer(value))
    return tuple(sizes)


def _computed(name: str, values: Plain) -> Any:
    """The value called `name`. Refused: one that is read before it is computed."""
    if name not in values:
        raise MalformedError(f"`{printable(name)}` is read before it is computed")
    return values[name]


def _one(plain: object) -> tuple[str, Any]:
    """A value of one of several kinds, in torch's form: the kind, and the value."""
    if not isinstance(plain, dict) or len(plain) != 1:
        raise MalformedError("a value of no kind")
    ((kind, value),) = plain.items()
    return kind, value


def _mapping(plain: object) -> Mapping[str, Any]:
    """The value, if it is a JSON object."""
    if not isinstance(plain, dict):
        raise MalformedError("a value where a table belongs")
    return plain


def _list(plain: object) -> list[Any]:
    """The value, if it is a list."""
    if not isinstance(plain, list):
        raise MalformedError("a value where a list belongs")
    return plain


def _text(plain: object) -> str:
    """The value, if it is a text."""
    if not isinstance(plain, str):
        raise MalformedError("a value where a name belongs")
    return plain


def _integer(plain: object) -> int:
    """The value, if it is an integer of 64 bits."""
    if not isinstance(plain, int) or isinstance(plain, bool) or abs(plain) >= 1 << 63:
        raise MalformedError("a value where a whole number belongs")
    return plain


def _float(plain: object) -> Any:
    """The value, if it is a number."""
    if isinstance(plain, str) and plain in NOT_FINITE:
        return {"float": NOT_FINITE[plain]}
    if isinstance(plain, (int, float)) and not isinstance(plain, bool):
        number = float(plain)
        return number if math.isfinite(number) else {"float": str(number)}
    raise MalformedError("a value where a number belongs")
