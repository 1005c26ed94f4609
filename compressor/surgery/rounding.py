"""Round widths to multiples that suit a runtime, with the requested total.

Rounded up to multiples of 8, widths of 12 and 16 would cancel a ratio of 0.3. So without an explicit alignment, a group
has at least `STEPS` steps. Where rounding up keeps too many channels in some groups, other groups lose one step each,
until the total is met (largest remainders first, as in Hamilton's apportionment).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.channels.groups import ChannelGroup

AUTO_ALIGN = 8  # onnxruntime's blocked convolutions: 8 channels with AVX2; also a multiple of a GPU's 8 halves
STEPS = 4  # steps per group at least: 4 channels at a width of 16; below 4 onnxruntime leaves its blocked layout


def whole(exact: float) -> int:
    """Return the smallest whole number that is not below `exact`; an error of rounding does not count."""
    return math.ceil(exact - 1e-9)  # 0.42 * 50 is 21.000…04


def kept(channels: int, exact: float, *, multiple: int, at_least: int = 1) -> int:
    """Return how many channels stay: `exact` ones or more, never none, a multiple of `multiple` where it fits."""
    wanted = max(1, at_least, whole(exact))
    return min(channels, math.ceil(wanted / multiple) * multiple)


def multiple_of(group: ChannelGroup, align: int | None, *, strict: bool = False) -> int:
    """Return the multiple for a group's width, if the group is wide enough: `align` positions of its first layer.

    `None` is `AUTO_ALIGN`, halved until the group has at least `STEPS` steps. A channel that is a head of 64 features,
    for example, is aligned to 8 by itself. If the group is not wide enough, any width is allowed or, with `strict`,
    only the full one.
    """
    if align is None:
        align = AUTO_ALIGN
        while align > 1 and align * STEPS > group.channels * group.size:
            align //= 2
    aligned = math.lcm(group.size, align) // group.size
    return aligned if aligned < group.channels else (group.channels if strict and aligned > 1 else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """A group's width rounded up to its steps, the exact width, and the next widths on both sides."""

    exact: float
    step: int
    width: int
    narrower: int  # 0 if there is none
    wider: int  # `width` if there is none
    cost: float  # average cost of a channel between `narrower` and `width`

    @property
    def excess(self) -> float:
        """The distance of the width from the exact one, as a share of the step down."""
        return round((self.width - self.exact) / (self.width - self.narrower), 9)


def rounded(channels: int, exact: float, *, step: int, at_least: int, rising: Sequence[float]) -> Rounded:
    """Return the group's width for an exact one; `rising` has the costs of its `channels`, in ascending order."""
    width = kept(channels, exact, multiple=step, at_least=at_least)
    below = (math.ceil(width / step) - 1) * step  # the full width need not be a multiple
    leaving = rising[channels - width : channels - below]
    return Rounded(
        exact=exact, step=step, width=width, narrower=below, wider=min(channels, width + step),
        cost=sum(leaving) / len(leaving),
    )  # fmt: skip


def met_in_all(groups: Mapping[str, Rounded], *, least: Mapping[str, int], total: int) -> dict[str, int]:
    """Return a width per group, at most one step from its rounded one, whose sum is `total` or as little above as
    possible.

    Groups with coarse steps come first and leave a remainder of up to half a step, which groups with finer steps make
    up for. Among equal steps the group with the largest excess is narrowed first; among equals, the one with the
    cheapest channels, then the first. No width falls below the group's `least` one.
    """
    widths = {root: one.width for root, one in groups.items()}
    steps = sorted({one.step for one in groups.values()}, reverse=True)
    over = 0.0  # channels above the exact widths, over the groups decided so far
    for step in steps:
        finest = step == steps[-1]
        here = sorted(
            ((root, one) for root, one in groups.items() if one.step == step), key=lambda x: (-x[1].excess, x[1].cost)
        )
        over = sum(widths.values()) - total if finest else over + sum(one.width - one.exact for _, one in here)
        for root, one in here:
            down = one.width - one.narrower
            if one.width > one.exact and over >= (down if finest else down / 2) and one.narrower >= least[root]:
                widths[root], over = one.narrower, over - down
        for root, one in reversed(here):
            up = one.wider - one.width
            if up and widths[root] == one.width and over <= (-1 if finest else -up / 2):
                widths[root], over = one.wider, over + up
    for root, one in sorted(
        groups.items(), key=lambda x: x[1].step
    ):  # more were removed than requested, which must not happen
        if widths[root] < one.width and sum(widths.values()) < total:
            widths[root] = one.width
    return widths
