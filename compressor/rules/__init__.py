"""What each kind of operator does to labels (`compressor.tracing`).

    moving      data is moved: the operator itself is run on the labels
    pointwise   what meets position by position is one
    products    what is summed over is one, and is read; the rest goes on
    recurrent   units are one through gates, layers and directions
    together    norms, means, soft-maxima: what left must not be seen
    unknown     anything else pins what reaches it

Rules are about operators, never about architectures.
"""

from __future__ import annotations

from typing import Any

import torch

from compressor.rules import moving, pointwise, products, recurrent, together
from compressor.rules.operators import name_of, unknown
from compressor.tracing import Rule

__all__ = ["name_of", "rule_of"]

RULES: dict[str, Rule] = {**pointwise.RULES, **moving.RULES, **products.RULES, **recurrent.RULES, **together.RULES}
NO_MOVES = {
    "as_strided",
    "real",
    "imag",
    "view_as_real",
    "view_as_complex",
    "diagonal",
    "_conj",
}  # though they are views


def rule_of(target: Any) -> Rule:
    """The rule for an operator; what no rule knows pins what reaches it."""
    name = name_of(target)
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return pointwise.pointwise
    return moving.movement if name not in NO_MOVES and _is_view(target) else unknown


def _is_view(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
