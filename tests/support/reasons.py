"""Reasons that no user understands: what Python and torch say to programmers."""

from __future__ import annotations

import re

INTERNAL = (
    "not implemented for", "has no attribute", "Expected all tensors", "unexpected keyword", "required positional",
    "is not an nn.Parameter", "not subscriptable", "object is not", "must be Tensor, not", "cannot import",
    "list index", "out of range", "mat1 and mat2", "size of tensor", "must match the size", "shape '[",
    "is invalid for input of size", "should be the same", "INTERNAL ASSERT", "Traceback", "NoneType", "torch.fx",
    "torch._", "FakeTensor", "Proxy(", "unhashable", "Could not run", "dispatch", "Dynamo", "unsupported operand",
    "invalid combination of arguments", "doesn't match", "shapes cannot be",
)  # fmt: skip
NAMED = re.compile(r"\b[A-Z]\w*(Error|Exception|Warning)\b|<\w+ object|0x[0-9a-f]{6}")


def internal_in(text: str) -> str | None:
    """The words in a reason that only a programmer of this tool understands."""
    found = NAMED.search(text)
    return found[0] if found else next((words for words in INTERNAL if words in text), None)
