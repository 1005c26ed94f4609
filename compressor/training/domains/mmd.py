"""Maximum mean discrepancy with several kernels: how far two samples' distributions are apart (Gretton et al. 2012).

The kernel is the mean of Gaussians exp(-|a - b|² / s) whose widths s lie on a geometric ladder around the samples' mean
squared distance, as in DAN (Long et al. 2015, arXiv:1502.02791, sec. 3; the ladder of five and the factor of two are
its released code's). The widths are constants to the gradient. What is given is the *squared* discrepancy, by an
unbiased estimate, which may therefore be negative: of samples of one distribution it is zero in expectation, and since
the widths do not change when images change sides, so it is with widths that come from the samples.

    unbiased   mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over pairs of different images; all pairs of a batch
    linear     the mean of k(x, x') + k(y, y') - k(x, y') - k(x', y) over disjoint quadruples (DAN, eq. 4): the time
               grows with the batch instead of with its square, and so does the number of terms: it is noisier
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import RetrainError


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """`count` Gaussians, each `factor` times as wide as the one before, the middle one as wide as the mean distance.

    `width` fixes the middle one's instead: the s in exp(-|a - b|² / s).
    """

    count: int = 5
    factor: float = 2.0
    width: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not self.factor > 0:
            raise RetrainError(f"{self.count} kernels, each {self.factor:g} times as wide", hint="say 5, each 2 times")
        if self.width is not None and not self.width > 0:
            raise RetrainError(f"a kernel's width must be positive: {self.width:g}", hint="give one above 0")

    def widths(self, mean_squared: Tensor) -> Tensor:
        """The widths `[count]` where different images are so far apart in the mean, a scalar; no gradient is kept."""
        middle = mean_squared.detach().clamp(min=torch.finfo(mean_squared.dtype).tiny)
        if self.width is not None:
            middle = torch.full_like(middle, self.width)
        return middle * self.factor ** (torch.arange(self.count).to(middle) - self.count // 2)

    def of(self, squared: Tensor, widths: Tensor) -> Tensor:
        """The mean over `widths` of each Gaussian of squared distances of any shape."""
        return torch.stack([torch.exp(-squared / width) for width in widths]).mean(dim=0)


def mmd(source: Tensor, target: Tensor, *, kernels: Kernels | None = None) -> Tensor:
    """The unbiased estimate of the squared discrepancy of features `[n, features]` and `[m, features]`, a scalar.

    Refused: samples of fewer than two images, of different widths, or of another shape.
    """
    kernels = kernels or Kernels()
    n, m = _checked(source, target)
    squared = _squared_distances(torch.cat([source, target]))  # [n + m, n + m]
    similar = kernels.of(squared, kernels.widths(squared.sum() / ((n + m) * (n + m - 1))))
    within_source = (similar[:n, :n].sum() - similar[:n, :n].diagonal().sum()) / (n * (n - 1))
    within_target = (similar[n:, n:].sum() - similar[n:, n:].diagonal().sum()) / (m * (m - 1))
    apart: Tensor = within_source + within_target - 2 * similar[:n, n:].mean()
    return apart


def linear_mmd(source: Tensor, target: Tensor, *, kernels: Kernels | None = None) -> Tensor:
    """The linear-time estimate, of as many quadruples as both samples have; refused as `mmd` does."""
    kernels = kernels or Kernels()
    pairs = min(_checked(source, target)) // 2
    x, y = source[: 2 * pairs], target[: 2 * pairs]
    quadruples = [(x[0::2], x[1::2]), (y[0::2], y[1::2]), (x[0::2], y[1::2]), (x[1::2], y[0::2])]
    squared = torch.stack([(a - b).square().sum(dim=1) for a, b in quadruples])  # [4, pairs]
    xx, yy, xy, yx = kernels.of(squared, kernels.widths(squared.mean()))
    terms: Tensor = xx + yy - xy - yx  # [pairs]
    return terms.mean()


def _checked(source: Tensor, target: Tensor) -> tuple[int, int]:
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise RetrainError(
            f"features of {list(source.shape)} and {list(target.shape)} cannot be compared",
            hint="compare the inputs of one layer",
        )
    if min(len(source), len(target)) < 2:
        raise RetrainError(
            f"{len(source)} images against {len(target)} have no discrepancy", hint="two of each: `--batch-size 32`"
        )
    return len(source), len(target)


def _squared_distances(features: Tensor) -> Tensor:
    """Of every pair, `[n, n]`, in float32 at least; centred first, so that far-off features do not cancel."""
    with torch.autocast(features.device.type, enabled=False):
        held = features if features.dtype is torch.float64 else features.float()
        held = held - held.detach().mean(dim=0)
        norms = held.square().sum(dim=1)
        squared = norms[:, None] + norms[None, :] - 2 * held @ held.T
        return (squared * (1 - torch.eye(len(held)).to(held))).clamp(min=0)  # an image is at no distance from itself
