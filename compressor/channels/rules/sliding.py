"""Windows over an image that become channels, and channels that become windows (`nn.Unfold`, `nn.Fold`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from compressor.channels.labels import Dim
from compressor.channels.rules.division import split_groups
from compressor.channels.rules.operators import bound, new
from compressor.channels.tracing import Rule, Tracer


def _unfolded(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """`[.., channels, height, width]` to `[.., channels x places in a window, windows]`."""
    named = bound(target, args, kwargs)
    x = named["self"]
    for d in (-1, -2):
        t.labels.pin(x.dims[d], "windows slide over it")
    places = math.prod(named["kernel_size"])
    labels = tuple(np.repeat(ids, places) for ids in t.labels.resolve(x.dims[-3]))
    return new(result, [*x.dims[:-3], labels, ()])


def _folded(t: Tracer, target: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Any:
    """The inverse of unfolding; overlapping windows are added."""
    named = bound(target, args, kwargs)
    x = named["self"]
    t.labels.pin(x.dims[-1], "windows slide over it")
    places = math.prod(named["kernel_size"])
    channels: Dim = x.dims[-2]
    if places > 1:
        channels, within = split_groups(t, x, x.value.ndim - 2, x.value.shape[-2] // places)
        t.labels.pin(within, "it is a place in a window")
    return new(result, [*x.dims[:-2], t.labels.resolve(channels), (), ()])


RULES: dict[str, Rule] = {"im2col": _unfolded, "col2im": _folded}
