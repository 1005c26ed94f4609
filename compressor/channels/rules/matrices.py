"""Operators on whole matrices, such as an inverse: the last two dimensions stay, the leading ones pass on."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from compressor.channels.rules.operators import results
from compressor.channels.tracing import Rule, Tracer, Tracked
from compressor.graph.operators import name_of

MATRICES = {
    "inverse", "linalg_inv", "linalg_inv_ex", "linalg_pinv", "pinverse", "det", "linalg_det", "logdet",
    "linalg_slogdet", "slogdet", "linalg_cholesky", "linalg_cholesky_ex", "linalg_qr", "linalg_svd", "linalg_svdvals",
    "linalg_eigh", "linalg_eigvalsh", "linalg_eig", "linalg_eigvals", "linalg_matrix_exp", "matrix_exp",
    "linalg_matrix_power", "linalg_solve", "linalg_solve_ex", "linalg_lu", "linalg_lu_factor", "linalg_lu_factor_ex",
    "_linalg_det", "_linalg_slogdet", "_linalg_eigh", "_linalg_svd", "_linalg_solve_ex", "cholesky_solve",
    "linalg_solve_triangular", "triangular_solve", "trace",
}  # fmt: skip


def _matrices(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """The last two dimensions are pinned; the leading ones meet position by position."""
    values = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tracked)]
    reason = f"`{name_of(target)}` works on whole matrices"
    if any(v.value.ndim < 2 for v in values):
        t.pin(values, reason)
        return results(result, lambda v: ((),) * v.ndim)
    for v in values:
        for d in (-1, -2):
            t.labels.pin(v.dims[d], reason)
    leading = [Tracked(v.value[..., 0, 0], v.dims[:-2]) for v in values]
    shape = torch.broadcast_shapes(*(v.value.shape for v in leading))  # type: ignore[no-untyped-call]
    batch = t.pointwise(leading, shape)
    return results(
        result, lambda v: [*batch, *((),) * (v.ndim - len(batch))] if v.shape[: len(batch)] == shape else ((),) * v.ndim
    )


RULES: dict[str, Rule] = dict.fromkeys(MATRICES, _matrices)
