"""The predicted speed-up to plan for, so that the measured one meets a target: a root search between two measurements.

An *aim* is a predicted speed-up; a measurement belongs to each. Both are positive. The measured speed-up grows with the
aim, except for noise and for steps between two neighbouring plans.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LEAST = 1.01  # every aim is faster than the dense network


@dataclass(slots=True, eq=False)
class Aim:
    """The speed-up to plan for now, `at`, and the pairs of aim and measured speed-up so far."""

    target: float
    at: float = 0.0
    pairs: list[tuple[float, float]] = field(default_factory=list)  # aim, measured speed-up

    def __post_init__(self) -> None:
        self.at = self.at or self.target

    def update(self, ratio: float) -> None:
        """Move the aim, given the measured speed-up `ratio` at the current one.

        With measurements on one side of the target only, the aim is multiplied by target over measurement. With both
        sides, the aim is interpolated linearly between the two nearest (on logarithms); if that repeats a measurement,
        the middle is taken.
        """
        self.pairs.append((self.at, ratio))
        short = max((p for p in self.pairs if p[1] < self.target), default=None, key=lambda p: (p[1], p[0]))
        beyond = min((p for p in self.pairs if p[1] >= self.target), default=None, key=lambda p: (p[1], -p[0]))
        if short is None or beyond is None or short[0] >= beyond[0]:
            self.at = max(LEAST, self.at * self.target / ratio)
            return
        part = math.log(self.target / short[1]) / math.log(beyond[1] / short[1])
        repeated = sum(r in (short[1], beyond[1]) for _, r in self.pairs) > 2
        part = 0.5 if repeated else min(0.9, max(0.1, part))
        self.at = short[0] * (beyond[0] / short[0]) ** part

    def correct(self, ratio: float, *, off: float) -> None:
        """Replace the measurement at the current aim by `ratio`, and multiply all other measurements by `off`."""
        self.pairs = [(aim, r * off) for aim, r in self.pairs if aim != self.at]
        self.update(ratio)
