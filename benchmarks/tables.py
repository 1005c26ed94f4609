"""How figures stand in the benchmarks' tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def accuracy(rows: Sequence[Mapping[str, Any]], *, count: bool = True) -> str:
    """Mean ± standard deviation of `correct` over `total` in per cent, with how many there are; a dash for none."""
    if not rows:
        return "–"
    shares = [100 * row["correct"] / row["total"] for row in rows]
    spread = f" ± {statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    return f"{statistics.mean(shares):.2f}{spread}" + (f" (n = {len(shares)})" if count else "")
