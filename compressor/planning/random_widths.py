"""Widths drawn by chance at a given cost: the control of an architecture (Liu et al. 2019, arXiv:1810.05270, sec. 5).

If a network whose widths nobody chose learns as well from scratch at equal MACs, then what chose them found nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.channels.groups import ChannelGroup
from compressor.errors import PlanError
from compressor.surgery.rounding import multiple_of

NARROWEST = 0.125  # of a group's channels, where the widest keeps all, before the draw is scaled
TOLERANCE = 0.01  # of the target: how far below it the cost of a draw that is taken at once may lie
DRAWS = 16
SCALES = 256  # factors that a draw is tried at

Numbers = NDArray[np.float64]
Share = Callable[[Numbers], Numbers]  # widths `[rows, groups]` → what the network costs, over what the dense one does


def random_widths(
    groups: Sequence[ChannelGroup],
    *,
    target: float,
    share: Share,
    seed: int,
    align: int | None = 1,
    min_channels: int = 1,
) -> dict[str, int]:
    """A width for each group, by root, at which the network costs at most `target` of the dense one, and nearly so.

    Each group's share of its channels is drawn log-uniformly between `NARROWEST` and all; a common factor scales the
    draw to the target, then groups in a random order grow by a step each where that fits. The first of `DRAWS` draws
    within `TOLERANCE` is taken; where widths are too coarse for that, the nearest. The same seed gives the same widths.
    Refused: a target that the narrowest widths miss, or that removes nothing.
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
    """The draw times the largest factor that meets the target, in whole steps; the factor 0 is the narrowest widths."""
    factors = np.linspace(0, 1 / NARROWEST, SCALES)[:, None]
    rows = np.clip(np.round(factors * drawn / steps) * steps, least, dense)  # [SCALES, groups]
    fits = share(rows) <= target
    return np.asarray(rows[np.flatnonzero(fits).max()])
