"""Attention in ONNX over any number of leading dimensions; torch's exporter supports batch and heads only."""

from __future__ import annotations

import math
from typing import Any

import torch


def translations() -> dict[Any, Any]:
    """Return the translation of attention for torch's exporter, as its `custom_translation_table`."""
    return {torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention}


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,  # noqa: ARG001  # there is none at inference
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Return softmax(query keyᵀ · scale + mask) value in ONNX's operators, as torch documents it.

    Shapes: `[..., queries, features]`, `[..., keys, features]`, `[..., keys, features]` to `[..., queries, features]`.
    Raises `NotImplementedError` for grouped queries, which torch's exporter writes in four dimensions.
    """
    from onnx import TensorProto
    from onnxscript import opset18 as op

    if enable_gqa:
        raise NotImplementedError("grouped queries in other than four dimensions have no ONNX counterpart here")
    rank = len(query.shape)
    factor = op.CastLike(op.Constant(value_float=1 / math.sqrt(query.shape[-1]) if scale is None else scale), query)
    least = op.CastLike(op.Constant(value_float=-math.inf), query)
    transposed = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op.MatMul(op.Mul(query, factor), transposed)
    if is_causal:
        later = op.Expand(least, op.Shape(scores, start=rank - 2))
        scores = op.Add(scores, op.Trilu(later, op.Constant(value_int=1), upper=1))
    elif attn_mask is not None and attn_mask.dtype == TensorProto.BOOL:
        scores = op.Where(attn_mask, scores, least)
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)
