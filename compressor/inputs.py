"""What a network reads: the shapes that the user gave, that its file or its architecture knows, or that fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compressor.architectures import Architecture
from compressor.errors import CheckpointError
from compressor.groups import CONVOLUTIONS
from compressor.outputs import outputs_of

SIZES = (28, 32, 64, 96, 128, 160, 224, 256, 299, 384, 512)
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError, AttributeError)


def shape_from_text(text: str) -> tuple[int, ...]:
    """`"1x3x224x224"` as numbers; refused: anything else."""
    parts = text.lower().replace("×", "x").split("x")
    if not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise CheckpointError(f"`--input {text}` is not a shape", hint="write it as `--input 1x3x224x224`")
    return tuple(map(int, parts))


def drawn(shape: Sequence[int], module: nn.Module) -> Tensor:
    """An example input: token numbers for a network that begins with an embedding, else normal numbers."""
    if isinstance(_first_layer(module), nn.Embedding):
        return torch.zeros(tuple(shape), dtype=torch.int64)
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))


def example_inputs(
    module: nn.Module, *, given: Sequence[str], stored: Sequence[Sequence[int]] | None, architecture: Architecture
) -> tuple[Tensor, ...]:
    """Inputs that the module runs on: what the user gave, what its file says, or the one shape that fits.

    Refused: a given shape that does not run, a network that runs on several sizes and says nothing about them.
    """
    if given:
        inputs = tuple(drawn(shape_from_text(text), module) for text in given)
        _run(module, inputs, hint="what the network reads is another shape")
        return inputs
    if stored:
        inputs = tuple(drawn(shape, module) for shape in stored)
        _run(module, inputs, hint="say what it reads: `--input 1x3x224x224`")
        return inputs
    source, _, name = architecture.ref.partition(":")
    if source in ("torchvision", "timm") or type(module).__module__.split(".")[0] in ("torchvision", "timm"):
        size = 299 if name.startswith("inception") else int(getattr(module, "image_size", 0)) or 224
        shape = (getattr(_first_layer(module), "in_channels", 3), size, size)
        told = (getattr(module, "default_cfg", None) or {}).get("input_size")  # by timm
        inputs = (drawn((1, *(told or shape)), module),)
        _run(module, inputs, hint="say what it reads: `--input 1x3x224x224`")
        return inputs
    return (_fitting(module),)


def _fitting(module: nn.Module) -> Tensor:
    first = _first_layer(module)
    if isinstance(first, nn.Linear):
        candidates: list[tuple[int, ...]] = [(1, first.in_features)]
    elif isinstance(first, CONVOLUTIONS):
        dimensions = len(first.kernel_size)
        candidates = [(1, first.in_channels, *[size] * dimensions) for size in SIZES]
    else:
        candidates = []
    fitting = [shape for shape in candidates if _runs(module, (drawn(shape, module),))]
    if len(fitting) == 1:
        return drawn(fitting[0], module)
    if fitting:
        shape = "x".join(map(str, fitting[-1][:2])) + "xHEIGHTxWIDTH"
        raise CheckpointError(
            "the network runs on images of several sizes, and its file does not say which",
            hint=f"say it: `--input {shape}`",
        )
    raise CheckpointError("what the network reads cannot be told from its layers", hint="say it: `--input 1x3x224x224`")


def _first_layer(module: nn.Module) -> nn.Module | None:
    kinds = (*CONVOLUTIONS, nn.Linear, nn.Embedding)
    return next((layer for layer in nn.Module.modules(module) if isinstance(layer, kinds)), None)


def _runs(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    try:
        outputs_of(module, inputs)
    except FORWARD_ERRORS:
        return False
    return True


def _run(module: nn.Module, inputs: tuple[Tensor, ...], *, hint: str) -> None:
    shapes = ", ".join("x".join(map(str, t.shape)) for t in inputs)
    try:
        outputs = outputs_of(module, inputs)
    except FORWARD_ERRORS as error:
        first = str(error).strip().splitlines()
        raise CheckpointError(
            f"the network does not run on {shapes}: {first[0] if first else error}", hint=hint
        ) from error
    if not outputs:
        raise CheckpointError(
            "the network's output holds no tensor", hint="compress needs a network that returns tensors"
        )
    if not all(bool(torch.isfinite(t).all()) for t in outputs if t.is_floating_point()):
        raise CheckpointError("the network's outputs are not finite", hint="the weights or statistics are broken")
