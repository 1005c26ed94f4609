"""The JSON of an exported program (torch's `ExportedProgram`, schema 8) as a recorded program: plain values alone.

A node of the JSON names an operator, its arguments and its results; that is all that is taken from it. Sizes that the
exporter left open are results of operators (`aten.sym_size.int`, products of them), so that the expressions beside
them, which torch's own reader evaluates as Python, are never looked at. Code, traces, guards and call signatures of
the file are left where they are.

Graphs within the graph (`torch.no_grad()` in the network's code, say) are put where they are called.
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
CHECKS = ("torch.ops.aten._assert_", "torch.ops.aten.sym_constrain_range")  # what they check is proved otherwise
WRAPPERS = {
    "torch.ops.higher_order.wrap_with_set_grad_enabled": 1,
    "torch.ops.higher_order.wrap_with_autocast": 4,
}  # → which argument is the graph
NOT_FINITE = {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}
KEYWORD = 2  # how an argument was given
DEEPEST = 20  # graphs within graphs
TRUST = "`--trust-pickle` has torch read it, if you know where the file comes from: torch's reader runs what it says"

Plain = dict[str, Any]


class MalformedError(Exception):
    """The JSON is none that torch writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A tensor of the file that the program reads, by its name there; a constant is neither parameter nor buffer."""

    name: str
    parameter: bool
    constant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """An input of the program: its name, its type, its sizes on the example, and the numbers among its sizes.

    `fixed` has `None` where the exporter left a size open, and for the batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    fixed: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadProgram:
    """What the JSON says: steps and results for `graph.recorded`, the tensors they read, the inputs they take."""

    nodes: tuple[Plain, ...]
    outputs: tuple[str, ...]
    held: Mapping[str, Held]  # by the name of the node that reads it
    inputs: tuple[Taken, ...]
    returns: Plain | None = None  # the structure of what it gives, where that is of dicts, lists and tuples

    @property
    def takes(self) -> Plain:
        """Which sizes of inputs the program takes, as `graph.sizes` has it."""
        named = [taken.name for taken in self.inputs]
        good = len(set(named)) == len(named) and all(name.isidentifier() and name.isascii() for name in named)
        names = named if good else [f"input_{number}" for number in range(len(named))]
        inputs = [{"name": n, "shape": list(t.fixed)} for n, t in zip(names, self.inputs, strict=True)]
        return {"inputs": inputs, "holds": []}


def program_in(plain: object) -> ReadProgram:
    """The program that the JSON holds. Refused: what torch does not write, what only torch's own reader rebuilds."""
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
    nodes: list[Plain] = field(default_factory=list)
    held: dict[str, Held] = field(default_factory=dict)
    inputs: list[Taken] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def program(self, module: Mapping[str, Any]) -> ReadProgram:
        graph, signature = _mapping(module.get("graph")), _mapping(module.get("signature"))
        known: Plain = {}
        given, specs = _list(graph.get("inputs")), _list(signature.get("input_specs"))
        if len(given) != len(specs):
            raise MalformedError("inputs and their description differ in number")
        metas = _mapping(graph.get("tensor_values"))
        for argument, spec in zip(given, specs, strict=True):
            self._input(argument, *_one(spec), known, metas)
        self._steps(graph, known, depth=0)
        outputs = [
            output
            for output, spec in zip(_list(graph.get("outputs")), _list(signature.get("output_specs")), strict=False)
            if _one(spec)[0] == "user_output"
        ]
        open_sizes = ("as_sym_int", "as_sym_float", "as_sym_bool")
        leaves: list[Plain] = []
        given_out: list[str] = []
        for output in outputs:
            value = _value(output, known)
            if _one(output)[0] == "as_tensor" or (_one(output)[0] in open_sizes and isinstance(value, dict)):
                leaves.append({"output": len(given_out)})
                given_out.append(value["node"])
            else:
                leaves.append({"number": value["float"]} if isinstance(value, dict) else {"value": value})
        if not any(_one(output)[0] == "as_tensor" for output in outputs):
            raise CheckpointError("its program gives no tensor", hint="compress needs a network that returns tensors")
        return ReadProgram(
            nodes=tuple(self.nodes),
            outputs=tuple(given_out),
            held=self.held,
            inputs=tuple(self.inputs),
            returns=_returns(module, leaves),
        )

    def _input(
        self, argument: object, kind: str, spec: Mapping[str, Any], known: Plain, metas: Mapping[str, Any]
    ) -> None:
        if kind == "constant_input":
            return  # a number or text that the program has in it already
        if kind == "user_input" and _one(argument)[0] != "as_tensor":
            if _one(argument)[0] in ("as_int", "as_float", "as_bool", "as_none", "as_string"):
                return
            raise CheckpointError("its program takes an input that is no tensor", hint="export it with tensors alone")
        if kind not in ("user_input", "parameter", "buffer", "tensor_constant"):
            raise CheckpointError(f"its program takes `{printable(kind)}`, which JSON cannot hold", hint=TRUST)
        name = _text(_mapping(_one(argument)[1]).get("name"))
        node = self._named()
        known[name] = {"node": node}
        if kind == "user_input":
            self.inputs.append(_taken(name, _mapping(metas.get(name))))
            self.nodes.append({"name": node, "input": True})
        else:
            key = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
            held = _text(spec.get(key[kind]))
            self.held[node] = Held(name=held, parameter=kind == "parameter", constant=kind == "tensor_constant")
            self.nodes.append({"name": node, "held": held})

    def _steps(self, graph: Mapping[str, Any], known: Plain, *, depth: int) -> None:
        if depth > DEEPEST:
            raise MalformedError("graphs within graphs, too deep")
        for step in map(_mapping, _list(graph.get("nodes"))):
            target = _text(step.get("target"))
            if target.startswith(CHECKS):
                continue
            if target in WRAPPERS:
                self._inlined(target, step, known, depth)
            else:
                self._call(target, step, known)

    def _inlined(self, target: str, step: Mapping[str, Any], known: Plain, depth: int) -> None:
        arguments = [_mapping(i).get("arg") for i in _list(step.get("inputs"))]
        at = WRAPPERS[target]
        if len(arguments) <= at:
            raise MalformedError("a wrapped graph without its graph")
        settings = [_value(a, known) for a in arguments[:at]]
        if at == WRAPPERS["torch.ops.higher_order.wrap_with_autocast"] and settings[0] == "cpu" and settings[2]:
            raise CheckpointError(
                "parts of this network run in a lower precision by themselves (`torch.autocast`)",
                hint="take the autocast out of its code: it belongs to the caller",
            )
        kind, wrapped = _one(arguments[at])
        inner = _mapping(_mapping(wrapped).get("graph")) if kind == "as_graph" else {}
        names = [_text(_mapping(_one(i)[1]).get("name")) for i in _list(inner.get("inputs"))]
        values = [_value(a, known) for a in arguments[at + 1 :]]
        if len(names) != len(values):
            raise MalformedError("a wrapped graph with other arguments than it takes")
        within = dict(zip(names, values, strict=True))
        self._steps(inner, within, depth=depth + 1)
        given = [_value(output, within) for output in _list(inner.get("outputs"))]
        results = [r for output in _list(step.get("outputs")) for r in _results(output)]
        for name, value in zip(results, given, strict=False):
            if name is not None:
                known[name] = value

    def _call(self, target: str, step: Mapping[str, Any], known: Plain) -> None:
        inputs = [_mapping(i) for i in _list(step.get("inputs"))]
        name = _operator_name(target)
        kwargs: Plain = {}
        if name in PLAIN or name.startswith("torch."):
            args = [_value(i.get("arg"), known) for i in inputs]
        else:
            args, kwargs = _arguments(operation(name), inputs, known)
        node = self._named()
        self.nodes.append({"name": node, "call": name, "args": args, "kwargs": kwargs})
        self._name_results({"node": node}, _list(step.get("outputs")), known)

    def _name_results(self, value: Plain, outputs: Sequence[object], known: Plain) -> None:
        """Names what an operator gives: one value, a list of them, or several values."""
        if len(outputs) == 1 and _one(outputs[0])[0] != "as_tensors":
            for name in _results(outputs[0]):
                if name is not None:
                    known[name] = value
            return
        listed = _list(_one(outputs[0])[1]) if len(outputs) == 1 else []
        parts: Sequence[object] = [{"as_tensor": part} for part in listed] if len(outputs) == 1 else outputs
        for position, part in enumerate(parts):
            kind = _one(part)[0]
            if kind == "as_none":
                continue
            node = self._named()
            self.nodes.append({"name": node, "call": "getitem", "args": [value, position], "kwargs": {}})
            self._name_results({"node": node}, [part], known)

    def _named(self) -> str:
        return f"v{next(self.numbers)}"


def _operator_name(target: str) -> str:
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


def _arguments(called: Any, inputs: Sequence[Mapping[str, Any]], known: Plain) -> tuple[list[Any], Plain]:
    """The arguments as they were given: by position as far as there is no gap, then by name."""
    given = {_text(i.get("name")): i for i in inputs}
    if len(given) != len(inputs):
        raise MalformedError("an argument twice")
    args: list[Any] = []
    kwargs: Plain = {}
    for argument in called._schema.arguments:
        one = given.pop(argument.name, None)
        if one is None:
            continue
        value = _value(one.get("arg"), known)
        first = len(args) == called._schema.arguments.index(argument)
        if first and not argument.kwarg_only and one.get("kind") != KEYWORD:
            args.append(value)
        else:
            kwargs[argument.name] = value
    if given:
        raise CheckpointError(
            f"its program gives `{called}` an argument `{printable(next(iter(given)))}` that it does not have",
            hint="export it again with this version of torch",
        )
    return args, kwargs


def _value(argument: object, known: Plain) -> Any:
    """An argument as a recorded program has it."""
    kind, value = _one(argument)
    match kind, value:
        case "as_none", _:
            return None
        case ("as_int", int()) | ("as_bool", bool()) | ("as_string", str()):
            return value
        case "as_float", _:
            return _float(value)
        case "as_tensor", {"name": str(name)}:
            return _known(name, known)
        case (("as_sym_int" | "as_sym_float" | "as_sym_bool"), dict()):
            return _symbolic(value, known)
        case (("as_sym_ints" | "as_sym_floats" | "as_sym_bools"), list()):
            return [_symbolic(v, known) for v in value]
        case "as_tensors", list():
            return [_known(_text(_mapping(v).get("name")), known) for v in value]
        case "as_nested_tensors", list():
            return [[_known(_text(_mapping(v).get("name")), known) for v in _list(part)] for part in value]
        case "as_optional_tensors", list():
            return [_value(v, known) for v in value]
        case "as_optional_tensor", dict():
            return _value(value, known)
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
    """The names of what one output holds."""
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


def _symbolic(value: object, known: Plain) -> Any:
    kind, held = _one(value)
    if kind == "as_name":
        return _known(_text(held), known)
    if kind == "as_int":
        return _integer(held)
    if kind == "as_float":
        return _float(held)
    if kind == "as_bool" and isinstance(held, bool):
        return held
    raise MalformedError(f"a size of kind {printable(kind)}")


def _taken(name: str, meta: Mapping[str, Any]) -> Taken:
    dtype, sizes = meta.get("dtype"), _list(meta.get("sizes"))
    if dtype not in DTYPES:
        raise MalformedError("an input of no known type")
    shape = tuple(_size(size) for size in sizes)
    if any(size < 0 for size in shape):
        raise MalformedError("an input of negative size")
    fixed = tuple(
        n if d and _one(size)[0] == "as_int" else None for d, (n, size) in enumerate(zip(shape, sizes, strict=True))
    )
    return Taken(name=name, dtype=DTYPES[dtype], shape=shape, fixed=fixed)


def _returns(module: Mapping[str, Any], leaves: list[Plain]) -> Plain | None:
    """What stands around the outputs; `None` where the file has none that is of dicts, lists and tuples alone."""
    left = iter(leaves)
    try:
        top = next(e for e in _list(module.get("module_call_graph")) if _mapping(e).get("fqn") == "")
        version, spec = json.loads(_text(_mapping(_mapping(top).get("signature")).get("out_spec")))
        found = _around(spec, left, depth=0)
    except (MalformedError, StopIteration, ValueError, TypeError, RecursionError):
        return None
    return found if version == 1 and next(left, None) is None else None


def _around(spec: object, left: Iterator[Plain], *, depth: int) -> Plain:
    plain = _mapping(spec)
    kind, children = plain.get("type"), _list(plain.get("children_spec"))
    if depth > DEEPEST:
        raise MalformedError("an output nested too deep")
    if kind is None and not children:
        return next(left)
    inner = [_around(child, left, depth=depth + 1) for child in children]
    if kind in ("builtins.list", "builtins.tuple"):
        return {kind.removeprefix("builtins."): inner}
    keys = json.loads(_text(plain.get("context")))
    if kind == "builtins.dict" and len(keys) == len(inner) and all(isinstance(key, (str, int)) for key in keys):
        return {"dict": [[key, value] for key, value in zip(keys, inner, strict=True)]}
    raise MalformedError("an output of another class")


def _size(plain: object) -> int:
    """A size on the example: a number, or what the exporter saw where it left the size open."""
    kind, value = _one(plain)
    if kind == "as_int":
        return _integer(value)
    hint = _mapping(value).get("hint")
    return _integer(hint["as_int"]) if isinstance(hint, dict) and "as_int" in hint else 2


def sizes_in(plain: object) -> tuple[int, ...]:
    """Sizes, strides or an offset of a tensor in the file: numbers alone."""
    found = []
    for one in _list(plain):
        kind, value = _one(one)
        if kind != "as_int":
            raise MalformedError("a stored tensor of open size")
        found.append(_integer(value))
    return tuple(found)


def _known(name: str, known: Plain) -> Any:
    if name not in known:
        raise MalformedError(f"`{printable(name)}` is read before it is computed")
    return known[name]


def _one(plain: object) -> tuple[str, Any]:
    """What torch writes for a value of one of several kinds: the kind, and the value."""
    if not isinstance(plain, dict) or len(plain) != 1:
        raise MalformedError("a value of no kind")
    ((kind, value),) = plain.items()
    return kind, value


def _mapping(plain: object) -> Mapping[str, Any]:
    if not isinstance(plain, dict):
        raise MalformedError("a value where a table belongs")
    return plain


def _list(plain: object) -> list[Any]:
    if not isinstance(plain, list):
        raise MalformedError("a value where a list belongs")
    return plain


def _text(plain: object) -> str:
    if not isinstance(plain, str):
        raise MalformedError("a value where a name belongs")
    return plain


def _integer(plain: object) -> int:
    if not isinstance(plain, int) or isinstance(plain, bool) or abs(plain) >= 1 << 63:
        raise MalformedError("a value where a whole number belongs")
    return plain


def _float(plain: object) -> Any:
    if isinstance(plain, str) and plain in NOT_FINITE:
        return {"float": NOT_FINITE[plain]}
    if isinstance(plain, (int, float)) and not isinstance(plain, bool):
        number = float(plain)
        return number if math.isfinite(number) else {"float": str(number)}
    raise MalformedError("a value where a number belongs")
