"""Network Slimming's sparse training: an L1 penalty on batch norm scales (Liu et al. 2017, arXiv:1708.06519, eq. 1).

The loss grows by strength · Σ |γ|, so that scales which the task does not need sink towards zero and the criterion
`bn-scale` tells channels apart. Without momentum a scale sinks by strength · Σ rates in a run: the published 1e-4 (VGG)
and 1e-5 (ResNets) act for 125,000 steps, and a shorter run takes a stronger penalty.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.errors import RetrainError


def scales_of(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """The trainable scales γ of every batch norm, each once.

    Refused: a network without one, for the penalty would act on nothing.
    """
    norms = [layer for layer in nn.Module.modules(module) if isinstance(layer, _BatchNorm)]
    found = {id(n.weight): n.weight for n in norms if n.weight is not None and n.weight.requires_grad}
    if not found:
        raise RetrainError(
            "a penalty on batch norm scales, and this network has none that train",
            hint="leave it out: `--bn-l1 0`",
        )
    return tuple(found.values())


def scale_norm(module: nn.Module) -> Tensor:
    """Σ |γ| over the batch norms' scales, a scalar; its gradient is sign(γ), and 0 where γ is. Refused as there."""
    return torch.stack([scale.abs().sum() for scale in scales_of(module)]).sum()
