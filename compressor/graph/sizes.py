"""Which sizes of its inputs a program takes, as plain values, and the refusal of all others.

Sizes that the network's code left open when it was exported are open in the program, within what the code asked of them
on the way (`if h > 32`, say): torch writes those down as guards, and each becomes an expression of a fixed grammar. The
other sizes are in the program as numbers, so that it would compute something wrong at others, or break.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import SymInt, Tensor

from compressor.errors import InputError, SurgeryError

MANY = 3  # conditions in a text
MORE_THAN_ONE = 2  # torch takes a size that it leaves open for two or more, and may write that down nowhere

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


INDEXED = 2**31 - 1  # torch 2.9 notes that a tensor's numbers can be counted in 32 bits: no limit of the network's


class UnreadableError(Exception):
    """A guard that is of no form known here."""


def expression_from(text: str, names: Sequence[str]) -> Any:
    """A guard of torch's as plain values: an int, `["size", input, dimension]` or `[operator, part, …]`.

    `names` are the inputs', in order. `UnreadableError` where it holds anything else.
    """
    try:
        return _read(ast.parse(text, mode="eval").body, names)
    except (SyntaxError, RecursionError) as error:
        raise UnreadableError(text) from error


def _read(node: ast.AST, names: Sequence[str]) -> Any:
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
    """The input that `L['x']`, or `L['x'][0]` for what is in a list, stands for."""
    keys: list[str] = []
    while isinstance(source, ast.Subscript) and isinstance(source.slice, ast.Constant):
        keys.insert(0, str(source.slice.value))
        source = source.value
    name = "_".join(keys)
    if not (isinstance(source, ast.Name) and source.id == "L" and name in names):
        raise UnreadableError(ast.unparse(source))
    return name


def takes_of(found: Any) -> dict[str, Any]:
    """Which inputs an exported program takes: their names, their sizes (`None` where open), and conditions on those.

    `unread` counts the conditions that are of no form known here.
    """
    user = set(found.graph_signature.user_inputs)
    nodes = [n for n in found.graph.nodes if n.op == "placeholder" and n.name in user]
    values = [n.meta.get("val") for n in nodes]
    names = [n.name for n in nodes]
    shapes = [[size_of(d) for d in v.shape] if isinstance(v, Tensor) else None for v in values]
    conditions, unread = _ranges(found, values), 0
    for text in getattr(found, "_guards_code", None) or ():
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
    """How long a dimension of an exported program's value is; `None` where that is open.

    One that was open at first, and that the code then asked for as a number, is that number since.
    """
    if not isinstance(dimension, SymInt):
        return int(dimension)
    expression = dimension.node.expr
    return int(expression) if expression.is_number else None


def _ranges(found: Any, values: Sequence[Any]) -> list[Any]:
    """What an exported program says of open sizes by themselves: at least so many, at most so many."""
    conditions: list[Any] = []
    for number, value in enumerate(values):
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            known = found.range_constraints.get(size.node.expr) if isinstance(size, SymInt) else None
            if known is not None and known.lower > MORE_THAN_ONE:
                conditions.append(["ge", ["size", number, dim], int(known.lower)])
            if known is not None and known.upper < 2**31:
                conditions.append(["le", ["size", number, dim], int(known.upper)])
    return conditions


def value_of(expression: Any, sizes: Sequence[Sequence[Any]]) -> Any:
    """What an expression comes to for inputs of these sizes. Refused: what is no expression."""
    if isinstance(expression, int):
        return expression
    match expression:
        case ["size", int(number), int(dim)] if 0 <= number < len(sizes) and 0 <= dim < len(sizes[number]):
            return sizes[number][dim]
        case [str(name), *parts] if parts and name in OPERATORS:
            try:
                return OPERATORS[name](*(value_of(part, sizes) for part in parts))
            except TypeError as error:
                raise SurgeryError(f"a program records a condition that is none: {error}") from error
    raise SurgeryError(f"a program records a condition that is none: `{str(expression)[:60]}`")


def is_met(condition: Any, sizes: Sequence[Sequence[Any]]) -> bool:
    """Whether a condition holds for inputs of these sizes; one that divides by zero does not. Refused as there."""
    try:
        return bool(value_of(condition, sizes))
    except ZeroDivisionError:
        return False


def text_of(expression: Any, names: Sequence[str]) -> str:
    """An expression as a reader of Python would write it."""
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
    """Which sizes an expression reads: pairs of input and dimension."""
    if isinstance(expression, int):
        return set()
    name, *parts = expression
    return {(parts[0], parts[1])} if name == "size" else set().union(*map(sizes_in, parts))


def shape_text(shape: Sequence[int | None] | None) -> str:
    """A shape as a reader of `--input` knows it; `any` where a size is open."""
    return "any shape" if shape is None else " x ".join("any" if n is None else str(n) for n in shape)


def takes_text(takes: Mapping[str, Any]) -> str:
    """Which inputs a program takes, for a reader: `x: any x 3 x 224 x 224`."""
    names = [entry["name"] for entry in takes["inputs"]]
    shapes = [f"{entry['name']}: {shape_text(entry['shape'])}" for entry in takes["inputs"]]
    conditions = [text_of(condition, names).removeprefix("(").removesuffix(")") for condition in takes["holds"]]
    more = f" and {len(conditions) - MANY} more" if len(conditions) > MANY else ""
    return ", ".join(shapes) + (f" (where {', '.join(conditions[:MANY])}{more})" if conditions else "")


def in_order(takes: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Inputs in the order of the program's, of which some may come by name. Refused: a name that it does not know.

    An argument that was left out when the program was written is left out of it; its `None` is taken for that.
    """
    names = [entry["name"] for entry in takes["inputs"]]
    given = list(args)
    while given and len(given) > len(names) and given[-1] is None:
        given.pop()
    left = {name: value for name, value in kwargs.items() if name in names[len(given) :]}
    strange = [name for name, value in kwargs.items() if name not in left and value is not None]
    if strange:
        raise InputError(
            f"the network is kept as its program, which has no input `{strange[0]}`; it takes {', '.join(names)}",
            hint="what was left out when it was pruned is left out of the program",
        )
    return (*given, *(left[name] for name in names[len(given) :] if name in left))


def check_taken(takes: Mapping[str, Any], given: Sequence[Any]) -> None:
    """Refused: inputs of another number or size than a program takes, by name. `takes` is from a record of it."""
    inputs, names = takes["inputs"], [entry["name"] for entry in takes["inputs"]]
    if len(given) != len(inputs):
        raise InputError(
            f"the network is kept as its program, which takes {len(inputs)} inputs ({', '.join(names)}): "
            f"{len(given)} were given"
        )
    for entry, tensor in zip(inputs, given, strict=True):
        if entry["shape"] is not None and isinstance(tensor, Tensor):
            _check_shape(entry["name"], entry["shape"], tensor.shape)
    sizes = [tensor.shape if isinstance(tensor, Tensor) else () for tensor in given]
    for condition in takes["holds"]:
        if not is_met(condition, sizes):
            shapes = " and ".join(f"`{n}` of {_times(s)}" for n, s in zip(names, sizes, strict=True))
            raise InputError(
                f"the network is kept as its program, which is not one for {shapes}: "
                f"it holds where {text_of(condition, names)}",
                hint=OTHERWISE,
            )


OTHERWISE = (
    "give inputs of the size that it was pruned with, or prune the dense network again with `--input` of this one"
)


def _check_shape(name: str, made_for: Sequence[int | None], shape: Sequence[int]) -> None:
    if len(shape) != len(made_for):
        raise InputError(
            f"input `{name}` has {len(shape)} dimensions; the program takes {shape_text(made_for)}", hint=OTHERWISE
        )
    for dim, (wanted, size) in enumerate(zip(made_for, shape, strict=True)):
        if wanted is not None and size != wanted:
            raise InputError(
                f"input `{name}` is {_times(shape)}: its dimension {dim} is {size}, and the network, kept as its "
                f"program, was made for {wanted} (it takes {shape_text(made_for)})",
                hint=OTHERWISE,
            )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(int(n)) for n in shape)


def check_record(takes: Any, *, inputs: int) -> None:
    """Refused: what no program of ours, with so many inputs, records of them."""
    match takes:
        case {"inputs": list(entries), "holds": list(conditions)} if len(entries) == inputs:
            pass
        case _:
            raise SurgeryError("a program does not say which inputs it takes")
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
