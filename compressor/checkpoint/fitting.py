"""The shape that a network reads, where nobody says it: the one that fits, found without much computing.

A shape is tried on torch's `meta` device, where nothing is computed, and for real only where the network's code cannot
run there: then as far as a bound on time and size goes.
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
SECONDS = 8.0  # of processor time, for all shapes that are tried: what else the machine does decides nothing
NUMBERS = 2**27  # in one tensor: half a gigabyte
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError, AttributeError)


def fitting(module: nn.Module) -> tuple[int, ...]:
    """The one shape that the module runs on, a batch of one; its first layer says which are tried, the smallest first.

    Refused: a network that runs on several, or on none of those.
    """
    first = first_layer(module)
    found: list[tuple[int, ...]] = []
    trial = _Trial(module)
    for shape in _candidates(first):
        if trial.fits(shape):
            found.append(shape)
        if len(found) > 1 or (found and isinstance(first, TRANSPOSED) and len(shape) == 2):
            break
    if len(found) == 1:
        return found[0]
    if found and isinstance(first, CONVOLUTIONS):
        sizes = ("LENGTH", "HEIGHTxWIDTH", "DEPTHxHEIGHTxWIDTH")[len(first.kernel_size) - 1]
        raise CheckpointError(
            "the network runs on images of several sizes, and its file does not say which",
            hint=f"say it: `--input 1x{found[0][1]}x{sizes}`",
        )
    if isinstance(first, (nn.Embedding, nn.EmbeddingBag)):
        raise CheckpointError(
            "the network reads token numbers, and its file does not say how many at a time",
            hint=f"say it: `--input 1x16`, or with their range: `--input '1x16:int64<{first.num_embeddings}'`",
        )
    raise CheckpointError(
        "what the network reads cannot be told from its layers",
        hint="say it: `--input 1x3x224x224`; several by name: `--input image=1x3x64x64 --input 'ids=1x12:int64'`",
    )


def first_layer(module: nn.Module) -> Any:
    """The first layer in the order in which layers were made; `None` of a network without any that is known."""
    kinds = (*CONVOLUTIONS, nn.Linear, nn.Embedding, nn.EmbeddingBag)
    return next((layer for layer in nn.Module.modules(module) if isinstance(layer, kinds)), None)


def _candidates(first: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(first, nn.Linear):
        yield 1, first.in_features
    elif isinstance(first, CONVOLUTIONS):
        if isinstance(first, TRANSPOSED):  # a generator: a vector of latent numbers
            yield 1, first.in_channels
            yield 1, first.in_channels, *[1] * len(first.kernel_size)
        for size in SIZES:
            yield 1, first.in_channels, *[size] * len(first.kernel_size)


class _Trial:
    """Tries shapes on a copy of the module that has no values, or on the module itself within bounds."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.until = module, time.process_time() + SECONDS
        try:
            self.bare: nn.Module | None = without_values(module)
        except Exception:  # a copy runs the network's own code, which raises what it likes
            self.bare = None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the module runs on the shape and gives as many answers as it got."""
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
    return bool(outputs) and (not outputs[0].ndim or len(outputs[0]) == 1)


class _Bounded(TorchFunctionMode):
    """Stops a forward pass before its next operator where it took too long or made a tensor that is too large."""

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
