"""Second moments of a layer's input, and the least-squares weights that follow from them.

A convolution is a linear layer over its windows (im2col, with the true padding); a transposed one is a convolution over
its input, spread out by the stride. Rows are the windows of many images at many output positions; positions are drawn
where there are more than needed. Products are computed in float32, batch by batch about the batch's mean, and summed in
float64: about zero, rounding would exceed the variance of features that hardly vary.

With X the layer's input, T its target output, C the covariances, W₀ its current weights and λ = ρ · mean diag C_XX:

    W = (C_TX + λ W₀) (C_XX + λ I)⁻¹        b = E[T] − W E[X]

ρ → ∞ keeps W₀ and only changes the bias. ρ is chosen on batches that were not used for the fit. Where a row of W may
use only some features, as under a mask, the formula holds on those features (`planning.masked_solve`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from compressor.planning.masked_solve import on_support
from compressor.planning.walk import CONVOLVING, CONVOLVING_PADDED, TRANSPOSING, Program, operator

ROWS_PER_FEATURE, LEAST_ROWS = 24, 16_384  # of windows, over all batches
WIDEST = 6_000  # features; above it a covariance takes more than 300 MB and minutes: only the bias is fitted
ROUNDING = 1e-12  # of a second moment: a feature with a smaller variance is a constant
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RIDGES_WIDE = (1e-4, 1e-2)  # each needs a Cholesky factorisation of its own
EXACT = 1e-7  # of the target's variance: the rounding of float32 sums where the true error is 0 (3.6e-8 measured)
EIGEN_AT_MOST = 1_500  # features; below it one eigendecomposition serves every ridge


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A convolution or linear layer as a linear map over windows; `dims` spatial dimensions, none for a linear layer.

    The matrix form of its weight is `[groups, outputs / groups, features]`, features channel by channel.
    """

    weight: str
    bias: str | None
    dims: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]  # padding
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    spread: tuple[int, ...] | None  # of a transposed convolution: its stride

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the layer's weight as `[groups, outputs / groups, features]`."""
        if self.spread is not None:  # [in, out / groups, ...] → [out, in / groups, ...], kernel flipped
            blocks = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
            weight = blocks.flip(tuple(range(3, blocks.ndim))).flatten(0, 1)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def tensor(self, matrix: Tensor) -> Tensor:
        """Return a matrix form as a weight in the layer's own shape."""
        weight = matrix.reshape(matrix.shape[0] * matrix.shape[1], -1, *self.kernel)
        if self.spread is None:
            return weight if self.dims else weight.flatten(1)
        blocks = weight.reshape(self.groups, matrix.shape[1], -1, *self.kernel).transpose(1, 2)
        return blocks.flip(tuple(range(3, blocks.ndim))).flatten(0, 1)

    @property
    def window(self) -> int:
        """The features of one channel."""
        return math.prod(self.kernel)


def reader_of(program: Program, node: fx.Node, weight: Tensor) -> Reader:
    """Return the layer that a node of `readers(program)` runs, with a weight of this shape."""
    args: list[Any] = [*node.args, *[None] * 8]
    named = node.kwargs
    bias = program.tensor_name(named.get("bias", args[2]))
    name = program.tensor_name(args[1])
    assert name is not None
    kernel = tuple(weight.shape[2:])
    dims = len(kernel)

    def each(position: int, key: str, default: int) -> tuple[int, ...]:
        value = named.get(key, args[position])
        value = [default] if value is None or value == [] else [value] if isinstance(value, int) else value
        return tuple(value) * (dims if len(value) == 1 else 1)

    kind = operator(node)
    groups = 1
    stride = dilation = before = after = (1,) * dims
    spread = None
    if kind in CONVOLVING or kind in CONVOLVING_PADDED:
        stride, dilation = each(3, "stride", 1), each(5, "dilation", 1)
        groups = int(named.get("groups", args[6]) or 1)
        if kind in CONVOLVING:
            before = after = each(4, "padding", 0)
        else:
            same = named.get("padding", args[4]) == "same"
            reach = [d * (k - 1) if same else 0 for d, k in zip(dilation, kernel, strict=True)]
            before, after = tuple(r // 2 for r in reach), tuple(r - r // 2 for r in reach)
    elif kind in TRANSPOSING:
        spread, padding = each(3, "stride", 1), each(4, "padding", 0)
        more, dilation = each(5, "output_padding", 0), each(7, "dilation", 1)
        groups = int(named.get("groups", args[6]) or 1)
        before = tuple(d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True))
        after = tuple(b + m for b, m in zip(before, more, strict=True))
    return Reader(
        weight=name, bias=bias, dims=dims, kernel=kernel, stride=stride, before=before, after=after,
        dilation=dilation, groups=groups, spread=spread,
    )  # fmt: skip


def features(reader: Reader, x: Tensor, positions: Tensor) -> Tensor:
    """Return the layer's input at some output positions: float32 `[groups, rows, features]`.

    `positions` are a convolution's output positions counted row by row, or the rows of a linear layer's input.
    """
    if not reader.dims:
        return x.reshape(-1, x.shape[-1])[positions].float().unsqueeze(0)
    x = x if x.ndim == reader.dims + 2 else x.unsqueeze(0)
    if reader.spread is not None:
        sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], reader.spread, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        at: Any = (..., *(slice(None, None, s) for s in reader.spread))
        spread[at] = x
        x = spread
    pads = [p for pair in zip(reversed(reader.before), reversed(reader.after), strict=True) for p in pair]
    x = functional.pad(x, pads)
    for dim, (kernel, stride, dilation) in enumerate(zip(reader.kernel, reader.stride, reader.dilation, strict=True)):
        x = x.unfold(dim + 2, dilation * (kernel - 1) + 1, stride)[..., ::dilation]  # a view: [n, in, *out, *kernel]
    out = x.shape[2 : 2 + reader.dims]
    chosen: Any = (slice(None), slice(None), *torch.unravel_index(positions, out))
    windows = x[chosen]  # [n, in, positions, *kernel]
    n, channels = windows.shape[:2]
    by_group = windows.reshape(n, reader.groups, channels // reader.groups, len(positions), reader.window)
    return by_group.permute(1, 0, 3, 2, 4).reshape(reader.groups, n * len(positions), -1).float()


def targets(reader: Reader, output: Tensor, positions: Tensor) -> Tensor:
    """Return the layer's output at those positions: float32 `[groups, rows, outputs / groups]`."""
    if not reader.dims:
        return output.reshape(-1, output.shape[-1])[positions].float().unsqueeze(0)
    output = output if output.ndim == reader.dims + 2 else output.unsqueeze(0)
    n, channels = output.shape[:2]
    chosen = output.flatten(2)[:, :, positions]  # [n, out, positions]
    by_group = chosen.reshape(n, reader.groups, channels // reader.groups, len(positions))
    return by_group.permute(1, 0, 3, 2).reshape(reader.groups, n * len(positions), -1).float()


def drawn_positions(reader: Reader, output: Tensor, *, wanted: int, generator: torch.Generator) -> Tensor:
    """Return positions of one batch that yield about `wanted` rows, all of them where there are no more; sorted."""
    if reader.dims:
        images = output.shape[0] if output.ndim == reader.dims + 2 else 1
        there, each = math.prod(output.shape[-reader.dims :]), images
    else:
        there, each = output.numel() // output.shape[-1], 1
    count = -(-wanted // each)
    if count >= there:
        return torch.arange(there, device=output.device)
    return torch.randperm(there, generator=generator)[:count].sort().values.to(output.device)


def wanted_rows(reader: Reader, weight: Tensor) -> int:
    """Return how many rows determine the layer's covariance well."""
    return max(LEAST_ROWS // max(1, reader.groups // 8), ROWS_PER_FEATURE * reader.matrix(weight).shape[-1])


class Moments:
    """Sums over rows of X, T and their products, `[groups, ...]` in float64."""

    def __init__(self) -> None:
        self.rows = 0
        self.x: Tensor | Any = 0.0  # [groups, features]
        self.t: Tensor | Any = 0.0  # [groups, outputs]
        self.xx: Tensor | Any = 0.0  # [groups, features, features]
        self.tx: Tensor | Any = 0.0  # [groups, outputs, features]
        self.tt: Tensor | Any = 0.0  # [groups, outputs]: squares

    def add(self, x: Tensor, t: Tensor | None = None) -> None:
        """Add rows: `x` `[groups, rows, features]`, `t` `[groups, rows, outputs]`."""
        self.rows += x.shape[1]
        self.x = self.x + x.sum(dim=1, dtype=torch.float64)
        self.xx = self.xx + _product(x, x)
        if t is not None:
            self.t = self.t + t.sum(dim=1, dtype=torch.float64)
            self.tx = self.tx + _product(t, x)
            self.tt = self.tt + t.double().square().sum(dim=1)

    def __add__(self, other: Moments) -> Moments:
        both = Moments()
        for name in ("rows", "x", "t", "xx", "tx", "tt"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def covariance(self) -> Tensor:
        """Return the covariance of X, exactly zero for constant features: `[groups, features, features]`, float64."""
        mean = self.x / self.rows
        xx: Tensor = self.xx / self.rows - mean.unsqueeze(2) * mean.unsqueeze(1)
        varies = self._varies(xx)
        return xx * varies.unsqueeze(2) * varies.unsqueeze(1)

    def _varies(self, covariance: Tensor) -> Tensor:
        """A mask of the features that vary by more than rounding."""
        return covariance.diagonal(dim1=1, dim2=2) > ROUNDING * self.xx.diagonal(dim1=1, dim2=2) / self.rows

    def centred(self, *, intercept: bool = True) -> Covariances:
        """Return means and covariances; without an intercept, second moments about zero."""
        mean_x, mean_t = self.x / self.rows, self.t / self.rows
        xx, tx, tt = self.xx / self.rows, self.tx / self.rows, self.tt / self.rows
        if intercept:
            xx = self.covariance()
            tx = (tx - mean_t.unsqueeze(2) * mean_x.unsqueeze(1)) * self._varies(xx).unsqueeze(1)
            tt = tt - mean_t.square()
        return Covariances(mean_x=mean_x, mean_t=mean_t, xx=xx, tx=tx, tt=tt, intercept=intercept)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The sum over rows of a bᵀ, `[groups, a's, b's]` in float64, from float32 products about the means.

    With a = m_a + o_a (mean and offset) and n rows, Σ a bᵀ = Σ o_a o_bᵀ + m_aᵀ (Σ o_b + n m_b) + (Σ o_a)ᵀ m_b. Only the
    first term is a float32 product; Σ o is 0 but for rounding, and is kept because m is large against it.
    """
    mean_a, mean_b = a.mean(dim=1, keepdim=True), b.mean(dim=1, keepdim=True)
    off_a, off_b = a - mean_a, b - mean_b
    rest_a, rest_b = (t.sum(dim=1, keepdim=True, dtype=torch.float64) for t in (off_a, off_b))
    mean_a, mean_b = mean_a.double(), mean_b.double()
    about_means = (off_a.mT @ off_b).double()
    return about_means + mean_a.mT @ (rest_b + a.shape[1] * mean_b) + rest_a.mT @ mean_b


@dataclass(frozen=True, slots=True, kw_only=True)
class Covariances:
    """Means and covariances of X and T, `[groups, ...]` in float64; second moments where there is no intercept."""

    mean_x: Tensor  # [groups, features]
    mean_t: Tensor  # [groups, outputs]
    xx: Tensor  # [groups, features, features]
    tx: Tensor  # [groups, outputs, features]
    tt: Tensor  # [groups, outputs]
    intercept: bool

    def error(self, weight: Tensor, shift: Tensor) -> float:
        """Return the mean squared error of `weight` X + `shift`, summed over the outputs."""
        spread = self.tt.sum() - 2 * (weight * self.tx).sum() + ((weight @ self.xx) * weight).sum()
        if self.intercept:
            off = self.mean_t - (weight @ self.mean_x.unsqueeze(2)).squeeze(2) - shift
            spread = spread + off.square().sum()
        return float(spread.clamp(min=0))  # rounding

    def shift(self, weight: Tensor) -> Tensor:
        """Return the bias that matches the means: `[groups, outputs]`; zero without an intercept."""
        if not self.intercept:
            return torch.zeros_like(self.mean_t)
        return self.mean_t - (weight @ self.mean_x.unsqueeze(2)).squeeze(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A layer's new weight `[groups, outputs / groups, features]` and bias `[groups, outputs / groups]`, float64.

    `before` and `after` are mean squared errors on rows outside the fit, over the target's variance there.
    """

    weight: Tensor
    shift: Tensor
    ridge: float  # ρ; infinite where only the bias changed
    before: float
    after: float


def fit(
    fitted: Moments,
    held_out: Moments,
    weight: Tensor,
    shift: Tensor,
    *,
    intercept: bool,
    kept: Tensor | None = None,
) -> Fit:
    """Return the weights that predict T from X best, on the ridge path from `weight` `[groups, outputs, features]`.

    `shift` is the layer's bias. `kept`, bool in the weight's shape, marks the weights that may be non-zero; the weight
    is already zero elsewhere. The ridge is chosen on `held_out`, then the weights are fitted on all rows. The layer
    keeps its weights where no fit does better there, or where its own error is only rounding.
    """
    weight, shift = weight.double(), shift.double()
    part, judge = fitted.centred(intercept=intercept), held_out.centred(intercept=intercept)
    variance = max(float(judge.tt.sum()), 1e-30)
    before = judge.error(weight, shift)
    best: tuple[float, float | None] = (before, None)
    for ridge, candidate in _path(part, weight, kept=kept) if before > EXACT * variance else ():
        error = judge.error(candidate, part.shift(candidate))
        if math.isfinite(error) and error < best[0]:
            best = (error, ridge)
    if best[1] is None:
        return Fit(weight=weight, shift=shift, ridge=math.inf, before=before / variance, after=before / variance)
    whole = (fitted + held_out).centred(intercept=intercept)
    solved = weight if math.isinf(best[1]) else solve(whole, weight, ridge=best[1], kept=kept)
    return Fit(
        weight=solved, shift=whole.shift(solved), ridge=best[1], before=before / variance, after=best[0] / variance
    )


def _path(part: Covariances, weight: Tensor, *, kept: Tensor | None = None) -> list[tuple[float, Tensor]]:
    """The weights at each ridge, with the unchanged ones at an infinite ridge."""
    path = [(math.inf, weight)]
    if not bool(part.xx.isfinite().all()):
        return path
    wide = part.xx.shape[-1] > EIGEN_AT_MOST
    if wide or kept is not None:
        ridges = RIDGES_WIDE if wide else RIDGES
        return path + [(ridge, solve(part, weight, ridge=ridge, kept=kept)) for ridge in ridges]
    try:
        values, vectors = torch.linalg.eigh(part.xx)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # LAPACK may not converge on nearly equal values
        return path + [(ridge, solve(part, weight, ridge=ridge)) for ridge in RIDGES]
    residual = (part.tx - weight @ part.xx) @ vectors
    scale = _scale(part.xx)

    def at(ridge: float) -> Tensor:
        moved: Tensor = (residual / (values.clamp(min=0) + ridge * scale).unsqueeze(1)) @ vectors.mT
        return weight + moved

    return path + [(ridge, at(ridge)) for ridge in RIDGES]


def solve(covariances: Covariances, weight: Tensor, *, ridge: float, kept: Tensor | None = None) -> Tensor:
    """Return (C_TX + λ W₀) (C_XX + λ I)⁻¹ by Cholesky, for each row on its `kept` features.

    λ grows where the matrix is not positive definite.
    """
    residual = covariances.tx - weight @ covariances.xx
    scale = _scale(covariances.xx)
    for power in range(8):
        system = covariances.xx.clone()
        system.diagonal(dim1=1, dim2=2).add_(ridge * 10.0**power * scale)
        moved = _moved(system, residual, kept)
        if moved is not None:
            return weight + moved
    return weight


def _moved(system: Tensor, residual: Tensor, kept: Tensor | None) -> Tensor | None:
    """The change of the weights: `residual` times the inverse of `system`; `None` if that is not definite."""
    if kept is not None:
        return on_support(system, residual, kept)
    factor, failed = torch.linalg.cholesky_ex(system)
    return None if bool(failed.any()) else torch.cholesky_solve(residual.mT, factor).mT


def _scale(xx: Tensor) -> Tensor:
    """The mean of each group's diagonal, `[groups, 1]`; 1 where the layer's input is all zeros."""
    mean = xx.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True)
    return torch.where(mean > 1e-30, mean, torch.ones_like(mean))
