"""What a network costs, counted and never timed: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compressor.groups import CONVOLUTIONS, TRANSPOSED


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
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see inside its fused kernel
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), counter:
            module(*[t[:1] for t in example_inputs])
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for layer, training in modes.items():
            layer.training = training
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
            at, channels = (inputs[0], layer.in_channels) if isinstance(layer, TRANSPOSED) else (output, layer.out_channels)
            macs = at.numel() // channels * layer.weight.numel()
            ins, outs = layer.in_channels, layer.out_channels
        before = found[name].macs if name in found else 0
        found[name] = LayerCost(
            layer=name, kind=type(layer).__name__, inputs=ins, outputs=outs, macs=before + macs
        )

    for layer in module.modules():
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear, nn.MultiheadAttention)):
            layer.register_forward_hook(record)
    with torch.no_grad():
        module(*[t[:1] for t in example_inputs])
    return tuple(found.values())
