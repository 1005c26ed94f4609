"""Least-squares reconstruction: every layer behind the cut is fitted to give what the dense network's gives.

The cut is of channels, which narrows layers, or of single weights, which a mask leaves at zero in place.

The dense and the small network walk through their operators side by side, on the same images. At each convolution or
linear layer whose input or weights are no longer the dense network's, the small network's weights are fitted: X is
what the layer reads behind the *already repaired* prefix, T what the dense network's layer gives (He et al. 2017,
arXiv:1707.06168, sec. 3; the sequential form). Where the layer's output is added to a stream, as at the end of a
residual branch, T also makes up for what the stream is off by: the sum is to be the dense network's.

A new bias goes into the layer's own, or into the running mean of the batch norm behind it; the network's shape stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compressor.graph.copies import copy_of
from compressor.planning.affording import affords, rows_within
from compressor.planning.branches import LAYOUTS, Branch, norm_behind, residual_sum
from compressor.planning.mean_fit import Residuals, fit_mean
from compressor.planning.moments import (
    LEAST_ROWS,
    WIDEST,
    Fit,
    Moments,
    Reader,
    drawn_positions,
    features,
    fit,
    reader_of,
    targets,
    wanted_rows,
)
from compressor.planning.walk import Program, Walk, call, calls, operator, readers, side_by_side
from compressor.progress import Say, quiet
from compressor.surgery.masks import WeightMask
from compressor.surgery.surgery import Surgery

HELD_OUT = 4  # every so many batches, one judges the ridge


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFit:
    """How well one layer says what the dense network's says, on images that it was not fitted on.

    `before` and `after` are mean squared errors over the variance of the dense network's output.
    """

    layer: str
    before: float
    after: float
    ridge: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """A repaired copy of the small network, and what each fit did, in the order of the forward pass."""

    module: nn.Module
    layers: tuple[LayerFit, ...]
    images: int


def reconstruct(
    dense: nn.Module,
    small: nn.Module,
    surgery: Surgery,
    batches: Sequence[Sequence[Tensor]],
    *,
    mean_only: bool = False,
    silent: frozenset[str] = frozenset(),
    mask: WeightMask | None = None,
    memory_bytes: int | None = None,
    seed: int = 0,
    say: Say = quiet,
) -> Reconstruction:
    """A copy of `small`, which `surgery` cut from `dense`, fitted layer by layer on `batches` of inputs.

    Weights that `mask` removed, which are zero in `small`, stay exactly zero. Every batch has the same number of
    images. With `mean_only` no weight moves: the mean of what left goes into the biases. Layers whose weights are named
    in `silent` read nothing any more: their weights become zero, their biases the mean of what they are to give.
    A layer whose covariance is too large for `memory_bytes` (`planning.affording`) has its bias fitted alone, and
    `say` names it.
    Refused: networks that cannot be followed (`planning.walk`).
    """
    size = len(batches[0][0])
    programs = side_by_side(dense, small, batches[0], batch=size)
    module = copy_of(small)
    given = [list(column) for column in zip(*batches, strict=True)]
    with torch.no_grad():
        walk = _SideBySide(
            programs[0], programs[1], given, surgery, mean_only=mean_only, silent=silent, mask=mask,
            memory_bytes=memory_bytes, seed=seed, say=say,
        )  # fmt: skip
        layers = walk.through()
        state = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, tensor in walk.small.weights.items():
            state[name].copy_(tensor)
    return Reconstruction(module=module, layers=layers, images=size * len(batches))


class _SideBySide:
    """Both programs on the same batches: the dense one runs ahead as far as the small one needs to look."""

    def __init__(
        self,
        dense: Program,
        small: Program,
        inputs: Sequence[list[Tensor]],
        surgery: Surgery,
        *,
        mean_only: bool,
        silent: frozenset[str],
        mask: WeightMask | None,
        memory_bytes: int | None,
        seed: int,
        say: Say,
    ) -> None:
        self.dense, self.small = Walk(dense, inputs), Walk(small, inputs)
        self.surgery, self.mean_only, self.silent = surgery, mean_only, silent
        self.memory_bytes, self.say = memory_bytes, say
        self.kept = {} if mask is None else {n: kept for n, kept in mask.kept.items() if not bool(kept.all())}
        self.generator = torch.Generator().manual_seed(seed)
        self.readers = dict(readers(small))
        self.repeated = {i: node for i, node in calls(small) if i not in self.readers}
        self.told: set[str] = set()
        self.index = small.index
        self.changed: set[fx.Node] = set()
        dense_tensors = {name: dense.constants[node] for node, name in dense.names.items()}
        self.different = {
            node for node, name in small.names.items() if not torch.equal(small.constants[node], dense_tensors[name])
        }
        self.dense_last = dense.last_uses()
        self.dense_index = dense.index

    def through(self) -> tuple[LayerFit, ...]:
        """Fit every layer whose input or weights are others now, in order."""
        done: list[LayerFit] = []
        for i, node in enumerate(self.small.program.nodes):
            source = node.args[0] if node.args else None
            name = self.small.program.tensor_name(node.args[1]) if i in self.readers else None
            if name is not None and (source in self.changed or name in self.kept):
                assert isinstance(source, fx.Node)
                self.say(f"repairing {name}")
                done += self._fit(i, node, source)
            if i in self.repeated and source in self.changed:
                self._tell_of(node)
            self._advance_dense(i)
            if any(a in self.changed or a in self.different for a in node.all_input_nodes):
                self.changed.add(node)
            self.small.step()
            self._free_dense(i)
        return tuple(done)

    def _tell_of(self, node: fx.Node) -> None:
        """A layer that is called several times reads other things each time, some of them not made yet: it stays."""
        name = self.small.program.tensor_name(node.args[1]) or ""
        if name not in self.told:
            self.told.add(name)
            self.say(f"{name} is called several times: it is not repaired")

    def _advance_dense(self, index: int) -> None:
        while self.dense.at <= index:
            self.dense.step(free=False)

    def _free_dense(self, passed: int) -> None:
        for node in list(self.dense.values):
            if self.dense_index.get(node, -1) <= passed and self.dense_last.get(node, -1) < self.dense.at:
                del self.dense.values[node]

    def _fit(self, index: int, node: fx.Node, source: fx.Node) -> list[LayerFit]:
        """Fit one layer; an empty list where there is nothing that may move."""
        program = self.small.program
        weight_node = node.args[1]
        assert isinstance(weight_node, fx.Node)
        weight = self.small.constant(weight_node)
        reader = reader_of(program, node, weight)
        norm = None if reader.bias else norm_behind(program, node)
        matrix = reader.matrix(weight)
        if reader.weight in self.silent:
            matrix = torch.zeros_like(matrix)
        mean_only = self._mean_only(reader, matrix)
        intercept = reader.bias is not None or norm is not None
        if mean_only and not intercept and reader.weight not in self.silent:
            return []
        branch = self._branch(index, node)
        self._advance_dense(index if branch is None else branch.total)
        name_of_shift = reader.bias or norm
        shift = torch.zeros(matrix.shape[:2])
        if reader.bias is not None:
            shift = self.small.named(reader.bias).reshape(matrix.shape[:2])
        kept = self.kept.get(reader.weight)
        support = None if kept is None else reader.matrix(kept).to(matrix.device)
        if mean_only:
            left = Residuals(matrix), Residuals(matrix)
            self._add_rows(left, index, node, source, reader, matrix, branch)
            found = fit_mean(*left, matrix, shift, intercept=intercept)
        else:
            parts = Moments(), Moments()
            self._add_rows(parts, index, node, source, reader, matrix, branch)
            found = fit(*parts, matrix, shift, intercept=intercept, kept=support)
        self._set(weight_node, name_of_shift, norm is not None, reader, found, weight)
        layer = reader.weight.rpartition(".")[0] or reader.weight
        return [LayerFit(layer=layer, before=found.before, after=found.after, ridge=found.ridge)]

    def _mean_only(self, reader: Reader, matrix: Tensor) -> bool:
        """Whether the layer's weights stay; with a word where that is for want of memory."""
        if self.mean_only or reader.weight in self.silent:
            return True
        if matrix.shape[-1] <= WIDEST and affords(matrix, self.memory_bytes):
            return False
        self.say(f"{reader.weight} reads {matrix.shape[-1]:,} features, too many for memory: its bias alone is fitted")
        return True

    def _add_rows(
        self,
        parts: tuple[Moments, Moments] | tuple[Residuals, Residuals],
        index: int,
        node: fx.Node,
        source: fx.Node,
        reader: Reader,
        matrix: Tensor,
        branch: Branch | None,
    ) -> None:
        """Add what the layer reads and what it should give to the rows that are fitted on and those that judge."""
        small, dense_node = self.small, self.dense.program.nodes[index]
        whole = isinstance(parts[0], Moments)
        wanted = wanted_rows(reader, reader.tensor(matrix))
        wanted = -(-(wanted if whole else min(wanted, LEAST_ROWS)) // small.batches)
        each = rows_within(matrix, self.memory_bytes, covariance=whole, wanted=wanted)
        undo = None if branch is None else _Undo(small, node, branch)
        if undo is not None and branch is not None and not undo.one_by_one(small.argument(branch.other, 0)):
            undo = None
        for b in range(small.batches):
            output = self._like_small(self.dense.values[dense_node][b], reader, matrix)
            if branch is not None and undo is not None:
                total = self.dense.values[self.dense.program.nodes[branch.total]][b]
                other = small.argument(branch.other, b)
                total = self._kept(total, other.shape, reader)
                output = undo.target(total - other, output)
            positions = drawn_positions(reader, output, wanted=each, generator=self.generator)
            x = features(reader, small.argument(source, b), positions)
            t = targets(reader, output, positions)
            if small.batches == 1 and x.shape[1] == 1:  # too little to judge anything but the mean
                parts[0].add(x, t)
                parts[1].add(x, t)
            elif small.batches == 1:  # rows stand in for batches
                cut = -(-x.shape[1] * (HELD_OUT - 1) // HELD_OUT)
                cut = min(cut, x.shape[1] - 1)
                parts[0].add(x[:, :cut], t[:, :cut])
                parts[1].add(x[:, cut:], t[:, cut:])
            else:
                parts[b % HELD_OUT == HELD_OUT - 1 or b == small.batches - 1 < HELD_OUT - 1].add(x, t)

    def _like_small(self, output: Tensor, reader: Reader, matrix: Tensor) -> Tensor:
        """The dense layer's output at the channels that the small one still has."""
        channels = matrix.shape[0] * matrix.shape[1]
        dim = output.ndim - 1 if not reader.dims else output.ndim - reader.dims - 1
        shape = list(output.shape)
        shape[dim] = channels
        return self._kept(output, torch.Size(shape), reader)

    def _kept(self, value: Tensor, shape: torch.Size, reader: Reader) -> Tensor:
        """The dense value at the channels that stay; itself where none left."""
        if value.shape == shape:
            return value
        out_dim = 1 if reader.spread is not None else 0
        kept = self.surgery.slices[reader.weight][out_dim].to(value.device)
        dims = [d for d, (a, b) in enumerate(zip(value.shape, shape, strict=True)) if a != b]
        assert len(dims) == 1, (value.shape, shape)
        return value.index_select(dims[0], kept)

    def _set(
        self, weight_node: fx.Node, shift_name: str | None, in_norm: bool, reader: Reader, found: Fit, weight: Tensor
    ) -> None:
        names = self.small.program.names
        self.small.weights[names[weight_node]] = reader.tensor(found.weight).to(weight.dtype).contiguous()
        if shift_name is not None:
            before = self.small.named(shift_name)
            shift = found.shift.flatten().to(before.dtype)
            self.small.weights[shift_name] = before - shift if in_norm else shift

    def _branch(self, index: int, node: fx.Node) -> Branch | None:
        """The sum that the layer's output goes into unbent, where what it is added to is there already."""
        found = residual_sum(self.small.program, node)
        if found is None or self.index.get(found.other, -1) >= index or found.other not in self.small.values:
            return None
        return found


class _Undo:
    """From what a sum is to be back to what the layer should give: the chain between them turned round.

    The chain moves values and scales them; where it puts them is read off by sending positions through it, how it
    scales them by sending zeros and ones.
    """

    def __init__(self, walk: Walk, node: fx.Node, branch: Branch) -> None:
        small_shape = call(node, lambda a: walk.argument(a, 0)).shape
        ones = torch.ones(small_shape)

        def through(value: Tensor, only_layout: bool) -> Tensor:
            at, values = node, {node: value}
            for step in branch.chain:
                if operator(step) in LAYOUTS or not only_layout:
                    values[step] = call(step, lambda a, v=values: v[a] if a in v else walk.constant(a))  # type: ignore[misc]
                else:
                    values[step] = values[at]
                at = step
            return values[at]

        self.offset = through(torch.zeros(small_shape), False)
        self.scale = through(ones, False) - self.offset
        self.places = through(torch.arange(ones.numel()).reshape(small_shape), True).flatten()
        size = self.scale.abs()
        self.usable = size > 1e-3 * size.mean()

    def one_by_one(self, other: Tensor) -> bool:
        """Whether every value goes into a sum of its own: nothing is spread over the other side, or over a constant."""
        return other.shape == self.offset.shape and self.places.numel() == self.offset.numel()

    def target(self, total: Tensor, plain: Tensor) -> Tensor:
        """What the layer should give, so that the sum is right; `plain` where the chain lets nothing through."""
        if total.shape != self.offset.shape:
            return plain
        usable = self.usable
        wanted = (total - self.offset) / torch.where(usable, self.scale, torch.ones_like(self.scale))
        flat = plain.flatten().clone()
        flat[self.places] = torch.where(usable.flatten(), wanted.flatten(), flat[self.places])
        return flat.view_as(plain)
