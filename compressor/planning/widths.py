"""What a network costs at any widths of its channel groups: a sum over layers, each a sum of products of its widths.

A layer's time hangs on what it reads and what it writes, and both may belong to groups; so costs couple neighbours,
and are always taken of all widths together. Many sets of widths are priced at once, as rows of a matrix.
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
WIDE = 32  # output channels that a blocked convolution computes at once, if it can


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A weight that multiplies, and which dimensions of it say what it reads and what it writes."""

    tensor: str
    reads: int | None
    writes: int | None


def features(reads: Numbers, writes: Numbers) -> Numbers:
    """What a layer's time is a sum of, at these widths: `[..., 6]`; nothing of a layer that reads or writes nothing.

    A start, the width that is read, the width that is written, their product, the product of both rounded up to whole
    blocks of `BLOCK`, and that with what is written rounded up to `WIDE`.
    """
    blocks = [np.ceil(width / BLOCK) * BLOCK for width in (reads, writes)]
    wide = np.ceil(writes / WIDE) * WIDE
    there = (reads > 0) & (writes > 0)
    parts = (np.ones_like(reads), reads, writes, reads * writes, blocks[0] * blocks[1], reads * wide)
    return np.stack([np.where(there, part, 0.0) for part in parts], axis=-1)


FEATURES = 6
START = 0  # the number of the feature that is a start
PRODUCT = 3  # the number of the feature that is proportional to MACs


class Sizes:
    """How long the dimensions of tensors are at given widths of the groups; a row of widths is in the groups' order."""

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
        """Widths by root as a row `[groups]`; a group that is not named keeps its own."""
        return np.array([float(widths.get(g.root, g.channels)) for g in self.groups])

    def at(self, tensor: str, dim: int, rows: Numbers) -> Numbers:
        """The length of a tensor's dimension at each row of widths `[..., groups]`: `[...]`."""
        follows = self.per_channel.get((tensor, dim))
        whole = float(self.shapes[tensor][dim])
        if follows is None:
            return np.full(rows.shape[:-1], whole)
        return np.asarray(whole - (self.dense - rows) @ follows)

    def of(self, layer: Layer, rows: Numbers) -> tuple[Numbers, Numbers]:
        """What a layer reads and writes at each row of widths; 1 where no dimension says it."""
        one = np.ones(rows.shape[:-1])
        reads = one if layer.reads is None else self.at(layer.tensor, layer.reads, rows)
        writes = one if layer.writes is None else self.at(layer.tensor, layer.writes, rows)
        return reads, writes


class WidthCost:
    """Σ over layers of prices · `features`, as a share of what the dense network costs."""

    def __init__(self, sizes: Sizes, layers: Sequence[Layer], prices: Numbers) -> None:
        """`prices` are `[layers, FEATURES]`."""
        self.sizes, self.layers, self.prices = sizes, tuple(layers), prices
        self.dense = float(self.total(sizes.dense[None])[0])

    def by_layer(self, rows: Numbers) -> Numbers:
        """What each layer costs at each row of widths: `[rows, layers]`."""
        pairs = [self.sizes.of(layer, rows) for layer in self.layers]
        reads, writes = (np.stack([pair[k] for pair in pairs], axis=-1) for k in (0, 1))
        return np.asarray(np.einsum("klf,lf->kl", features(reads, writes), self.prices))

    def total(self, rows: Numbers) -> Numbers:
        """What the network costs at each row of widths `[rows, groups]`: `[rows]`."""
        return np.asarray(self.by_layer(rows).sum(axis=-1))

    def stays(self, rows: Numbers) -> Numbers:
        """The same over what the dense network costs."""
        return np.asarray(self.total(rows) / self.dense)


class CountedCost(WidthCost):
    """MACs or parameters: each tensor's are proportional to the lengths of its dimensions."""

    def __init__(self, model: CostModel, sizes: Sizes, counted: Countable) -> None:
        """What no weight accounts for of MACs is taken to shrink like the parameters."""
        layers, prices = [], np.zeros((len(model.sizes), FEATURES))
        for number, (name, params) in enumerate(model.sizes.items()):
            shape = model.shapes[name]
            following = [d for d in range(len(shape)) if (name, d) in sizes.per_channel]
            writes, reads = [*following, None, None][:2]
            layers.append(Layer(tensor=name, reads=reads, writes=writes))
            whole = float(np.prod([shape[d] for d in following[:2]]))
            macs = model.layer_macs.get(name, 0) + model.other_macs * params / model.dense.params
            prices[number, PRODUCT] = (params if counted is Countable.PARAMS else macs) / whole
        super().__init__(sizes, layers, prices)

    def by_layer(self, rows: Numbers) -> Numbers:
        """As for any cost; of the features only the product counts."""
        pairs = [self.sizes.of(layer, rows) for layer in self.layers]
        reads, writes = (np.stack([pair[k] for pair in pairs], axis=-1) for k in (0, 1))
        return np.asarray(reads * writes * self.prices[:, PRODUCT])


class ChannelCost(WidthCost):
    """A channel costs one, whichever it is."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, (), np.zeros((0, FEATURES)))

    def by_layer(self, rows: Numbers) -> Numbers:
        """A column for each group."""
        return rows
