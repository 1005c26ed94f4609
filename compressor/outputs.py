"""A network's outputs, whatever they come in, and how far two sets of them lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors_in(value)


def outputs_of(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Every tensor of the module's output, in order, without gradients."""
    with torch.no_grad():
        return list(tensors_in(module(*inputs)))


def relative_difference(answer: Tensor, reference: Tensor) -> float:
    """The largest |answer - reference| over the largest |reference|; infinite where either is not finite."""
    if not (torch.isfinite(answer).all() and torch.isfinite(reference).all()):
        return math.inf
    largest = float(reference.abs().max())
    difference = float((answer - reference).abs().max())
    return difference / largest if largest else (math.inf if difference else 0.0)
