"""Products: what is summed over is one, and is read; the rest goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.coupling import Dim
from compressor.rules.division import split_groups
from compressor.rules.operators import bound, name_of, new, unknown
from compressor.tracing import Role, Rule, Tracer, Tracked


def _convolution(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    groups = given["groups"]
    transposed = "transpose" in name_of(target)
    at = 0 if result.ndim == weight.value.ndim - 1 else 1  # without a batch dimension
    into, out = (0, 1) if transposed else (1, 0)
    whole = split_groups(t, x, at, groups)
    blocks = split_groups(t, weight, 0, groups)  # the grouped dimension of either kind
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
    return new(result, dims)


def _at(numbers: Any, i: int) -> Any:
    """The number for dimension `i`: of a list, of a list of one for all, or of the word for a padding."""
    if isinstance(numbers, str):
        return 0 if numbers == "valid" else 1
    return numbers[i] if len(numbers) > 1 else numbers[0]


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
    return new(result, [*x.dims[:-1], t.labels.resolve(weight.dims[0])])


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
    return new(result, dims)


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
        return unknown(t, target, args, kwargs, result)
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
                    t.read((1, operands.index(x)), x, d)
        for x, d in places:
            t.plays(x, d, Role.PRODUCES if letter in right else Role.CONSUMES)
    dims = []
    for letter in right:
        wide = [(x, d) for x, d in seen[letter] if x.value.shape[d] > 1]
        dims.append(t.labels.resolve(wide[0][0].dims[wide[0][1]]) if wide else ())
    return new(result, dims)


def _scaled_dot_product_attention(
    t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor
) -> Any:
    given = bound(target, args, kwargs)
    q, k, v, mask = given["query"], given["key"], given["value"], given["attn_mask"]
    if given["enable_gqa"] and q.value.shape[-3] != k.value.shape[-3]:
        return unknown(t, target, args, kwargs, result)
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
    return new(result, [*(t.labels.resolve(b) for b in batch), q.dims[-2], v.dims[-1]])


def _bilinear(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    given = bound(target, args, kwargs)
    weight = given["weight"]
    for number, name in enumerate(("input1", "input2")):
        t.labels.unify(given[name].dims[-1], weight.dims[1 + number], t.told())
        t.read(number, given[name], -1)
        t.plays(weight, 1 + number, Role.CONSUMES)
    t.plays(weight, 0, Role.PRODUCES)
    if isinstance(given["bias"], Tracked):
        t.labels.unify(weight.dims[0], given["bias"].dims[0], t.told())
    return new(result, [*given["input1"].dims[:-1], t.labels.resolve(weight.dims[0])])


def _embedding(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    del target, kwargs
    weight, index = args[0], args[1]
    t.labels.pin(weight.dims[0], "it is a table's length")
    t.pin(index, "it is an index")
    t.plays(weight, 1, Role.PRODUCES)
    return new(result, [*((),) * index.value.ndim, weight.dims[1]])


RULES: dict[str, Rule] = {
    **dict.fromkeys([f"conv{n}d" for n in (1, 2, 3)] + [f"conv_transpose{n}d" for n in (1, 2, 3)], _convolution),
    **dict.fromkeys(("matmul", "bmm", "mm", "mv"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _added_product),
    "linear": _linear,
    "einsum": _einsum,
    "scaled_dot_product_attention": _scaled_dot_product_attention,
    "bilinear": _bilinear,
    "embedding": _embedding,
}
