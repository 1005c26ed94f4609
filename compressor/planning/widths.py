"""The cost of a network at any widths of its channel groups: a sum over layers, each a sum of products of its widths.

A layer's time depends on its input and its output widths, and both may belong to groups. So costs couple neighbours,
and are always computed from all widths together. Many sets of widths are priced at once, as rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compressor.channels.groups import ChannelGroup
from compressor.planning.costs import CostModel
from compressor.surgery.plan import Countable

Numbers = NDArray[np.float64]
BLOCK = 16  # channels of a block with AVX-512; two blocks with AVX2
WIDE = 32  # output channels that a blocked convolution computes at once, where possible


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A multiplying weight, and which of its dimensions are the input and the output width."""

    tensor: str
    reads: int | None
    writes: int | None


def features(reads: Numbers, writes: Numbers) -> Numbers:
    """Six regressors of a layer's latency at these widths, `[..., 6]`; all zero for a layer with no input or output
    channels.

    They are: a start, the input width, the output width, their product, the product of both rounded up to whole blocks
    of `BLOCK`, and the product with the output width rounded up to `WIDE`.
    """
    blocks = [np.ceil(width / BLOCK) * BLOCK for width in (reads, writes)]
    wide = np.ceil(writes / WIDE) * WIDE
    there = (reads > 0) & (writes > 0)
    parts = (np.ones_like(reads), reads, writes, reads * writes, blocks[0] * blocks[1], reads * wide)
    return np.stack([np.where(there, part, 0.0) for part in parts], axis=-1)


FEATURES = 6
START = 0  # the index of the start
PRODUCT = 3  # the index of the feature that is proportional to MACs


class Sizes:
    """The lengths of tensors' dimensions at given widths of the groups; a row of widths is in the groups' order."""

    def __init__(self, module: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        self.groups = tuple(groups)
        self.shapes = {name: tuple(t.shape) for name, t in module.state_dict().items()}
        self.dense = np.array([float(g.channels) for g in groups])
        self.per_channel: dict[tuple[str, int], Numbers] = {}
        for k, group in enumerate(self.groups):
            for member in group.members:
                row = self.per_channel.setdefault((member.tensor, member.dim), np.zeros(len(self.groups)))
                row[k] += len(member.positions) / group.channels

    def row(self, widths: Mapping[str, int]) -> Numbers:
        """Return widths by root as a row `[groups]`; a group without an entry keeps its own width."""
        return np.array([float(widths.get(g.root, g.channels)) for g in self.groups])

    def at(self, tensor: str, dim: int, rows: Numbers) -> Numbers:
        """Return the length of a tensor's dimension at each row of widths `[..., groups]`: `[...]`."""
        per_channel = self.per_channel.get((tensor, dim))
        whole = float(self.shapes[tensor][dim])
        if per_channel is None:
            return np.full(rows.shape[:-1], whole)
        return np.asarray(whole - (self.dense - rows) @ per_channel)

    def of(self, layer: Layer, rows: Numbers) -> tuple[Numbers, Numbers]:
        """Return a layer's input and output width at each row of widths; 1 where no dimension is set."""
        one = np.ones(rows.shape[:-1])
        reads = one if layer.reads is None else self.at(layer.tensor, layer.reads, rows)
        writes = one if layer.writes is None else self.at(layer.tensor, layer.writes, rows)
        return reads, writes


class WidthCost:
    """Σ over layers of prices · `features`, as a share of the dense network's cost."""

    def __init__(self, sizes: Sizes, layers: Sequence[Layer], prices: Numbers) -> None:
        """`prices` are `[layers, FEATURES]`."""
        self.sizes, self.layers, self.prices = sizes, tuple(layers), prices
        self.dense = float(self.total(sizes.dense[None])[0])

    def by_layer(self, rows: Numbers) -> Numbers:
        """Return the cost of each layer at each row of widths: `[rows, layers]`."""
        pairs = [self.sizes.of(layer, rows) for layer in self.layers]
        reads, writes = (np.stack([pair[k] for pair in pairs], axis=-1) for k in (0, 1))
        return np.asarray(np.einsum("klf,lf->kl", features(reads, writes), self.prices))

    def total(self, rows: Numbers) -> Numbers:
        """Return the network's cost at each row of widths `[rows, groups]`: `[rows]`."""
        return np.asarray(self.by_layer(rows).sum(axis=-1))

    def stays(self, rows: Numbers) -> Numbers:
        """Return the same over the dense network's cost."""
        return np.asarray(self.total(rows) / self.dense)


class CountedCost(WidthCost):
    """MACs or parameters: each tensor's are proportional to the lengths of its dimensions."""

    def __init__(self, model: CostModel, sizes: Sizes, counted: Countable) -> None:
        """MACs without a weight are assumed to shrink like the parameters."""
        layers, prices = [], np.zeros((len(model.sizes), FEATURES))
        for number, (name, params) in enumerate(model.sizes.items()):
            shape = model.shapes[name]
            following = [d for d in range(len(shape)) if (name, d) in sizes.per_channel]
            writes, reads = [*following, None, None][:2]  # the first two dimensions that follow groups, or `None`
            layers.append(Layer(tensor=name, reads=reads, writes=writes))
            whole = float(np.prod([shape[d] for d in following[:2]]))
            macs = model.layer_macs.get(name, 0) + model.other_macs * params / model.dense.params
            prices[number, PRODUCT] = (params if counted is Countable.PARAMS else macs) / whole
        super().__init__(sizes, layers, prices)

    def by_layer(self, rows: Numbers) -> Numbers:
        """Return the cost of each layer; of the features only the product counts."""
        pairs = [self.sizes.of(layer, rows) for layer in self.layers]
        reads, writes = (np.stack([pair[k] for pair in pairs], axis=-1) for k in (0, 1))
        return np.asarray(reads * writes * self.prices[:, PRODUCT])


class ChannelCost(WidthCost):
    """Every channel costs one."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, (), np.zeros((0, FEATURES)))

    def by_layer(self, rows: Numbers) -> Numbers:
        """Return a column for each group."""
        return rows
