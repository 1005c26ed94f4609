"""What each kind of operator does to labels (`channels.tracing`).

    along       a dimension is sorted, summed up or transformed: it stays, the others go on
    matrices    whole matrices are inverted or solved: they stay, the batches go on
    moving      data is moved: the operator itself is run on the labels
    norms       what left must not be seen, and parameters of each channel leave with it
    placed      what is read or written at places stays there, the others go on
    pointwise   what meets position by position is one
    products    what is summed over is one, and is read; the rest goes on
    recurrent   units are one through gates, layers and directions
    sliding     windows over the image become channels, and channels windows
    together    means, maxima, soft-maxima: what left must not be seen
    stated      what stays for a reason that is written down
    unknown     anything else pins what reaches it

Rules are about operators, never about architectures.
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
    """The rule for an operator; what no rule knows pins what reaches it."""
    name = name_of(target)
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return pointwise.pointwise
    if stated.stated_reason(target):
        return stated.stated
    return moving.movement if _is_view(target) else unknown


def is_known(target: Any) -> bool:
    """Whether there is a rule for an operator, or a reason why its channels stay."""
    return rule_of(target) is not unknown


def _is_view(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
