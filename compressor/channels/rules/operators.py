"""An operator's arguments by name, and its results with their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from compressor.channels.labels import Dim
from compressor.channels.tracing import NotFollowed, Tracer, Tracked
from compressor.graph.operators import name_of


def bound(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return an operator's arguments by name, with its defaults."""
    named = {}
    for i, argument in enumerate(target._schema.arguments):
        if i < len(args):
            named[argument.name] = args[i]
        else:
            named[argument.name] = kwargs.get(argument.name, argument.default_value)
    return named


def new(value: Tensor, dims: Sequence[Dim]) -> Tracked:
    """Return a value with the labels of its dimensions."""
    return Tracked(value, tuple(dims))


def results(value: Any, dims_of: Callable[[Tensor], Sequence[Dim]]) -> Any:
    """Return all results of an operator, each tensor with the labels that `dims_of` returns for it."""
    if isinstance(value, Tensor):
        return new(value, dims_of(value))
    return [new(v, dims_of(v)) if isinstance(v, Tensor) else v for v in value]


def raw(value: Any) -> Any:
    """Return the tensor of a tracked value; anything else unchanged."""
    return value.value if isinstance(value, Tracked) else value


def unknown(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Pin what reaches an operator without a rule."""
    del t, args, kwargs, result
    raise NotFollowed(f"`{name_of(target)}` is an operator that `compress` does not know")
