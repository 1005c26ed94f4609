"""Draw random widths at a given cost: the control for an architecture (Liu et al. 2019, arXiv:1810.05270, sec. 5).

If a network with random widths learns as well from scratch at equal MACs, the method that chose the widths is worth
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.channels.groups import ChannelGroup
from compressor.errors import PlanError
from compressor.surgery.rounding import multiple_of

NARROWEST = 0.125  # the least share of a group's channels, relative to the widest group, before scaling
TOLERANCE = 0.01  # of the target: a draw is accepted at once if its cost is at most so far below
DRAWS = 16
SCALES = 256  # a draw is tried at so many factors

Numbers = NDArray[np.float64]
Share = Callable[[Numbers], Numbers]  # widths `[rows, groups]` → the network's cost over the dense network's cost


def random_widths(
    groups: Sequence[ChannelGroup],
    *,
    target: float,
    share: Share,
    seed: int,
    align: int | None = 1,
    min_channels: int = 1,
) -> dict[str, int]:
    """Return a width for each group, by root, at which the network's cost is at most, and close to, `target` of the
    dense one.

    Each group's share of its channels is drawn log-uniformly between `NARROWEST` and 1. A common factor scales the draw
    to the target; then groups in random order grow by one step each where that fits. The first of `DRAWS` draws within
    `TOLERANCE` is returned or, where widths are too coarse for that, the nearest. The same seed returns the same
    widths. Refused: a target that the narrowest widths miss, or that removes nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = np.array([float(multiple_of(g, align)) for g in groups])
    dense = np.array([float(g.channels) for g in groups])
    least = np.minimum(dense, np.ceil(min_channels / steps) * steps)
    narrowest = float(share(least[None])[0])
    if narrowest > target:
        raise PlanError(
            f"{target:.1%} cannot be met: the narrowest network keeps {narrowest:.1%}",
            hint="ask for more, lower `--min-channels` or `--align`, or protect less",
        )
    best, nearest = dense, -1.0
    for _ in range(DRAWS):
        drawn = NARROWEST ** torch.rand(len(groups), generator=generator, dtype=torch.float64).numpy()
        row = _scaled(drawn * dense, target, share, steps=steps, least=least, dense=dense)
        for k in torch.randperm(len(groups), generator=generator).tolist():
            wider = row.copy()
            wider[k] = min(dense[k], row[k] + steps[k])
            if float(share(wider[None])[0]) <= target:
                row = wider
        cost = float(share(row[None])[0])
        if cost > nearest:
            best, nearest = row, cost
        if nearest >= target * (1 - TOLERANCE):
            break
    if (best == dense).all():
        raise PlanError("nothing would be removed: the budget is met as it is", hint="ask for less to stay")
    return {g.root: int(width) for g, width in zip(groups, best, strict=True)}


def _scaled(drawn: Numbers, target: float, share: Share, *, steps: Numbers, least: Numbers, dense: Numbers) -> Numbers:
    """The draw times the largest factor that meets the target, in whole steps; factor 0 is the narrowest widths."""
    factors = np.linspace(0, 1 / NARROWEST, SCALES)[:, None]
    rows = np.clip(np.round(factors * drawn / steps) * steps, least, dense)  # [SCALES, groups]
    fits = share(rows) <= target
    return np.asarray(rows[np.flatnonzero(fits).max()])
