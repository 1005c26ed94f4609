"""Channels held at zero in a network that trains, until they are cut.

A channel is silent where it is made, where a norm or a scale passes it on (a shift could make it speak again), and
where it is read. What is held changes nothing when it is cut, unless channels are looked at together, as by a layer
norm, which still counts a silent one: `speaking` finds such groups.
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
MADE = (Role.PRODUCES,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Positions `[n]` along one dimension of the parameter called `tensor`."""

    tensor: str
    dim: int
    positions: Tensor


def slices_of(
    groups: Iterable[ChannelGroup], channels: Mapping[str, Sequence[int]], *, roles: Sequence[Role] = ALL
) -> tuple[Slice, ...]:
    """Where the given channels, by their group's root, stand in the tensors with one of the `roles`."""
    plan = PruningPlan(removed={root: tuple(sorted(chosen)) for root, chosen in channels.items()})
    found: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for group in groups:
        gone = gone_mask(group, plan)
        for member in group.members:
            positions = member.positions[gone[member.channels]]
            if member.role in roles and len(positions):
                found[member.tensor, member.dim].append(positions)
    return tuple(Slice(tensor=t, dim=d, positions=torch.cat(p)) for (t, d), p in found.items())


class Holder:
    """A call that sets the slices of a module's parameters to zero; made once, called after every step.

    Momentum may move them within a step; no forward pass ever sees it. Buffers, as of a batch norm, are left alone.
    """

    def __init__(self, module: nn.Module, slices: Sequence[Slice]) -> None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._held = [
            (parameters[s.tensor], s.dim, s.positions.to(parameters[s.tensor].device))
            for s in slices
            if s.tensor in parameters
        ]

    def __call__(self) -> None:
        """Zero them."""
        with torch.no_grad():
            for parameter, dim, positions in self._held:
                parameter.index_fill_(dim, positions, 0)


def add_noise_(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    channels: Mapping[str, Sequence[int]],
    *,
    spared: Mapping[str, Sequence[int]],
    seed: int,
) -> None:
    """Add N(0, s²) to the weights that make `channels`; s is the mean deviation of those of a channel of `spared`.

    The published code takes the s of the first spared channel; the mean over all of them does not hang on their order.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    generator = torch.Generator().manual_seed(seed)
    others = {(s.tensor, s.dim): s.positions for s in slices_of(groups, spared, roles=MADE)}
    with torch.no_grad():
        for target in slices_of(groups, channels, roles=MADE):
            weight = parameters[target.tensor]
            rows = weight.detach().movedim(target.dim, 0).cpu()  # [channels, ...]
            kept = rows[others[target.tensor, target.dim]].flatten(1)
            scale = float(kept.std(dim=1).mean()) if kept.shape[1] > 1 else float(kept.std())
            noise = scale * torch.randn(len(target.positions), *rows.shape[1:], generator=generator)
            weight.index_add_(
                target.dim, target.positions.to(weight.device), noise.movedim(0, target.dim).to(weight.device)
            )


def held_copy(module: nn.Module, groups: Sequence[ChannelGroup], plan: PruningPlan) -> nn.Module:
    """A copy of the module in which what the plan removes is held at zero."""
    held = copy_of(module)
    Holder(held, slices_of(groups, plan.removed))()
    return held


def said_otherwise(held: nn.Module, small: nn.Module, traced: Traced, inputs: Sequence[Tensor]) -> float | None:
    """How far the small network lies from the held one it was cut from, on random inputs; `None` for rounding alone.

    `traced` is the held network's, or that of the network with the same program that it was before training. In
    float64; in float32 where the network does not run in that. Refused: networks that run in neither.
    """
    nothing = PruningPlan(removed={})
    for dtype in (torch.float64, torch.float32):
        try:
            proof = prove(small, reference_of(held, traced, nothing, inputs, dtype=dtype))
        except SurgeryError:
            if dtype is torch.float32:
                raise
        else:
            return None if proof.holds else proof.largest_relative_difference
    raise AssertionError


def speaking(module: nn.Module, traced: Traced, plan: PruningPlan, inputs: Sequence[Tensor]) -> tuple[str, ...]:
    """The roots of groups that the plan takes channels of, and whose held channels have a say all the same.

    Found by halves, on the network as it is.
    """

    def found_in(roots: Sequence[str]) -> tuple[str, ...]:
        part = PruningPlan(removed={root: plan.removed[root] for root in roots})
        held = held_copy(module, traced.groups, part)
        try:
            small, _ = shrink(held, traced, part, inputs)
            silent = said_otherwise(held, small, traced, inputs) is None
        except SurgeryError:
            silent = False
        if silent:
            return ()
        middle = len(roots) // 2
        return (*found_in(roots[:middle]), *found_in(roots[middle:])) if middle else tuple(roots)

    roots = [root for root, channels in plan.removed.items() if channels]
    return found_in(roots) if roots else ()
