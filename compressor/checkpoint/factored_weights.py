"""Weights that a state holds in parts, as torch's pruning and normalisations of weights keep them, multiplied out.

`torch.nn.utils.prune` keeps `weight_orig` and `weight_mask`; a weight norm a length and a direction (`weight_g` and
`weight_v`, or `parametrizations.weight.original0` and `original1`); a spectral norm the weight and two vectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

PARTS = re.compile(r"(.+)_(?:orig|g)|(.*?)parametrizations\.(\w+)\.(?:original|original0)")


def multiplied_out(state: Mapping[str, Tensor], own: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return the state with whole weights in place of their parts, except where the parts are the network's `own`."""
    whole = dict(state)
    for name in state:
        match = PARTS.fullmatch(name)
        if match is None or (own is not None and name in own):
            continue
        target = match[1] or f"{match[2]}{match[3]}"
        for parts, multiply in _kinds(target, match):
            if all(part in state for part in parts) and target not in state and (own is None or target in own):
                tensors = [state[part] for part in parts]
                whole[target] = multiply(*(t.double() for t in tensors)).to(tensors[0].dtype)
                for part in parts:
                    del whole[part]
                break
    return whole


def _kinds(target: str, match: re.Match[str]) -> Iterator[tuple[tuple[str, ...], Callable[..., Tensor]]]:
    """The ways in which the weight `target` may be kept: the names of its parts, and how they are multiplied."""
    if match[1] is not None:
        yield (f"{target}_orig", f"{target}_mask"), torch.mul
        yield (f"{target}_orig", f"{target}_u", f"{target}_v"), _spectral
        yield (f"{target}_g", f"{target}_v"), _of_length
        return
    base = f"{match[2]}parametrizations.{match[3]}"
    yield (f"{base}.original0", f"{base}.original1"), _of_length
    yield (f"{base}.original", f"{base}.0._u", f"{base}.0._v"), _spectral


def _of_length(length: Tensor, direction: Tensor) -> Tensor:
    """The weight of a weight norm: directions, each of its length (Salimans and Kingma 2016, eq. 2)."""
    if length.ndim != direction.ndim:  # one length for the whole tensor
        norm: Tensor = torch.linalg.vector_norm(direction)
        return direction * (length / norm)
    summed = [dim for dim in range(direction.ndim) if length.shape[dim] == 1]
    scale: Tensor = length / torch.linalg.vector_norm(direction, dim=summed, keepdim=True)
    return direction * scale


def _spectral(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The weight of a spectral norm: divided by its largest singular value (Miyato et al. 2018, eq. 8).

    The vectors are of the weight as a matrix, whose rows are its first axis, or its second in a transposed convolution.
    Where both fit, the vectors are of the one with the larger value.
    """
    values = []
    for axis in range(min(2, weight.ndim)):
        matrix = weight.movedim(axis, 0).flatten(1)
        if matrix.shape == (left.numel(), right.numel()):
            values.append(torch.dot(left, matrix @ right))
    return weight / max(values, key=abs) if values else weight


def multiply_masks_(module: nn.Module) -> None:
    """Make the masks of `torch.nn.utils.prune` permanent: a pruned layer of the module has its plain weight again."""
    for layer in list(nn.Module.modules(module)):
        for hook in list(layer._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(layer, hook._tensor_name)  # type: ignore[no-untyped-call]  # torch leaves it untyped
