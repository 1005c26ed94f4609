"""Measured widths for a request: gather second moments, measure curves of error against width, allocate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from compressor.channels.groups import ChannelGroup, Role
from compressor.planning.allocation import Allocation, allocate, orders_from, plan_of_widths, widths_to_probe
from compressor.planning.branches import residual_sum
from compressor.planning.calibration import Calibration, Needs
from compressor.planning.costs import CostModel
from compressor.planning.elimination import ReaderMoments, consumers
from compressor.planning.gathering import gather
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
    """The inputs of a measurement: the network with its groups and scores, and images to fit on and to judge on."""

    module: nn.Module
    groups: tuple[ChannelGroup, ...]
    scores: Scores
    readings: Mapping[str, ReaderMoments] | None  # the consumers' second moments, if the criterion gathered them
    fitted: Batches
    probed: Batches


def fitted_and_probed(images: Batches) -> tuple[Batches, Batches]:
    """Split batches into those to fit readers on and those to judge by: at most a quarter, about `PROBE_IMAGES`."""
    judging = max(1, min(len(images) // 4, -(-PROBE_IMAGES // len(images[0][0]))))
    return images[:-judging] or images, images[-judging:]


def probing_of(
    module: nn.Module, groups: tuple[ChannelGroup, ...], scores: Scores, calibration: Calibration, images: Batches
) -> Probing:
    """Return the inputs of a measurement, with the images split in two."""
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
    """Return the allocation within the budget with the least measured rise, and its curves (measured if `None`)."""
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
    """Return a plan of random widths within the budget, drawn by the request's seed; scores choose the channels."""
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
    """Return the share of the dense network's cost that may stay, and the cost of the network at any widths."""
    sizes = Sizes(module, groups)
    if isinstance(budget, ChannelBudget):
        return budget.stays, ChannelCost(sizes)
    return budget.stays, CountedCost(CostModel(module, groups, example_inputs), sizes, budget.counted)


def measured_curves(
    probing: Probing, request: Request, *, say: Say, align: int | None = None, strict: bool = False
) -> tuple[Curve, ...]:
    """Measure for each group alone how the output's error rises at a few widths; groups without readings are skipped.

    `align` replaces the request's alignment; with `strict`, only its multiples are probed, also in narrow groups.
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
    readable = [g for g in groups if consumers(g, readings)]
    return sensitivity(program, readable, readings, orders_from(groups, probing.scores), widths, probed, say=say)


def emptiable(module: nn.Module, program: Program, groups: Sequence[ChannelGroup]) -> frozenset[str]:
    """Return the roots of the groups that can lose all channels.

    Every reader of such a group ends in a sum with another term. For each sum only the first branch is returned:
    if both branches were empty, the sum would have no term.
    """
    nodes = {program.tensor_name(node.args[1]): node for _, node in readers(program)}
    roots: list[str] = []
    sums: set[int] = set()
    for group in groups:
        ends = _ends(module, program, group, nodes)
        if ends and not ends & sums:
            roots.append(group.root)
            sums |= ends
    return frozenset(roots)


def _ends(module: nn.Module, program: Program, group: ChannelGroup, nodes: Mapping[str | None, fx.Node]) -> set[int]:
    """Return the sums that the group's readers end in; empty if a reader ends elsewhere or reads other channels too."""
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
