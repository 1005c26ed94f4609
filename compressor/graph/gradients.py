"""Gradients that are right on every processor.

torch 2.14's oneDNN 3.12, on x86 processors without AVX-512, computes the weight gradient of a pointwise convolution
with a stride wrongly where its tensors are channels_last and it reads fewer than eight channels: it writes past its
workspace (uxlfoundation/oneDNN#6035). One thread crashes; two hang, or give a gradient that is wrong by its own size
without a word. Pruning makes just such layers of a residual network's shortcuts.

`right_gradients` computes those layers as the same pointwise convolution, without a stride, of every n-th position:
the same sums by another kernel. `check_gradients` compares one weight gradient of each kind of layer with float64
before a training begins, so that the next fault of the kind is an error and not a bad network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from compressor.errors import RetrainError
from compressor.graph.lent import evaluating

FEWEST = 16  # input channels from which a pointwise convolution keeps its stride: oneDNN's widest block
WORST = 1e-3  # relative; float32 against float64 differs by about 1e-6
EXAMPLES = 2  # how many of a batch `check_gradients` looks at
NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")  # of the functions in `STRIDED`
STRIDED = frozenset(
    {torch.conv1d, torch.conv2d, torch.conv3d, torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default,
     torch.ops.aten.conv3d.default, torch.ops.aten.conv1d.padding, torch.ops.aten.conv2d.padding,
     torch.ops.aten.conv3d.padding}
)  # fmt: skip
GENERAL = torch.ops.aten.convolution.default  # the same arguments, with `transposed` and `output_padding` before groups


class _Unstrided(TorchFunctionMode):
    """Pointwise convolutions with a stride and few inputs are computed without the stride."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in STRIDED or func is GENERAL:
            return _unstrided(func, args, kwargs)
        return func(*args, **kwargs)


def right_gradients() -> contextlib.AbstractContextManager[object]:
    """A forward pass within it has right gradients on every processor, whatever the network's memory format.

    Outputs are the same within rounding. It is for passes that are followed by a backward pass.
    """
    return _Unstrided()


def _unstrided(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = (*NAMES[:6], "transposed", "output_padding", "groups") if func is GENERAL else NAMES
    said = {**dict(zip(names, args, strict=False)), **kwargs}
    x, weight, stride, padding = said["input"], said["weight"], said.get("stride", 1), said.get("padding", 0)
    axes = weight.ndim - 2
    steps = _each(stride, axes)
    touched = (
        x.device.type == "cpu"
        and weight.shape[1] < FEWEST
        and all(n == 1 for n in weight.shape[2:])
        and any(step > 1 for step in steps)
        and not said.get("transposed", False)
    )
    if not touched:
        return func(*args, **kwargs)
    rims = [0] * axes if isinstance(padding, str) else _each(padding, axes)  # of a pointwise one, no word means a rim
    if any(rims):
        x = functional.pad(x, [rim for rim in reversed(rims) for _ in range(2)])
    x = x[(..., *(slice(None, None, step) for step in steps))]
    convolution = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    return convolution(x, weight, said.get("bias"), groups=said.get("groups", 1))


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    """One number for each axis, of one for all or one for each."""
    if isinstance(value, int):
        return [value] * axes
    return [int(n) for n in value] * (axes if len(value) == 1 else 1)


def check_gradients(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Compare one weight gradient of each kind of convolution and linear layer with float64, on a CPU.

    `inputs` is a batch for `module`, which stays as it was; a kind of layer is looked at once in a process. Refused: a
    gradient that is wrong.
    """
    with evaluating(module), torch.no_grad(), _inputs_of_layers(module) as read:
        module(*(t[:EXAMPLES] for t in inputs))
    for name, x in read.items():
        layer = module.get_submodule(name)
        kind = _kind(layer, x)
        if kind in _RIGHT:
            continue
        error = _error(layer, x)
        if not error < WORST:
            raise RetrainError(
                f"this processor's weight gradient of `{name}` is wrong by {error:.0%}",
                hint="that is a fault of torch here: try another version of it, or `--device cuda`",
            )
        _RIGHT.add(kind)


_RIGHT: set[tuple[object, ...]] = set()  # kinds of layers whose gradient was seen to be right in this process
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


@contextlib.contextmanager
def _inputs_of_layers(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What the trainable layers read on the CPU, by name, in the passes within."""
    read: dict[str, Tensor] = {}

    def note(name: str, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor) and given[0].device.type == "cpu":
            read.setdefault(name, given[0].detach())

    found = [(n, m) for n, m in module.named_modules() if isinstance(m, _LAYERS) and m.weight.requires_grad]
    hooks = [layer.register_forward_pre_hook(lambda _, x, name=name: note(name, x)) for name, layer in found]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def _kind(layer: nn.Module, x: Tensor) -> tuple[object, ...]:
    """Layers of one kind are computed by the same kernels."""
    numbers = [getattr(layer, n, None) for n in ("stride", "padding", "dilation", "groups", "output_padding")]
    weight = layer.get_parameter("weight")
    layouts = (tuple(x.shape), x.stride(), weight.stride(), x.dtype, weight.dtype)
    return (type(layer), tuple(weight.shape), *numbers, *layouts, torch.get_num_threads())


def _error(layer: nn.Module, x: Tensor) -> float:
    """How far the layer's weight gradient is from float64's, relative to its norm."""
    weight = layer.get_parameter("weight")
    own = {name: p.detach() for name, p in layer.named_parameters()}

    def gradient(dtype: torch.dtype, upstream: Tensor | None) -> tuple[Tensor, Tensor]:
        held = {name: p.to(dtype) for name, p in own.items()}
        held["weight"] = held["weight"].detach().requires_grad_(True)
        with torch.enable_grad(), right_gradients():
            y = torch.func.functional_call(layer, held, (x.to(dtype),))
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)) if upstream is None else upstream
        g = torch.empty_like(y).copy_(g)  # in the layout that the output has
        return torch.autograd.grad(y, held["weight"], g)[0].double(), g

    found, upstream = gradient(weight.dtype, None)
    right, _ = gradient(torch.float64, upstream)
    return float((found - right).norm() / right.norm().clamp(min=1e-30))
