"""The error at the network's output when one channel group alone is narrowed and repaired: a curve per group.

The dense network walks through its operators once, on images that no fit has used. Where a group's channels are read
first, the walk forks once for every width to try, with the readers' weights fitted to the remaining channels (least
squares on the dense network's own second moments, which is exact for a single group), and continues to the end.
Operators before the fork are never computed twice.

The rise is the squared error of the output over the dense output's variance, for class scores as for any other output.
The errors of several groups are nearly independent, so their rises add up. (The Kullback-Leibler divergence of
saturated class probabilities depends on a few images, and made worse allocations.) Curves are made monotone and convex:
points above the convex hull are treated as noise.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.graph.outputs import tensors_in
from compressor.planning.branches import norm_behind
from compressor.planning.elimination import RIDGE, ReaderMoments, consumers, features_of
from compressor.planning.moments import Covariances, solve
from compressor.planning.walk import Program, Walk, calls, readers
from compressor.progress import Say, quiet

Orders = Mapping[str, Sequence[int]]  # root → channels, in the order of removal


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A group's widths, descending from all channels, and the rise of the output's error at each."""

    root: str
    widths: tuple[int, ...]
    measured: tuple[float, ...]

    @property
    def rises(self) -> tuple[float, ...]:
        """The measured rises, replaced by the convex and monotone curve below them."""
        gone = [self.widths[0] - w for w in self.widths]
        running = [max(self.measured[: i + 1]) for i in range(len(self.measured))]
        hull: list[int] = []
        for i in range(len(gone)):
            while len(hull) > 1 and _slope(gone, running, hull[-2], hull[-1]) >= _slope(gone, running, hull[-1], i):
                hull.pop()
            hull.append(i)
        return tuple(_interpolated(g, [gone[i] for i in hull], [running[i] for i in hull]) for g in gone)

    def at(self, width: int) -> float:
        """Return the rise at any width between the measured ones."""
        gone = [self.widths[0] - w for w in self.widths]
        return _interpolated(self.widths[0] - width, gone, list(self.rises))


def _slope(x: Sequence[float], y: Sequence[float], i: int, j: int) -> float:
    return (y[j] - y[i]) / (x[j] - x[i])


def _interpolated(at: float, x: Sequence[float], y: Sequence[float]) -> float:
    for i in range(1, len(x)):
        if at <= x[i]:
            return y[i - 1] + (y[i] - y[i - 1]) * (at - x[i - 1]) / (x[i] - x[i - 1])
    return y[-1]


def sensitivity(
    program: Program,
    groups: Sequence[ChannelGroup],
    readings: Mapping[str, ReaderMoments],
    orders: Orders,
    widths: Mapping[str, Sequence[int]],
    batches: Sequence[Sequence[Tensor]],
    *,
    say: Say = quiet,
) -> tuple[Curve, ...]:
    """Return a curve for every group whose readers have a reading; `widths` are those to try, besides the full one."""
    first: dict[int, list[ChannelGroup]] = {}
    called_first: dict[str | None, int] = {}
    for i, node in calls(program):
        called_first.setdefault(program.tensor_name(node.args[1]), i)
    for group in groups:
        pairs = consumers(group, readings)
        if pairs:
            first.setdefault(min(called_first[m.tensor] for m, _ in pairs), []).append(group)
    named = ((program.tensor_name(node.args[1]), node) for _, node in readers(program))
    norms = {name: norm_behind(program, node) for name, node in named if name is not None}
    curves: dict[str, Curve] = {}
    inputs = [list(column) for column in zip(*batches, strict=True)]
    with torch.no_grad():
        dense = real_outputs(Walk(program, inputs).finish())
        walk = Walk(program, inputs)
        done, total = 0, sum(len(widths[g.root]) for here in first.values() for g in here)
        for i in range(len(program.nodes)):
            for group in first.get(i, ()):
                measured = [0.0]
                for width in widths[group.root]:
                    done += 1
                    say(f"probing {group.root} at {width} of {group.channels} channels ({done} of {total})")
                    gone = torch.zeros(group.channels, dtype=torch.bool)
                    gone[list(orders[group.root][: group.channels - width])] = True
                    weights = narrowed(program, group, readings, norms, gone)
                    measured.append(rises(dense, real_outputs(walk.fork(weights).finish())))
                curves[group.root] = Curve(
                    root=group.root, widths=(group.channels, *widths[group.root]), measured=tuple(measured)
                )
            walk.step()
    return tuple(curves[g.root] for g in groups if g.root in curves)


def narrowed(
    program: Program,
    group: ChannelGroup,
    readings: Mapping[str, ReaderMoments],
    norms: Mapping[str, str | None],
    gone: Tensor,
) -> dict[str, Tensor]:
    """Return the readers' weights and biases, in the dense shapes, with the channels in `gone` silenced and
    compensated.

    Layers that are called several times are not repaired (`pruning.repair.least_squares`), and compensate nothing.
    """
    tensors = {name: program.constants[node] for node, name in program.names.items()}
    changed: dict[str, Tensor] = {}
    for member, reading in consumers(group, readings):
        at, channels = features_of(member, reading)
        matrix, shift = reading.matrix.clone(), torch.zeros(reading.matrix.shape[:2], dtype=torch.float64)
        moments = reading.moments
        mean = moments.x / moments.rows
        covariance = reading.covariance()
        for block in sorted(set(at[:, 0].tolist())):
            starts = at[(at[:, 0] == block) & gone[channels], 1]
            lost = (starts.unsqueeze(1) + torch.arange(reading.reader.window)).flatten()
            keep = torch.ones(matrix.shape[2], dtype=torch.bool)
            keep[lost] = False
            index = keep.nonzero().flatten()
            weight = reading.matrix[block]
            fitted = torch.zeros_like(weight)
            if len(index) and not reading.wide and reading.called == 1:
                fitted[:, index] = _fitted(covariance[block], weight, index)
            else:
                fitted[:, index] = weight[:, index]
            matrix[block] = fitted
            if reading.called == 1:
                shift[block] = (weight - fitted) @ mean[block]
        name = member.tensor
        changed[name] = reading.reader.tensor(matrix).to(tensors[name].dtype)
        bias, norm = reading.reader.bias, norms.get(name)
        if bias is not None:
            changed[bias] = tensors[bias] + shift.flatten().to(tensors[bias].dtype)
        elif norm is not None:
            changed[norm] = tensors[norm] - shift.flatten().to(tensors[norm].dtype)
    return changed


def _fitted(covariance: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """The weights on the features in `index` that predict W X best: W C[:, K] (C[K, K] + λ I)⁻¹, towards W[:, K]."""
    part = covariance[index][:, index].unsqueeze(0)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    covariances = Covariances(
        mean_x=zero, mean_t=zero, xx=part, tx=(weight @ covariance[:, index]).unsqueeze(0), tt=zero, intercept=False
    )
    return solve(covariances, weight[:, index].unsqueeze(0), ridge=RIDGE)[0]


def real_outputs(values: Sequence[Sequence[Any]]) -> list[Tensor]:
    """Return every output of real numbers over all batches, `[images, ...]`, from outputs batch by batch.

    Boxes and others whose number the network chooses have no rows to compare, and are left out.
    """
    real: list[Tensor] = []
    for batches in values:
        tensors = [part for value in batches for part in tensors_in(value)]
        alike = len({tuple(part.shape[1:]) for part in tensors if part.ndim}) == 1 and all(p.ndim for p in tensors)
        if alike and tensors[0].is_floating_point():
            real.append(torch.cat(tensors))
    return real


def rises(dense: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the mean over outputs of `rise`: every output counts alike, whatever its scale and its size."""
    each = [rise(a, b) for a, b in zip(dense, other, strict=True)]
    return sum(each) / len(each) if each else 0.0


def rise(dense: Tensor, other: Tensor) -> float:
    """Return the squared error of an output against the dense network's, over the dense variance; infinite if not
    finite.

    Class scores `[images, classes]` are centred image by image first, because a shift of all scores changes nothing.
    """
    dense, other = dense.double(), other.double()
    if dense.ndim == 2 and dense.shape[1] > 1:
        dense, other = (t - t.mean(dim=1, keepdim=True) for t in (dense, other))
    variance = float((dense - dense.mean(dim=0)).square().mean()) or 1.0
    error = float((other - dense).square().mean()) / variance
    return error if math.isfinite(error) else math.inf


def writable(rise: float) -> float:
    """Return the rise as a number that JSON can store: the largest float if it is infinite."""
    return min(rise, sys.float_info.max) if not math.isnan(rise) else sys.float_info.max
