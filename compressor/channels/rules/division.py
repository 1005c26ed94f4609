"""A dimension seen as groups times what each of them has."""

from __future__ import annotations

import numpy as np

from compressor.channels.labels import Dim
from compressor.channels.tracing import Tracer, Tracked


def split_groups(t: Tracer, x: Tracked, dim: int, groups: int) -> tuple[Dim, Dim]:
    """A dimension seen as groups times what each has: labels of both; both are units."""
    if groups == 1:
        return (), x.dims[dim]
    length = x.value.shape[dim]
    each = length // groups
    known = t.labels.resolve(x.dims[dim])
    if not known:
        return (), ()
    if each == 1:
        return known, ()
    outer, inner = t.labels.fresh(groups), t.labels.fresh(each)
    t.labels.unify(known, (np.repeat(outer, each), np.tile(inner, groups)), "a grouped convolution divides it")
    return t.labels.resolve((outer,)), t.labels.resolve((inner,))
