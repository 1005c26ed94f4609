"""The structure of a network's output as plain values: the containers around its tensors, and its plain values.

A record names no class, because a class from a file would be code from a file. Dicts, lists and tuples are restored as
such, and a named tuple as one with the same fields. A dataclass, or a dict of a class of its own, is restored as
`Fields`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import SymBool, SymFloat, SymInt, Tensor, fx, nn
from torch.utils import _pytree as pytree

from compressor.errors import SurgeryError

LEAVES = (Tensor, fx.Node, SymInt, SymFloat, SymBool)
KEYS = (str, bool, int, float, type(None))


class Fields(dict[str, Any]):
    """What a program returns for a dataclass: fields by name (`out["logits"]`) or as attributes (`out.logits`)."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the output has no field `{name}`; it has {', '.join(self)}") from None


def structure_of(output: Any) -> tuple[dict[str, Any], list[Any]]:
    """Return the structure of an output as JSON has it, and its tensors in order. Refused: kinds not listed here."""
    leaves: list[Any] = []
    return _plain(output, leaves), leaves


def _plain(value: Any, leaves: list[Any]) -> dict[str, Any]:
    if isinstance(value, LEAVES):
        leaves.append(value)
        return {"output": len(leaves) - 1}
    if isinstance(value, Mapping):
        if not all(type(key) in KEYS for key in value):
            raise SurgeryError("a program's output has a key that cannot be written down")
        kind = "dict" if type(value) in (dict, collections.OrderedDict) else "fields"
        if not all(isinstance(key, str) for key in value):
            kind = "dict"
        return {kind: [[key, _plain(inner, leaves)] for key, inner in value.items()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(_fields_of(value), leaves)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"named": [[k, _plain(v, leaves)] for k, v in zip(value._fields, value, strict=True)]}
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [_plain(v, leaves) for v in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    raise SurgeryError(f"a program's output has a part that cannot be written down: `{type(value).__name__}`")


def _fields_of(value: Any) -> Fields:
    return Fields({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})


def restored(plain: Any, leaves: Sequence[Any]) -> Any:
    """Return the output whose structure `structure_of` recorded, with these tensors. Refused: any other record."""
    match plain:
        case {"output": int(number)} if 0 <= number < len(leaves):
            return leaves[number]
        case {"value": None | bool() | int() | float() | str() as value}:
            return value
        case {"number": "inf" | "-inf" | "nan" as text}:
            return float(text)
        case {"list": list(inner)}:
            return [restored(v, leaves) for v in inner]
        case {"tuple": list(inner)}:
            return tuple(restored(v, leaves) for v in inner)
        case {"dict": list(pairs)}:
            return _pairs(pairs, leaves, KEYS)
        case {"fields": list(pairs)}:
            know_fields()
            return Fields(_pairs(pairs, leaves, (str,)))
        case {"named": list(pairs)}:
            fields = _pairs(pairs, leaves, (str,))
            return _named(tuple(fields))(*fields.values())
    raise SurgeryError(f"a program records an output of no known structure: `{str(plain)[:60]}`")


def _pairs(pairs: Sequence[Any], leaves: Sequence[Any], kinds: tuple[type, ...]) -> dict[Any, Any]:
    """The restored items of a dict, whose keys must be of the `kinds`."""
    items = {}
    for pair in pairs:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], kinds)):
            raise SurgeryError(f"a program records an output of no known structure: `{str(pair)[:60]}`")
        items[pair[0]] = restored(pair[1], leaves)
    return items


@cache
def _named(names: tuple[str, ...]) -> Any:
    """The named tuple class with these fields."""
    if not all(
        re.fullmatch(r"[A-Za-z]\w*", name, flags=re.ASCII) for name in names
    ):  # `namedtuple` evaluates them as code
        raise SurgeryError("a program's output has a field whose name is none")
    try:
        return collections.namedtuple("Output", names)  # the names are known only at run time
    except ValueError as error:  # a keyword
        raise SurgeryError(f"a program's output has a field whose name is none: {error}") from error


def with_plain_outputs_(module: nn.Module) -> nn.Module:
    """Let the module, a copy, return `Fields` for every dataclass, which `torch.export` does not accept; return the
    module.
    """
    know_fields()
    module.register_forward_hook(lambda _, __, output: _as_fields(output))
    return module


def _as_fields(value: Any) -> Any:
    """The value with `Fields` for every dataclass and every dict of a class of its own."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return Fields({k: _as_fields(v) for k, v in _fields_of(value).items()})
    if isinstance(value, Mapping) and type(value) not in (dict, collections.OrderedDict, collections.defaultdict):
        return Fields({k: _as_fields(v) for k, v in value.items()})
    if type(value) in (dict, collections.OrderedDict, collections.defaultdict):
        return {k: _as_fields(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_as_fields(v) for v in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_as_fields, value))
    return value


@cache
def know_fields() -> None:
    """Register `Fields` with torch's pytree, so that the exporters can flatten it; once is enough."""
    pytree.register_pytree_node(
        Fields,
        lambda fields: (list(fields.values()), list(fields)),
        lambda values, names: Fields(zip(names, values, strict=True)),
        serialized_type_name="compressor.graph.structures.Fields",
    )
