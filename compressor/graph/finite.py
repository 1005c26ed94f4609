"""Which of a network's tensors cannot be right."""

from __future__ import annotations

import torch
from torch import nn

ELEMENTS_AT_ONCE = 2**22


def broken_in(module: nn.Module) -> str | None:
    """The first parameter or statistic that is not finite, or other buffer with NaN: masks and bounds are infinite."""
    learnt = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() or tensor.is_complex():
            finite = name in learnt or name.rpartition(".")[2].startswith("running_")
            pieces = tensor.flatten().split(ELEMENTS_AT_ONCE)
            if not all(bool((torch.isfinite(p) if finite else ~torch.isnan(p)).all()) for p in pieces):
                return name
    return None
