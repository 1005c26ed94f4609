"""Norms, means and soft-maxima look at channels together: what left must not be seen."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from compressor.rules.division import split_groups
from compressor.rules.operators import bound, name_of, new, results
from compressor.rules.pointwise import pointwise
from compressor.tracing import Role, Rule, Tracer, Tracked

REDUCTIONS = {
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "norm", "linalg_vector_norm", "any", "all",
    "logsumexp", "prod",
}  # fmt: skip
ALONG = {"softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "argsort", "logcumsumexp"}


def _per_channel(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Batch and instance norm, PReLU: parameters for each channel of dimension 1."""
    x = args[0]
    at = 1 if x.value.ndim > 1 else 0
    for other in pytree.tree_leaves((args[1:], kwargs)):
        if isinstance(other, Tracked) and other.value.ndim == 1 and len(other.value) > 1:
            t.labels.unify(x.dims[at], other.dims[0], t.told())
    if not any(isinstance(v, Tracked) and v.value.ndim == 1 for v in pytree.tree_leaves((args[1:], kwargs))):
        t.bare_norm(x.dims[at])
    if name_of(target) != "prelu" and bound(target, args, kwargs).get("training", True):  # over what is there
        for d in range(x.value.ndim):
            if d > at or (d < at and name_of(target) == "batch_norm"):
                t.look([(0, d)], t.labels.resolve(x.dims[d]), result=d)
    return _of_the_same_tensor(t, x, result)


def _of_the_same_tensor(t: Tracer, x: Tracked, result: Any) -> Any:
    """A norm's results: what has the value's shape has its labels, and comes from the same parameter if it is one."""
    known = tuple(t.labels.resolve(d) for d in x.dims)
    found = results(result, lambda v: known if v.shape == x.value.shape else ((),) * v.ndim)
    for one in [found] if isinstance(found, Tracked) else found:
        if isinstance(one, Tracked) and one.value.shape == x.value.shape:
            one.source, one.origin = x.source, x.origin
    return found


def _layer_norm(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    x = given["input"]
    count = len(given["normalized_shape"])
    for k in range(1, count + 1):
        affected = [(0, x.value.ndim - k)]
        for number, name in enumerate(("weight", "bias"), start=2):
            parameter = given.get(name)
            if isinstance(parameter, Tracked):
                t.labels.unify(x.dims[-k], parameter.dims[-k], t.told())
                t.plays(parameter, parameter.value.ndim - k, Role.NORMALISES)
                affected.append((number, parameter.value.ndim - k))
        t.look(affected, x.dims[-k], result=x.value.ndim - k)
        if len(affected) == 1:
            t.bare_norm(x.dims[-k])
    return new(result, [t.labels.resolve(d) for d in x.dims])


def _group_norm(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    x, groups = given["input"], given["num_groups"]
    channels = x.value.shape[1]
    affected = [(0, 1)]
    for number, name in enumerate(("weight", "bias"), start=2):
        if isinstance(given[name], Tracked):
            t.labels.unify(x.dims[1], given[name].dims[0], t.told())
            t.plays(given[name], 0, Role.NORMALISES)
            affected.append((number, 0))
    if 1 < groups < channels:
        outer, _ = split_groups(t, x, 1, groups)
        t.labels.pin(outer, "a group norm divides it")
    if groups < channels:
        t.look(affected, t.labels.resolve(x.dims[1]), result=1)
    if len(affected) == 1:
        t.bare_norm(x.dims[1])
    return new(result, [t.labels.resolve(d) for d in x.dims])


def _weight_norm(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """A weight as length times direction, one by one along `dim`; what the length is taken over stays."""
    given = bound(target, args, kwargs)
    v, g, dim = given["v"], given["g"], given["dim"]
    t.labels.unify(v.dims[dim], g.dims[dim], t.told())
    for d in range(v.value.ndim):
        if d != dim % v.value.ndim:
            t.labels.pin(v.dims[d], "a weight norm is taken over it")
    return _of_the_same_tensor(t, v, result)


def _reduction(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    given = bound(target, args, kwargs)
    x = given["self"] if "self" in given else args[0]
    dims = given.get("dim")
    if "other" in given:  # `max.other` and its like
        return pointwise(t, target, args, kwargs, result)
    if dims is None or dims == []:
        over = list(range(x.value.ndim))
    else:
        over = [d % max(1, x.value.ndim) for d in ([dims] if isinstance(dims, int) else dims)]
    keeps = bool(given.get("keepdim", False))
    for d in over:
        t.look([(0, d)], t.labels.resolve(x.dims[d]))
    rest = [() if d in over else x.dims[d] for d in range(x.value.ndim) if keeps or d not in over]
    picks = name_of(target) in ("max", "min") and not isinstance(result, Tensor)
    if picks:
        for d in over:
            t.labels.pin(x.dims[d], f"`{name_of(target)}` picks positions")
    return results(result, lambda v: rest if v.ndim == len(rest) else ((),) * v.ndim)


def _along(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    given = bound(target, args, kwargs)
    x = args[0]
    d = given["dim"] % x.value.ndim
    if "softmax" in name_of(target):
        t.look([(0, d)], t.labels.resolve(x.dims[d]), result=d)
    else:
        t.labels.pin(x.dims[d], f"`{name_of(target)}` runs along it")
    return results(result, lambda v: x.dims if v.shape == x.value.shape else ((),) * v.ndim)


def _glu(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    x, d = given["self"], given["dim"] % result.ndim
    known, half = t.labels.resolve(x.dims[d]), result.shape[d]
    first, second = tuple(ids[:half] for ids in known), tuple(ids[half:] for ids in known)
    t.labels.unify(first, second, t.told())
    return new(result, [t.labels.resolve(first) if e == d else x.dims[e] for e in range(result.ndim)])


RULES: dict[str, Rule] = {
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(ALONG, _along),
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), _per_channel),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "group_norm": _group_norm,
    "glu": _glu,
    **dict.fromkeys(("_weight_norm", "_weight_norm_interface"), _weight_norm),
}
