"""What each kind of operator does to labels (`compressor.tracing`).

    moves data          the operator itself is run on the labels
    position by position what meets is one
    products            what is summed over is one, and is read; the rest goes on
    together            norms, means, soft-maxima: what left must not be seen
    anything else       pins what reaches it

Rules are about operators, never about architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from compressor.coupling import Dim
from compressor.tracing import Role, Rule, Tracer, Tracked

POINTWISE = {
    "dropout", "feature_dropout", "alpha_dropout", "native_dropout", "hardswish", "to", "_to_copy", "contiguous",
    "detach", "alias", "lift_fresh_copy", "lift_fresh", "masked_fill", "fill", "copy", "bernoulli", "zeros_like",
    "ones_like", "full_like", "rand_like", "randn_like", "empty_like", "type_as", "silu", "zero", "rrelu", "nan_to_num",
    "float", "_assert_tensor_metadata",
}  # fmt: skip
CREATION = {"zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "empty", "new_empty", "rand", "randn"}
MOVES = {
    "repeat", "tile", "flip", "roll", "index_select", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "native_channel_shuffle", "repeat_interleave", "_unsafe_view", "reshape", "unfold", "rot90", "im2col",
}  # fmt: skip
NOT_MOVES = {"as_strided", "real", "imag", "view_as_real", "view_as_complex", "diagonal", "_conj"}
REDUCTIONS = {
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "norm", "linalg_vector_norm", "any", "all",
    "logsumexp", "prod",
}  # fmt: skip
ALONG = {"softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "argsort", "logcumsumexp"}
PADS = {"pad", "constant_pad_nd"}


def rule_of(target: Any) -> Rule:
    """The rule for an operator; what no rule knows pins what reaches it."""
    name = name_of(target)
    found = _RULES.get(name)
    if found is not None:
        return found
    tags = getattr(target, "tags", ())
    if name in POINTWISE or torch.Tag.pointwise in tags:
        return _pointwise
    if name in CREATION:
        return _creation
    if name in MOVES or (name not in NOT_MOVES and _is_view(target)):
        return _movement
    if name in REDUCTIONS:
        return _reduction
    if name in ALONG:
        return _along
    return _unknown


def name_of(target: Any) -> str:
    """An operator's name without its overload; one that writes in place counts as the one that does not."""
    name = str(target).removeprefix("aten.").removeprefix("torchvision.").split(".")[0]
    in_place = str(target).startswith("aten.") and name.endswith("_") and not name.endswith("__")
    return name[:-1] if in_place else name


def _is_view(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)


def bound(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """An operator's arguments by name, its defaults filled in."""
    found = {}
    for i, argument in enumerate(target._schema.arguments):
        if i < len(args):
            found[argument.name] = args[i]
        else:
            found[argument.name] = kwargs.get(argument.name, argument.default_value)
    return found


def _new(value: Tensor, dims: Sequence[Dim]) -> Tracked:
    return Tracked(value, tuple(dims))


def _results(value: Any, dims_of: Callable[[Tensor], Sequence[Dim]]) -> Any:
    if isinstance(value, Tensor):
        return _new(value, dims_of(value))
    return [_new(v, dims_of(v)) if isinstance(v, Tensor) else v for v in value]


def _unknown(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    t.pin([*pytree.tree_leaves((args, kwargs))], f"no rule for the operator `{name_of(target)}`")
    return _results(result, lambda v: ((),) * v.ndim)


def _pointwise(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    operands = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tracked)]
    if name_of(target) in ("fill", "type_as"):
        operands = operands[:1]
    shaped = result if isinstance(result, Tensor) else next(v for v in result if isinstance(v, Tensor))
    dims = t.pointwise(operands, shaped.shape)
    found = _results(result, lambda v: dims if v.shape == shaped.shape else ((),) * v.ndim)
    wide = [v for v in operands if v.value.ndim]
    if len(wide) == 1 and wide[0].value.shape == shaped.shape and isinstance(found, Tracked):
        found.source, found.origin = wide[0].source, wide[0].origin  # a parameter, scaled, is still that one
    return found


def _creation(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    del target, args, kwargs
    return _results(result, lambda v: t.fresh(v.shape))


def _movement(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    x = args[0]
    if not isinstance(x, Tracked):
        return _unknown(t, target, args, kwargs, result)
    name = name_of(target)
    given = bound(target, args, kwargs)
    if name in ("roll", "index_select", "rot90", "repeat_interleave"):
        _pin_dims(t, x, given.get("dims", given.get("dim")), f"`{name}` picks positions")
    favour = x.value.ndim - 3 if name == "pixel_shuffle" else None
    rest, named = pytree.tree_map(_value, (tuple(args[1:]), kwargs))

    def run(values: Tensor) -> Any:
        return target(values, *rest, **named)

    found = [
        Tracked(value, dims, x.source, origin if x.source else ())
        for value, (dims, origin) in zip(pytree.tree_leaves(result), t.moved(x, run, favour=favour), strict=True)
    ]
    if name in ("repeat", "tile"):
        found[0].dims = _repeated(t, x, result, found[0].dims)
    return found[0] if isinstance(result, Tensor) else found


def _value(value: Any) -> Any:
    return value.value if isinstance(value, Tracked) else value


def _repeated(t: Tracer, x: Tracked, result: Tensor, dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """A single position that is repeated may be repeated less often."""
    before = (1,) * (result.ndim - x.value.ndim) + tuple(x.value.shape)
    fresh = t.fresh(result.shape)
    return tuple(f if b == 1 < n else d for b, n, d, f in zip(before, result.shape, dims, fresh, strict=True))


def _pin_dims(t: Tracer, x: Tracked, dims: Any, reason: str) -> None:
    for d in range(x.value.ndim) if dims is None or dims == [] else ([dims] if isinstance(dims, int) else dims):
        t.labels.pin(x.dims[d], reason)


def _expand(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    del target, kwargs
    x = args[0]
    more = result.ndim - x.value.ndim
    fresh = t.fresh(result.shape)
    dims = [
        x.dims[d - more] if d >= more and x.value.shape[d - more] == n else fresh[d] for d, n in enumerate(result.shape)
    ]
    if len(args) > 1 and isinstance(args[1], Tracked):  # `expand_as`: as wide as that one
        for own, other in zip(dims, args[1].dims, strict=True):
            t.labels.unify(own, other, t.told())
    return _new(result, dims)


def _index(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    x, indices = args[0], args[1]
    for d, index in enumerate(indices):
        if index is not None:
            t.labels.pin(x.dims[d], "`index` picks positions")
    t.pin(indices, "it is an index")
    chosen = [None if i is None else _value(i) for i in indices]
    if any(i is not None and i.dtype is torch.bool for i in chosen):
        return _unknown(t, target, args, kwargs, result)
    ((dims, origin),) = t.moved(x, lambda v: target(v, chosen))
    return Tracked(result, dims, x.source, origin if x.source else ())


def _pad(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    x, amounts = given["self"], list(given["pad"])
    constant = given.get("mode", "constant") == "constant"
    dims = list(x.dims)
    for k in range(len(amounts) // 2):
        d, before, after = x.value.ndim - 1 - k, amounts[2 * k], amounts[2 * k + 1]
        known = t.labels.resolve(dims[d])
        if not known or (before == 0 and after == 0):
            continue
        if not constant:
            t.labels.pin(known, f"`{name_of(target)}` repeats its channels")
            dims[d] = ()
            continue
        cut = [ids[max(0, -before) : len(ids) - max(0, -after)] for ids in known]
        left, right = t.labels.fresh(max(0, before)), t.labels.fresh(max(0, after))
        zeros = np.zeros_like
        padded = [np.concatenate([zeros(left), ids, zeros(right)]) for ids in cut]
        padded.append(np.concatenate([left, np.zeros_like(cut[0]), right]))
        dims[d] = tuple(padded)
    return _new(result, dims)


def _other_pad(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    x = args[0]
    for d in range(x.value.ndim):
        if x.value.shape[d] != result.shape[d]:
            t.labels.pin(x.dims[d], f"`{name_of(target)}` repeats its channels")
    del kwargs
    return _new(result, x.dims)


def _cat(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    parts = [p for p in given["tensors"] if isinstance(p, Tracked) and p.value.ndim == result.ndim]
    d = given["dim"] % result.ndim
    others = t.pointwise(parts, [1 if e == d else n for e, n in enumerate(result.shape)])
    known = [t.labels.resolve(p.dims[d]) for p in parts]
    bare = [np.zeros(p.value.shape[d], dtype=np.int64) for p in parts]
    joined = tuple(
        np.concatenate([dim[k] if k < len(dim) else zeros for dim, zeros in zip(known, bare, strict=True)])
        for k in range(max(map(len, known), default=0))
    )
    return _new(result, [joined if e == d else x for e, x in enumerate(others)])


def _stack(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    d = given["dim"] % result.ndim
    inner = t.pointwise(given["tensors"], [n for e, n in enumerate(result.shape) if e != d])
    return _new(result, [*inner[:d], (), *inner[d:]])


def _convolution(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    groups = given["groups"]
    transposed = "transpose" in name_of(target)
    at = 0 if result.ndim == weight.value.ndim - 1 else 1  # without a batch dimension
    into, out = (0, 1) if transposed else (1, 0)
    whole = _split_groups(t, x, at, groups)
    blocks = _split_groups(t, weight, 0, groups)  # the grouped dimension of either kind
    t.read(0, x, at)
    if groups == 1 or max(weight.value.shape[:2]) > groups or weight.value.shape[1] > 1:  # depthwise passes on
        t.plays(weight, out, Role.PRODUCES)
        t.plays(weight, into, Role.CONSUMES)
    if groups == 1:
        t.labels.unify(x.dims[at], weight.dims[into], t.told())
        made: Dim = weight.dims[out]
    else:
        t.labels.unify(whole[0], blocks[0], t.told())
        if transposed:
            t.labels.unify(whole[1], blocks[1], t.told())
            made = _joined(blocks[0], weight.dims[1], groups)
        else:
            t.labels.unify(whole[1], weight.dims[1], t.told())
            made = weight.dims[0]
    if isinstance(bias, Tracked):
        t.labels.unify(made, bias.dims[0], t.told())
    dims: list[Dim] = [x.dims[0] if d < at else () for d in range(result.ndim)]
    dims[at] = t.labels.resolve(made)
    for i, d in enumerate(range(at + 1, x.value.ndim)):
        still = weight.value.shape[2 + i] == _at(given["stride"], i) == 1 and not _at(given["padding"], i)
        if still:
            dims[d] = t.labels.resolve(x.dims[d])
        else:
            t.labels.pin(x.dims[d], "a convolution slides over it")
    for d in range(2, weight.value.ndim):
        t.labels.pin(weight.dims[d], "it is a kernel's extent")
    return _new(result, dims)


def _at(numbers: Any, i: int) -> Any:
    """The number for dimension `i`: of a list, of a list of one for all, or of the word for a padding."""
    if isinstance(numbers, str):
        return 0 if numbers == "valid" else 1
    return numbers[i] if len(numbers) > 1 else numbers[0]


def _split_groups(t: Tracer, x: Tracked, dim: int, groups: int) -> tuple[Dim, Dim]:
    """A dimension seen as groups times what each has: labels of both; both are units."""
    if groups == 1:
        return (), x.dims[dim]
    length = x.value.shape[dim]
    each = length // groups
    known = t.labels.resolve(x.dims[dim])
    if not known:
        return (), ()
    if each == 1:
        return known, ()
    outer, inner = t.labels.fresh(groups), t.labels.fresh(each)
    t.labels.unify(known, (np.repeat(outer, each), np.tile(inner, groups)), "a grouped convolution divides it")
    return t.labels.resolve((outer,)), t.labels.resolve((inner,))


def _joined(outer: Dim, inner: Dim, groups: int) -> Dim:
    each = len(inner[0]) if inner else 1
    return (*(np.repeat(ids, each) for ids in outer), *(np.tile(ids, groups) for ids in inner))


def _linear(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    t.read(0, x, -1)
    t.plays(weight, 0, Role.PRODUCES)
    t.plays(weight, 1, Role.CONSUMES)
    t.labels.unify(x.dims[-1], weight.dims[1], t.told())
    if isinstance(bias, Tracked):
        t.labels.unify(weight.dims[0], bias.dims[0], t.told())
    return _new(result, [*x.dims[:-1], t.labels.resolve(weight.dims[0])])


def _product(t: Tracer, a: Tracked, b: Tracked, at: tuple[int, int], result: Tensor, extra: Any = None) -> Any:
    """A batched matrix product of arguments `at`; with `extra` added to it."""
    vector_a, vector_b = a.value.ndim == 1, b.value.ndim == 1
    inner_b = 0 if vector_b else -2
    t.labels.unify(a.dims[-1], b.dims[inner_b], t.told())
    t.read(at[0], a, -1)
    batch_a, batch_b = _without(a, 1 if vector_a else 2), _without(b, 1 if vector_b else 2)
    shape = _broadcast([batch_a, batch_b])
    batch = t.pointwise([batch_a, batch_b], shape)
    t.trace.batched += [ids for dim in batch for ids in dim]
    rows = [] if vector_a else [a.dims[-2]]
    columns = [] if vector_b else [b.dims[-1]]
    for tracked, ends in ((a, (-1,) if vector_a else (-1, -2)), (b, (0,) if vector_b else (-2, -1))):
        for d, role in zip(ends, (Role.CONSUMES, Role.PRODUCES), strict=False):
            t.plays(tracked, d % tracked.value.ndim, role)
    dims: tuple[Dim, ...] = (*batch, *rows, *columns)
    if isinstance(extra, Tracked):
        dims = t.pointwise([Tracked(result, dims), extra], result.shape)
    return _new(result, dims)


def _broadcast(values: Sequence[Tracked]) -> tuple[int, ...]:
    shape: tuple[int, ...] = torch.broadcast_shapes(*(v.value.shape for v in values))  # type: ignore[no-untyped-call]
    return tuple(shape)


def _without(x: Tracked, trailing: int) -> Tracked:
    keep = x.value.ndim - trailing
    index = (slice(None),) * keep + (0,) * trailing
    return Tracked(x.value[index], x.dims[:keep])


def _matmul(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    del target, kwargs
    return _product(t, args[0], args[1], (0, 1), result)


def _added_product(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    del target, kwargs
    return _product(t, args[1], args[2], (1, 2), result, extra=args[0])


def _einsum(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    operands = list(args[1])
    left, arrow, right = args[0].replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "..." in left or any(len(set(term)) < len(term) for term in terms):
        return _unknown(t, target, args, kwargs, result)
    seen: dict[str, list[tuple[Tracked, int]]] = {}
    for term, x in zip(terms, operands, strict=True):
        for d, letter in enumerate(term):
            seen.setdefault(letter, []).append((x, d))
    for letter, places in seen.items():
        wide = [(x, d) for x, d in places if x.value.shape[d] > 1]
        for x, d in wide[1:]:
            t.labels.unify(wide[0][0].dims[wide[0][1]], x.dims[d], t.told())
        if letter in right and len(wide) > 1:
            t.trace.batched += list(t.labels.resolve(wide[0][0].dims[wide[0][1]]))
        if letter not in right:
            for x, d in places[:1]:
                if wide:
                    _read_in_list(t, operands.index(x), x, d)
        for x, d in places:
            t.plays(x, d, Role.PRODUCES if letter in right else Role.CONSUMES)
    dims = []
    for letter in right:
        wide = [(x, d) for x, d in seen[letter] if x.value.shape[d] > 1]
        dims.append(t.labels.resolve(wide[0][0].dims[wide[0][1]]) if wide else ())
    return _new(result, dims)


def _read_in_list(t: Tracer, operand: int, x: Tracked, dim: int) -> None:
    t.read(-1 - operand, x, dim)  # a negative argument counts in the list of operands


def _scaled_dot_product_attention(
    t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor
) -> Any:
    given = bound(target, args, kwargs)
    q, k, v, mask = given["query"], given["key"], given["value"], given["attn_mask"]
    if given["enable_gqa"] and q.value.shape[-3] != k.value.shape[-3]:
        return _unknown(t, target, args, kwargs, result)
    t.labels.unify(q.dims[-1], k.dims[-1], t.told())
    t.labels.unify(k.dims[-2], v.dims[-2], t.told())
    t.labels.pin(k.dims[-2], "attention runs over it")
    t.read(0, q, -1)
    batches = [_without(x, 2) for x in (q, k, v)]
    shape = _broadcast(batches)
    batch = t.pointwise(batches, shape)
    t.trace.batched += [ids for dim in batch for ids in dim]
    if isinstance(mask, Tracked):
        scores = (*shape, q.value.shape[-2], k.value.shape[-2])
        t.pointwise([Tracked(torch.empty(scores, device="meta"), (*batch, q.dims[-2], k.dims[-2])), mask], scores)
    return _new(result, [*(t.labels.resolve(b) for b in batch), q.dims[-2], v.dims[-1]])


def _embedding(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    del target, kwargs
    weight, index = args[0], args[1]
    t.labels.pin(weight.dims[0], "it is a table's length")
    t.pin(index, "it is an index")
    t.plays(weight, 1, Role.PRODUCES)
    return _new(result, [*((),) * index.value.ndim, weight.dims[1]])


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
    known = tuple(t.labels.resolve(d) for d in x.dims)
    return _results(result, lambda v: known if v.shape == x.value.shape else ((),) * v.ndim)


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
    return _new(result, [t.labels.resolve(d) for d in x.dims])


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
        outer, _ = _split_groups(t, x, 1, groups)
        t.labels.pin(outer, "a group norm divides it")
    if groups < channels:
        t.look(affected, t.labels.resolve(x.dims[1]), result=1)
    if len(affected) == 1:
        t.bare_norm(x.dims[1])
    return _new(result, [t.labels.resolve(d) for d in x.dims])


def _reduction(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    given = bound(target, args, kwargs)
    x = given["self"] if "self" in given else args[0]
    dims = given.get("dim")
    if "other" in given:  # `max.other` and its like
        return _pointwise(t, target, args, kwargs, result)
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
    return _results(result, lambda v: rest if v.ndim == len(rest) else ((),) * v.ndim)


def _along(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    given = bound(target, args, kwargs)
    x = args[0]
    d = given["dim"] % x.value.ndim
    if "softmax" in name_of(target):
        t.look([(0, d)], t.labels.resolve(x.dims[d]), result=d)
    else:
        t.labels.pin(x.dims[d], f"`{name_of(target)}` runs along it")
    return _results(result, lambda v: x.dims if v.shape == x.value.shape else ((),) * v.ndim)


def _glu(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    x, d = given["self"], given["dim"] % result.ndim
    known, half = t.labels.resolve(x.dims[d]), result.shape[d]
    first, second = tuple(ids[:half] for ids in known), tuple(ids[half:] for ids in known)
    t.labels.unify(first, second, t.told())
    return _new(result, [t.labels.resolve(first) if e == d else x.dims[e] for e in range(result.ndim)])


def _over_space(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Pooling and resizing: the trailing dimensions change, the leading ones stay."""
    del kwargs
    x = args[0]
    leading = x.value.ndim - next(int(c) for c in name_of(target) if c.isdigit())  # `max_pool2d` runs over two
    for d in range(leading, x.value.ndim):
        t.labels.pin(x.dims[d], f"`{name_of(target)}` runs over it")
    others = [a for a in args[1:] if isinstance(a, Tracked) and a.value.ndim == x.value.ndim]
    for other in others:  # `max_unpool` has indices beside
        for d in range(leading):
            t.labels.unify(x.dims[d], other.dims[d], t.told())
    return _results(result, lambda v: [x.dims[d] if d < leading else () for d in range(v.ndim)])


def _grid_sampler(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    del target, kwargs
    t.pin(args[1], "it says where to sample")
    x = args[0]
    for d in range(2, x.value.ndim):
        t.labels.pin(x.dims[d], "it is sampled over")
    return _new(result, [x.dims[0], x.dims[1], *((),) * (result.ndim - 2)])


def _roi_align(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    del target, kwargs
    t.pin(args[1], "it says where to sample")
    return _new(result, [(), args[0].dims[1], (), ()])


_SPATIAL = [f"{kind}{n}d" for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool",
            "upsample_nearest", "_upsample_nearest_exact", "max_unpool") for n in (1, 2, 3)]  # fmt: skip
_SPATIAL += ["max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d_with_indices", "upsample_bilinear2d",
             "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
             "_upsample_bicubic2d_aa"]  # fmt: skip
_RULES: dict[str, Rule] = {
    "index": _index,
    "cat": _cat,
    "stack": _stack,
    "linear": _linear,
    "matmul": _matmul,
    "einsum": _einsum,
    "scaled_dot_product_attention": _scaled_dot_product_attention,
    "embedding": _embedding,
    "group_norm": _group_norm,
    "glu": _glu,
    "grid_sampler": _grid_sampler,
    "roi_align": _roi_align,

    **dict.fromkeys(_SPATIAL, _over_space),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(PADS, _pad),
    **dict.fromkeys([f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)], _other_pad),
    **dict.fromkeys([f"conv{n}d" for n in (1, 2, 3)] + [f"conv_transpose{n}d" for n in (1, 2, 3)], _convolution),
    **dict.fromkeys(("bmm", "mm", "mv"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _added_product),
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), _per_channel),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
}  # fmt: skip
