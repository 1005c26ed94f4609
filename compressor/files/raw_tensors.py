"""Tensors from raw bytes, within their bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_EXPANDED = 1 << 31  # bytes of a tensor that repeats stored values


def strided_tensor(
    raw: bytearray, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int], offset: int
) -> Tensor:
    """Return the tensor over the bytes. Raises `ValueError` if it does not fit: its text continues "a tensor that"."""
    sizes = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("has sizes that no tensor has")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if count else -1
    if len(raw) % dtype.itemsize or last >= len(raw) // dtype.itemsize:
        raise ValueError("is larger than its bytes")
    if count * dtype.itemsize > max(len(raw), LARGEST_EXPANDED):
        raise ValueError(f"repeats its values to {count * dtype.itemsize} bytes")
    if not count:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).as_strided(tuple(shape), tuple(strides), offset)
