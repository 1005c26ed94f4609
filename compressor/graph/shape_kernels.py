"""Shape kernels that torch lacks for its own operators: the output shapes of fake quantisation, without values.

Without them, a network trained for quantisation can neither be exported nor be traced by shapes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

WITH_MASK = ("fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_channel_affine_cachemask",
             "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams")  # fmt: skip
LEARNT = ("_fake_quantize_learnable_per_tensor_affine", "_fake_quantize_learnable_per_channel_affine")


@contextlib.contextmanager
def quantisation_by_shapes() -> Iterator[None]:
    """While active, fake quantisation also runs on tensors without values; a torch that has these kernels stays
    unchanged.
    """
    with torch.library._scoped_library("aten", "IMPL") as library:
        for names, kernel in ((WITH_MASK, _rounded_with_mask), (LEARNT, _rounded)):
            for name in names:
                if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
                    library.impl(name, kernel, "Meta")
        yield


def _rounded(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _rounded_with_mask(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
