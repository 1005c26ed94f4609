"""How many channels stay: widths in multiples that a runtime likes, and a total that is what was asked for.

Rounded up to multiples of 8, widths of 12 and 16 undo a ratio of 0.3. So where nobody says an alignment, a group has
at least `STEPS` steps; and what rounding up keeps too much of in some groups leaves others, one step each, until the
total is met (the largest remainders first, as Hamilton shared out seats).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.channels.groups import ChannelGroup

AUTO_ALIGN = 8  # onnxruntime's blocked convolutions: 8 channels with AVX2; also a multiple of a GPU's 8 halves
STEPS = 4  # a group has at least: of a width of 16 a step is 4, below which onnxruntime leaves its blocked layout


def kept(channels: int, ratio: float, *, multiple: int, at_least: int = 1) -> int:
    """Channels that stay: never fewer than asked for, never none, a multiple of `multiple` where it fits."""
    wanted = max(1, at_least, channels - math.floor(channels * ratio + 1e-9))  # 0.29 * 100 is 28.999…
    return min(channels, math.ceil(wanted / multiple) * multiple)


def multiple_of(group: ChannelGroup, align: int | None, *, strict: bool = False) -> int:
    """What a group's number of channels is rounded up to, where there are enough: `align` positions of its first layer.

    `None` is `AUTO_ALIGN`, halved until there are at least `STEPS` of it. A channel that is a head of 64 features, say,
    is aligned to 8 by itself. Where there are not enough, any number will do, or, `strict`, only all of them.
    """
    if align is None:
        align = AUTO_ALIGN
        while align > 1 and align * STEPS > group.channels * group.size:
            align //= 2
    aligned = math.lcm(group.size, align) // group.size
    return aligned if aligned < group.channels else (group.channels if strict and aligned > 1 else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """A group's width rounded up to its steps, the exact width, and the widths that are next to it."""

    exact: float
    step: int
    width: int
    narrower: int  # 0 where there is none
    wider: int  # the same where there is none
    cost: float  # of a channel between `narrower` and `width`, on average

    @property
    def excess(self) -> float:
        """How far the width is above the exact one, as a share of the step down."""
        return round((self.width - self.exact) / (self.width - self.narrower), 9)


def rounded(channels: int, exact: float, *, step: int, at_least: int, rising: Sequence[float]) -> Rounded:
    """The group's width for an exact one; `rising` has what each of its `channels` costs, the cheapest first."""
    width = kept(channels, 1 - exact / channels, multiple=step, at_least=at_least)
    below = (math.ceil(width / step) - 1) * step  # the width itself may be no multiple, where it is all channels
    leaving = rising[channels - width : channels - below]
    return Rounded(
        exact=exact, step=step, width=width, narrower=below, wider=min(channels, width + step),
        cost=sum(leaving) / len(leaving),
    )  # fmt: skip


def met_in_all(groups: Mapping[str, Rounded], *, least: Mapping[str, int], total: int) -> dict[str, int]:
    """A width for each group, one step from its rounded one at most, whose sum is `total` or as little above as may be.

    Groups of coarse steps come first and leave a rest of half a step, which those of finer steps make up for. Of equal
    steps the group with the largest excess becomes narrower first; of equals, the one whose channels cost least, then
    the first of all. No width falls below the `least` one of its group.
    """
    found = {root: one.width for root, one in groups.items()}
    steps = sorted({one.step for one in groups.values()}, reverse=True)
    over = 0.0  # of what has been decided, above the exact widths
    for step in steps:
        finest = step == steps[-1]
        here = sorted(
            ((root, one) for root, one in groups.items() if one.step == step), key=lambda x: (-x[1].excess, x[1].cost)
        )
        over = sum(found.values()) - total if finest else over + sum(one.width - one.exact for _, one in here)
        for root, one in here:
            down = one.width - one.narrower
            if one.width > one.exact and over >= (down if finest else down / 2) and one.narrower >= least[root]:
                found[root], over = one.narrower, over - down
        for root, one in reversed(here):
            up = one.wider - one.width
            if up and found[root] == one.width and over <= (-1 if finest else -up / 2):
                found[root], over = one.wider, over + up
    for root, one in sorted(groups.items(), key=lambda x: x[1].step):  # more left than was asked: never that
        if found[root] < one.width and sum(found.values()) < total:
            found[root] = one.width
    return found
