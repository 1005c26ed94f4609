"""An operator's arguments by name, and its results with what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from compressor.channels.labels import Dim
from compressor.channels.tracing import NotFollowed, Tracer, Tracked
from compressor.graph.operators import name_of


def bound(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """An operator's arguments by name, its defaults filled in."""
    found = {}
    for i, argument in enumerate(target._schema.arguments):
        if i < len(args):
            found[argument.name] = args[i]
        else:
            found[argument.name] = kwargs.get(argument.name, argument.default_value)
    return found


def new(value: Tensor, dims: Sequence[Dim]) -> Tracked:
    """A value with what is known of its dimensions."""
    return Tracked(value, tuple(dims))


def results(value: Any, dims_of: Callable[[Tensor], Sequence[Dim]]) -> Any:
    """All that an operator gave, each tensor with what `dims_of` knows of it."""
    if isinstance(value, Tensor):
        return new(value, dims_of(value))
    return [new(v, dims_of(v)) if isinstance(v, Tensor) else v for v in value]


def raw(value: Any) -> Any:
    """The tensor of a tracked value; anything else as it is."""
    return value.value if isinstance(value, Tracked) else value


def unknown(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """What no rule knows pins what reaches it."""
    del t, args, kwargs, result
    raise NotFollowed(f"`{name_of(target)}` is an operator that `compress` does not know")
