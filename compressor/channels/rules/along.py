"""Operators along one dimension or a few, which pass the others on: sorting, running sums, picking, transforms."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compressor.channels.labels import Dim
from compressor.channels.rules.operators import bound, new, results
from compressor.channels.tracing import NotFollowed, Rule, Tracer, Tracked
from compressor.graph.operators import name_of

ALONG = {
    "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort", "msort", "topk", "kthvalue", "median",
    "nanmedian", "mode", "argmax", "argmin", "_fft_r2c", "_fft_c2r", "_fft_c2c", "renorm",
}  # fmt: skip
FOURIER = {f"fft_{kind}{n}" for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft") for n in ("", "2", "n")}


def over(named: dict[str, Any], ndim: int) -> list[int]:
    """Return the dimensions that an operator's `dim` names; all where it names none."""
    dims = named.get("dim")
    if dims is None or dims == []:
        sizes = named.get("s")  # a transform's sizes, of the last dimensions
        return list(range(ndim - len(sizes), ndim)) if sizes else list(range(ndim))
    return [d % max(1, ndim) for d in ([dims] if isinstance(dims, int) else dims)]


def _along(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """The dimensions that the operator runs along are pinned; a result keeps the others, with or without these."""
    named = bound(target, args, kwargs)
    x = args[0]
    if name_of(target) == "median" and "dim" not in named:
        named["dim"] = None
    dims = over(named, x.value.ndim) if name_of(target) != "renorm" else list(range(x.value.ndim))
    for d in dims:
        t.labels.pin(x.dims[d], f"`{name_of(target)}` runs along it")
    whole: list[Dim] = [() if d in dims else x.dims[d] for d in range(x.value.ndim)]
    rest = [dim for d, dim in enumerate(whole) if d not in dims]
    return results(result, lambda v: whole if v.ndim == len(whole) else rest if v.ndim == len(rest) else ((),) * v.ndim)


def _cross(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """The dimension of three is pinned; the others meet position by position."""
    named = bound(target, args, kwargs)
    dim = named["dim"]
    if dim is None:
        raise NotFollowed("`cross` searches a dimension of three, which can be another one in a smaller network")
    for x in (named["self"], named["other"]):
        t.labels.pin(x.dims[dim], f"`{name_of(target)}` runs along it")
    return new(result, t.pointwise([named["self"], named["other"]], result.shape))


def _diagonal(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Both dimensions of the diagonal are pinned; the diagonal itself has no labels."""
    named = bound(target, args, kwargs)
    x = named["self"]
    two = {named["dim1"] % x.value.ndim, named["dim2"] % x.value.ndim}
    for d in two:
        t.labels.pin(x.dims[d], "a diagonal runs along it")
    return new(result, [*(x.dims[d] for d in range(x.value.ndim) if d not in two), ()])


def _triangle(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """The last two dimensions are pinned."""
    del kwargs
    x: Tracked = args[0]
    for d in (-1, -2):
        t.labels.pin(x.dims[d], f"`{name_of(target)}` distinguishes its positions by their numbers")
    return new(result, [*x.dims[:-2], (), ()])


RULES: dict[str, Rule] = {
    **dict.fromkeys(ALONG | FOURIER, _along),
    **dict.fromkeys(("cross", "linalg_cross"), _cross),
    **dict.fromkeys(("diagonal", "diagonal_copy"), _diagonal),
    **dict.fromkeys(("tril", "triu"), _triangle),
}
