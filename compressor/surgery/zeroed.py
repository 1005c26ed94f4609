"""Keep channels at zero in a network that trains, until they are cut.

A channel is silenced where it is produced, where a norm or a scale passes it on (a shift could make it non-zero again),
and where it is read. Cutting it then changes nothing, unless an operator looks at channels together: a layer norm still
counts a silent channel. `speaking` finds such groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup, Role, Traced
from compressor.errors import SurgeryError
from compressor.graph.copies import copy_of
from compressor.surgery.plan import PruningPlan, gone_mask
from compressor.surgery.proof import prove, reference_of
from compressor.surgery.shrinking import shrink

ALL = (Role.PRODUCES, Role.CARRIES, Role.CONSUMES, Role.NORMALISES)
PRODUCERS = (Role.PRODUCES,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Positions `[n]` along one dimension of the parameter called `tensor`."""

    tensor: str
    dim: int
    positions: Tensor


def slices_of(
    groups: Iterable[ChannelGroup], channels: Mapping[str, Sequence[int]], *, roles: Sequence[Role] = ALL
) -> tuple[Slice, ...]:
    """Return the places of the given channels, by their group's root, in the tensors with one of the `roles`."""
    plan = PruningPlan(removed={root: tuple(sorted(chosen)) for root, chosen in channels.items()})
    places: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for group in groups:
        gone = gone_mask(group, plan)
        for member in group.members:
            positions = member.positions[gone[member.channels]]
            if member.role in roles and len(positions):
                places[member.tensor, member.dim].append(positions)
    return tuple(Slice(tensor=t, dim=d, positions=torch.cat(p)) for (t, d), p in places.items())


class Holder:
    """A call that sets the slices of a module's parameters to zero; created once, called after every step.

    Momentum may change them within a step, but no forward pass sees it. Buffers, such as a batch norm's, stay
    unchanged.
    """

    def __init__(self, module: nn.Module, slices: Sequence[Slice]) -> None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._slices = [
            (parameters[s.tensor], s.dim, s.positions.to(parameters[s.tensor].device))
            for s in slices
            if s.tensor in parameters
        ]

    def __call__(self) -> None:
        """Set the slices to zero."""
        with torch.no_grad():
            for parameter, dim, positions in self._slices:
                parameter.index_fill_(dim, positions, 0)


def add_noise_(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    channels: Mapping[str, Sequence[int]],
    *,
    spared: Mapping[str, Sequence[int]],
    seed: int,
) -> None:
    """Add N(0, s²) to the weights that produce `channels`; s is the mean standard deviation over the channels in
    `spared`.

    The published code uses the s of the first spared channel; the mean over all of them does not depend on their order.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    generator = torch.Generator().manual_seed(seed)
    others = {(s.tensor, s.dim): s.positions for s in slices_of(groups, spared, roles=PRODUCERS)}
    with torch.no_grad():
        for target in slices_of(groups, channels, roles=PRODUCERS):
            weight = parameters[target.tensor]
            rows = weight.detach().movedim(target.dim, 0).cpu()  # [channels, ...]
            kept = rows[others[target.tensor, target.dim]].flatten(1)
            scale = float(kept.std(dim=1).mean()) if kept.shape[1] > 1 else float(kept.std())
            noise = scale * torch.randn(len(target.positions), *rows.shape[1:], generator=generator)
            weight.index_add_(
                target.dim, target.positions.to(weight.device), noise.movedim(0, target.dim).to(weight.device)
            )


def zeroed_copy(module: nn.Module, groups: Sequence[ChannelGroup], plan: PruningPlan) -> nn.Module:
    """Return a copy of the module in which the plan's removed channels are zero."""
    copy = copy_of(module)
    Holder(copy, slices_of(groups, plan.removed))()
    return copy


def difference_beyond_rounding(
    zeroed: nn.Module, small: nn.Module, traced: Traced, inputs: Sequence[Tensor]
) -> float | None:
    """Return the difference between the zeroed network and the small one cut from it, on random inputs; `None` if
    rounding.

    `traced` belongs to the zeroed network, or to the network with the same program before training. It runs in float64,
    or in float32 where the network does not run in float64. Refused: networks that run in neither.
    """
    nothing = PruningPlan(removed={})
    for dtype in (torch.float64, torch.float32):
        try:
            proof = prove(small, reference_of(zeroed, traced, nothing, inputs, dtype=dtype))
        except SurgeryError:
            if dtype is torch.float32:
                raise
        else:
            return None if proof.holds else proof.largest_relative_difference
    raise AssertionError


def speaking(module: nn.Module, traced: Traced, plan: PruningPlan, inputs: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the roots of groups whose removed channels still affect the network when they are zero.

    It searches by halving, on the network as it is.
    """

    def affecting(roots: Sequence[str]) -> tuple[str, ...]:
        part = PruningPlan(removed={root: plan.removed[root] for root in roots})
        zeroed = zeroed_copy(module, traced.groups, part)
        try:
            small, _ = shrink(zeroed, traced, part, inputs)
            silent = difference_beyond_rounding(zeroed, small, traced, inputs) is None
        except SurgeryError:
            silent = False
        if silent:
            return ()
        middle = len(roots) // 2
        return (*affecting(roots[:middle]), *affecting(roots[middle:])) if middle else tuple(roots)

    roots = [root for root, channels in plan.removed.items() if channels]
    return affecting(roots) if roots else ()
