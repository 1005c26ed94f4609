"""Where an operator that moves data puts the positions of a dimension, and along which axes the labels then vary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from compressor.channels.labels import Ids

NUMBERS = (torch.int32, torch.float64)  # float64 has every whole number below 2^53


def destinations(shape: Sequence[int], dim: int, run: Callable[[Tensor], Any]) -> list[Ids] | None:
    """Where the positions along a dimension go: numbers from 1, and 0 for new values. One entry per result.

    Each entry is as long as the result along axes where the numbers vary, and 1 elsewhere. `None` where torch runs the
    operator on no number type that is exact.
    """
    places = torch.arange(1, shape[dim] + 1).view([-1 if e == dim else 1 for e in range(len(shape))])
    for kind in NUMBERS:
        try:
            moved = run(places.to(kind).expand(shape).contiguous())
        except RuntimeError:  # torch has no kernel of the operator for this number type
            continue
        entries = []
        for out in pytree.tree_leaves(moved):
            went = out.numpy().astype(np.int32, copy=False)
            varies = varies_along(went)
            entries.append(went[tuple(slice(None) if e in varies else slice(1) for e in range(went.ndim))].copy())
        return entries
    return None


def varies_along(out: Ids) -> list[int]:
    """The axes along which a tensor of labels is not constant."""
    long = [e for e, n in enumerate(out.shape) if n > 1 and out.size]
    middle = [slice(n // 2, n // 2 + 1) for n in out.shape]
    axes = []
    for e in long:  # a line through the middle shows most of these axes
        line = out[tuple(slice(None) if axis == e else at for axis, at in enumerate(middle))]
        if (line != line.flat[0]).any():
            axes.append(e)
    if not long or (out == out[tuple(slice(None) if axis in axes else at for axis, at in enumerate(middle))]).all():
        return axes
    firsts = [(slice(None),) * e + (slice(1),) for e in long]
    return [e for e, first in zip(long, firsts, strict=True) if bool((out != out[first]).any())]


def labels_along(out: Ids, axes: Sequence[int]) -> Ids:
    """The labels along `axes`, at the first position of all other axes, flattened."""
    index = tuple(slice(None) if e in axes else 0 for e in range(out.ndim))
    return np.ascontiguousarray(out[index], dtype=np.int64).reshape(-1)


def merged_sets(sets: list[set[int]]) -> list[set[int]]:
    """Merge sets that overlap."""
    merged: list[set[int]] = []
    for one in sets:
        joined = set(one)
        rest = []
        for other in merged:
            if joined & other:
                joined |= other
            else:
                rest.append(other)
        merged = [*rest, joined]
    return merged
