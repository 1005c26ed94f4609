"""Split a layer into two thinner ones: the singular value decomposition of its weight, cut at a rank.

For every kind, the weight is laid out as a matrix M = U diag(s) V'. The best approximation of rank r in least squares
keeps the r largest singular values; its squared error is the sum of the squares of the others (Eckart & Young 1936,
doi:10.1007/BF02288367). Each of the two layers gets the square root of every singular value. The first has no bias, so
zero padding in front of the second equals the first layer's output there: at full rank the two layers equal the
original, exactly.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from compressor.errors import PlanError, SurgeryError, named


class Kind(enum.StrEnum):
    """How a layer is split.

    `spatial`: a convolution as a column and a row, k x 1 to r channels and 1 x k (Jaderberg et al. 2014,
    arXiv:1405.3866, sec. 2.2, scheme 2). `channel`: k x k to r channels and 1 x 1 (the same paper; also Zhang et al.
    2015, arXiv:1505.06798). `svd`: a linear layer as two. `separable`: r filters k x k for each input channel and 1 x 1
    across them; with r = 1 it is the block of MobileNets (Howard et al. 2017, arXiv:1704.04861, sec. 3.1).
    """

    SPATIAL = "spatial"
    CHANNEL = "channel"
    SVD = "svd"
    SEPARABLE = "separable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """How a layer is split: the kind, and the rank at which the decomposition is cut."""

    kind: Kind
    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SurgeryError(f"a rank of {self.rank} leaves nothing")

    def to_json(self) -> dict[str, object]:
        """Return plain values; `factors_from_json` reads them back."""
        return {"kind": str(self.kind), "rank": self.rank}


def factors_from_json(plain: Mapping[str, Any]) -> Factors:
    """Return the factors that `to_json` wrote."""
    kind = named(Kind, str(plain["kind"]), one="kind", many="kinds", refusal=SurgeryError)
    return Factors(kind=kind, rank=int(plain["rank"]))


def kind_named(name: str) -> Kind:
    """Return the kind called `name`. Refused: an unknown name."""
    return named(Kind, name, one="way to factorise", many="ways", refusal=PlanError)


def why_not(layer: nn.Module, kind: Kind) -> str | None:
    """Return why the layer cannot be split in this way; `None` if it can. Layers of derived classes are never split."""
    if kind is Kind.SVD:
        return None if type(layer) is nn.Linear else "not a linear layer"
    if type(layer) is not nn.Conv2d:
        return "not a two-dimensional convolution"
    if layer.groups != 1:
        return "a grouped convolution"
    if kind is not Kind.CHANNEL and max(layer.kernel_size) == 1:
        return "a 1x1 convolution"
    return None


def full_rank(weight: Tensor, kind: Kind) -> int:
    """Return the rank at which the two layers equal the layer; weight `[out, in, kH, kW]`, or `[out, in]` for `svd`."""
    matrix = matrices(weight, kind)
    return min(matrix.shape[-2:])


def matrices(weight: Tensor, kind: Kind) -> Tensor:
    """Return the weight as the matrix, or the matrices, to decompose.

    `svd`: `[out, in]`; `channel`: `[out, in * kH * kW]`; `spatial`: `[out * kW, in * kH]`; `separable`, one matrix per
    input channel: `[in, out, kH * kW]`.
    """
    if kind is Kind.SVD:
        return weight
    if kind is Kind.CHANNEL:
        return weight.flatten(1)
    if kind is Kind.SPATIAL:
        outputs, inputs, height, width = weight.shape
        return weight.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)
    return weight.permute(1, 0, 2, 3).flatten(2)


def spectrum(weight: Tensor, kind: Kind) -> Tensor:
    """Return what each further rank adds: the singular values, largest first, float64 `[full rank]`.

    For `separable`, one rank adds a singular value in every input channel: the result is the root of the sum of their
    squares.
    """
    values: Tensor = torch.linalg.svdvals(matrices(weight.detach(), kind).double())
    return values if kind is not Kind.SEPARABLE else values.square().sum(0).sqrt()


def pieces(weight: Tensor, bias: Tensor | None, factors: Factors) -> dict[str, Tensor]:
    """Return the two layers' tensors under their names in an `nn.Sequential`, in the weight's type: `0.weight`,
    `1.weight`.

    Refused: a rank above the full one.
    """
    kind, rank = factors.kind, factors.rank
    most = full_rank(weight, kind)
    if rank > most:
        raise SurgeryError(f"a rank of {rank} is above the full one, {most}", hint="factorise the network again")
    u, s, v = torch.linalg.svd(matrices(weight.detach(), kind).double(), full_matrices=False)
    root = s[..., :rank].sqrt()
    left = u[..., :rank] * root.unsqueeze(-2)  # [..., rows, rank]
    right = v[..., :rank, :] * root.unsqueeze(-1)  # [..., rank, columns]
    if kind is Kind.SVD:
        first, second = right, left
    else:
        outputs, inputs, height, width = weight.shape
        if kind is Kind.CHANNEL:
            first, second = right.reshape(rank, inputs, height, width), left.reshape(outputs, rank, 1, 1)
        elif kind is Kind.SPATIAL:
            first = right.reshape(rank, inputs, height, 1)
            second = left.reshape(outputs, width, rank).permute(0, 2, 1).unsqueeze(2)
        else:
            first = right.reshape(inputs * rank, 1, height, width)
            second = left.permute(1, 0, 2).reshape(outputs, inputs * rank, 1, 1)
    tensors = {"0.weight": first, "1.weight": second}
    tensors = {name: tensor.to(weight.dtype).contiguous() for name, tensor in tensors.items()}
    return tensors if bias is None else {**tensors, "1.bias": bias.detach().clone()}


def product(first: Tensor, second: Tensor, factors: Factors) -> Tensor:
    """Return the single weight that equals two layers' weights, in the shape of the layer that they replace."""
    if factors.kind is Kind.SVD:
        return second @ first
    if factors.kind is Kind.CHANNEL:
        return torch.einsum("or,rihw->oihw", second.flatten(1), first)
    if factors.kind is Kind.SPATIAL:
        return torch.einsum("orw,rih->oihw", second.squeeze(2), first.squeeze(3))
    outputs, inputs = len(second), len(first) // factors.rank
    own = first.reshape(inputs, factors.rank, *first.shape[2:])
    return torch.einsum("oir,irhw->oihw", second.reshape(outputs, inputs, factors.rank), own)


def cost_of_a_rank(weight: Tensor, kind: Kind, *, positions: int, middle: int) -> int:
    """Return the MACs of one rank.

    `positions` counts the positions of the layer's output, `middle` those of the tensor between the two layers.
    """
    if kind is Kind.SVD:
        return positions * sum(weight.shape)
    outputs, inputs, height, width = weight.shape
    if kind is Kind.CHANNEL:
        return positions * (inputs * height * width + outputs)
    if kind is Kind.SPATIAL:
        return middle * inputs * height + positions * outputs * width
    return positions * inputs * (height * width + outputs)


def factorized(layer: Any, factors: Factors, *, fill: bool = True) -> nn.Sequential:
    """Return the two layers that replace the layer, with its factors; without `fill`, their weights are uninitialised.

    Device, type, mode and `requires_grad` are the layer's. Refused: a layer of another kind, a rank above the full one.
    """
    reason = why_not(layer, factors.kind)
    if reason is not None:
        raise SurgeryError(f"a layer cannot be factorised by `{factors.kind}`: it is {reason}")
    two = nn.Sequential(*(_linear if factors.kind is Kind.SVD else _convolutions)(layer, factors))
    if fill:
        two.load_state_dict(pieces(layer.weight, layer.bias, factors))
    for name, parameter in two.named_parameters():
        source = layer.bias if name.endswith("bias") else layer.weight
        parameter.requires_grad_(source.requires_grad)
    return two.train(layer.training)


def _unset(kind: type[nn.Module], *sizes: int, **options: Any) -> nn.Module:
    """A layer with uninitialised weights, which draws no random numbers."""
    layer: nn.Module = skip_init(kind, *sizes, **options)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return layer


def _linear(layer: nn.Linear, factors: Factors) -> list[nn.Module]:
    """The two linear layers, uninitialised."""
    place = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    return [
        _unset(nn.Linear, layer.in_features, factors.rank, bias=False, **place),
        _unset(nn.Linear, factors.rank, layer.out_features, bias=layer.bias is not None, **place),
    ]


def _convolutions(layer: nn.Conv2d, factors: Factors) -> list[nn.Module]:
    """The two convolutions, uninitialised."""
    place = {"device": layer.weight.device, "dtype": layer.weight.dtype, "padding_mode": layer.padding_mode}
    inputs, outputs, rank = layer.in_channels, layer.out_channels, factors.rank
    bias, whole = layer.bias is not None, Geometry.of(layer)
    if factors.kind is Kind.SPATIAL:
        column, row = whole.along(0), whole.along(1)
        return [
            _unset(nn.Conv2d, inputs, rank, bias=False, **column.arguments(), **place),
            _unset(nn.Conv2d, rank, outputs, bias=bias, **row.arguments(), **place),
        ]
    middle, groups = (inputs * rank, inputs) if factors.kind is Kind.SEPARABLE else (rank, 1)
    return [
        _unset(nn.Conv2d, inputs, middle, bias=False, groups=groups, **whole.arguments(), **place),
        _unset(nn.Conv2d, middle, outputs, kernel_size=1, bias=bias, **place),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How a convolution moves over an image: height, then width."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]

    @staticmethod
    def of(layer: Any) -> Geometry:
        """Return the layer's geometry."""
        return Geometry(kernel=layer.kernel_size, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)

    def along(self, dim: int) -> Geometry:
        """Return the geometry along one dimension, one pixel wide in the other; a padding by name applies to both."""

        def only(pair: tuple[int, int], other: int) -> tuple[int, int]:
            return (pair[0], other) if dim == 0 else (other, pair[1])

        padding = self.padding if isinstance(self.padding, str) else only(self.padding, 0)
        return Geometry(
            kernel=only(self.kernel, 1), stride=only(self.stride, 1), padding=padding, dilation=only(self.dilation, 1)
        )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `nn.Conv2d`."""
        return {
            "kernel_size": self.kernel, "stride": self.stride, "padding": self.padding, "dilation": self.dilation
        }  # fmt: skip
