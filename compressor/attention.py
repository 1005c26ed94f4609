"""Attention in ONNX over any number of leading dimensions, which torch's exporter knows for batch and heads alone."""

from __future__ import annotations

import math
from typing import Any

import torch


def translations() -> dict[Any, Any]:
    """What torch's exporter is to write for attention, as its `custom_translation_table` takes it."""
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
    """softmax(query keyᵀ · scale + mask) value in ONNX's operators, as torch documents it.

    Shapes: `[..., queries, features]`, `[..., keys, features]`, `[..., keys, features]` to `[..., queries, features]`.
    Raises `NotImplementedError` for causal masks and grouped queries, which arrive in four dimensions.
    """
    from onnx import TensorProto
    from onnxscript import opset18 as op

    if is_causal or enable_gqa:
        raise NotImplementedError("causal masks and grouped queries over more than batch and heads")
    rank = len(query.shape)
    factor = op.CastLike(op.Constant(value_float=scale or 1 / math.sqrt(query.shape[-1])), query)
    turned = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op.MatMul(op.Mul(query, factor), turned)
    if attn_mask is not None and attn_mask.dtype == TensorProto.BOOL:
        scores = op.Where(attn_mask, scores, op.CastLike(op.Constant(value_float=-math.inf), scores))
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)
