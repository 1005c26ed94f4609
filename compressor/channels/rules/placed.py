"""Operators that read or write at places named by a tensor or a number: gathering, scattering, writing slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from compressor.channels.labels import Dim
from compressor.channels.rules.operators import bound, new, raw
from compressor.channels.tracing import NotFollowed, Rule, Tracer, Tracked
from compressor.graph.operators import name_of

GATHERING = {"gather", "scatter", "scatter_add", "scatter_reduce"}
BY_INDEX = {"index_add", "index_copy", "index_reduce", "index_fill"}


def _beside(t: Tracer, values: Sequence[Tracked], dim: int) -> list[Dim]:
    """Labels of values that meet position by position in all dimensions but one, which stays as it is in all."""
    found: list[Dim] = []
    first = values[0]
    for d in range(first.value.ndim):
        if d == dim:
            for x in values:
                t.labels.pin(x.dims[d], f"`{name_of(t.node.target)}` picks positions")
            found.append(())
        elif len({x.value.shape[d] for x in values}) > 1:
            for x in values:
                t.labels.pin(x.dims[d], f"`{name_of(t.node.target)}` takes only the first of its positions")
            found.append(())
        else:
            for x in values[1:]:
                t.labels.unify(first.dims[d], x.dims[d], t.told())
            found.append(t.labels.resolve(first.dims[d]))
    return found


def _gathered(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """`gather`, and all that scatters: value, index and source have their other dimensions in common."""
    given = bound(target, args, kwargs)
    x, dim = given["self"], given["dim"]
    values = [v for v in (x, given["index"], given.get("src")) if isinstance(v, Tracked) and v.value.ndim]
    return new(result, _beside(t, values, dim % max(1, x.value.ndim)))


def _by_index(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Whole slices along `dim` are added, copied or filled, at the places of an index."""
    given = bound(target, args, kwargs)
    x, dim = given["self"], given["dim"]
    t.pin(given["index"], "it is an index")
    source = given.get("source")
    values = [x] if not isinstance(source, Tracked) or not source.value.ndim else [x, source]
    at = dim % max(1, x.value.ndim)
    for v in values:
        t.labels.pin(v.dims[at], f"`{name_of(target)}` picks positions")
    found: list[Dim] = []
    for d in range(x.value.ndim):
        for v in values[1:] if d != at else ():
            t.labels.unify(x.dims[d], v.dims[d], t.told())
        found.append(() if d == at else t.labels.resolve(x.dims[d]))
    return new(result, found)


def _select_scatter(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    x, source, dim = given["self"], given["src"], given["dim"] % given["self"].value.ndim
    t.labels.pin(x.dims[dim], f"`{name_of(target)}` picks positions")
    rest = [d for d in range(x.value.ndim) if d != dim]
    for d, own in zip(rest, source.dims, strict=True):
        t.labels.unify(x.dims[d], own, t.told())
    return new(result, [t.labels.resolve(x.dims[d]) if d != dim else () for d in range(x.value.ndim)])


def _slice_scatter(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """What is written meets what was there, at the positions of the slice."""
    given = bound(target, args, kwargs)
    x, source, dim = given["self"], given["src"], given["dim"] % given["self"].value.ndim
    if given["step"] != 1:
        t.labels.pin(x.dims[dim], f"`{name_of(target)}` picks positions")
    for d in range(x.value.ndim):
        part = slice(given["start"], given["end"], given["step"]) if d == dim else slice(None)
        known = tuple(ids[part] for ids in t.labels.resolve(x.dims[d]))
        t.labels.unify(known, source.dims[d], t.told())
    return new(result, [t.labels.resolve(d) for d in x.dims])


def _masked_scatter(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    del t, target, args, kwargs, result
    raise NotFollowed("`masked_scatter` counts its positions through")


def _among(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """`bucketize`, `searchsorted`, `isin`: each position by itself, compared with all of a table."""
    given = bound(target, args, kwargs)
    own = next(given[n] for n in ("elements", "self") if n in given)
    table = next(given[n] for n in ("test_elements", "boundaries", "sorted_sequence") if n in given)
    t.pin(table, "it is compared with as a whole")
    if not isinstance(own, Tracked) or own.value.shape != raw(result).shape:
        return new(result, ((),) * result.ndim)
    if isinstance(table, Tracked) and "sorted_sequence" in given and table.value.ndim > 1:
        raise NotFollowed("`searchsorted` has a table of its own for every row")
    return new(result, own.dims)


RULES: dict[str, Rule] = {
    **dict.fromkeys(GATHERING, _gathered),
    **dict.fromkeys(BY_INDEX, _by_index),
    "select_scatter": _select_scatter,
    "slice_scatter": _slice_scatter,
    "masked_scatter": _masked_scatter,
    **dict.fromkeys(("bucketize", "searchsorted", "isin"), _among),
}
