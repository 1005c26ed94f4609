"""Fresh weights by a published rule, for networks whose own initialisation is another one."""

from __future__ import annotations

import torch
from torch import nn

from compressor.chance import generator
from compressor.graph.copies import copy_of


def glorot_normal(module: nn.Module, *, seed: int) -> nn.Module:
    """Return a copy with fresh weights in its convolutions and linear layers: N(0, 2 / (fan in + fan out)), biases 0.

    Glorot & Bengio 2010; the usual initialisation in the lottery ticket papers. Norms stay as they are.
    """
    fresh, drawing = copy_of(module), generator(seed, "initial weights")
    for layer in fresh.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            drawn = nn.init.xavier_normal_(torch.empty(layer.weight.shape), generator=drawing)
            with torch.no_grad():
                layer.weight.copy_(drawn)
                if layer.bias is not None:
                    layer.bias.zero_()
    return fresh
