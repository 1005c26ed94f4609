"""Which input sizes a program accepts, as plain values, and the refusal of all others.

Sizes that the network's code left open during export are open in the program, within the conditions of the code (for
example `if h > 32`). torch records such conditions as guards, and each becomes an expression of a fixed grammar. All
other sizes are constants in the program, which at another size would fail or compute something wrong.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import SymInt, Tensor

from compressor.errors import InputError, SurgeryError

MANY = 3  # a text names at most so many conditions
MORE_THAN_ONE = 2  # torch assumes that an open size is two or more, and may record that nowhere

OPERATORS: Mapping[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda *v: math.prod(v), "neg": lambda a: -a,
    "floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b, "max": lambda *v: max(v), "min": lambda *v: min(v),
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b, "and": lambda *v: all(v), "or": lambda *v: any(v),
    "not": lambda a: not a,
}  # fmt: skip
TEXTS = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", "eq": "==", "ne": "!=", "lt": "<",
         "le": "<=", "gt": ">", "ge": ">=", "and": "and", "or": "or"}  # fmt: skip
BY_SYNTAX = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.FloorDiv: "floordiv", ast.Mod: "mod", ast.USub: "neg",
    ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge",
    ast.And: "and", ast.Or: "or", ast.Not: "not",
}  # fmt: skip
BY_NAME = {"sym_max": "max", "sym_min": "min", "Max": "max", "Min": "min", "max": "max", "min": "min"}


INDEXED = 2**31 - 1  # torch 2.9 records that a tensor's elements can be counted in 32 bits: not the network's limit


class UnreadableError(Exception):
    """A guard that has no form known here."""


def expression_from(text: str, names: Sequence[str]) -> Any:
    """Return a torch guard as plain values: an int, `["size", input, dimension]` or `[operator, part, …]`.

    `names` are the inputs', in order. Raises `UnreadableError` for any other content.
    """
    try:
        return _read(ast.parse(text, mode="eval").body, names)
    except (SyntaxError, RecursionError) as error:
        raise UnreadableError(text) from error


def _read(node: ast.AST, names: Sequence[str]) -> Any:
    """The expression of one node of the guard's syntax tree."""
    match node:
        case ast.Constant(value=int(value)):
            return int(value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return -value
        case ast.UnaryOp(op=op, operand=inner) if type(op) in BY_SYNTAX:
            return [BY_SYNTAX[type(op)], _read(inner, names)]
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))) if 1 <= power <= 4:
            return ["mul", *[_read(left, names)] * power] if power > 1 else _read(left, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BY_SYNTAX:
            return [BY_SYNTAX[type(op)], _read(left, names), _read(right, names)]
        case ast.BoolOp(op=op, values=values):
            return [BY_SYNTAX[type(op)], *(_read(v, names) for v in values)]
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in BY_SYNTAX for op in ops):
            ends = [left, *others]
            parts = [
                [BY_SYNTAX[type(op)], _read(a, names), _read(b, names)]
                for op, a, b in zip(ops, ends[:-1], ends[1:], strict=True)
            ]
            return parts[0] if len(parts) == 1 else ["and", *parts]
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=source, attr="size"), args=[]), slice=ast.Constant(value=int(dim))
        ):
            return ["size", names.index(_input(source, names)), dim]
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=args) if name in BY_NAME:
            return [BY_NAME[name], *(_read(a, names) for a in args)]
    raise UnreadableError(ast.unparse(node))


def _input(source: ast.AST, names: Sequence[str]) -> str:
    """The name of the input that `L['x']`, or `L['x'][0]` for an item of a list, stands for."""
    keys: list[str] = []
    while isinstance(source, ast.Subscript) and isinstance(source.slice, ast.Constant):
        keys.insert(0, str(source.slice.value))
        source = source.value
    name = "_".join(keys)
    if not (isinstance(source, ast.Name) and source.id == "L" and name in names):
        raise UnreadableError(ast.unparse(source))
    return name


def takes_of(program: Any) -> dict[str, Any]:
    """Return the inputs that an exported program takes: names, sizes (`None` where open), and conditions on the sizes.

    `unread` counts the conditions that have no form known here.
    """
    user = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in user]
    values = [n.meta.get("val") for n in nodes]
    names = [n.name for n in nodes]
    shapes = [[size_of(d) for d in v.shape] if isinstance(v, Tensor) else None for v in values]
    conditions, unread = _ranges(program, values), 0
    for text in getattr(program, "_guards_code", None) or ():
        try:
            conditions.append(expression_from(text, names))
        except UnreadableError:
            unread += 1
    opened = {(i, d) for i, shape in enumerate(shapes) for d, n in enumerate(shape or ()) if n is None}
    conditions = [c for i, c in enumerate(conditions) if sizes_in(c) & opened and c not in conditions[:i]]
    holds = [c for c in conditions if not (c[0] == "le" and c[2] == INDEXED)]
    inputs = [{"name": name, "shape": shape} for name, shape in zip(names, shapes, strict=True)]
    return {"inputs": inputs, "holds": holds, "unread": unread}


def size_of(dimension: Any) -> int | None:
    """Return the size of a dimension of an exported program's value; `None` where it is open.

    A size that the code read as a number while it was open is that number from then on.
    """
    if not isinstance(dimension, SymInt):
        return int(dimension)
    expression = dimension.node.expr
    return int(expression) if expression.is_number else None


def _ranges(program: Any, values: Sequence[Any]) -> list[Any]:
    """The bounds that an exported program puts on single open sizes: at least so many, at most so many."""
    conditions: list[Any] = []
    for number, value in enumerate(values):
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            bounds = program.range_constraints.get(size.node.expr) if isinstance(size, SymInt) else None
            if bounds is not None and bounds.lower > MORE_THAN_ONE:
                conditions.append(["ge", ["size", number, dim], int(bounds.lower)])
            if bounds is not None and bounds.upper < 2**31:
                conditions.append(["le", ["size", number, dim], int(bounds.upper)])
    return conditions


def value_of(expression: Any, sizes: Sequence[Sequence[Any]]) -> Any:
    """Evaluate an expression for inputs of these sizes. Refused: anything that is not an expression."""
    if isinstance(expression, int):
        return expression
    match expression:
        case ["size", int(number), int(dim)] if 0 <= number < len(sizes) and 0 <= dim < len(sizes[number]):
            return sizes[number][dim]
        case [str(name), *parts] if parts and name in OPERATORS:
            try:
                return OPERATORS[name](*(value_of(part, sizes) for part in parts))
            except TypeError as error:
                raise SurgeryError(f"a program records a condition that cannot be evaluated: {error}") from error
    raise SurgeryError(f"a program records a condition that is none: `{str(expression)[:60]}`")


def is_met(condition: Any, sizes: Sequence[Sequence[Any]]) -> bool:
    """True if a condition holds for inputs of these sizes; false if it divides by zero. Refused: as in `value_of`."""
    try:
        return bool(value_of(condition, sizes))
    except ZeroDivisionError:
        return False


def text_of(expression: Any, names: Sequence[str]) -> str:
    """Return an expression as Python text."""
    if isinstance(expression, int):
        return str(expression)
    name, *parts = expression
    if name == "size":
        return f"{names[parts[0]]}.shape[{parts[1]}]"
    inner = [text_of(part, names) for part in parts]
    if name in TEXTS:
        return f"({f' {TEXTS[name]} '.join(inner)})"
    return f"{name}({', '.join(inner)})"


def sizes_in(expression: Any) -> set[tuple[int, int]]:
    """Return the sizes that an expression reads: pairs of input and dimension."""
    if isinstance(expression, int):
        return set()
    name, *parts = expression
    return {(parts[0], parts[1])} if name == "size" else set().union(*map(sizes_in, parts))


def shape_text(shape: Sequence[int | None] | None) -> str:
    """Return a shape as a user of `--input` writes it; `any` where a size is open."""
    return "any shape" if shape is None else " x ".join("any" if n is None else str(n) for n in shape)


def takes_text(takes: Mapping[str, Any]) -> str:
    """Return the inputs that a program takes, for a reader: `x: any x 3 x 224 x 224`."""
    names = [entry["name"] for entry in takes["inputs"]]
    shapes = [f"{entry['name']}: {shape_text(entry['shape'])}" for entry in takes["inputs"]]
    conditions = [text_of(condition, names).removeprefix("(").removesuffix(")") for condition in takes["holds"]]
    more = f" and {len(conditions) - MANY} more" if len(conditions) > MANY else ""
    return ", ".join(shapes) + (f" (where {', '.join(conditions[:MANY])}{more})" if conditions else "")


def in_order(takes: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the inputs in the program's order; some may be passed by name. Refused: a name that the program does not
    have.

    An argument that was omitted when the program was written does not exist in it; `None` for such an argument is
    accepted.
    """
    names = [entry["name"] for entry in takes["inputs"]]
    values = list(args)
    while values and len(values) > len(names) and values[-1] is None:
        values.pop()
    by_name = {name: value for name, value in kwargs.items() if name in names[len(values) :]}
    strange = [name for name, value in kwargs.items() if name not in by_name and value is not None]
    if strange:
        raise InputError(
            f"the network is stored as its program, which has no input `{strange[0]}`; it takes {', '.join(names)}",
            hint="an input that was omitted when the network was pruned does not exist in the program",
        )
    return (*values, *(by_name[name] for name in names[len(values) :] if name in by_name))


def check_inputs(takes: Mapping[str, Any], values: Sequence[Any]) -> None:
    """Refused: inputs whose number or sizes the program does not take. `takes` is the record of `takes_of`."""
    inputs, names = takes["inputs"], [entry["name"] for entry in takes["inputs"]]
    if len(values) != len(inputs):
        raise InputError(
            f"the network is stored as its program, which takes {len(inputs)} inputs ({', '.join(names)}), "
            f"not {len(values)}"
        )
    for entry, tensor in zip(inputs, values, strict=True):
        if entry["shape"] is not None and isinstance(tensor, Tensor):
            _check_shape(entry["name"], entry["shape"], tensor.shape)
    sizes = [tensor.shape if isinstance(tensor, Tensor) else () for tensor in values]
    for condition in takes["holds"]:
        if not is_met(condition, sizes):
            shapes = " and ".join(f"`{n}` of {_times(s)}" for n, s in zip(names, sizes, strict=True))
            raise InputError(
                f"the network is stored as its program, which does not accept {shapes}: "
                f"it requires {text_of(condition, names)}",
                hint=OTHERWISE,
            )


OTHERWISE = (
    "use inputs of the size that it was pruned with, or prune the dense network again with this size as `--input`"
)


def _check_shape(name: str, expected: Sequence[int | None], shape: Sequence[int]) -> None:
    if len(shape) != len(expected):
        raise InputError(
            f"input `{name}` has {len(shape)} dimensions; the program takes {shape_text(expected)}", hint=OTHERWISE
        )
    for dim, (wanted, size) in enumerate(zip(expected, shape, strict=True)):
        if wanted is not None and size != wanted:
            raise InputError(
                f"input `{name}` is {_times(shape)}: its dimension {dim} is {size}, but the network, stored as its "
                f"program, needs {wanted} (it takes {shape_text(expected)})",
                hint=OTHERWISE,
            )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(int(n)) for n in shape)


def check_record(takes: Any, *, inputs: int) -> None:
    """Refused: a record of inputs that no program with so many inputs has."""
    match takes:
        case {"inputs": list(entries), "holds": list(conditions)} if len(entries) == inputs:
            pass
        case _:
            raise SurgeryError("a program does not record which inputs it takes")
    for entry in entries:
        match entry:
            case {"name": str(name), "shape": None} if re.fullmatch(r"\w+", name):
                pass
            case {"name": str(name), "shape": list(shape)} if re.fullmatch(r"\w+", name):
                if not all(n is None or (type(n) is int and n >= 0) for n in shape):
                    raise SurgeryError(f"a program records a shape that is none: `{str(shape)[:60]}`")
            case _:
                raise SurgeryError(f"a program records an input that is none: `{str(entry)[:60]}`")
    for condition in conditions:
        for number, dim in sizes_in(_checked(condition)):
            if not (0 <= number < inputs and 0 <= dim < len(entries[number]["shape"] or ())):
                raise SurgeryError("a program records a condition on an input that it does not take")


def _checked(expression: Any) -> Any:
    match expression:
        case bool():
            pass
        case int() | ["size", int(), int()]:
            return expression
        case [str(name), *parts] if parts and name in OPERATORS:
            for part in parts:
                _checked(part)
            return expression
    raise SurgeryError(f"a program records a condition that is none: `{str(expression)[:60]}`")
