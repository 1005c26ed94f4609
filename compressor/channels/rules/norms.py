"""Norms, under all their names: removed channels must not be seen, and the parameters of each channel leave with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

from compressor.channels.labels import Dim
from compressor.channels.rules.division import split_groups
from compressor.channels.rules.operators import bound, results
from compressor.channels.tracing import Role, Rule, Tracer, Tracked
from compressor.graph.operators import name_of

BATCH = ("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
         "_batch_norm_no_update", "_batch_norm_with_update", "_native_batch_norm_legit_functional",
         "_batch_norm_with_update_functional", "cudnn_batch_norm")  # fmt: skip


def _per_channel(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Batch and instance norm, PReLU: parameters for each channel of dimension 1."""
    x = args[0]
    at = 1 if x.value.ndim > 1 else 0
    for other in pytree.tree_leaves((args[1:], kwargs)):
        if isinstance(other, Tracked) and other.value.ndim == 1 and len(other.value) > 1:
            t.labels.unify(x.dims[at], other.dims[0], t.reason())
    if not any(isinstance(v, Tracked) and v.value.ndim == 1 for v in pytree.tree_leaves((args[1:], kwargs))):
        t.bare_norm(x.dims[at])
    still = name_of(target) in ("prelu", "_native_batch_norm_legit_no_training", "_batch_norm_no_update")
    if not still and bound(target, args, kwargs).get("training", True):  # statistics of the batch itself
        for d in range(x.value.ndim):
            if d > at or (d < at and name_of(target) in BATCH):
                t.look([(0, d)], t.labels.resolve(x.dims[d]), result=d)
    return of_the_same_tensor(t, x, result)


def of_the_same_tensor(t: Tracer, x: Tracked, result: Any) -> Any:
    """Return a norm's results: one of the value's shape has its labels, and comes from the same parameter."""
    labels = tuple(t.labels.resolve(d) for d in x.dims)
    tracked = results(result, lambda v: labels if v.shape == x.value.shape else ((),) * v.ndim)
    for one in [tracked] if isinstance(tracked, Tracked) else tracked:
        if isinstance(one, Tracked) and one.value.shape == x.value.shape:
            one.source, one.origin = x.source, x.origin
    return tracked


def _numbers(target: Any, names: Sequence[str]) -> list[tuple[int, str]]:
    """The arguments of these names that the operator has, each with its number."""
    return [(i, a.name) for i, a in enumerate(target._schema.arguments) if a.name in names]


def _layer_norm(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """The norm looks at its dimensions together; their weight and bias leave with them."""
    named = bound(target, args, kwargs)
    x = named["input"]
    count = len(named["normalized_shape"])
    for k in range(1, count + 1):
        affected = [(0, x.value.ndim - k)]
        for number, name in _numbers(target, ("weight", "bias")):
            parameter = named.get(name)
            if isinstance(parameter, Tracked):
                t.labels.unify(x.dims[-k], parameter.dims[-k], t.reason())
                t.plays(parameter, parameter.value.ndim - k, Role.NORMALISES)
                affected.append((number, parameter.value.ndim - k))
        t.look(affected, x.dims[-k], result=x.value.ndim - k)
        if len(affected) == 1:
            t.bare_norm(x.dims[-k])
    leading = [t.labels.resolve(d) for d in x.dims[:-count]]
    labels: list[Dim] = [t.labels.resolve(d) for d in x.dims]
    return results(result, lambda v: labels if v.shape == x.value.shape else [*leading, *((),) * count][: v.ndim])


def _group_norm(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """The norm looks at the channels together, unless each is a group; labels of the groups are pinned."""
    named = bound(target, args, kwargs)
    x, groups = named["input"], named["group" if "group" in named else "num_groups"]
    channels = x.value.shape[1]
    affected = [(0, 1)]
    for number, name in _numbers(target, ("weight", "bias")):
        if isinstance(named[name], Tracked):
            t.labels.unify(x.dims[1], named[name].dims[0], t.reason())
            t.plays(named[name], 0, Role.NORMALISES)
            affected.append((number, 0))
    if 1 < groups < channels:
        outer, _ = split_groups(t, x, 1, groups)
        t.labels.pin(outer, "a group norm divides it")
    if groups < channels:
        t.look(affected, t.labels.resolve(x.dims[1]), result=1)
    if len(affected) == 1:
        t.bare_norm(x.dims[1])
    labels = [t.labels.resolve(d) for d in x.dims]
    return results(result, lambda v: labels if v.shape == x.value.shape else ((),) * v.ndim)


def _weight_norm(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """A weight as length times direction, for each position of `dim`; the dimensions that the length sums over are
    pinned.
    """
    named = bound(target, args, kwargs)
    v, g, dim = named["v"], named["g"], named["dim"]
    t.labels.unify(v.dims[dim], g.dims[dim], t.reason())
    for d in range(v.value.ndim):
        if d != dim % v.value.ndim:
            t.labels.pin(v.dims[d], "a weight norm is taken over it")
    return of_the_same_tensor(t, v, result)


def _fake_quantise(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Fake quantisation: position by position, with a scale for each channel where there are several."""
    named = bound(target, args, kwargs)
    x = args[0]
    for name in ("scale", "zero_point"):
        other = named.get(name)
        if isinstance(other, Tracked) and other.value.ndim and len(other.value) > 1:
            t.labels.unify(x.dims[named["axis"]], other.dims[0], t.reason())
    return of_the_same_tensor(t, x, result)


RULES: dict[str, Rule] = {
    **dict.fromkeys((*BATCH, "instance_norm", "prelu"), _per_channel),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"), _layer_norm),
    **dict.fromkeys(("group_norm", "native_group_norm"), _group_norm),
    **dict.fromkeys(("_weight_norm", "_weight_norm_interface"), _weight_norm),
    **dict.fromkeys(
        [f"fake_quantize_per_{kind}_affine{tail}" for kind in ("tensor", "channel") for tail in ("", "_cachemask")]
        + [f"_fake_quantize_learnable_per_{kind}_affine" for kind in ("tensor", "channel")]
        + ["_fake_quantize_per_tensor_affine_cachemask_tensor_qparams"],
        _fake_quantise,
    ),
}
