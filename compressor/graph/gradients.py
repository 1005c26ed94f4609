"""Gradients that are right on every processor.

torch 2.14's oneDNN 3.12 computes the weight gradient of a pointwise convolution with a stride wrongly on x86 processors
without AVX-512, where its tensors are channels_last and it reads fewer than eight channels: it writes past its
workspace (uxlfoundation/oneDNN#6035). One thread crashes; two hang, or return a gradient whose relative error is about
1, without a warning. Pruning creates exactly such layers in a residual network's shortcuts.

`right_gradients` computes those layers as the same pointwise convolution, without a stride, of every n-th position: the
same sums by another kernel. `check_gradients` compares one weight gradient of each kind of layer with float64 before
training begins, so that the next fault of this kind raises an error and does not train a bad network.
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

FEWEST = 16  # a pointwise convolution with at least so many input channels keeps its stride: oneDNN's widest block
WORST = 1e-3  # relative; float32 against float64 differs by about 1e-6
EXAMPLES = 2  # how many examples of a batch `check_gradients` uses
NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")  # of the functions in `STRIDED`
STRIDED = frozenset(
    {torch.conv1d, torch.conv2d, torch.conv3d, torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default,
     torch.ops.aten.conv3d.default, torch.ops.aten.conv1d.padding, torch.ops.aten.conv2d.padding,
     torch.ops.aten.conv3d.padding}
)  # fmt: skip
GENERAL = torch.ops.aten.convolution.default  # the same arguments, with `transposed` and `output_padding` before groups


class _Unstrided(TorchFunctionMode):
    """While active, pointwise convolutions with a stride and few input channels are computed without the stride."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in STRIDED or func is GENERAL:
            return _unstrided(func, args, kwargs)
        return func(*args, **kwargs)


def right_gradients() -> contextlib.AbstractContextManager[object]:
    """Return a context in which forward passes get right gradients on every processor, in any memory format.

    Outputs are the same within rounding. It is for forward passes that are followed by a backward pass.
    """
    return _Unstrided()


def _unstrided(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a convolution: as it is, or without its stride where `check_gradients` would find a wrong gradient."""
    names = (*NAMES[:6], "transposed", "output_padding", "groups") if func is GENERAL else NAMES
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    x, weight, stride, padding = (
        arguments["input"],
        arguments["weight"],
        arguments.get("stride", 1),
        arguments.get("padding", 0),
    )
    axes = weight.ndim - 2
    steps = _each(stride, axes)
    touched = (
        x.device.type == "cpu"
        and weight.shape[1] < FEWEST
        and all(n == 1 for n in weight.shape[2:])
        and any(step > 1 for step in steps)
        and not arguments.get("transposed", False)
    )
    if not touched:
        return func(*args, **kwargs)
    rims = (
        [0] * axes if isinstance(padding, str) else _each(padding, axes)
    )  # "same" and "valid" pad a pointwise one by nothing
    if any(rims):
        x = functional.pad(x, [rim for rim in reversed(rims) for _ in range(2)])
    x = x[(..., *(slice(None, None, step) for step in steps))]
    convolution = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    return convolution(x, weight, arguments.get("bias"), groups=arguments.get("groups", 1))


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    """One number per axis, from one number for all axes or a sequence."""
    if isinstance(value, int):
        return [value] * axes
    return [int(n) for n in value] * (axes if len(value) == 1 else 1)


def check_gradients(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Compare one weight gradient of each kind of convolution and linear layer with float64, on a CPU.

    `inputs` is a batch for `module`, which stays unchanged. Each kind of layer is checked once per process. Refused: a
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


_RIGHT: set[tuple[object, ...]] = set()  # kinds of layers whose gradient was right in this process
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


@contextlib.contextmanager
def _inputs_of_layers(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The inputs of the trainable layers on the CPU, by name, recorded from the passes inside the context."""
    read: dict[str, Tensor] = {}

    def note(name: str, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].device.type == "cpu":
            read.setdefault(name, inputs[0].detach())

    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, _LAYERS) and m.weight.requires_grad]
    hooks = [layer.register_forward_pre_hook(lambda _, x, name=name: note(name, x)) for name, layer in layers]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def _kind(layer: nn.Module, x: Tensor) -> tuple[object, ...]:
    """What decides which kernel computes a layer: its type, shapes, memory layouts, number types and threads."""
    numbers = [getattr(layer, n, None) for n in ("stride", "padding", "dilation", "groups", "output_padding")]
    weight = layer.get_parameter("weight")
    layouts = (tuple(x.shape), x.stride(), weight.stride(), x.dtype, weight.dtype)
    return (type(layer), tuple(weight.shape), *numbers, *layouts, torch.get_num_threads())


def _error(layer: nn.Module, x: Tensor) -> float:
    """The relative error of the layer's weight gradient, against float64: norm of the difference over norm."""
    weight = layer.get_parameter("weight")
    own = {name: p.detach() for name, p in layer.named_parameters()}

    def gradient(dtype: torch.dtype, upstream: Tensor | None) -> tuple[Tensor, Tensor]:
        parameters = {name: p.to(dtype) for name, p in own.items()}
        parameters["weight"] = parameters["weight"].detach().requires_grad_(True)
        with torch.enable_grad(), right_gradients():
            y = torch.func.functional_call(layer, parameters, (x.to(dtype),))
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)) if upstream is None else upstream
        g = torch.empty_like(y).copy_(g)  # in the output's memory layout
        return torch.autograd.grad(y, parameters["weight"], g)[0].double(), g

    gradient_here, upstream = gradient(weight.dtype, None)
    right, _ = gradient(torch.float64, upstream)
    return float((gradient_here - right).norm() / right.norm().clamp(min=1e-30))
