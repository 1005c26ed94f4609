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


def over(given: dict[str, Any], ndim: int) -> list[int]:
    """The dimensions that an operator's `dim` names; all where it names none."""
    dims = given.get("dim")
    if dims is None or dims == []:
        sizes = given.get("s")  # of a transform: that of the last dimensions
        return list(range(ndim - len(sizes), ndim)) if sizes else list(range(ndim))
    return [d % max(1, ndim) for d in ([dims] if isinstance(dims, int) else dims)]


def _along(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    given = bound(target, args, kwargs)
    x = args[0]
    if name_of(target) == "median" and "dim" not in given:
        given["dim"] = None
    dims = over(given, x.value.ndim) if name_of(target) != "renorm" else list(range(x.value.ndim))
    for d in dims:
        t.labels.pin(x.dims[d], f"`{name_of(target)}` runs along it")
    whole: list[Dim] = [() if d in dims else x.dims[d] for d in range(x.value.ndim)]
    rest = [dim for d, dim in enumerate(whole) if d not in dims]
    return results(result, lambda v: whole if v.ndim == len(whole) else rest if v.ndim == len(rest) else ((),) * v.ndim)


def _cross(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    dim = given["dim"]
    if dim is None:
        raise NotFollowed("`cross` looks for a dimension of three, which need not be the same in a smaller network")
    for x in (given["self"], given["other"]):
        t.labels.pin(x.dims[dim], f"`{name_of(target)}` runs along it")
    return new(result, t.pointwise([given["self"], given["other"]], result.shape))


def _diagonal(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    x = given["self"]
    two = {given["dim1"] % x.value.ndim, given["dim2"] % x.value.ndim}
    for d in two:
        t.labels.pin(x.dims[d], "a diagonal runs along it")
    return new(result, [*(x.dims[d] for d in range(x.value.ndim) if d not in two), ()])


def _triangle(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    del kwargs
    x: Tracked = args[0]
    for d in (-1, -2):
        t.labels.pin(x.dims[d], f"`{name_of(target)}` tells its positions apart by their numbers")
    return new(result, [*x.dims[:-2], (), ()])


RULES: dict[str, Rule] = {
    **dict.fromkeys(ALONG | FOURIER, _along),
    **dict.fromkeys(("cross", "linalg_cross"), _cross),
    **dict.fromkeys(("diagonal", "diagonal_copy"), _diagonal),
    **dict.fromkeys(("tril", "triu"), _triangle),
}
