"""Optimal brain surgeon on channels: the loss of a group's readers with each removed channel, compensated by the
others.

With H the covariance of a reader's input and W its weights, removing channel c and compensating with the others costs
tr(W_c ((H⁻¹)_cc)⁻¹ W_cᵀ) of the output's variance (Hassibi & Stork 1992; on blocks of weights: Kurtić et al. 2022,
arXiv:2203.07259). Channels are removed one by one, the cheapest first. After each removal W and H⁻¹ are down-dated, so
that one pass yields the whole curve from all channels to one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compressor.channels.groups import ChannelGroup, Member, Role
from compressor.errors import CalibrationError
from compressor.planning.affording import rows_within, too_large
from compressor.planning.moments import (
    LEAST_ROWS,
    WIDEST,
    Moments,
    Reader,
    drawn_positions,
    features,
    reader_of,
    wanted_rows,
)
from compressor.planning.walk import Program, Walk, calls
from compressor.progress import Say, quiet

RIDGE = 1e-3  # times the mean of the diagonal: keeps H⁻¹ small where channels are copies of each other
TURNS = 256  # down-dating steps; a wider group loses several channels in each


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderMoments:
    """A reading layer, its weight in matrix form, and the second moments of its input.

    Where the input has more than `WIDEST` features, or a covariance that does not fit in memory, `moments.xx` has only
    the diagonals, `[groups, features]`.
    """

    reader: Reader
    matrix: Tensor  # [groups, outputs / groups, features], float64
    moments: Moments  # over all calls of the layer
    called: int = 1

    @property
    def wide(self) -> bool:
        """True if only the diagonal of the second moments is known."""
        return self.moments.xx.ndim == 2

    def covariance(self) -> Tensor:
        """Return `[groups, features, features]`, or its diagonals `[groups, features]`; float64."""
        if not self.wide:
            return self.moments.covariance()
        variances: Tensor = self.moments.xx / self.moments.rows - (self.moments.x / self.moments.rows).square()
        return variances.clamp(min=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elimination:
    """The order in which a group's channels are removed, and the share of its readers' variance lost after each."""

    order: tuple[int, ...]  # every channel, in the order of removal
    lost: tuple[float, ...]  # after each, summed over the readers


def readings_of(
    program: Program, batches: Sequence[Sequence[Tensor]], names: set[str], *, seed: int = 0,
    memory_bytes: int | None = None, say: Say = quiet,
) -> dict[str, ReaderMoments]:  # fmt: skip
    """Return the second moments of the inputs of layers with the weights `names`, gathered batch by batch in one pass.

    Where they do not fit in `memory_bytes` (`planning.affording`), the widest layers have variances alone; `say` names
    them.
    """
    generator = torch.Generator().manual_seed(seed)
    at = {i: node for i, node in calls(program) if program.tensor_name(node.args[1]) in names}
    readings = _empty(program, at.values())
    at = {i: node for i, node in at.items() if program.tensor_name(node.args[1]) in readings}
    without = too_large({name: reading.matrix for name, reading in readings.items()}, memory_bytes)
    for name in sorted(without):
        say(f"`{name}` reads too many features for memory: its channels are judged by variances alone")
    wide = without | {name for name, reading in readings.items() if reading.matrix.shape[-1] > WIDEST}
    with torch.no_grad():
        for batch in batches:
            walk = Walk(program, [[t] for t in batch])
            while walk.at < len(program.nodes):
                i, node = walk.at, program.nodes[walk.at]
                source = walk.argument(node.args[0], 0) if i in at else None  # type: ignore[arg-type]
                walk.step()
                if source is not None:
                    reading = readings[program.tensor_name(node.args[1]) or ""]
                    diagonal = reading.reader.weight in wide
                    each = _rows(reading, len(batches), memory_bytes, diagonal=diagonal)
                    output = walk.values[node][0]
                    positions = drawn_positions(reading.reader, output, wanted=each, generator=generator)
                    _add(reading.moments, features(reading.reader, source, positions), diagonal=diagonal)
    return readings


def _empty(program: Program, nodes: Iterable[fx.Node]) -> dict[str, ReaderMoments]:
    """A reading without rows for every layer that the operators run; none where the calls of a layer differ in kind."""
    by_name: dict[str, list[Reader]] = {}
    weights: dict[str, Tensor] = {}
    for node in nodes:
        weight = program.constants[node.args[1]]  # type: ignore[index]  # a reader's weight is a node
        reader = reader_of(program, node, weight)
        by_name.setdefault(reader.weight, []).append(reader)
        weights[reader.weight] = weight
    return {
        name: ReaderMoments(
            reader=each[0], matrix=each[0].matrix(weights[name]).double(), moments=Moments(), called=len(each)
        )
        for name, each in by_name.items()
        if all(reader == each[0] for reader in each)
    }


def _rows(reading: ReaderMoments, batches: int, memory_bytes: int | None, *, diagonal: bool) -> int:
    """The number of rows used from each batch."""
    wanted = wanted_rows(reading.reader, reading.reader.tensor(reading.matrix))
    each = -(-(min(wanted, LEAST_ROWS) if diagonal else wanted) // batches)
    return rows_within(reading.matrix, memory_bytes, covariance=False, wanted=each)


def _add(moments: Moments, rows: Tensor, *, diagonal: bool) -> None:
    """Add rows to the moments; with `diagonal`, only their sums of squares."""
    if not diagonal:
        moments.add(rows)
        return
    moments.rows += rows.shape[1]
    moments.x = moments.x + rows.sum(dim=1, dtype=torch.float64)
    moments.xx = moments.xx + rows.square().sum(dim=1, dtype=torch.float64)


def consumers(group: ChannelGroup, readings: Mapping[str, ReaderMoments]) -> list[tuple[Member, ReaderMoments]]:
    """Return the members that read the group's channels in a layer with a reading."""
    pairs = []
    for member in group.members:
        reading = readings.get(member.tensor)
        if member.role is Role.CONSUMES and reading is not None and member.dim == _input_dim(reading.reader):
            pairs.append((member, reading))
    return pairs


def _input_dim(reader: Reader) -> int:
    """The weight's input dimension."""
    return 0 if reader.spread is not None else 1


def features_of(member: Member, reading: ReaderMoments) -> tuple[Tensor, Tensor]:
    """Return the places of the member's positions in the matrix form, and the channel at each.

    int64 `[n, 2]`, the layer's group and first feature, and `[n]`. A position of a grouped convolution's second
    dimension occurs in every group; a transposed one has a row for each.
    """
    window = reading.reader.window
    groups, per_group = reading.matrix.shape[0], reading.matrix.shape[-1] // window
    if reading.reader.spread is not None or groups == 1:
        where = torch.stack([member.positions // per_group, member.positions % per_group * window], dim=1)
        return where, member.channels
    block = torch.arange(groups).repeat_interleave(len(member.positions))
    return torch.stack([block, member.positions.repeat(groups) * window], dim=1), member.channels.repeat(groups)


def _inverse(covariance: Tensor, ridge: Tensor) -> Tensor:
    """(C + λ I)⁻¹ by Cholesky; with a larger λ where that is not positive definite."""
    eye = torch.eye(len(covariance), dtype=covariance.dtype)
    for power in range(8):
        factor, failed = torch.linalg.cholesky_ex(covariance + ridge * 10.0**power * eye)
        if not bool(failed):
            return torch.cholesky_inverse(factor)
    raise CalibrationError("the input of a layer is not finite", hint="check the data's normalisation")


class _Downdating:
    """One group of one reader: H⁻¹ and W, and the features of each channel."""

    def __init__(self, covariance: Tensor, weight: Tensor, channels: Tensor, indices: Tensor) -> None:
        self.channels, self.indices = channels, indices  # [present], [present, features of one]
        self.weight = weight.clone()
        self.static = covariance.ndim == 1
        mean = covariance.mean() if self.static else covariance.diagonal().mean()
        ridge = RIDGE * mean.clamp(min=1e-30)
        if self.static:
            self.inverse = covariance + ridge
            self.variance = float((weight.square() * covariance).sum())
        else:
            self.inverse = _inverse(covariance, ridge)
            self.variance = float(((weight @ covariance) * weight).sum())

    def costs(self, channels: int) -> Tensor:
        """The current cost of each channel, over the variance of the output: `[channels]`."""
        total = torch.zeros(channels, dtype=torch.float64)
        if self.variance <= 1e-30:
            return total  # a constant output loses nothing
        by_channel = self.weight[:, self.indices]  # [out, present, features]
        if self.static:
            cost = (by_channel.square() * self.inverse[self.indices]).sum(dim=(0, 2))
        else:
            blocks = self.inverse[self.indices.unsqueeze(2), self.indices.unsqueeze(1)]  # [present, f, f]
            solved = torch.linalg.solve(blocks, by_channel.permute(1, 2, 0))  # [present, f, out]
            cost = (solved * by_channel.permute(1, 2, 0)).sum(dim=(1, 2))
        return total.index_add_(0, self.channels, cost.clamp(min=0) / self.variance)

    def remove(self, gone: Tensor) -> None:
        """Remove the channels marked in `gone` `[channels]`."""
        leaving = gone[self.channels]
        if not bool(leaving.any()):
            return
        index = self.indices[leaving].flatten()
        if not self.static:
            block = self.inverse[index][:, index]
            rows = torch.linalg.solve(block, self.inverse[index])
            self.weight -= self.weight[:, index] @ rows
            self.inverse -= self.inverse[:, index] @ rows
        self.weight[:, index] = 0
        self.channels, self.indices = self.channels[~leaving], self.indices[~leaving]


def eliminate(group: ChannelGroup, readings: Mapping[str, ReaderMoments]) -> Elimination | None:
    """Return the group's whole elimination; `None` where no reader of its channels has a reading."""
    parts = [p for member, reading in consumers(group, readings) for p in _parts(member, reading)]
    if not parts:
        return None
    alive = torch.ones(group.channels, dtype=torch.bool)
    order: list[int] = []
    lost: list[float] = []
    total = 0.0
    at_once = max(1, group.channels // TURNS)
    while len(order) < group.channels:
        costs = torch.stack([part.costs(group.channels) for part in parts]).sum(dim=0)
        costs[~alive] = torch.inf
        leaving = costs.sort(stable=True).indices[: min(at_once, group.channels - len(order))]
        gone = torch.zeros_like(alive)
        gone[leaving] = True
        for part in parts:
            part.remove(gone)
        alive &= ~gone
        for channel in leaving.tolist():
            total += float(costs[channel])
            order.append(channel)
            lost.append(total)
    return Elimination(order=tuple(order), lost=tuple(lost))


def _parts(member: Member, reading: ReaderMoments) -> list[_Downdating]:
    """The reader's groups, each ready for down-dating."""
    at, every_channel = features_of(member, reading)
    covariance = reading.covariance()
    parts = []
    for block in sorted(set(at[:, 0].tolist())):
        here = at[:, 0] == block
        channels, starts = every_channel[here], at[here, 1]
        counts = channels.bincount()
        present = counts.nonzero().flatten()
        if int(counts[present].min()) != int(
            counts.max()
        ):  # some channels have fewer positions than others: judge position by position
            window = starts.unsqueeze(1) + torch.arange(reading.reader.window)
            parts.append(_Downdating(covariance[block], reading.matrix[block], channels, window))
            continue
        order = channels.sort(stable=True).indices
        window = starts[order].view(len(present), -1, 1) + torch.arange(reading.reader.window)
        parts.append(_Downdating(covariance[block], reading.matrix[block], present, window.flatten(1)))
    return parts
