"""Network Slimming's sparse training: an L1 penalty on batch norm scales (Liu et al. 2017, arXiv:1708.06519, eq. 1).

The loss contains strength · Σ |γ|. Scales that the task does not need fall towards zero, and the criterion `bn-scale`
can then rank channels. Without momentum, a scale falls by strength · Σ rates in a run: the published 1e-4 (VGG) and
1e-5 (ResNets) act for 125,000 steps, and a shorter run needs a stronger penalty.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.errors import RetrainError


def scales_of(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return the trainable scales γ of all batch norms, each once; refused: a network without any."""
    norms = [layer for layer in nn.Module.modules(module) if isinstance(layer, _BatchNorm)]
    scales = {id(n.weight): n.weight for n in norms if n.weight is not None and n.weight.requires_grad}
    if not scales:
        raise RetrainError(
            "the penalty acts on batch norm scales, and this network has no trainable ones",
            hint="omit it: `--bn-l1 0`",
        )
    return tuple(scales.values())


def scale_norm(module: nn.Module) -> Tensor:
    """Return Σ |γ| over all batch norms, a scalar; its gradient is sign(γ). Refused: what `scales_of` refuses."""
    return torch.stack([scale.abs().sum() for scale in scales_of(module)]).sum()
