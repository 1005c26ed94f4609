"""Products: labels of a summed dimension are united, and it is a reading; the other dimensions pass on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.channels.labels import Dim
from compressor.channels.rules.division import split_groups
from compressor.channels.rules.operators import bound, new, results
from compressor.channels.tracing import NotFollowed, Role, Rule, Tracer, Tracked
from compressor.graph.operators import name_of


def _convolution(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """A convolution, grouped, depthwise or transposed.

    Weights are `[out, in / groups, k…]`, transposed ones `[in, out / groups, k…]`, so dimension 0 always spans all
    groups. With `groups`, input channels and dimension 0 of the weight are both viewed as (group, channel within the
    group): groups are united with groups, and channels within the input's groups with the weight's input dimension. A
    depthwise convolution (one input and one output channel per group) passes channels on, so its weight neither
    produces nor consumes. A spatial dimension keeps its labels where kernel and stride are 1 without padding; elsewhere
    windows slide over it, and it is pinned.
    """
    named = bound(target, args, kwargs)
    x, weight, bias = named["input"], named["weight"], named["bias"]
    groups = named["groups"]
    transposed = bool(named.get("transposed", "transpose" in name_of(target)))
    at = 0 if result.ndim == weight.value.ndim - 1 else 1  # 0 without a batch dimension
    into, out = (0, 1) if transposed else (1, 0)
    whole = split_groups(t, x, at, groups)
    blocks = split_groups(t, weight, 0, groups)  # the grouped dimension of either kind
    t.read(0, x, at)
    if groups == 1 or max(weight.value.shape[:2]) > groups or weight.value.shape[1] > 1:  # not depthwise
        t.plays(weight, out, Role.PRODUCES)
        t.plays(weight, into, Role.CONSUMES)
    if groups == 1:
        t.labels.unify(x.dims[at], weight.dims[into], t.reason())
        out_labels: Dim = weight.dims[out]
    else:
        t.labels.unify(whole[0], blocks[0], t.reason())
        if transposed:
            t.labels.unify(whole[1], blocks[1], t.reason())
            out_labels = _joined(blocks[0], weight.dims[1], groups)
        else:
            t.labels.unify(whole[1], weight.dims[1], t.reason())
            out_labels = weight.dims[0]
    if isinstance(bias, Tracked):
        t.labels.unify(out_labels, bias.dims[0], t.reason())
    dims: list[Dim] = [x.dims[0] if d < at else () for d in range(result.ndim)]
    dims[at] = t.labels.resolve(out_labels)
    for i, d in enumerate(range(at + 1, x.value.ndim)):
        still = weight.value.shape[2 + i] == _at(named["stride"], i) == 1 and not _at(named["padding"], i)
        if still:
            dims[d] = t.labels.resolve(x.dims[d])
        else:
            t.labels.pin(x.dims[d], "a convolution slides over it")
    for d in range(2, weight.value.ndim):
        t.labels.pin(weight.dims[d], "it is a kernel's extent")
    return new(result, dims)


def _at(numbers: Any, i: int) -> Any:
    """The number for dimension `i`: from a list, from one number for all, or from the word for a padding (0 if
    "valid").
    """
    if isinstance(numbers, str):
        return 0 if numbers == "valid" else 1
    return numbers[i] if len(numbers) > 1 else numbers[0]


def _joined(outer: Dim, inner: Dim, groups: int) -> Dim:
    """The labels of groups times positions, as one dimension."""
    each = len(inner[0]) if inner else 1
    return (*(np.repeat(ids, each) for ids in outer), *(np.tile(ids, groups) for ids in inner))


def _linear(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Features are united with the weight's input dimension; its output dimension replaces them."""
    named = bound(target, args, kwargs)
    x, weight, bias = named["input"], named["weight"], named["bias"]
    t.read(0, x, -1)
    t.plays(weight, 0, Role.PRODUCES)
    t.plays(weight, 1, Role.CONSUMES)
    t.labels.unify(x.dims[-1], weight.dims[1], t.reason())
    if isinstance(bias, Tracked):
        t.labels.unify(weight.dims[0], bias.dims[0], t.reason())
    return new(result, [*x.dims[:-1], t.labels.resolve(weight.dims[0])])


def _product(t: Tracer, a: Tracked, b: Tracked, at: tuple[int, int], result: Tensor, extra: Any = None) -> Any:
    """A batched matrix product; `at` are the argument numbers of `a` and `b`, and `extra` is added to it."""
    vector_a, vector_b = a.value.ndim == 1, b.value.ndim == 1
    inner_b = 0 if vector_b else -2
    if vector_b and t.from_weights_alone():  # spectral norm: the length of the whole weight
        for own in (a.dims[-1], b.dims[0]):
            t.labels.pin(own, "a norm of the whole weight is taken over it")
    t.labels.unify(a.dims[-1], b.dims[inner_b], t.reason())
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
    return new(result, dims)


def _added_products(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """`addbmm`: matrix products, summed over the batch."""
    del target, kwargs
    for x in args[1:3]:
        t.labels.pin(x.dims[0], "`addbmm` sums over it")
    t.labels.unify(args[1].dims[-1], args[2].dims[-2], t.reason())
    t.read(1, args[1], -1)
    dims = (args[1].dims[-2], args[2].dims[-1])
    return new(result, t.pointwise([Tracked(result, dims), args[0]], result.shape))


def _distances(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Distances from every row of one to every row of the other, over their common features."""
    del target, kwargs
    a, b = args[0], args[1]
    t.labels.unify(a.dims[-1], b.dims[-1], t.reason())
    t.read(0, a, -1)
    t.read(1, b, -1)
    leading = [_without(a, 2), _without(b, 2)]
    return new(result, [*t.pointwise(leading, _broadcast(leading)), a.dims[-2], b.dims[-2]])


def _own_distances(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Distances between all rows, over their features."""
    del kwargs
    t.read(0, args[0], -1)
    t.labels.pin(args[0].dims[0], f"`{name_of(target)}` pairs its positions")
    return new(result, [()])


def _cosine(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """The dimension that the similarity sums over is a reading of both; the others meet position by position."""
    named = bound(target, args, kwargs)
    pair = [named["x1"], named["x2"]]
    shape = _broadcast(pair)
    dims = t.pointwise(pair, shape)
    at = named["dim"] % len(shape) - len(shape)
    for number, x in enumerate(pair):
        if x.value.ndim >= -at and x.value.shape[at] == shape[at]:
            t.read(number, x, at)
        else:  # a single number is compared with many, so each of them counts
            t.labels.pin(dims[at], "`cosine_similarity` compares it with a single number")
    return new(result, [dim for d, dim in enumerate(dims) if d != at + len(shape)])


def _deformed(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """A deformable convolution: a convolution, with pinned offsets and masks."""
    named = bound(target, args, kwargs)
    x, weight, bias, groups = named["input"], named["weight"], named["bias"], named["groups"]
    for name in ("offset", "mask"):
        t.labels.pin(named[name].dims[1], "it decides where to read")
    if named["offset_groups"] > 1:
        outer, _ = split_groups(t, x, 1, named["offset_groups"])
        t.labels.pin(outer, "a deformable convolution divides it")
    t.read(0, x, 1)
    t.plays(weight, 0, Role.PRODUCES)
    t.plays(weight, 1, Role.CONSUMES)
    if groups == 1:
        t.labels.unify(x.dims[1], weight.dims[1], t.reason())
    else:
        whole, blocks = split_groups(t, x, 1, groups), split_groups(t, weight, 0, groups)
        t.labels.unify(whole[0], blocks[0], t.reason())
        t.labels.unify(whole[1], weight.dims[1], t.reason())
    t.labels.unify(weight.dims[0], bias.dims[0], t.reason())
    for d in (2, 3):
        t.labels.pin(x.dims[d], "a convolution slides over it")
        t.labels.pin(weight.dims[d], "it is a kernel's extent")
    return new(result, [x.dims[0], t.labels.resolve(weight.dims[0]), (), ()])


def _broadcast(values: Sequence[Tracked]) -> tuple[int, ...]:
    """The common shape of the values."""
    shape: tuple[int, ...] = torch.broadcast_shapes(*(v.value.shape for v in values))  # type: ignore[no-untyped-call]
    return tuple(shape)


def _without(x: Tracked, trailing: int) -> Tracked:
    """The value without its trailing dimensions."""
    keep = x.value.ndim - trailing
    index = (slice(None),) * keep + (0,) * trailing
    return Tracked(x.value[index], x.dims[:keep])


def _matmul(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    del target, kwargs
    return _product(t, args[0], args[1], (0, 1), result)


def _added_product(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    del target, kwargs
    return _product(t, args[1], args[2], (1, 2), result, extra=args[0])


def is_plain(equation: str) -> bool:
    """True if an `einsum` equation names every dimension, each once in a term, and those of the result."""
    left, arrow, _ = equation.replace(" ", "").partition("->")
    return bool(arrow) and "..." not in left and all(len(set(term)) == len(term) for term in left.split(","))


def _einsum(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """A dimension with one letter is united over all operands; letters that the result lacks are readings."""
    del target, kwargs
    operands = list(args[1])
    left, _, right = args[0].replace(" ", "").partition("->")
    terms = left.split(",")
    if not is_plain(args[0]):
        raise NotFollowed(f"the equation `{args[0]}` leaves dimensions out")
    seen: dict[str, list[tuple[Tracked, int]]] = {}
    for term, x in zip(terms, operands, strict=True):
        for d, letter in enumerate(term):
            seen.setdefault(letter, []).append((x, d))
    for letter, places in seen.items():
        wide = [(x, d) for x, d in places if x.value.shape[d] > 1]
        for x, d in wide[1:]:
            t.labels.unify(wide[0][0].dims[wide[0][1]], x.dims[d], t.reason())
        if letter in right and len(wide) > 1:
            t.trace.batched += list(t.labels.resolve(wide[0][0].dims[wide[0][1]]))
        if letter not in right:
            for x, d in places[:1]:
                if wide:
                    t.read((1, operands.index(x)), x, d)
        for x, d in places:
            t.plays(x, d, Role.PRODUCES if letter in right else Role.CONSUMES)
    dims = []
    for letter in right:
        wide = [(x, d) for x, d in seen[letter] if x.value.shape[d] > 1]
        dims.append(t.labels.resolve(wide[0][0].dims[wide[0][1]]) if wide else ())
    return new(result, dims)


def _scaled_dot_product_attention(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Features of queries and keys are united and summed over; the keys' positions are pinned; the rest passes on."""
    named = bound(target, args, kwargs)
    q, k, v, mask = named["query"], named["key"], named["value"], named.get("attn_mask", named.get("attn_bias"))
    t.labels.unify(q.dims[-1], k.dims[-1], t.reason())
    t.labels.unify(k.dims[-2], v.dims[-2], t.reason())
    t.labels.pin(k.dims[-2], "attention runs over it")
    t.read(0, q, -1)
    batches = [_without(x, 2) for x in (q, k, v)]
    if named.get("enable_gqa") and q.value.shape[-3] != k.value.shape[-3]:  # several heads of queries for one of keys
        outer, _ = split_groups(t, q, q.value.ndim - 3, k.value.shape[-3])
        for x in (k, v):
            t.labels.unify(outer, x.dims[-3], t.reason())
        t.trace.batched += list(t.labels.resolve(outer))
        batches = batches[:1]
    shape = _broadcast(batches)
    batch = t.pointwise(batches, shape)
    t.trace.batched += [ids for dim in batch for ids in dim]
    if isinstance(mask, Tracked):
        scores = (*shape, q.value.shape[-2], k.value.shape[-2])
        t.pointwise([Tracked(torch.empty(scores, device="meta"), (*batch, q.dims[-2], k.dims[-2])), mask], scores)
    dims = [*(t.labels.resolve(b) for b in batch), q.dims[-2], v.dims[-1]]
    rows = (*shape, q.value.shape[-2], v.value.shape[-1])
    return results(result, lambda value: dims if value.shape == rows else ((),) * value.ndim)


def _bilinear(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """The features of both inputs are readings; the weight's output dimension replaces them."""
    named = bound(target, args, kwargs)
    weight = named["weight"]
    for number, name in enumerate(("input1", "input2")):
        t.labels.unify(named[name].dims[-1], weight.dims[1 + number], t.reason())
        t.read(number, named[name], -1)
        t.plays(weight, 1 + number, Role.CONSUMES)
    t.plays(weight, 0, Role.PRODUCES)
    if isinstance(named["bias"], Tracked):
        t.labels.unify(weight.dims[0], named["bias"].dims[0], t.reason())
    return new(result, [*named["input1"].dims[:-1], t.labels.resolve(weight.dims[0])])


def _embedding(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """The table's columns are the result's features; its rows are pinned."""
    del target, kwargs
    weight, index = args[0], args[1]
    t.labels.pin(weight.dims[0], "it is a table's length")
    t.pin(index, "it is an index")
    t.plays(weight, 1, Role.PRODUCES)
    return new(result, [*((),) * index.value.ndim, weight.dims[1]])


def _embedding_bag(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Rows of a table, summed in bags; the further results are row numbers."""
    named = bound(target, args, kwargs)
    weight = named["weight"]
    t.labels.pin(weight.dims[0], "it is a table's length")
    for name in ("indices", "offsets", "per_sample_weights"):
        t.pin(named[name], "it is an index")
    t.plays(weight, 1, Role.PRODUCES)
    first = next(v for v in result if isinstance(v, Tensor))
    return results(result, lambda v: [(), weight.dims[1]] if v is first else ((),) * v.ndim)


RULES: dict[str, Rule] = {
    **dict.fromkeys([f"conv{n}d" for n in (1, 2, 3)] + [f"conv_transpose{n}d" for n in (1, 2, 3)], _convolution),
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
    "deform_conv2d": _deformed,
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "dot", "vdot"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _added_product),
    "addbmm": _added_products,
    **dict.fromkeys(("cdist", "_cdist_forward", "_euclidean_dist"), _distances),
    **dict.fromkeys(("pdist", "_pdist_forward"), _own_distances),
    "cosine_similarity": _cosine,
    "linear": _linear,
    "einsum": _einsum,
    **dict.fromkeys(("scaled_dot_product_attention", "_scaled_dot_product_flash_attention",
                     "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
                     "_scaled_dot_product_fused_attention_overrideable"), _scaled_dot_product_attention),
    "bilinear": _bilinear,
    "embedding": _embedding,
    **dict.fromkeys(("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"), _embedding_bag),
}  # fmt: skip
