"""A dimension viewed as groups times the positions of each group."""

from __future__ import annotations

import numpy as np

from compressor.channels.labels import Dim
from compressor.channels.tracing import Tracer, Tracked


def split_groups(t: Tracer, x: Tracked, dim: int, groups: int) -> tuple[Dim, Dim]:
    """Return the labels of both factors: groups, and positions within a group; both may be removed as units."""
    if groups == 1:
        return (), x.dims[dim]
    length = x.value.shape[dim]
    each = length // groups
    labels = t.labels.resolve(x.dims[dim])
    if not labels:
        return (), ()
    if each == 1:
        return labels, ()
    outer, inner = t.labels.fresh(groups), t.labels.fresh(each)
    t.labels.unify(labels, (np.repeat(outer, each), np.tile(inner, groups)), "a grouped convolution divides it")
    return t.labels.resolve((outer,)), t.labels.resolve((inner,))
