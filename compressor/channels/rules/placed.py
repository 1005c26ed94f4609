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
    """Labels of values that meet position by position in all dimensions but `dim`, which is pinned."""
    dims: list[Dim] = []
    first = values[0]
    for d in range(first.value.ndim):
        if d == dim:
            for x in values:
                t.labels.pin(x.dims[d], f"`{name_of(t.node.target)}` picks positions")
            dims.append(())
        elif len({x.value.shape[d] for x in values}) > 1:
            for x in values:
                t.labels.pin(x.dims[d], f"`{name_of(t.node.target)}` reads only the first of its positions")
            dims.append(())
        else:
            for x in values[1:]:
                t.labels.unify(first.dims[d], x.dims[d], t.reason())
            dims.append(t.labels.resolve(first.dims[d]))
    return dims


def _gathered(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """`gather`, and all that scatters: value, index and source share their other dimensions."""
    named = bound(target, args, kwargs)
    x, dim = named["self"], named["dim"]
    values = [v for v in (x, named["index"], named.get("src")) if isinstance(v, Tracked) and v.value.ndim]
    return new(result, _beside(t, values, dim % max(1, x.value.ndim)))


def _by_index(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Whole slices along `dim` are added, copied or filled, at the places of an index."""
    named = bound(target, args, kwargs)
    x, dim = named["self"], named["dim"]
    t.pin(named["index"], "it is an index")
    source = named.get("source")
    values = [x] if not isinstance(source, Tracked) or not source.value.ndim else [x, source]
    at = dim % max(1, x.value.ndim)
    for v in values:
        t.labels.pin(v.dims[at], f"`{name_of(target)}` picks positions")
    dims: list[Dim] = []
    for d in range(x.value.ndim):
        for v in values[1:] if d != at else ():
            t.labels.unify(x.dims[d], v.dims[d], t.reason())
        dims.append(() if d == at else t.labels.resolve(x.dims[d]))
    return new(result, dims)


def _select_scatter(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """One position of `dim`, which is pinned, is overwritten; the other dimensions meet position by position."""
    named = bound(target, args, kwargs)
    x, source, dim = named["self"], named["src"], named["dim"] % named["self"].value.ndim
    t.labels.pin(x.dims[dim], f"`{name_of(target)}` picks positions")
    rest = [d for d in range(x.value.ndim) if d != dim]
    for d, own in zip(rest, source.dims, strict=True):
        t.labels.unify(x.dims[d], own, t.reason())
    return new(result, [t.labels.resolve(x.dims[d]) if d != dim else () for d in range(x.value.ndim)])


def _slice_scatter(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """The source meets the value at the positions of the slice."""
    named = bound(target, args, kwargs)
    x, source, dim = named["self"], named["src"], named["dim"] % named["self"].value.ndim
    if named["step"] != 1:
        t.labels.pin(x.dims[dim], f"`{name_of(target)}` picks positions")
    for d in range(x.value.ndim):
        part = slice(named["start"], named["end"], named["step"]) if d == dim else slice(None)
        labels = tuple(ids[part] for ids in t.labels.resolve(x.dims[d]))
        t.labels.unify(labels, source.dims[d], t.reason())
    return new(result, [t.labels.resolve(d) for d in x.dims])


def _masked_scatter(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    del t, target, args, kwargs, result
    raise NotFollowed("`masked_scatter` counts its positions through")


def _among(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """`bucketize`, `searchsorted`, `isin`: each position by itself is compared with a whole table."""
    named = bound(target, args, kwargs)
    own = next(named[n] for n in ("elements", "self") if n in named)
    table = next(named[n] for n in ("test_elements", "boundaries", "sorted_sequence") if n in named)
    t.pin(table, "it is compared with as a whole")
    if not isinstance(own, Tracked) or own.value.shape != raw(result).shape:
        return new(result, ((),) * result.ndim)
    if isinstance(table, Tracked) and "sorted_sequence" in named and table.value.ndim > 1:
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
