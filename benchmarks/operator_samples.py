"""Of every operator of torch's core set, how it stands between two layers: `benchmarks.operators` traces each.

A sample takes a `Stream` and gives a tensor whose dimension 1 a last layer reads. `BESIDE` has what acts on other
dimensions than the channels', `CHANNELS` what acts along those. What acts position by position needs no sample: it is
called with streams for tensors and numbers for numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

A = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Stream:
    """What two layers make `[batch, channels, 6, 6]`, and parameters: `[channels]` twice, a matrix, a table of rows."""

    x: Tensor
    y: Tensor
    p: Tensor
    q: Tensor
    square: Tensor
    rows: Tensor

    @property
    def last(self) -> Tensor:
        """The first with its channels last, pixel by pixel."""
        return self.x.flatten(2).transpose(1, 2)

    @property
    def flat(self) -> Tensor:
        """The first without pixels."""
        return self.x.mean((2, 3))


Sample = Callable[[Stream], Any]
POOL = ([2, 2], [2, 2], [0, 0], False, True, None)


def places(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def volume(x: Tensor) -> Tensor:
    return x.unsqueeze(2)


def kernel(s: Stream) -> Tensor:
    return s.square[:, :, None, None]


BESIDE: dict[str, Sample] = {
    "_adaptive_avg_pool2d.default": lambda s: A._adaptive_avg_pool2d(s.x, [2, 2]),
    "_adaptive_avg_pool2d_backward.default": lambda s: A._adaptive_avg_pool2d_backward(s.y[..., :2, :2], s.x),
    "_adaptive_avg_pool3d.default": lambda s: A._adaptive_avg_pool3d(volume(s.x), [1, 2, 2]),
    "_cdist_forward.default": lambda s: A._cdist_forward(s.x, s.y, 2.0, None),
    "_embedding_bag.default": lambda s: (
        s.x * A._embedding_bag(s.rows, places(1, 2, 4), places(0, 2))[0][:1, :, None, None]
    ),
    "_fft_c2r.default": lambda s: A._fft_c2r(torch.complex(s.x, s.y), [3], 0, 10),
    "_fft_r2c.default": lambda s: A._fft_r2c(s.x, [2, 3], 0, True).abs(),
    "_local_scalar_dense.default": lambda s: s.x * A._local_scalar_dense(s.y.mean()),
    "_log_softmax.default": lambda s: A._log_softmax(s.x, 3, False),
    "_native_batch_norm_legit.default": lambda s: A._native_batch_norm_legit(
        s.x, s.p, None, s.q, s.q.abs() + 1, False, 0.1, 1e-5
    )[0],
    "_native_batch_norm_legit.no_stats": lambda s: A._native_batch_norm_legit.no_stats(s.x, s.p, s.q, True, 0.1, 1e-5)[
        0
    ],
    "_native_batch_norm_legit_no_training.default": lambda s: A._native_batch_norm_legit_no_training(
        s.x, s.p, s.q, s.q, s.q.abs() + 1, 0.1, 1e-5
    )[0],
    "_pdist_forward.default": lambda s: A._pdist_forward(s.x[0].flatten(1).mT.contiguous(), 2.0)[None],
    "_softmax.default": lambda s: A._softmax(s.x, 2, False),
    "_to_copy.default": lambda s: A._to_copy(s.x, dtype=torch.int32),
    "adaptive_avg_pool1d.default": lambda s: A.adaptive_avg_pool1d(s.x.flatten(2), [4]),
    "addmm.default": lambda s: A.addmm(s.p, s.flat, s.square),
    "amax.default": lambda s: A.amax(s.x, [2, 3]),
    "amin.default": lambda s: A.amin(s.x, [2, 3]),
    "any.dim": lambda s: A.any.dim(s.x > 0, 3),
    "any.dims": lambda s: A.any.dims(s.x > 0, [2, 3]),
    "argmax.default": lambda s: A.argmax(s.x, 3),
    "argmin.default": lambda s: A.argmin(s.x, 3),
    "as_strided.default": lambda s: A.as_strided(s.x, [2, 8, 6, 6], [288, 36, 6, 1]),
    "atan2.out": lambda s: A.atan2.out(s.x, s.y, out=torch.empty_like(s.x)),
    "avg_pool1d.default": lambda s: A.avg_pool1d(s.x.flatten(2), [2], [2]),
    "avg_pool2d.default": lambda s: A.avg_pool2d(s.x, [2, 2], [2, 2]),
    "avg_pool2d_backward.default": lambda s: A.avg_pool2d_backward(s.y[..., :3, :3], s.x, *POOL),
    "avg_pool3d.default": lambda s: A.avg_pool3d(volume(s.x), [1, 2, 2]),
    "bmm.default": lambda s: A.bmm(s.last, s.y.flatten(2)),
    "cat.default": lambda s: A.cat([s.x, s.y], 3),
    "col2im.default": lambda s: A.col2im(
        A.im2col(s.x, [3, 3], [1, 1], [1, 1], [1, 1]), [6, 6], [3, 3], [1, 1], [1, 1], [1, 1]
    ),
    "constant_pad_nd.default": lambda s: A.constant_pad_nd(s.x, [1, 1], 0.5),
    "convolution.default": lambda s: A.convolution(s.x, kernel(s), s.p, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    "convolution_backward.default": lambda s: A.convolution_backward(
        s.y, s.x, kernel(s), [8], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True]
    )[0],
    "cumsum.default": lambda s: A.cumsum(s.x, 3),
    "diagonal.default": lambda s: A.diagonal(s.x, 0, 2, 3),
    "div.Scalar_mode": lambda s: A.div.Scalar_mode(s.x, 0.5, rounding_mode="floor"),
    "div.Tensor_mode": lambda s: A.div.Tensor_mode(s.x, s.y, rounding_mode="trunc"),
    "embedding.default": lambda s: s.x * A.embedding(s.rows, places(1)).mT[None, :, :, None],
    "embedding_dense_backward.default": lambda s: (
        s.x + A.embedding_dense_backward(s.flat, places(1, 2), 5, -1, False).mean()
    ),
    "expand.default": lambda s: A.expand(s.x[..., :1], [-1, -1, -1, 4]),
    "flip.default": lambda s: A.flip(s.x, [3]),
    "gather.default": lambda s: A.gather(s.x, 3, s.y.argsort(3)),
    "grid_sampler_2d.default": lambda s: A.grid_sampler_2d(
        s.x, torch.zeros(1, 3, 3, 2, dtype=s.x.dtype).expand(len(s.x), 3, 3, 2), 0, 0, False
    ),
    "index.Tensor": lambda s: A.index(s.x, [None, None, None, places(1, 3)]),
    "index_put.default": lambda s: A.index_put(
        s.x.permute(3, 2, 0, 1), [places(1, 3)], s.y.permute(3, 2, 0, 1)[:2]
    ).permute(2, 3, 0, 1),
    "index_select.default": lambda s: A.index_select(s.x, 3, places(1, 3)),
    "masked_scatter.default": lambda s: A.masked_scatter(s.x, s.x > 0, s.y),
    "max.dim": lambda s: A.max.dim(s.x, 3)[0],
    "max_pool2d_with_indices.default": lambda s: A.max_pool2d_with_indices(s.x, [2, 2], [2, 2])[0],
    "max_pool2d_with_indices_backward.default": lambda s: A.max_pool2d_with_indices_backward(
        s.y[..., :3, :3], s.x, [2, 2], [2, 2], [0, 0], [1, 1], False, A.max_pool2d_with_indices(s.x, [2, 2], [2, 2])[1]
    ),
    "max_pool3d_with_indices.default": lambda s: A.max_pool3d_with_indices(volume(s.x), [1, 2, 2])[0],
    "mean.dim": lambda s: A.mean.dim(s.x, [2, 3]),
    "min.dim": lambda s: A.min.dim(s.x, 3)[0],
    "mm.default": lambda s: A.mm(s.flat, s.square),
    "native_dropout.default": lambda s: A.native_dropout(s.x, 0.5, False)[0],
    "native_group_norm.default": lambda s: A.native_group_norm(s.x, s.p, s.q, s.x.shape[0], s.x.shape[1], 36, 2, 1e-5)[
        0
    ],
    "native_group_norm_backward.default": lambda s: A.native_group_norm_backward(
        s.y, s.x, s.x.mean((2, 3))[:, :2], s.x.mean((2, 3))[:, :2], s.p, s.x.shape[0], 8, 36, 2, [True, True, True]
    )[0],
    "native_layer_norm.default": lambda s: A.native_layer_norm(s.x, [6], None, None, 1e-5)[0],
    "native_layer_norm_backward.default": lambda s: A.native_layer_norm_backward(
        s.y, s.x, [6], s.x[..., :1], s.x[..., :1], None, None, [True, False, False]
    )[0],
    "nonzero.default": lambda s: s.x + A.nonzero(s.x > 0).sum(),
    "permute.default": lambda s: A.permute(s.x, [0, 1, 3, 2]),
    "prod.dim_int": lambda s: A.prod.dim_int(s.x, 3),
    "reflection_pad1d.default": lambda s: A.reflection_pad1d(s.x.flatten(2), [1, 1]),
    "reflection_pad2d.default": lambda s: A.reflection_pad2d(s.x, [1, 1, 1, 1]),
    "reflection_pad3d.default": lambda s: A.reflection_pad3d(s.x.unflatten(3, (3, 2)), [1, 1, 1, 1, 1, 1]),
    "repeat.default": lambda s: A.repeat(s.x, [1, 1, 2, 1]),
    "replication_pad2d.default": lambda s: A.replication_pad2d(s.x, [1, 1, 1, 1]),
    "replication_pad3d.default": lambda s: A.replication_pad3d(s.x.unflatten(3, (3, 2)), [1, 1, 1, 1, 1, 1]),
    "scatter.src": lambda s: A.scatter.src(s.x, 3, s.x.argsort(3), s.y),
    "scatter.value": lambda s: A.scatter.value(s.x, 3, s.x.argsort(3)[..., :2].repeat(1, 1, 1, 3), 0.5),
    "scatter_add.default": lambda s: A.scatter_add(s.x, 3, s.x.argsort(3), s.y),
    "scatter_reduce.two": lambda s: A.scatter_reduce.two(s.x, 3, s.x.argsort(3), s.y, "sum"),
    "select.int": lambda s: A.select.int(s.x, 3, 1),
    "select_scatter.default": lambda s: A.select_scatter(s.x, s.y[..., 0], 3, 1),
    "slice.Tensor": lambda s: A.slice.Tensor(s.x, 3, 1, 4),
    "slice_scatter.default": lambda s: A.slice_scatter(s.x, s.y[..., 1:4], 3, 1, 4),
    "sort.default": lambda s: A.sort(s.x, 3)[0],
    "split_with_sizes.default": lambda s: A.split_with_sizes(s.x, [2, 4], 3)[1],
    "squeeze.dim": lambda s: A.squeeze.dim(s.x[..., :1], 3),
    "squeeze.dims": lambda s: A.squeeze.dims(s.x[..., :1], [3]),
    "sum.dim_IntList": lambda s: A.sum.dim_IntList(s.x, [2, 3]),
    "topk.default": lambda s: A.topk(s.x, 2, 3)[0],
    "unsqueeze.default": lambda s: A.unsqueeze(s.x, 4),
    "upsample_bilinear2d.vec": lambda s: A.upsample_bilinear2d.vec(s.x, [12, 12], False, None),
    "upsample_nearest2d.vec": lambda s: A.upsample_nearest2d.vec(s.x, [12, 12], None),
    "var.correction": lambda s: A.var.correction(s.x, [2, 3], correction=1),
    "var.dim": lambda s: A.var.dim(s.x, [2, 3]),
    "view.default": lambda s: A.view(s.x.contiguous(), [-1, s.x.shape[1], 36]),
}

CHANNELS: dict[str, Sample] = {
    "_cdist_forward.default": lambda s: A._cdist_forward(s.last, s.y.flatten(2).mT, 2.0, None),
    "_fft_c2r.default": lambda s: A._fft_c2r(torch.complex(s.x, s.y), [1], 0, 14),
    "_fft_r2c.default": lambda s: A._fft_r2c(s.x, [1], 0, True).abs(),
    "_log_softmax.default": lambda s: A._log_softmax(s.x, 1, False),
    "_pdist_forward.default": lambda s: A._pdist_forward(s.last[0].contiguous(), 2.0)[None],
    "_softmax.default": lambda s: A._softmax(s.x, 1, False),
    "amax.default": lambda s: A.amax(s.x, [1]) * s.y.transpose(1, 2).mean(2),
    "amin.default": lambda s: A.amin(s.x, [1]),
    "any.default": lambda s: s.y * A.any(s.x > 0),
    "any.dim": lambda s: A.any.dim(s.x > 0, 1),
    "any.dims": lambda s: A.any.dims(s.x > 0, [1]),
    "arange.start_step": lambda s: s.x + A.arange.start_step(0, s.x.shape[1])[:, None, None],
    "argmax.default": lambda s: A.argmax(s.x, 1),
    "argmin.default": lambda s: A.argmin(s.x, 1),
    "bmm.default": lambda s: A.bmm(s.x.flatten(2).mT, s.y.flatten(2)),
    "cat.default": lambda s: A.cat([s.x, s.y], 1),
    "constant_pad_nd.default": lambda s: A.constant_pad_nd(s.x, [0, 0, 0, 0, 2, 2]),
    "cumsum.default": lambda s: A.cumsum(s.x, 1),
    "diagonal.default": lambda s: A.diagonal(s.x, 0, 1, 2),
    "empty.memory_format": lambda s: s.x + 0 * A.zero(A.empty.memory_format([s.x.shape[1], 1, 1])),
    "empty_strided.default": lambda s: s.x + A.zero(A.empty_strided([s.x.shape[1], 1, 1], [1, 1, 1])),
    "expand.default": lambda s: s.x + A.expand(s.y[:, :1], [-1, 8, -1, -1]),
    "flip.default": lambda s: A.flip(s.x, [1]),
    "full.default": lambda s: s.x * A.full([8, 1, 1], 0.5),
    "gather.default": lambda s: A.gather(s.x, 1, s.y.argsort(1)),
    "index.Tensor": lambda s: A.index(s.x, [None, places(1, 3, 5)]),
    "index_select.default": lambda s: A.index_select(s.x, 1, places(1, 3, 5)),
    "max.dim": lambda s: A.max.dim(s.x, 1)[0],
    "mean.default": lambda s: s.y * A.mean(s.x),
    "mean.dim": lambda s: s.y * A.mean.dim(s.x, [1], True),
    "min.dim": lambda s: A.min.dim(s.x, 1)[0],
    "native_layer_norm.default": lambda s: A.native_layer_norm(s.last, [s.x.shape[1]], s.p, s.q, 1e-5)[0].mT,
    "prod.default": lambda s: s.y * A.prod(s.x),
    "prod.dim_int": lambda s: s.y * A.prod.dim_int(s.x, 1, True),
    "rand.default": lambda s: s.x + 0 * A.rand([8, 1, 1]),
    "randn.default": lambda s: s.x + 0 * A.randn([8, 1, 1]),
    "randperm.default": lambda s: s.x + 0 * A.randperm(8)[:, None, None],
    "repeat.default": lambda s: A.repeat(s.x, [1, 2, 1, 1]),
    "scatter.src": lambda s: A.scatter.src(s.x, 1, s.x.argsort(1), s.y),
    "scatter.value": lambda s: A.scatter.value(s.x, 1, s.x.argsort(1), 0.5),
    "scatter_add.default": lambda s: A.scatter_add(s.x, 1, s.x.argsort(1), s.y),
    "scatter_reduce.two": lambda s: A.scatter_reduce.two(s.x, 1, s.x.argsort(1), s.y, "sum"),
    "select.int": lambda s: A.select.int(s.x, 1, 1),
    "select_scatter.default": lambda s: A.select_scatter(s.x, s.y[:, 0], 1, 1),
    "slice.Tensor": lambda s: A.slice.Tensor(s.x, 1, 1, 7),
    "slice_scatter.default": lambda s: A.slice_scatter(s.x, s.y[:, 1:5], 1, 1, 5),
    "sort.default": lambda s: A.sort(s.x, 1)[0],
    "split_with_sizes.default": lambda s: A.split_with_sizes(s.x, [2, 6], 1)[1],
    "sum.dim_IntList": lambda s: s.y * A.sum.dim_IntList(s.x, [1], True),
    "topk.default": lambda s: A.topk(s.x, 2, 1)[0],
    "var.correction": lambda s: s.y * A.var.correction(s.x, [1], correction=1, keepdim=True),
    "var.dim": lambda s: s.y * A.var.dim(s.x, [1], True, True),
    "view.default": lambda s: A.view(s.x.contiguous(), [-1, 8 * 36, 1]),
    "scalar_tensor.default": lambda s: s.x * A.scalar_tensor(0.5),
}

# what is real for numbers of some range alone
NARROW: dict[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(("acos", "asin", "atanh", "log", "log10", "log1p", "log2", "pow", "rsqrt", "sqrt"), torch.sigmoid),
    "acosh": lambda x: 1 + x.abs(),
}


def core() -> Iterator[Any]:
    """Every operator of torch's core set, by name."""
    for full in sorted(torch._C._dispatch_get_all_op_names()):
        library, _, rest = full.partition("::")
        if library == "aten":
            name, _, overload = rest.partition(".")
            operator = getattr(getattr(A, name, None), overload or "default", None)
            if operator is not None and torch.Tag.core in operator.tags:
                yield operator


def samples(operator: Any) -> dict[str, Sample]:
    """How the operator is tried: `beside` the channels, along the `channels`, or both; nothing where it has no data."""
    name = str(operator).removeprefix("aten.")
    found = {kind: table[name] for kind, table in (("beside", BESIDE), ("channels", CHANNELS)) if name in table}
    if found or not _has_data(operator):
        return found
    return {"beside": lambda s: operator(*_arguments(operator, s))}


def _has_data(operator: Any) -> bool:
    schema = operator._schema
    return any("Tensor" in str(a.type) for a in schema.arguments) and any(
        "Tensor" in str(r.type) for r in schema.returns
    )


def _arguments(operator: Any, s: Stream) -> list[Any]:
    """Streams for tensors, numbers for numbers, defaults for the rest."""
    name = operator._opname
    tensors, found = map(NARROW.get(name, torch.Tensor.contiguous), (s.x, s.y, s.x)), []
    for argument in operator._schema.arguments:
        kind = str(argument.type)
        if argument.kwarg_only or (argument.has_default_value() and not (name == "clamp" and not found[1:])):
            break
        if kind == "Tensor":
            stream = next(tensors)
            whole = name.startswith("bitwise") or (name == "where" and not found)
            found.append((stream > 0 if name == "where" else (8 * stream).int()) if whole else stream)
        else:
            found.append(2 if name.startswith("bitwise") else 0.5 if "number" in kind else 1)
    if name == "clamp":
        found = [s.x, s.y] if operator._overloadname == "Tensor" else [s.x, 0.0]
    return found
