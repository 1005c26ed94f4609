"""What a fit holds in memory, estimated before anything of it is there.

`--memory` is shared: half of it at most is for covariances, the rest for the values that two networks hold at once.
Where a layer's covariance does not fit into that half, only the layer's bias is fitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

SHARE = 2  # of the memory, one part in so many is for covariances
FITTING, ADDING = 9, 6  # float64 matrices as large as the covariance at once: while solving, while rows are added
JUDGING = 4  # the same while channels are eliminated, beside all readings
ROWS = 2  # float32 copies of one batch's rows


def covariance_bytes(matrix: Tensor) -> int:
    """What the covariance takes of all that a layer with the weight `[groups, outputs, features]` reads."""
    return 8 * matrix.shape[0] * matrix.shape[-1] ** 2


def rows_bytes(matrix: Tensor, rows: int) -> int:
    """What `rows` windows of that layer take while they are added."""
    return 4 * ROWS * rows * matrix.shape[0] * matrix.shape[-1]


def fit_bytes(matrix: Tensor) -> int:
    """What fitting the layer's weights takes."""
    return FITTING * covariance_bytes(matrix)


def rows_within(matrix: Tensor, memory_bytes: int | None, *, covariance: bool, wanted: int) -> int:
    """How many of the `wanted` windows the layer can be looked at in together, beside its covariance or without one.

    Where a fit is affordable at all these are three for every feature at least; without a covariance, one.
    """
    if memory_bytes is None:
        return wanted
    left = memory_bytes // SHARE - (ADDING * covariance_bytes(matrix) if covariance else 0)
    return min(wanted, max(1, left // rows_bytes(matrix, 1)))


def affords(matrix: Tensor, memory_bytes: int | None) -> bool:
    """Whether the layer's weights can be fitted within `memory_bytes`, which may be unlimited."""
    return memory_bytes is None or fit_bytes(matrix) <= memory_bytes // SHARE


def reserved(matrices: Iterable[Tensor], memory_bytes: int) -> int:
    """What the largest fit takes that is affordable."""
    return max((fit_bytes(m) for m in matrices if affords(m, memory_bytes)), default=0)


def too_large(matrices: Mapping[str, Tensor], memory_bytes: int | None) -> frozenset[str]:
    """Of layers whose covariances are all held at once, those that must go without; the largest first."""
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
