"""Choose the rank at which each layer is split: the spectra of the weights, and a budget shared by equal energy.

A layer's energy is the sum of the squares of its singular values. Under a cost budget every layer keeps the same share
of its own energy, the largest share that the budget allows. A layer that would not become cheaper stays as it is.
"""

from __future__ import annotations

import bisect
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import GroupError, OutOfReach, PlanError
from compressor.graph.copies import copy_of
from compressor.graph.lent import plain_attention
from compressor.graph.recorded import RecordedProgram
from compressor.surgery.factors import Kind, cost_of_a_rank, spectrum, why_not
from compressor.surgery.plan import CostBudget, Countable


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyBudget:
    """Every layer keeps at least this share of the squares of its singular values."""

    keeps: float

    def __post_init__(self) -> None:
        if not 0 < self.keeps < 1:
            raise PlanError(
                f"the energy that stays must lie between 0 and 1, and {self.keeps:g} does not",
                hint="to keep nine tenths of it: `--energy 0.9`",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBudget:
    """Every layer has this rank; with rank 1, `separable` is the block of MobileNets."""

    rank: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PlanError(f"a rank is at least 1, and {self.rank} is not", hint="for example `--rank 8`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A layer that can be split: the kind, what each further rank adds, and its cost, dense and per rank.

    Ranks that keep a share of the energy are multiples of `align`, or full.
    """

    layer: str
    kind: Kind
    values: Tensor  # singular values, float64 [full rank]
    dense: Mapping[Countable, int]
    per_rank: Mapping[Countable, int]
    align: int = 1

    @property
    def kept(self) -> Tensor:
        """The share of the energy that each rank keeps, `[full rank]`; 1 for a weight of zeros."""
        squares = self.values.square().cumsum(0)
        return squares / squares[-1] if float(squares[-1]) else torch.ones_like(squares)

    def rank_keeping(self, share: float) -> int:
        """Return the smallest rank that keeps this share of the energy."""
        return self.aligned(int(torch.searchsorted(self.kept, torch.tensor(share, dtype=torch.float64))) + 1)

    def aligned(self, rank: int) -> int:
        """Return the next multiple of `align`, or the full rank if that is less."""
        return min(len(self.values), math.ceil(rank / self.align) * self.align)

    def cost(self, rank: int, counted: Countable) -> int:
        """Return the layer's cost at this rank, or its dense cost if that is no more."""
        return min(self.dense[counted], rank * self.per_rank[counted])

    def pays(self, rank: int, counted: Countable) -> bool:
        """True if two layers of this rank cost less than the one."""
        return rank * self.per_rank[counted] < self.dense[counted]


def splits_of(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    how: Sequence[Kind],
    protect: Sequence[str] = (),
    align: int = 1,
) -> tuple[tuple[Split, ...], tuple[tuple[str, str], ...]]:
    """Return the layers that can be split, in execution order, and those that cannot, with the reason.

    Refused: a glob that matches no layer, a network in which nothing can be factorised.
    """
    if isinstance(module, RecordedProgram):
        raise GroupError(
            "the network is an exported program, which has no layers to factorise",
            hint="load its weights with its class: `--arch net.py:Net`",
        )
    layers = dict(module.named_modules())
    for glob in protect:
        if not fnmatch.filter(layers, glob):
            raise GroupError(f"`--protect {glob}` matches no layer", hint=f"layers are named like `{[*layers][-1]}`")
    calls, shared = _calls(module, example_inputs), _shared(module)
    splits, excluded = [], []
    for name in [*calls, *(n for n in layers if n not in calls)]:
        layer = layers[name]
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        kind = next((kind for kind in how if why_not(layer, kind) is None), None)
        if any(fnmatch.fnmatch(name, glob) for glob in protect):
            excluded.append((name, "protected"))
        elif kind is None:
            excluded.append((name, str(why_not(layer, how[0]))))
        elif not name or name not in calls:
            excluded.append((name, "the forward pass does not call it as a layer"))
        elif id(layer.weight) in shared:
            excluded.append((name, "another layer has the same weight"))
        else:
            splits.append(_split(name, layer, kind, calls[name], align=align))
    if not splits:
        reasons = "; ".join(f"`{layer}`: {reason}" for layer, reason in excluded[:4])
        raise GroupError(
            f"nothing to factorise by {', '.join(how)}" + f": {reasons}" * bool(reasons),
            hint="`--how spatial` is for k x k convolutions, `channel` for any, `svd` for linear layers",
        )
    return tuple(splits), tuple(excluded)


Shapes = tuple[torch.Size, torch.Size]  # of a layer's input and output


def _calls(module: nn.Module, example_inputs: Sequence[Tensor]) -> dict[str, list[Shapes]]:
    """The calls of each convolution and linear layer in one forward pass at batch size 1, in order."""
    shapes: dict[str, list[Shapes]] = {}
    twin = copy_of(module).eval()
    for name, layer in twin.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            hook = lambda _, inputs, output, name=name: shapes.setdefault(name, []).append(  # noqa: E731  # binds `name`
                (inputs[0].shape, output.shape)
            )
            layer.register_forward_hook(hook)
    with plain_attention(), torch.no_grad():
        twin(*[t[:1] for t in example_inputs])
    return shapes


def _shared(module: nn.Module) -> set[int]:
    """The identities of the parameters that several layers share."""
    identities = [id(p) for _, p in module.named_parameters(remove_duplicate=False)]
    return {one for one in identities if identities.count(one) > 1}


def _split(name: str, layer: Any, kind: Kind, calls: Sequence[Shapes], *, align: int) -> Split:
    """The costs and singular values of one layer."""
    weight = layer.weight
    positions = middle = 0
    for inputs, outputs in calls:
        positions += outputs.numel() // weight.shape[0]
        if kind is not Kind.SVD:
            middle += (
                inputs.numel() // weight.shape[1] // inputs[-2] * outputs[-2]
            )  # the column's output has the height of the layer's output
    return Split(
        layer=name,
        kind=kind,
        values=spectrum(weight, kind),
        align=1 if kind is Kind.SEPARABLE else align,  # its rank is not a number of channels
        dense={Countable.MACS: positions * weight.numel(), Countable.PARAMS: weight.numel()},
        per_rank={
            Countable.MACS: cost_of_a_rank(weight, kind, positions=positions, middle=middle),
            Countable.PARAMS: cost_of_a_rank(weight, kind, positions=1, middle=1),
        },
    )


def ranks_within(
    splits: Sequence[Split], budget: CostBudget | EnergyBudget | RankBudget, *, total: int
) -> dict[str, int]:
    """Return the rank of each layer that is split; `total` is the whole network's cost in the budget's unit.

    Under a cost budget every layer keeps at least the same share of its energy, and the largest share that the budget
    allows. Refused: a budget that the lowest ranks do not meet.
    """
    if isinstance(budget, RankBudget):
        ranks = {s.layer: min(budget.rank, len(s.values)) for s in splits}
        return {s.layer: ranks[s.layer] for s in splits if s.pays(ranks[s.layer], Countable.MACS)}
    if isinstance(budget, EnergyBudget):
        return _keeping(splits, budget.keeps, Countable.MACS)
    counted = budget.counted
    fixed = total - sum(s.dense[counted] for s in splits)

    def stays(share: float) -> int:
        return fixed + sum(s.cost(s.rank_keeping(share), counted) for s in splits)

    shares = sorted({float(share) for s in splits for share in s.kept})  # no rank changes between two of them
    least = stays(shares[0])
    if least > budget.stays * total:
        raise OutOfReach(
            f"the lowest ranks leave {least / total:.1%} of the {counted}, and {budget.stays:.1%} may stay",
            hint="ask for less, lower `--align`, protect less, or factorise more kinds of layers: `--how spatial,svd`",
        )
    met = bisect.bisect_right(shares, budget.stays * total, key=stays) - 1
    return _keeping(splits, shares[met], counted)


def _keeping(splits: Sequence[Split], share: float, counted: Countable) -> dict[str, int]:
    """The ranks that keep this share of the energy, of the layers that become cheaper."""
    ranks = {s.layer: s.rank_keeping(share) for s in splits}
    return {s.layer: ranks[s.layer] for s in splits if s.pays(ranks[s.layer], counted)}
