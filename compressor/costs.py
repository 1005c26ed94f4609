"""What a network costs, counted and never timed: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compressor.groups import CONVOLUTIONS, TRANSPOSED, ChannelGroup, Role
from compressor.lent import evaluating, plain_attention
from compressor.plan import Countable, PruningPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Parameters, MACs of one forward pass at batch size 1, and bytes of parameters and buffers."""

    params: int
    macs: int
    bytes: int


def count(module: nn.Module, example_inputs: Sequence[Tensor]) -> Cost:
    """The cost of `module`: MACs are half of what torch's own counter calls floating-point operations."""
    tensors = [*module.parameters(), *module.buffers()]
    return Cost(
        params=sum(p.numel() for p in module.parameters()),
        macs=_macs(module, example_inputs),
        bytes=sum(t.numel() * t.element_size() for t in tensors),
    )


def _macs(module: nn.Module, example_inputs: Sequence[Tensor]) -> int:
    counter = FlopCounterMode(display=False)
    with evaluating(module), plain_attention(), torch.no_grad(), counter:
        module(*[t[:1] for t in example_inputs])
    return int(counter.get_total_flops()) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One convolution or linear layer: its widths and its MACs at batch size 1."""

    layer: str
    kind: str
    inputs: int
    outputs: int
    macs: int


def layer_costs(module: nn.Module, example_inputs: Sequence[Tensor]) -> tuple[LayerCost, ...]:
    """The cost of every convolution, linear and attention layer that the forward pass runs, in its order."""
    module = copy.deepcopy(module).eval()
    found: dict[str, LayerCost] = {}
    names = {layer: name for name, layer in module.named_modules()}

    def record(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        name = names[layer]
        if isinstance(layer, nn.MultiheadAttention):
            tokens = inputs[0].numel() // layer.embed_dim
            macs, width = 4 * tokens * layer.embed_dim**2, layer.embed_dim
            ins, outs = width, width
        elif isinstance(layer, nn.Linear):
            macs = output.numel() // layer.out_features * layer.weight.numel()
            ins, outs = layer.in_features, layer.out_features
        else:
            at, channels = (
                (inputs[0], layer.in_channels) if isinstance(layer, TRANSPOSED) else (output, layer.out_channels)
            )
            macs = at.numel() // channels * layer.weight.numel()
            ins, outs = layer.in_channels, layer.out_channels
        before = found[name].macs if name in found else 0
        found[name] = LayerCost(layer=name, kind=type(layer).__name__, inputs=ins, outputs=outs, macs=before + macs)

    for layer in module.modules():
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear, nn.MultiheadAttention)):
            layer.register_forward_hook(record)
    with torch.no_grad():
        module(*[t[:1] for t in example_inputs])
    return tuple(found.values())


class CostModel:
    """The cost of what a plan leaves, predicted from the dense network without building the small one.

    A layer's MACs are proportional to the size of its weight; what no weight accounts for (attention's own products)
    is taken to shrink like the parameters.
    """

    def __init__(self, module: nn.Module, groups: Sequence[ChannelGroup], example_inputs: Sequence[Tensor]) -> None:
        self.groups = groups
        self.sizes = {name: p.numel() for name, p in module.named_parameters()}
        self.shapes = {name: p.shape for name, p in module.named_parameters()}
        self.dense = count(module, example_inputs)
        self.layer_macs: dict[str, int] = {}
        for layer in layer_costs(module, example_inputs):
            if layer.kind == "MultiheadAttention":
                self.layer_macs[f"{layer.layer}.in_proj_weight"] = layer.macs * 3 // 4
                self.layer_macs[f"{layer.layer}.out_proj.weight"] = layer.macs // 4
            else:
                self.layer_macs[f"{layer.layer}.weight"] = layer.macs
        self.other_macs = max(0, self.dense.macs - sum(self.layer_macs.values()))

    def stays(self, plan: PruningPlan) -> dict[Countable, float]:
        """The share of the dense network's MACs and parameters that the plan leaves."""
        share = dict.fromkeys(self.sizes, 1.0)
        gone: dict[tuple[str, int], int] = {}
        total: dict[tuple[str, int], int] = {}
        for group in self.groups:
            mask = torch.zeros(group.channels, dtype=torch.bool)
            mask[list(plan.removed.get(group.root, ()))] = True
            for member in group.members:
                key = (member.tensor, member.dim)
                gone[key] = gone.get(key, 0) + int(mask[member.channels].sum())
                grouped_columns = member.role is Role.CONSUMES and member.dim == 1
                total[key] = member.blocks if grouped_columns else 1
        for (tensor, dim), count_gone in gone.items():
            if tensor in share:
                share[tensor] *= 1 - count_gone / (self.shapes[tensor][dim] * total[tensor, dim])
        params = sum(self.sizes[name] * s for name, s in share.items()) / self.dense.params
        macs = sum(m * share[name] for name, m in self.layer_macs.items()) + self.other_macs * params
        return {Countable.PARAMS: params, Countable.MACS: macs / self.dense.macs}
