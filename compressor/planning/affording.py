"""Estimate the memory of a least-squares fit, before any of it is allocated.

`--memory` is shared: at most half of it is for covariances, the rest for the values of two networks at once. Where a
layer's covariance does not fit into that half, only the layer's bias is fitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

SHARE = 2  # one part in so many of the memory is for covariances
FITTING, ADDING = 9, 6  # float64 matrices as large as the covariance at once: while solving, while adding rows
JUDGING = 4  # the same while eliminating channels, besides all readings
ROWS = 2  # float32 copies of one batch's rows


def covariance_bytes(matrix: Tensor) -> int:
    """Return the bytes of the covariance of all features of a layer with the weight `[groups, outputs, features]`."""
    return 8 * matrix.shape[0] * matrix.shape[-1] ** 2


def rows_bytes(matrix: Tensor, rows: int) -> int:
    """Return the bytes that `rows` windows of the layer need while they are added."""
    return 4 * ROWS * rows * matrix.shape[0] * matrix.shape[-1]


def fit_bytes(matrix: Tensor) -> int:
    """Return the bytes that fitting the layer's weights needs."""
    return FITTING * covariance_bytes(matrix)


def rows_within(matrix: Tensor, memory_bytes: int | None, *, covariance: bool, wanted: int) -> int:
    """Return how many of the `wanted` windows fit in memory together, besides the layer's covariance or without one.

    With a covariance at least three per feature fit wherever the fit is affordable at all; without one, at least one
    fits.
    """
    if memory_bytes is None:
        return wanted
    remaining = memory_bytes // SHARE - (ADDING * covariance_bytes(matrix) if covariance else 0)
    return min(wanted, max(1, remaining // rows_bytes(matrix, 1)))


def affords(matrix: Tensor, memory_bytes: int | None) -> bool:
    """True if the layer's weights can be fitted within `memory_bytes`, which may be unlimited."""
    return memory_bytes is None or fit_bytes(matrix) <= memory_bytes // SHARE


def reserved(matrices: Iterable[Tensor], memory_bytes: int) -> int:
    """Return the bytes of the largest affordable fit."""
    return max((fit_bytes(m) for m in matrices if affords(m, memory_bytes)), default=0)


def too_large(matrices: Mapping[str, Tensor], memory_bytes: int | None) -> frozenset[str]:
    """Return the layers whose covariances do not fit when all are in memory at once; the largest are left out first."""
    if memory_bytes is None:
        return frozenset()
    sizes = {name: covariance_bytes(matrix) for name, matrix in matrices.items()}
    total, without = 0, []
    for name in sorted(sizes, key=sizes.__getitem__):
        total += sizes[name]
        if total + JUDGING * sizes[name] > memory_bytes // SHARE:
            total -= sizes[name]
            without.append(name)
    return frozenset(without)
