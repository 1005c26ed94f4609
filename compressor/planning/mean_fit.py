"""Statistics for fitting a layer's bias alone; their size grows with the layer's outputs, not with its features.

With the residual R = T − W₀X of the layer's own weights, the best bias is the mean of R. No covariance is needed:
layers are repaired in this way where their covariances would not fit in memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from compressor.planning.moments import Fit


class Residuals:
    """Sums over rows of the residual of a layer's weights, and of its target, `[groups, outputs]` in float64."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.float()  # [groups, outputs, features]
        self.rows = 0
        self.r: Tensor | Any = 0.0
        self.rr: Tensor | Any = 0.0  # squares
        self.t: Tensor | Any = 0.0
        self.tt: Tensor | Any = 0.0  # squares

    def add(self, x: Tensor, t: Tensor) -> None:
        """Add rows: `x` `[groups, rows, features]`, `t` `[groups, rows, outputs]`."""
        self.rows += x.shape[1]
        t = t.double()
        residual = t - x @ self.weight.mT
        self.r, self.rr = self.r + residual.sum(dim=1), self.rr + residual.square().sum(dim=1)
        self.t, self.tt = self.t + t.sum(dim=1), self.tt + t.square().sum(dim=1)

    def error(self, shift: Tensor) -> float:
        """Return the mean squared error with the bias `shift`, summed over the outputs."""
        spread = self.rr / self.rows - 2 * shift * self.r / self.rows + shift.square()
        return float(spread.sum().clamp(min=0))  # rounding

    def variance(self, *, intercept: bool) -> float:
        """Return the target's variance, summed over the outputs; its mean square where there is no intercept."""
        mean = self.t / self.rows if intercept else torch.zeros_like(self.t)
        return max(float((self.tt / self.rows - mean.square()).sum()), 1e-30)


def fit_mean(fitted: Residuals, held_out: Residuals, weight: Tensor, shift: Tensor, *, intercept: bool) -> Fit:
    """Return the bias that matches the means, if it does better on `held_out` than the layer's own.

    Without an `intercept` nothing changes. The weight stays: `weight` is the one that the sums were computed with.
    """
    weight, shift = weight.double(), shift.double()
    variance = held_out.variance(intercept=intercept)
    before = after = held_out.error(shift)
    if intercept:
        error = held_out.error(fitted.r / fitted.rows)
        if math.isfinite(error) and error < before:
            after = error
            shift = (fitted.r + held_out.r) / (fitted.rows + held_out.rows)
    return Fit(weight=weight, shift=shift, ridge=math.inf, before=before / variance, after=after / variance)
