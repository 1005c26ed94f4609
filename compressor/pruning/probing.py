"""Widths by measurement, from a request: second moments, curves of error against width, an allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from compressor.channels.groups import ChannelGroup, Role
from compressor.planning.allocation import Allocation, allocate, orders_from, plan_of_widths, widths_to_probe
from compressor.planning.branches import residual_sum
from compressor.planning.calibration import Calibration, Needs, gather
from compressor.planning.costs import CostModel
from compressor.planning.elimination import Reading, consumers
from compressor.planning.random_widths import random_widths
from compressor.planning.sensitivity import Curve, sensitivity
from compressor.planning.walk import Program, program_of, readers
from compressor.planning.widths import ChannelCost, CountedCost, Sizes, WidthCost
from compressor.progress import Say
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request
from compressor.surgery.constant import can_be_silent
from compressor.surgery.plan import ChannelBudget, CostBudget, PruningPlan, Scores

Batches = list[tuple[Tensor, ...]]
PROBE_IMAGES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Probing:
    """What measuring takes: the network with its groups and their scores, and images to fit and to judge on."""

    module: nn.Module
    groups: tuple[ChannelGroup, ...]
    scores: Scores
    readings: Mapping[str, Reading] | None  # what the criterion gathered of the consumers, where it did
    fitted: Batches
    probed: Batches


def fitted_and_probed(images: Batches) -> tuple[Batches, Batches]:
    """Images to fit readers on, and others to judge by: at most a quarter, about `PROBE_IMAGES`."""
    held = max(1, min(len(images) // 4, -(-PROBE_IMAGES // len(images[0][0]))))
    return images[:-held] or images, images[-held:]


def probing_of(
    module: nn.Module, groups: tuple[ChannelGroup, ...], scores: Scores, calibration: Calibration, images: Batches
) -> Probing:
    """What measuring takes, with the images split in two."""
    fitted, probed = fitted_and_probed(images)
    return Probing(
        module=module, groups=groups, scores=scores, readings=calibration.readings, fitted=fitted, probed=probed
    )


def allocated(
    probing: Probing,
    budget: ChannelBudget | CostBudget,
    request: Request,
    example_inputs: tuple[Tensor, ...],
    *,
    say: Say,
    curves: tuple[Curve, ...] | None = None,
) -> tuple[Allocation, tuple[Curve, ...]]:
    """The widths within the budget at the least measured rise, and the curves that decided; measured if not given."""
    curves = measured_curves(probing, request, say=say) if curves is None else curves
    target, cost = _priced(probing.module, probing.groups, budget, example_inputs)
    allocation = allocate(
        probing.groups,
        orders_from(probing.groups, probing.scores),
        curves,
        target=target,
        share=cost.stays,
        align=request.align,
        min_channels=request.min_channels,
    )
    return allocation, curves


def drawn(
    module: nn.Module,
    groups: tuple[ChannelGroup, ...],
    scores: Scores,
    budget: ChannelBudget | CostBudget,
    request: Request,
    example_inputs: tuple[Tensor, ...],
) -> PruningPlan:
    """Random widths within the budget, drawn by the request's seed; which channels leave the scores say."""
    target, cost = _priced(module, groups, budget, example_inputs)
    widths = random_widths(
        groups, target=target, share=cost.stays, seed=request.seed, align=request.align,
        min_channels=request.min_channels,
    )  # fmt: skip
    return plan_of_widths(groups, orders_from(groups, scores), widths)


def _priced(
    module: nn.Module,
    groups: tuple[ChannelGroup, ...],
    budget: ChannelBudget | CostBudget,
    example_inputs: tuple[Tensor, ...],
) -> tuple[float, WidthCost]:
    """The share of the dense network's cost that may stay, and what networks cost at any widths."""
    sizes = Sizes(module, groups)
    if isinstance(budget, ChannelBudget):
        return budget.stays, ChannelCost(sizes)
    return budget.stays, CountedCost(CostModel(module, groups, example_inputs), sizes, budget.counted)


def measured_curves(
    probing: Probing, request: Request, *, say: Say, align: int | None = None, strict: bool = False
) -> tuple[Curve, ...]:
    """How the output suffers from each group alone at a few widths, where the group's readers can be seen.

    `align` takes the place of the request's; `strict` is about widths that are no multiple of it.
    """
    align = request.align if align is None else align
    module, groups, probed = probing.module, probing.groups, probing.probed
    readings = probing.readings
    if readings is None:
        say("gathering second moments")
        stream = [(batch, None) for batch in probing.fitted]
        readings = gather(
            module, groups, needs=Needs.SECOND_MOMENTS, batches=stream, seed=request.seed,
            memory_bytes=request.memory_bytes, say=say,
        ).readings  # fmt: skip
        assert readings is not None
    program = program_of(module, probed[0], batch=len(probed[0][0]))
    may_empty: frozenset[str] = frozenset()
    if request.min_channels == 1 and request.repair not in (Repair.NONE, Repair.BATCH_NORM):
        may_empty = emptiable(module, program, groups)
    widths = {
        g.root: widths_to_probe(
            g, align=align, min_channels=request.min_channels, may_empty=g.root in may_empty, strict=strict
        )
        for g in groups
    }
    known = [g for g in groups if consumers(g, readings)]
    return sensitivity(program, known, readings, orders_from(groups, probing.scores), widths, probed, say=say)


def emptiable(module: nn.Module, program: Program, groups: Sequence[ChannelGroup]) -> frozenset[str]:
    """The groups without any of which the network stays whole: all that reads them ends in a sum with something else.

    Of the branches of one sum only the first is among them: without both the sum would have nothing to give.
    """
    nodes = {program.tensor_name(node.args[1]): node for _, node in readers(program)}
    found: list[str] = []
    sums: set[int] = set()
    for group in groups:
        ends = _ends(module, program, group, nodes)
        if ends and not ends & sums:
            found.append(group.root)
            sums |= ends
    return frozenset(found)


def _ends(module: nn.Module, program: Program, group: ChannelGroup, nodes: Mapping[str | None, fx.Node]) -> set[int]:
    """The sums that the group's readers end in; empty where one of them does not, or reads something else too."""
    ends: set[int] = set()
    weights = dict(module.named_parameters())
    for member in group.members:
        if member.role is Role.CARRIES:
            continue
        if member.role is Role.NORMALISES or not can_be_silent(module.get_submodule(member.layer)):
            return set()
        if member.role is Role.CONSUMES:
            node = nodes.get(member.tensor)
            branch = None if node is None else residual_sum(program, node)
            if branch is None or len(member.positions) != weights[member.tensor].shape[member.dim]:
                return set()
            ends.add(branch.total)
    return ends
