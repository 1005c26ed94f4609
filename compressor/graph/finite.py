"""Which tensor of a network holds an impossible value."""

from __future__ import annotations

import torch
from torch import nn

ELEMENTS_AT_ONCE = 2**22


def broken_in(module: nn.Module) -> str | None:
    """Return the first parameter or statistic that is not finite, or the first other buffer with NaN; else `None`.

    Other buffers may be infinite: masks and bounds often are.
    """
    trainable = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() or tensor.is_complex():
            finite = name in trainable or name.rpartition(".")[2].startswith("running_")
            pieces = tensor.flatten().split(ELEMENTS_AT_ONCE)
            if not all(bool((torch.isfinite(p) if finite else ~torch.isnan(p)).all()) for p in pieces):
                return name
    return None
