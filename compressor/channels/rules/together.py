"""Means, maxima and softmaxes look at channels together: they must not see removed ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compressor.channels.rules.along import over
from compressor.channels.rules.operators import bound, new, results
from compressor.channels.rules.pointwise import pointwise
from compressor.channels.tracing import Rule, Tracer
from compressor.graph.operators import name_of

REDUCTIONS = {
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "norm", "linalg_vector_norm", "any", "all",
    "logsumexp", "prod", "std_mean", "aminmax", "nansum", "nanmean", "count_nonzero",
}  # fmt: skip
SOFT = {"softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax"}


def _reduction(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Reduced dimensions are looked at together; those of a maximum that returns its place are pinned."""
    named = bound(target, args, kwargs)
    x = named["self"] if "self" in named else args[0]
    if "other" in named:  # an elementwise one, such as `max.other`
        return pointwise(t, target, args, kwargs, result)
    dims = over(named, x.value.ndim)
    keeps = bool(named.get("keepdim", False))
    for d in dims:
        t.look([(0, d)], t.labels.resolve(x.dims[d]))
    rest = [() if d in dims else x.dims[d] for d in range(x.value.ndim) if keeps or d not in dims]
    picks = name_of(target) in ("max", "min") and not isinstance(result, Tensor)
    if picks:
        for d in dims:
            t.labels.pin(x.dims[d], f"`{name_of(target)}` picks positions")
    return results(result, lambda v: rest if v.ndim == len(rest) else ((),) * v.ndim)


def _soft(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """The operator looks at one dimension together, and keeps all."""
    named = bound(target, args, kwargs)
    x = args[0]
    d = named["dim"] % x.value.ndim
    t.look([(0, d)], t.labels.resolve(x.dims[d]), result=d)
    return results(result, lambda v: x.dims if v.shape == x.value.shape else ((),) * v.ndim)


def _glu(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """The two halves of the dimension are united."""
    named = bound(target, args, kwargs)
    x, d = named["self"], named["dim"] % result.ndim
    labels, half = t.labels.resolve(x.dims[d]), result.shape[d]
    first, second = tuple(ids[:half] for ids in labels), tuple(ids[half:] for ids in labels)
    t.labels.unify(first, second, t.reason())
    return new(result, [t.labels.resolve(first) if e == d else x.dims[e] for e in range(result.ndim)])


RULES: dict[str, Rule] = {
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(SOFT, _soft),
    "glu": _glu,
}
