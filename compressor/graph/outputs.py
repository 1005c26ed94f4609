"""A network's outputs, the outputs of its layers, and the difference between two sets of tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import RetrainError


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists, dicts and dataclasses, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from tensors_in(getattr(output, field.name))


def outputs_of(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return every tensor of the module's output, in order, without gradients."""
    with torch.no_grad():
        return list(tensors_in(module(*inputs)))


def outputs_and_layers(
    module: nn.Module, inputs: Sequence[Tensor], layers: Collection[str]
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Return the outputs, and the outputs of each of `layers` for every call, from one forward pass."""
    captured: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = []
    try:
        for name in layers:
            hook = lambda _, __, output, name=name: captured[name].append(output)  # noqa: E731  # binds `name`
            hooks.append(module.get_submodule(name).register_forward_hook(hook))
        outputs = outputs_of(module, inputs)
    finally:
        for handle in hooks:
            handle.remove()
    return outputs, captured


def relative_difference(answer: Tensor, reference: Tensor) -> float:
    """Return max |answer - reference| / max |reference|; infinite where either tensor is not finite.

    Two empty tensors of the same shape have difference 0.
    """
    if not answer.numel() and answer.shape == reference.shape:
        return 0.0
    if not (torch.isfinite(answer).all() and torch.isfinite(reference).all()):
        return math.inf
    largest = float(reference.abs().max())
    difference = float((answer - reference).abs().max())
    return difference / largest if largest else (math.inf if difference else 0.0)


def class_scores(output: object) -> Tensor:
    """Return the first tensor of a network's output: `[batch, classes]` (some networks return auxiliary ones behind
    it).
    """
    while not isinstance(output, Tensor):
        if isinstance(output, dict) and output:
            output = next(iter(output.values()))
        elif isinstance(output, (tuple, list)) and output:
            output = output[0]
        else:
            raise RetrainError(
                f"the network's output is a `{type(output).__name__}`, not class scores",
                hint="only networks that classify images can be trained here",
            )
    return output
