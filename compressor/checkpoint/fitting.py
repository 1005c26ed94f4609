"""Find the input shape of a network without a recorded one: the single shape on which it runs, found cheaply.

A shape is tried on torch's `meta` device, where nothing is computed. Only where the network's code cannot run there it
is tried with values, within a bound on time and size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressor.channels.groups import CONVOLUTIONS, TRANSPOSED
from compressor.errors import CheckpointError
from compressor.graph.lent import state_kept, without_values
from compressor.graph.outputs import outputs_of

SIZES = (28, 32, 64, 96, 128, 160, 224, 256, 299, 384, 512)
SECONDS = 8.0  # of processor time for all tried shapes, so that the machine's load does not matter
NUMBERS = 2**27  # in one tensor: half a gigabyte
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError, AttributeError)


def fitting(module: nn.Module) -> tuple[int, ...]:
    """Return the single shape that the module runs on, as a batch of one.

    The first layer decides which shapes are tried, the smallest first. Refused: a network that runs on several of them,
    or on none.
    """
    first = first_layer(module)
    fits: list[tuple[int, ...]] = []
    trial = _Trial(module)
    for shape in _candidates(first):
        if trial.fits(shape):
            fits.append(shape)
        if len(fits) > 1 or (fits and isinstance(first, TRANSPOSED) and len(shape) == 2):
            break
    if len(fits) == 1:
        return fits[0]
    if fits and isinstance(first, CONVOLUTIONS):
        sizes = ("LENGTH", "HEIGHTxWIDTH", "DEPTHxHEIGHTxWIDTH")[len(first.kernel_size) - 1]
        raise CheckpointError(
            "the network runs on images of several sizes, and its file does not say which",
            hint=f"set it: `--input 1x{fits[0][1]}x{sizes}`",
        )
    if isinstance(first, (nn.Embedding, nn.EmbeddingBag)):
        raise CheckpointError(
            "the network reads token numbers, and its file does not say how many at a time",
            hint=f"set it: `--input 1x16`, or with their range: `--input '1x16:int64<{first.num_embeddings}'`",
        )
    raise CheckpointError(
        "the network's input cannot be determined from its layers",
        hint="set it: `--input 1x3x224x224`; several by name: `--input image=1x3x64x64 --input 'ids=1x12:int64'`",
    )


def first_layer(module: nn.Module) -> Any:
    """Return the first layer in the order of definition; `None` if the network has no known layer."""
    kinds = (*CONVOLUTIONS, nn.Linear, nn.Embedding, nn.EmbeddingBag)
    return next((layer for layer in nn.Module.modules(module) if isinstance(layer, kinds)), None)


def _candidates(first: Any) -> Iterator[tuple[int, ...]]:
    """The shapes to try, by the kind of the first layer."""
    if isinstance(first, nn.Linear):
        yield 1, first.in_features
    elif isinstance(first, CONVOLUTIONS):
        if isinstance(first, TRANSPOSED):  # a generator: a vector of latent numbers
            yield 1, first.in_channels
            yield 1, first.in_channels, *[1] * len(first.kernel_size)
        for size in SIZES:
            yield 1, first.in_channels, *[size] * len(first.kernel_size)


class _Trial:
    """Tries shapes on a copy of the module without values, or on the module itself within bounds."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.until = module, time.process_time() + SECONDS
        try:
            self.bare: nn.Module | None = without_values(module)
        except Exception:  # copying runs the network's own code, which can raise anything
            self.bare = None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return true if the module runs on the shape and returns as many results as inputs."""
        if self.bare is not None:
            try:
                with _Bounded(self.until):
                    return _answers(outputs_of(self.bare, [torch.empty(shape, device="meta")]))
            except FORWARD_ERRORS as error:
                if "meta" not in str(error).lower():
                    return False
        try:
            with _Bounded(self.until), state_kept(self.module):
                return _answers(outputs_of(self.module, [torch.randn(shape)]))
        except FORWARD_ERRORS:
            return False


def _answers(outputs: list[Tensor]) -> bool:
    """True if the first output has one row for the one input."""
    return bool(outputs) and (not outputs[0].ndim or len(outputs[0]) == 1)


class _Bounded(TorchFunctionMode):
    """Stops a forward pass before its next operator if it took too long or created too large a tensor."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self.until = until

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if time.process_time() > self.until:
            raise RuntimeError("too much work for a shape that nobody asked for")
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result.is_meta and result.numel() > NUMBERS:
            raise RuntimeError("too large for a shape that nobody asked for")
        return result
