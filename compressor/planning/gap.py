"""The gap between the requested and the achieved cost: one line with the reason, and what would close it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compressor.surgery.plan import Budget, ChannelBudget, LatencyBudget

TOLERATED = 0.02  # of the dense network's channels, MACs or parameters
NEARER = 0.005  # another alignment is mentioned if it closes at least so much


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Shares of the dense network's channels, MACs or parameters: the requested one, and the achieved one.

    `align` is the multiple of widths; `finer` is the share with `--align 1`, where that is known.
    """

    counted: str
    asked: float
    achieved: float
    align: int | str
    finer: float | None = None

    def caveat(self) -> str:
        """Return one line: the result, the reason, and what would come nearer."""
        counted = "MACs" if self.counted == "macs" else self.counted
        happened = f"{self.achieved:.1%} of the {counted} stay where {self.asked:.1%} was asked"
        if self.align == 1 or (self.finer is not None and not self._finer_is_nearer(self.finer)):
            return f"{happened}: some groups keep their least width, and the others come no nearer"
        steps = "widths are rounded" if self.align == "auto" else f"widths are multiples of {self.align}"
        if self.finer is None:
            return f"{happened}: {steps}; `--align 1` may come nearer"
        return f"{happened}: {steps}; with `--align 1` {self.finer:.1%} would stay"

    def _finer_is_nearer(self, finer: float) -> bool:
        return abs(finer - self.asked) < abs(self.achieved - self.asked) - NEARER


def gap_between(budget: Budget, shares: Mapping[str, float], *, align: int | str) -> Gap | None:
    """Return the gap between a budget and the `shares` that stay, by `channels`, `macs` and `params`.

    `None` where they are within `TOLERATED`, and for a latency budget, which is measured.
    """
    if isinstance(budget, LatencyBudget):
        return None
    if isinstance(budget, ChannelBudget):
        counted, asked = "channels", budget.stays
    else:
        counted, asked = str(budget.counted), budget.stays
    achieved = shares[counted]
    if abs(achieved - asked) <= TOLERATED:
        return None
    return Gap(counted=counted, asked=asked, achieved=achieved, align=align)
