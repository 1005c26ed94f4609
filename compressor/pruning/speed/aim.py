"""Where to aim for the clock to say what is wished: a root between what was too slow and what was too fast.

What is aimed at is a predicted speed-up, what is heard a measured one. Both are positive, and the second grows with the
first, but for its scatter and for steps where there is no plan between two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LEAST = 1.01  # no aim is at the dense network itself


@dataclass(slots=True, eq=False)
class Aim:
    """The speed-up to plan for now, `at`, and every aim so far with what the clock said of it."""

    wished: float
    at: float = 0.0
    heard: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.at = self.at or self.wished

    def hear(self, ratio: float) -> None:
        """Aim anew, after what the clock said of this aim.

        By as much further or nearer as the clock said otherwise; once there are aims on both sides, between them: where
        a straight line through both has it (on logarithms), or in the middle where that gave one of them again.
        """
        self.heard.append((self.at, ratio))
        short = max((p for p in self.heard if p[1] < self.wished), default=None, key=lambda p: (p[1], p[0]))
        beyond = min((p for p in self.heard if p[1] >= self.wished), default=None, key=lambda p: (p[1], -p[0]))
        if short is None or beyond is None or short[0] >= beyond[0]:
            self.at = max(LEAST, self.at * self.wished / ratio)
            return
        part = math.log(self.wished / short[1]) / math.log(beyond[1] / short[1])
        again = sum(r in (short[1], beyond[1]) for _, r in self.heard) > 2
        part = 0.5 if again else min(0.9, max(0.1, part))
        self.at = short[0] * (beyond[0] / short[0]) ** part

    def hear_again(self, ratio: float, *, off: float) -> None:
        """Of this aim the clock says otherwise now, and by as much, `off`, of all the others."""
        self.heard = [(aim, r * off) for aim, r in self.heard if aim != self.at]
        self.hear(ratio)
