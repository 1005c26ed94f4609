"""What each kind of operator does to labels (`channels.tracing`).

    along       a dimension is sorted, accumulated or transformed: it stays, the others pass on
    matrices    whole matrices are inverted or solved: they stay, the batches pass on
    moving      data is moved: the operator itself runs on the labels
    norms       removed channels must not be seen, and the parameters of each channel leave with it
    placed      the dimension that is read or written by index stays, the others pass on
    pointwise   labels that meet position by position are united
    products    labels of a summed dimension are united, and it is a reading; the rest passes on
    recurrent   units are the same through gates, layers and directions
    sliding     windows over the image become channels, and channels windows
    together    means, maxima, softmaxes: removed channels must not be seen
    stated      channels stay, for a reason that is written here
    unknown     any other operator pins what reaches it

Rules describe operators, never architectures.
"""

from __future__ import annotations

from typing import Any

import torch

from compressor.channels.rules import (
    along,
    matrices,
    moving,
    norms,
    placed,
    pointwise,
    products,
    recurrent,
    sliding,
    stated,
    together,
)  # fmt: skip
from compressor.channels.rules.operators import unknown
from compressor.channels.tracing import Rule
from compressor.graph.operators import name_of

__all__ = ["is_known", "rule_of"]

KINDS = (pointwise, moving, products, recurrent, together, along, placed, matrices, norms, sliding, stated)
RULES: dict[str, Rule] = {name: rule for kind in KINDS for name, rule in kind.RULES.items()}


def rule_of(target: Any) -> Rule:
    """Return the rule for an operator; `unknown`, which pins what reaches it, if there is none."""
    name = name_of(target)
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return pointwise.pointwise
    if stated.stated_reason(target):
        return stated.stated
    return moving.movement if _is_view(target) else unknown


def is_known(target: Any) -> bool:
    """True if there is a rule for an operator, or a stated reason why its channels stay."""
    return rule_of(target) is not unknown


def _is_view(target: Any) -> bool:
    """True if a result shares an argument's memory without writing to it."""
    schema = getattr(target, "_schema", None)
    return schema is not None and any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
