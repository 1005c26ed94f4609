"""Least-squares reconstruction: fit the outputs of every layer behind the cut to those of the dense network.

A cut removes channels, which narrows layers, or single weights, which a mask keeps at zero in place.

The operators of the dense and the small network run side by side, on the same images. The small network's weights are
fitted at each convolution or linear layer whose input or weights differ from the dense network's: X is the layer's
input behind the *already repaired* prefix, T is the output of the dense network's layer (He et al. 2017,
arXiv:1707.06168, sec. 3; the sequential form). If the layer's output is added to a stream, as at the end of a residual
branch, T also corrects the stream's error: the sum is fitted to the dense network's sum.

A new bias is stored in the layer's own bias, or in the running mean of the batch norm behind it; no shape changes.
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

HELD_OUT = 4  # one batch of this many is held out, to choose the ridge


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFit:
    """The error of one layer's output on held-out images, before and after its fit.

    Both are mean squared errors divided by the variance of the dense network's output.
    """

    layer: str
    before: float
    after: float
    ridge: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """A repaired copy of the small network, and each layer's errors, in the order of the forward pass."""

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
    """Fit a copy of `small`, which `surgery` cut from `dense`, layer by layer on `batches` of inputs, and return it.

    Every batch has the same number of images. Weights that `mask` removed, which are zero in `small`, stay exactly
    zero. With `mean_only` only biases change: they take the mean of the removed channels' contribution. Layers whose
    weights are named in `silent` read no channel any more: their weights become zero, their biases the mean of their
    targets. If a layer's covariance is too large for `memory_bytes` (`planning.affording`), only its bias is fitted,
    and `say` names the layer. Refused: networks that cannot be followed (`planning.walk`).
    """
    size = len(batches[0][0])
    programs = side_by_side(dense, small, batches[0], batch=size)
    module = copy_of(small)
    inputs = [list(column) for column in zip(*batches, strict=True)]
    with torch.no_grad():
        walk = _SideBySide(
            programs[0], programs[1], inputs, surgery, mean_only=mean_only, silent=silent, mask=mask,
            memory_bytes=memory_bytes, seed=seed, say=say,
        )  # fmt: skip
        layers = walk.through()
        state = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, tensor in walk.small.weights.items():
            state[name].copy_(tensor)
    return Reconstruction(module=module, layers=layers, images=size * len(batches))


class _SideBySide:
    """Runs both programs on the same batches; the dense one runs ahead as far as the small one's targets need."""

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
        self.skipped: set[str] = set()
        self.index = small.index
        self.changed: set[fx.Node] = set()
        dense_tensors = {name: dense.constants[node] for node, name in dense.names.items()}
        self.different = {
            node for node, name in small.names.items() if not torch.equal(small.constants[node], dense_tensors[name])
        }
        self.dense_last = dense.last_uses()
        self.dense_index = dense.index

    def through(self) -> tuple[LayerFit, ...]:
        """Fit every layer whose input or weights differ from the dense network's, in order."""
        done: list[LayerFit] = []
        for i, node in enumerate(self.small.program.nodes):
            source = node.args[0] if node.args else None
            name = self.small.program.tensor_name(node.args[1]) if i in self.readers else None
            if name is not None and (source in self.changed or name in self.kept):
                assert isinstance(source, fx.Node)
                self.say(f"repairing {name}")
                done += self._fit(i, node, source)
            if i in self.repeated and source in self.changed:
                self._skip(node)
            self._advance_dense(i)
            if any(a in self.changed or a in self.different for a in node.all_input_nodes):
                self.changed.add(node)
            self.small.step()
            self._free_dense(i)
        return tuple(done)

    def _skip(self, node: fx.Node) -> None:
        """Report a layer that is called several times: it is not fitted, for some of its inputs do not exist yet."""
        name = self.small.program.tensor_name(node.args[1]) or ""
        if name not in self.skipped:
            self.skipped.add(name)
            self.say(f"{name} is called several times: it is not repaired")

    def _advance_dense(self, index: int) -> None:
        while self.dense.at <= index:
            self.dense.step(free=False)

    def _free_dense(self, passed: int) -> None:
        for node in list(self.dense.values):
            if self.dense_index.get(node, -1) <= passed and self.dense_last.get(node, -1) < self.dense.at:
                del self.dense.values[node]

    def _fit(self, index: int, node: fx.Node, source: fx.Node) -> list[LayerFit]:
        """Fit one layer; return an empty list if neither its weights nor a bias may change."""
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
            residuals = Residuals(matrix), Residuals(matrix)
            self._add_rows(residuals, index, node, source, reader, matrix, branch)
            fitted = fit_mean(*residuals, matrix, shift, intercept=intercept)
        else:
            parts = Moments(), Moments()
            self._add_rows(parts, index, node, source, reader, matrix, branch)
            fitted = fit(*parts, matrix, shift, intercept=intercept, kept=support)
        self._set(weight_node, name_of_shift, norm is not None, reader, fitted, weight)
        layer = reader.weight.rpartition(".")[0] or reader.weight
        return [LayerFit(layer=layer, before=fitted.before, after=fitted.after, ridge=fitted.ridge)]

    def _mean_only(self, reader: Reader, matrix: Tensor) -> bool:
        """True if only the layer's bias is fitted; reports the layer if the reason is a lack of memory."""
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
        """Add the layer's inputs and targets to both parts: the rows to fit on, and the rows to judge the fit on."""
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
            if small.batches == 1 and x.shape[1] == 1:  # one row: it must serve both for the fit and the judgement
                parts[0].add(x, t)
                parts[1].add(x, t)
            elif small.batches == 1:  # hold out rows in place of batches
                cut = -(-x.shape[1] * (HELD_OUT - 1) // HELD_OUT)
                cut = min(cut, x.shape[1] - 1)
                parts[0].add(x[:, :cut], t[:, :cut])
                parts[1].add(x[:, cut:], t[:, cut:])
            else:
                judges = b % HELD_OUT == HELD_OUT - 1 or b == small.batches - 1 < HELD_OUT - 1
                parts[judges].add(x, t)  # False is the first part, True the second

    def _like_small(self, output: Tensor, reader: Reader, matrix: Tensor) -> Tensor:
        """Return the dense layer's output at the channels that the small layer still has."""
        channels = matrix.shape[0] * matrix.shape[1]
        dim = output.ndim - 1 if not reader.dims else output.ndim - reader.dims - 1
        shape = list(output.shape)
        shape[dim] = channels
        return self._kept(output, torch.Size(shape), reader)

    def _kept(self, value: Tensor, shape: torch.Size, reader: Reader) -> Tensor:
        """Return the dense value at the channels that stay; the value itself if none was removed."""
        if value.shape == shape:
            return value
        out_dim = 1 if reader.spread is not None else 0
        kept = self.surgery.slices[reader.weight][out_dim].to(value.device)
        dims = [d for d, (a, b) in enumerate(zip(value.shape, shape, strict=True)) if a != b]
        assert len(dims) == 1, (value.shape, shape)
        return value.index_select(dims[0], kept)

    def _set(
        self, weight_node: fx.Node, shift_name: str | None, in_norm: bool, reader: Reader, fitted: Fit, weight: Tensor
    ) -> None:
        """Store the fitted weights and shift; `in_norm`: the shift is subtracted from the norm's running mean."""
        names = self.small.program.names
        self.small.weights[names[weight_node]] = reader.tensor(fitted.weight).to(weight.dtype).contiguous()
        if shift_name is not None:
            before = self.small.named(shift_name)
            shift = fitted.shift.flatten().to(before.dtype)
            self.small.weights[shift_name] = before - shift if in_norm else shift

    def _branch(self, index: int, node: fx.Node) -> Branch | None:
        """Return the sum that the layer's output reaches linearly; `None` if its other term is not computed yet."""
        branch = residual_sum(self.small.program, node)
        if branch is None or self.index.get(branch.other, -1) >= index or branch.other not in self.small.values:
            return None
        return branch


class _Undo:
    """Inverts the chain of operators between a layer and a sum: from the sum's target to the layer's target.

    The chain is affine: it moves and scales values and adds an offset. Sending indices through its layout operators
    shows where each value goes; sending zeros and ones through all of it shows offset and scale.
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
        """True if each value of the layer goes into exactly one value of the sum, without broadcasting."""
        return other.shape == self.offset.shape and self.places.numel() == self.offset.numel()

    def target(self, total: Tensor, plain: Tensor) -> Tensor:
        """Return the layer's target for the sum `total`; `plain` where the chain's scale is close to zero."""
        if total.shape != self.offset.shape:
            return plain
        usable = self.usable
        wanted = (total - self.offset) / torch.where(usable, self.scale, torch.ones_like(self.scale))
        flat = plain.flatten().clone()
        flat[self.places] = torch.where(usable.flatten(), wanted.flatten(), flat[self.places])
        return flat.view_as(plain)
