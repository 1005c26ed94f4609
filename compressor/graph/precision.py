"""The number types of a network: convert a tensor or a whole network to another precision, complex numbers included.

`Tensor.to(torch.float64)` drops the imaginary part of a complex tensor, and so does `nn.Module.to`. Here a complex
tensor becomes the complex type of the same precision, and integers stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.graph.copies import converted, copy_of

NARROW = (torch.float16, torch.bfloat16, torch.float32)  # the types that code names for "the usual precision"


def in_precision(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor with real and complex numbers in the precision of `dtype`; integers stay unchanged."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def in_precision_(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the module itself: its parameters and buffers get the precision of `dtype`."""
    module._apply(lambda tensor: in_precision(tensor, dtype))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return module


def copy_in_precision(module: nn.Module, dtype: torch.dtype, *, trainable: bool = True) -> nn.Module:
    """Return a copy in the precision of `dtype`, whatever path the module takes to its parameters and buffers."""
    return in_precision_(converted(module, lambda tensor: in_precision(tensor, dtype), trainable=trainable), dtype)


def types_in(module: nn.Module) -> dict[str, torch.dtype]:
    """Return the type of each tensor that is real or complex but not float32 or complex64, by name."""
    usual = (torch.float32, torch.complex64)
    return {
        name: tensor.dtype
        for name, tensor in module.state_dict().items()
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in usual
    }


def type_of(name: str, tensor: Tensor, types: Mapping[str, torch.dtype]) -> torch.dtype:
    """Return a tensor's original type: by its name in `types`, or by the layer that was split into two thinner ones."""
    whole = re.sub(r"\.[01]\.(weight|bias)$", r".\1", name)
    return types.get(name) or types.get(whole) or tensor.dtype


def rounded(module: nn.Module, types: Mapping[str, torch.dtype]) -> nn.Module:
    """Return a copy of the module in its own types, with every number rounded to the `types` given by name."""
    twin = copy_of(module)
    with torch.no_grad():
        for name, tensor in twin.state_dict(keep_vars=True).items():
            tensor.copy_(tensor.to(type_of(name, tensor, types)))
    return twin


def in_types_(module: nn.Module, types: Mapping[str, torch.dtype]) -> nn.Module:
    """Convert the module itself: its tensors get the `types` given by name.

    These are `Checkpoint.types`, the types in which the tensors were stored.
    """
    kinds = {id(t): type_of(name, t, types) for name, t in module.state_dict(keep_vars=True).items()}
    module._apply(lambda tensor: tensor.to(kinds.get(id(tensor), tensor.dtype)))  # type: ignore[no-untyped-call]  # as above
    return module


def narrowest(dtypes: Iterable[torch.dtype]) -> torch.dtype | None:
    """Return the least precise of some types, a complex one by its parts; `None` if none is real or complex."""
    real = {dtype.to_real() for dtype in dtypes if dtype.is_floating_point or dtype.is_complex}
    return max(real, key=lambda dtype: torch.finfo(dtype).eps, default=None)


class InPrecision(TorchFunctionMode):
    """While active, a type named in the network's code means `dtype`, as it does in the network's exported program."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return in_precision(args[0], self.dtype) if args[0].is_complex() else args[0].to(self.dtype)
        args, kwargs = pytree.tree_map(self._same, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _same(self, value: Any) -> Any:
        return same_precision(value, self.dtype)


def same_precision(value: Any, dtype: torch.dtype) -> Any:
    """Return what a type named in code stands for in a network that runs in `dtype`; other values unchanged."""
    if not isinstance(value, torch.dtype):
        return value
    if value in NARROW:
        return dtype
    return dtype.to_complex() if value is torch.complex64 else value


class TypesSeen(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """While active, collects the types of the real and complex tensors that are computed, in `seen`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and value.ndim and (value.is_floating_point() or value.is_complex()):
                self.seen.add(value.dtype)
        return result
