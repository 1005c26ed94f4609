"""Mean compensation without data: the mean output of a removed channel, computed from its batch norm alone.

A channel behind a batch norm with scale γ and shift β is assumed to be N(β, γ²), its distribution in training. The mean
of its activation follows by Gauss-Hermite quadrature through the network's own operators. This mean times the weights
that read the channel is added to the reader's bias (or subtracted from the running mean of the norm behind it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from compressor.graph.copies import copy_of
from compressor.planning.branches import norm_behind
from compressor.planning.moments import reader_of
from compressor.planning.walk import NORMALISING, Program, Walk, aten, call, operator, readers, side_by_side
from compressor.surgery.surgery import Surgery

POINTS = 64
POINTWISE = {
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.silu.default, aten.gelu.default,
    aten.hardswish.default, aten.leaky_relu.default, aten.elu.default, aten.sigmoid.default, aten.tanh.default,
    aten.hardsigmoid.default, aten.mish.default, aten.softplus.default, aten.dropout.default, aten.clone.default,
}  # fmt: skip
POOLING = {  # an average keeps the mean; a maximum is at least the mean
    aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.max_pool2d.default, aten.flatten.using_ints,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Compensation:
    """A copy of the small network with the expected values in its biases, and the names of the changed layers."""

    module: nn.Module
    layers: tuple[str, ...]


def compensated(dense: nn.Module, small: nn.Module, surgery: Surgery, example_inputs: Sequence[Tensor]) -> Compensation:
    """Add the expected outputs of the removed channels to the biases of a copy of `small`, and return it.

    Layers that read no batch norm stay as they are. Refused: networks that cannot be followed (`planning.walk`).
    """
    programs = side_by_side(dense, small, example_inputs, batch=len(example_inputs[0]))
    module = copy_of(small)
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    walk = Walk(programs[0], [[t] for t in example_inputs])
    done = []
    with torch.no_grad():
        for i, node in readers(programs[1]):
            name = programs[1].tensor_name(node.args[1])
            assert name is not None
            kept = surgery.slices.get(name, {}).get(1)
            dense_node = programs[0].nodes[i]
            weight = walk.constant(dense_node.args[1])  # type: ignore[arg-type]  # a reader's weight is a node
            means = _means(programs[0], walk, dense_node.args[0])
            reader = reader_of(programs[0], dense_node, weight)
            simple = kept is not None and kept.ndim == 1 and reader.groups == 1 and reader.spread is None
            if not simple or means is None or weight.shape[1] % len(means):
                continue
            assert kept is not None
            gone = torch.ones(weight.shape[1], dtype=torch.bool)
            gone[kept] = False
            means = means.repeat_interleave(weight.shape[1] // len(means))  # behind a flattening
            summed = weight.flatten(2).sum(dim=2) if weight.ndim > 2 else weight  # [out, in]
            shift = summed[:, gone] @ means[gone].to(summed.dtype)
            rows = surgery.slices[name].get(0)
            shift = shift if rows is None else shift[rows]
            bias, norm = reader.bias, norm_behind(programs[1], node)
            if bias is not None:
                state[bias].add_(shift)
            elif norm is not None:
                state[norm].sub_(shift)
            else:
                continue
            done.append(name.rpartition(".")[0])
    return Compensation(module=module, layers=tuple(done))


def _means(program: Program, walk: Walk, source: object) -> Tensor | None:
    """Return the expected values `[channels]` of an operator's input; `None` if it does not come from a batch norm."""
    chain: list[fx.Node] = []
    at = source
    while isinstance(at, fx.Node) and operator(at) in POINTWISE | POOLING:
        if operator(at) in POINTWISE:
            chain.append(at)
        at = at.args[0]
    if not isinstance(at, fx.Node) or at in program.constants or operator(at) not in NORMALISING:
        return None
    scale, shift = at.args[1], at.args[2]
    if not isinstance(scale, fx.Node) or not isinstance(shift, fx.Node):
        return None
    points, weights = (torch.from_numpy(v).float() for v in np.polynomial.hermite_e.hermegauss(POINTS))
    value = walk.constant(shift) + walk.constant(scale).abs() * points.unsqueeze(1)  # [points, channels]
    for node in reversed(chain):
        value = call(node, lambda _, v=value: v)  # type: ignore[misc]  # its only input is the value before
    return (value * (weights / weights.sum()).unsqueeze(1)).sum(dim=0)
