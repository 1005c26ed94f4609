"""Maximum mean discrepancy with several kernels: a distance of two samples' distributions (Gretton et al. 2012).

The kernel is the mean of Gaussians exp(-|a - b|² / s) whose widths s lie on a geometric ladder around the samples' mean
squared distance, as in DAN (Long et al. 2015, arXiv:1502.02791, sec. 3; the ladder of five and the factor of two are
its released code's). No gradient flows through the widths. The functions return an unbiased estimate of the *squared*
discrepancy, which can therefore be negative. For two samples of one distribution its expectation is zero, also with
widths computed from the samples, because the widths do not change when images change sides.

    unbiased   mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over pairs of different images; all pairs of a batch
    linear     the mean of k(x, x') + k(y, y') - k(x, y') - k(x', y) over disjoint quadruples (DAN, eq. 4): time and
               number of terms grow with the batch, not with its square, so the estimate has more noise
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import RetrainError


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """`count` Gaussians, each `factor` times as wide as the one before; the middle width is the mean squared distance.

    `width` replaces the middle width: the s in exp(-|a - b|² / s).
    """

    count: int = 5
    factor: float = 2.0
    width: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not self.factor > 0:
            raise RetrainError(
                f"kernels must be at least 1 with a positive factor, not {self.count} with {self.factor:g}",
                hint="for example 5, each 2 times as wide as the one before",
            )
        if self.width is not None and not self.width > 0:
            raise RetrainError(f"a kernel's width must be positive, not {self.width:g}", hint="for example 1")

    def widths(self, mean_squared: Tensor) -> Tensor:
        """Return the widths `[count]` for the mean squared distance of different images, a scalar; without gradient."""
        middle = mean_squared.detach().clamp(min=torch.finfo(mean_squared.dtype).tiny)
        if self.width is not None:
            middle = torch.full_like(middle, self.width)
        return middle * self.factor ** (torch.arange(self.count).to(middle) - self.count // 2)

    def of(self, squared: Tensor, widths: Tensor) -> Tensor:
        """Return the mean of the Gaussians over `widths`, for squared distances of any shape."""
        return torch.stack([torch.exp(-squared / width) for width in widths]).mean(dim=0)


def mmd(source: Tensor, target: Tensor, *, kernels: Kernels | None = None) -> Tensor:
    """Return the unbiased estimate of the squared discrepancy, a scalar.

    The features are `[n, features]` and `[m, features]`. Refused: fewer than two images per sample, different numbers
    of features, another shape.
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
    """Return the linear-time estimate, a scalar, from all quadruples of both samples; refused: what `mmd` refuses."""
    kernels = kernels or Kernels()
    pairs = min(_checked(source, target)) // 2
    x, y = source[: 2 * pairs], target[: 2 * pairs]
    quadruples = [(x[0::2], x[1::2]), (y[0::2], y[1::2]), (x[0::2], y[1::2]), (x[1::2], y[0::2])]
    squared = torch.stack([(a - b).square().sum(dim=1) for a, b in quadruples])  # [4, pairs]
    xx, yy, xy, yx = kernels.of(squared, kernels.widths(squared.mean()))
    terms: Tensor = xx + yy - xy - yx  # [pairs]
    return terms.mean()


def _checked(source: Tensor, target: Tensor) -> tuple[int, int]:
    """Return the number of images of both samples; refused: samples that cannot be compared."""
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
    """Return the squared distances of all pairs, `[n, n]`, at least in float32; centring avoids cancellation."""
    with torch.autocast(features.device.type, enabled=False):
        centred = features if features.dtype is torch.float64 else features.float()
        centred = centred - centred.detach().mean(dim=0)
        norms = centred.square().sum(dim=1)
        squared = norms[:, None] + norms[None, :] - 2 * centred @ centred.T
        return (squared * (1 - torch.eye(len(centred)).to(centred))).clamp(min=0)  # the diagonal is exactly zero
