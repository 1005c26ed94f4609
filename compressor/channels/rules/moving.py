"""Operators that move data: they run on the labels themselves; and padding, pooling and sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from compressor.channels.labels import Dim
from compressor.channels.rules.operators import bound, new, raw, results
from compressor.channels.tracing import NotFollowed, Rule, Tracer, Tracked
from compressor.graph.operators import name_of

CREATION = {"zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "empty", "new_empty", "rand", "randn"}
MOVES = {
    "repeat", "tile", "flip", "roll", "index_select", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "native_channel_shuffle", "repeat_interleave", "_unsafe_view", "reshape", "unfold", "rot90", "unsafe_split",
    "unsafe_split_with_sizes", "unsafe_chunk",
}  # fmt: skip
PADS = {"pad", "constant_pad_nd"}
SPATIAL = [f"{kind}{n}d" for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool",
            "upsample_nearest", "_upsample_nearest_exact", "max_unpool") for n in (1, 2, 3)]  # fmt: skip
SPATIAL += ["max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d_with_indices", "upsample_bilinear2d",
             "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
             "_upsample_bicubic2d_aa", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"]  # fmt: skip


def _creation(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """A new tensor has labels of its own."""
    del target, args, kwargs
    return results(result, lambda v: t.fresh(v.shape))


def movement(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Run an operator that moves data on the labels."""
    x, name = args[0], name_of(target)
    if not isinstance(x, Tracked):
        raise NotFollowed(f"`{name}` takes several tensors at once")
    if name == "view" and isinstance(args[1], torch.dtype):
        return _reinterpreted(t, x, result)
    named = bound(target, args, kwargs)
    if name in ("roll", "index_select", "rot90", "repeat_interleave"):
        _pin_dims(t, x, named.get("dims", named.get("dim")), f"`{name}` picks positions")
    favour = x.value.ndim - 3 if name == "pixel_shuffle" else None
    moved = t.moved(x, result, target, args[1:], kwargs, favour=favour)
    tracked = [
        Tracked(value, dims, x.source, origin if x.source else ())
        for value, (dims, origin) in zip(pytree.tree_leaves(result), moved, strict=True)
    ]
    if name in ("repeat", "tile"):
        tracked[0].dims = _repeated(t, x, result, tracked[0].dims)
    return tracked[0] if isinstance(result, Tensor) else tracked


def _reinterpreted(t: Tracer, x: Tracked, result: Tensor) -> Tracked:
    """Memory read as numbers of another type: position by position if both types have the same width."""
    if result.dtype.itemsize != x.value.dtype.itemsize:
        raise NotFollowed("its memory is read as numbers of another width")
    return new(result, [t.labels.resolve(d) for d in x.dims])


def _complex(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Real and imaginary part become a last dimension of two, or the other way round."""
    del kwargs
    x = args[0]
    if name_of(target) == "view_as_real":
        return new(result, [*x.dims, ()])
    t.labels.pin(x.dims[-1], "it holds real and imaginary part")
    return new(result, x.dims[:-1])


def _repeated(t: Tracer, x: Tracked, result: Tensor, dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """A repeated single position gets fresh labels: it may be repeated less often."""
    before = (1,) * (result.ndim - x.value.ndim) + tuple(x.value.shape)
    fresh = t.fresh(result.shape)
    return tuple(f if b == 1 < n else d for b, n, d, f in zip(before, result.shape, dims, fresh, strict=True))


def _pin_dims(t: Tracer, x: Tracked, dims: Any, reason: str) -> None:
    """Pin the dimensions that an argument names; all where it names none."""
    for d in range(x.value.ndim) if dims is None or dims == [] else ([dims] if isinstance(dims, int) else dims):
        t.labels.pin(x.dims[d], reason)


def _expand(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Expanded dimensions get fresh labels; the others keep theirs."""
    del target, kwargs
    x = args[0]
    more = result.ndim - x.value.ndim
    fresh = t.fresh(result.shape)
    dims = [
        x.dims[d - more] if d >= more and x.value.shape[d - more] == n else fresh[d] for d, n in enumerate(result.shape)
    ]
    if len(args) > 1 and isinstance(args[1], Tracked):  # `expand_as`: as wide as the second argument
        for own, other in zip(dims, args[1].dims, strict=True):
            t.labels.unify(own, other, t.reason())
    return new(result, dims)


def _index(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Indexed dimensions are pinned; the operator runs on the labels of the others."""
    del kwargs
    x, indices = args[0], args[1]
    for d, index in enumerate(indices):
        if index is not None:
            t.labels.pin(x.dims[d], "`index` picks positions")
    t.pin(indices, "it is an index")
    chosen = [None if i is None else raw(i) for i in indices]
    if any(i is not None and i.dtype is torch.bool for i in chosen):
        raise NotFollowed("how many positions are picked depends on values")
    ((dims, origin),) = t.moved(x, result, target, (chosen,))
    return Tracked(result, dims, x.source, origin if x.source else ())


def _index_put(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Values are written at the leading positions that the indices name; the dimensions behind meet position by
    position.
    """
    del target, kwargs
    x, indices, values = args[0], list(args[1]), args[2]
    if any(i is None for i in indices) or not isinstance(values, Tracked):
        raise NotFollowed("`index_put` writes at places within other dimensions")
    t.pin(indices, "it is an index")
    over = sum(raw(i).ndim if raw(i).dtype is torch.bool else 1 for i in indices)
    for d in range(over):
        t.labels.pin(x.dims[d], "`index_put` picks positions")
    behind = x.value.ndim - over
    for d in range(values.value.ndim - behind):
        t.labels.pin(values.dims[d], "`index_put` picks positions")
    for d in range(1, min(behind, values.value.ndim) + 1):
        if values.value.shape[-d] > 1:
            t.labels.unify(x.dims[-d], values.dims[-d], t.reason())
    return new(result, [() if d < over else t.labels.resolve(x.dims[d]) for d in range(x.value.ndim)])


def _pad(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Zero padding adds fresh labels at both ends; other padding copies channels, which are pinned."""
    named = bound(target, args, kwargs)
    x, amounts = named["self"], list(named["pad"])
    constant = named.get("mode", "constant") == "constant"
    dims = list(x.dims)
    for k in range(len(amounts) // 2):
        d, before, after = x.value.ndim - 1 - k, amounts[2 * k], amounts[2 * k + 1]
        labels = t.labels.resolve(dims[d])
        if not labels or (before == 0 and after == 0):
            continue
        if not constant:
            t.labels.pin(labels, f"`{name_of(target)}` repeats its channels")
            dims[d] = ()
            continue
        cut = [ids[max(0, -before) : len(ids) - max(0, -after)] for ids in labels]
        left, right = t.labels.fresh(max(0, before)), t.labels.fresh(max(0, after))
        zeros = np.zeros_like
        padded = [np.concatenate([zeros(left), ids, zeros(right)]) for ids in cut]
        padded.append(np.concatenate([left, np.zeros_like(cut[0]), right]))
        dims[d] = tuple(padded)
    return new(result, dims)


def _other_pad(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Padded dimensions are pinned: their channels are copied."""
    x = args[0]
    for d in range(x.value.ndim):
        if x.value.shape[d] != result.shape[d]:
            t.labels.pin(x.dims[d], f"`{name_of(target)}` repeats its channels")
    del kwargs
    return new(result, x.dims)


def _cat(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Labels are concatenated along the dimension; the other dimensions meet position by position."""
    named = bound(target, args, kwargs)
    parts = [p for p in named["tensors"] if isinstance(p, Tracked) and p.value.ndim == result.ndim]
    d = named["dim"] % result.ndim
    others = t.pointwise(
        [p for p in parts if p.value.numel()], [1 if e == d else n for e, n in enumerate(result.shape)]
    )
    labels = [t.labels.resolve(p.dims[d]) for p in parts]
    bare = [np.zeros(p.value.shape[d], dtype=np.int64) for p in parts]
    joined = tuple(
        np.concatenate([dim[k] if k < len(dim) else zeros for dim, zeros in zip(labels, bare, strict=True)])
        for k in range(max(map(len, labels), default=0))
    )
    return new(result, [joined if e == d else x for e, x in enumerate(others)])


def _stack(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Labels meet position by position; the new dimension has none."""
    named = bound(target, args, kwargs)
    d = named["dim"] % result.ndim
    inner = t.pointwise(named["tensors"], [n for e, n in enumerate(result.shape) if e != d])
    return new(result, [*inner[:d], (), *inner[d:]])


def _over_space(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Pooling and resizing change the trailing dimensions; the leading ones pass on."""
    del kwargs
    x = args[0]
    leading = x.value.ndim - next(int(c) for c in name_of(target) if c.isdigit())  # `max_pool2d` runs over two
    pooled: dict[int, Dim] = {}
    for k, d in enumerate(range(leading, x.value.ndim)):
        window = _window(target, args, k)
        length = x.value.shape[d]
        if window is None or not x.dims[d] or length % window:
            t.labels.pin(x.dims[d], f"`{name_of(target)}` runs over it")
            continue
        pooled[d] = (t.labels.fresh(length // window),)  # a window's positions are removed together
        t.labels.unify(x.dims[d], tuple(np.repeat(ids, window) for ids in pooled[d]), t.reason())
    others = [a for a in args[1:] if isinstance(a, Tracked) and a.value.ndim == x.value.ndim]
    for other in others:  # `max_unpool` also reads indices
        for d in range(leading):
            t.labels.unify(x.dims[d], other.dims[d], t.reason())
    return results(
        result,
        lambda v: [x.dims[d] if d < leading else t.labels.resolve(pooled.get(d, ())) for d in range(v.ndim)],
    )


def _window(target: Any, args: list[Any], k: int) -> int | None:
    """The length of the pooling's windows in its `k`-th dimension, if they stand side by side; else `None`."""
    name = name_of(target)
    if not name.startswith(("max_pool", "avg_pool")):
        return None
    named = bound(target, args, {})

    def at(numbers: Any) -> int:
        return int(numbers if isinstance(numbers, int) else numbers[k if len(numbers) > 1 else 0])

    window, stride = at(named["kernel_size"]), at(named["stride"] or named["kernel_size"])
    side_by_side = window == stride and not at(named["padding"]) and at(named.get("dilation", 1)) == 1
    return window if side_by_side and not named.get("ceil_mode", False) else None


def _grid_sampler(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Batch and channels pass on; sampled dimensions are pinned."""
    del target, kwargs
    t.pin(args[1], "it decides where to sample")
    x = args[0]
    for d in range(2, x.value.ndim):
        t.labels.pin(x.dims[d], "it is sampled over")
    return new(result, [x.dims[0], x.dims[1], *((),) * (result.ndim - 2)])


def _roi_align(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """Channels pass on."""
    del target, kwargs
    t.pin(args[1], "it decides where to sample")
    return new(result, [(), args[0].dims[1], (), ()])


RULES: dict[str, Rule] = {
    **dict.fromkeys(CREATION, _creation),
    **dict.fromkeys(MOVES, movement),
    **dict.fromkeys(SPATIAL, _over_space),
    **dict.fromkeys(PADS, _pad),
    **dict.fromkeys([f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)], _other_pad),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("view_as_real", "view_as_complex"), _complex),
    **dict.fromkeys(("index", "_unsafe_index"), _index),
    **dict.fromkeys(("index_put", "_unsafe_index_put"), _index_put),
    "cat": _cat,
    "stack": _stack,
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), _grid_sampler),
    "roi_align": _roi_align,
}
