"""Prune a checkpoint into a small network: trace, score, plan, shrink, prove, repair."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup, Role, Traced, trace, without
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.examples import with_examples_of
from compressor.data.splits import Data
from compressor.errors import SurgeryError
from compressor.graph.recorded import RecordedProgram
from compressor.graph.sizes import takes_text
from compressor.planning.calibration import Needs
from compressor.planning.costs import Cost, LayerCost, count, layer_costs
from compressor.planning.gap import Gap, gap_between
from compressor.planning.gathering import gather
from compressor.planning.sensitivity import Curve, writable
from compressor.progress import Say, quiet
from compressor.pruning.level_plan import Dense, Planned, Planner, Scored, finer_share, planned_level
from compressor.pruning.repair.repairing import Repair, Repaired, emptied, repair, repair_blind
from compressor.pruning.request import Request, budget_to_json
from compressor.pruning.scoring import calibration_images, score
from compressor.results.changes import Achieved, ErrorCurve, LeftAlone, Pruning, Repairing, Width
from compressor.surgery.plan import PruningPlan, Scores
from compressor.surgery.proof import Proof
from compressor.surgery.proved import shrink_proved, unprovable
from compressor.surgery.surgery import Surgery


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One round of pruning: the plan, relative to the network before the round, and the proof of its surgery."""

    plan: PruningPlan
    proof: Proof
    channels: tuple[int, int]  # before, after
    curves: tuple[Curve, ...] = ()  # of the measured widths; empty for other scopes
    emptied: tuple[str, ...] = ()  # roots of the groups that lost all their channels
    repaired: Repaired | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """The small network with its request, its costs, its levels and the dense network's channel groups."""

    checkpoint: Checkpoint
    request: Request
    dense_cost: Cost
    small_cost: Cost
    dense_layers: tuple[LayerCost, ...]
    small_layers: tuple[LayerCost, ...]
    levels: tuple[Level, ...]
    traced: Traced  # of the dense network
    gap: Gap | None = None  # between requested and achieved budget, if it is too large

    @property
    def proof(self) -> Proof:
        """The proof with the largest difference."""
        return max((level.proof for level in self.levels), key=lambda p: p.largest_relative_difference)

    @property
    def kept_as(self) -> str:
        """`class`: the small network has the dense network's class; `program`: it is the mended exported program."""
        return "program" if isinstance(self.checkpoint.module, RecordedProgram) else "class"

    @property
    def takes(self) -> str | None:
        """The input sizes that a small network kept as a program accepts; `None` where its class decides."""
        module = self.checkpoint.module
        takes = module.recorded.get("takes") if isinstance(module, RecordedProgram) else None
        return None if takes is None else takes_text(takes)

    @property
    def result(self) -> Pruning:
        """The `prune` section of an artifact's results."""
        dense, small = self.dense_cost, self.small_cost
        return Pruning(
            requested=budget_to_json(self.request.budget),
            achieved=Achieved(
                channels=(self.levels[0].channels[0], self.levels[-1].channels[1]),
                params=(dense.params, small.params),
                macs=(dense.macs, small.macs),
                bytes=(dense.bytes, small.bytes),
            ),
            caveats=() if self.gap is None else (self.gap.caveat(),),
            criterion=self.request.criterion,
            largest=self.request.largest,
            scope=str(self.request.scope),
            align=self.request.alignment,
            levels=self.request.levels,
            seed=self.request.seed,
            kept_as=self.kept_as,
            takes=self.takes,
            outputs=self.checkpoint.outputs,
            proof=self.proof.result,
            widths=self._widths(),
            left_alone=tuple(LeftAlone(layer=a.layer, reason=a.reason) for a in self.traced.left_alone),
            emptied=tuple(root for level in self.levels for root in level.emptied),
            curves=tuple(
                ErrorCurve(root=c.root, widths=tuple(c.widths), rises=tuple(writable(r) for r in c.measured))
                for level in self.levels[:1]
                for c in level.curves
            ),
        )

    @property
    def repair_result(self) -> Repairing | None:
        """The `repair` section of an artifact's results: the last level's repair; `None` where nothing was repaired."""
        repaired = self.levels[-1].repaired
        return None if repaired is None else repaired.result

    def _widths(self) -> tuple[Width, ...]:
        """Return each dense layer's channels and MACs with those of the small layer, 0 where the layer is gone."""
        after = {layer.weight: layer for layer in self.small_layers}
        pairs = ((layer, after.get(layer.weight)) for layer in self.dense_layers)
        return tuple(
            Width(
                layer=dense.layer,
                kind=dense.kind,
                inputs=(dense.inputs, small.inputs if small else 0),
                outputs=(dense.outputs, small.outputs if small else 0),
                macs=(dense.macs, small.macs if small else 0),
            )
            for dense, small in pairs
        )


Judge = Callable[[nn.Module, Sequence[ChannelGroup]], Scores]


def prune(
    checkpoint: Checkpoint,
    request: Request,
    *,
    data: Data | None = None,
    say: Say = quiet,
    planner: Planner | None = None,
    judge: Judge | None = None,
) -> Pruned:
    """Return the small network that `request` asks for, with its proof; the checkpoint is not modified.

    A `planner` makes the plan in place of the request's scope; a budget of latency needs one (`pruning.speed.search`).
    A `judge` scores the channels in place of the criterion; `request.criterion` is then its name in records
    (`pruning.transfer.rounds`).

    If the removal from a group cannot be proved, the group is left alone with the reason, and the level is planned
    again without it. With `data`, the network is traced and proved on its first image. Refused: nothing prunable, a
    budget that cannot be met or removes nothing, a criterion without the data it needs.
    """
    request = request.resolved(has_data=data is not None)
    checkpoint = with_examples_of(checkpoint, data)
    job = _Job(
        checkpoint=checkpoint,
        request=request,
        data=data,
        images=[] if judge else calibration_images(checkpoint, request, data, say=say),
        dense_cost=count(checkpoint.module, checkpoint.example_inputs),
        say=say,
        planner=planner,
        judge=judge,
    )
    dense, inputs = checkpoint.module, checkpoint.example_inputs
    job.say("tracing the channel groups")
    dense_traced = trace(dense, inputs, protect=request.protect, heads=request.heads)
    module, surgery, levels = dense, Surgery(), []
    silent: frozenset[str] = frozenset()
    for number in range(1, request.levels + 1):
        traced = dense_traced
        if number > 1:
            again = trace(module, inputs, protect=request.protect, heads=request.heads)
            traced = _only(again, {g.root for g in dense_traced.groups})
        cut = _cut(job, module, traced, dense_traced, number)
        if number == 1:
            dense_traced = cut.traced  # later levels leave the unprovable groups alone too
        planned = cut.planned
        emptied_groups = [g for g in cut.traced.groups if g.root in planned.emptied]
        silent |= {m.tensor for g in emptied_groups for m in g.members if m.role is Role.CONSUMES}
        surgery = surgery.then(cut.surgery)
        repaired = _repaired(job, cut.module, surgery, silent, last=number == request.levels)
        module = cut.module if repaired is None else repaired.module
        before = sum(g.channels for g in cut.traced.groups)
        levels.append(
            Level(
                plan=planned.plan,
                proof=cut.proof,
                channels=(before, before - planned.plan.count - len(emptied_groups)),
                curves=planned.curves,
                emptied=planned.emptied,
                repaired=repaired,
            )
        )
    module, branches_removed = _without_empty_branches(job, module, dense_traced, levels)
    already = checkpoint.surgery or Surgery()
    small_cost = count(module, inputs)
    return Pruned(
        checkpoint=dataclasses.replace(
            checkpoint,
            module=module,
            surgery=already.then(surgery).then(branches_removed),
            lineage=(*checkpoint.lineage, *_lineage(request, levels)),
        ),
        request=request,
        dense_cost=job.dense_cost,
        small_cost=small_cost,
        dense_layers=layer_costs(dense, inputs),
        small_layers=layer_costs(module, inputs),
        levels=tuple(levels),
        traced=dense_traced,
        gap=_gap(job, cut, levels, small_cost),
    )


def _silence(_: str) -> None:
    """Ignore progress messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The values that all levels of a run share."""

    checkpoint: Checkpoint
    request: Request
    data: Data | None
    images: list[tuple[Tensor, ...]]  # for second moments, measuring and repair; empty if none of these needs them
    dense_cost: Cost
    say: Say
    planner: Planner | None
    judge: Judge | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """One level's small network before repair, with its surgery, proof, groups, scores and plan."""

    module: nn.Module
    surgery: Surgery
    proof: Proof
    traced: Traced
    scored: Scored
    planned: Planned
    dense: Dense


def _cut(job: _Job, module: nn.Module, traced: Traced, dense_traced: Traced, level: int) -> _Cut:
    """Plan, shrink and prove; repeat without the groups that cannot be proved."""
    inputs = job.checkpoint.example_inputs
    while True:
        scored = _scored(job, module, traced, level)
        widths = {g.root: g.channels for g in dense_traced.groups}
        dense = Dense(widths=widths, cost=job.dense_cost, inputs=inputs)
        if job.planner is not None:
            planned = job.planner(scored)
        else:
            planned = planned_level(scored, job.request, dense, level=level, say=job.say)
        plan = planned.plan
        job.say("shrinking, and proving it")
        try:
            small, surgery, proof = shrink_proved(module, traced, plan, inputs)
        except SurgeryError:
            reasons = unprovable(module, traced, plan, inputs)
            if not reasons:
                raise
            traced = without(traced, reasons)
            if level == 1:
                dense_traced = traced
            continue
        return _Cut(
            module=small, surgery=surgery, proof=proof, traced=traced, scored=scored, planned=planned, dense=dense
        )


def _scored(job: _Job, module: nn.Module, traced: Traced, level: int) -> Scored:
    """Return the network with its groups, scores and calibration, from which the level is planned."""
    request = job.request
    job.say(f"scoring by {request.criterion}" + (f", level {level} of {request.levels}" * (request.levels > 1)))
    if job.judge is not None:
        scores = job.judge(module, traced.groups)
        calibration = gather(module, traced.groups, needs=Needs.NOTHING, batches=None, seed=request.seed)
    else:
        scores, calibration = score(
            module, traced.groups, request, data=job.data, images=job.images, checkpoint=job.checkpoint, say=job.say
        )
    return Scored(module=module, traced=traced, scores=scores, calibration=calibration, images=job.images)


def _gap(job: _Job, cut: _Cut, levels: Sequence[Level], small: Cost) -> Gap | None:
    """Return the gap between requested and achieved budget, with the gap at `--align 1`; `None` if it is small."""
    request, dense = job.request, job.dense_cost
    shares = {
        "channels": levels[-1].channels[1] / levels[0].channels[0],
        "macs": small.macs / dense.macs,
        "params": small.params / dense.params,
    }
    gap = gap_between(request.budget, shares, align=request.alignment)
    if gap is None or request.levels > 1 or request.align == 1 or job.planner is not None:
        return gap
    return dataclasses.replace(gap, finer=finer_share(cut.scored, cut.planned, request, cut.dense))


def _repaired(job: _Job, small: nn.Module, surgery: Surgery, silent: frozenset[str], *, last: bool) -> Repaired | None:
    """Repair the level's network against the dense one; `distill` applies to the last level, least squares before."""
    how = job.request.repair
    if how is Repair.NONE:
        return None
    dense = job.checkpoint.module
    if not job.images:
        return repair_blind(dense, small, surgery, job.checkpoint.example_inputs)
    if how is Repair.DISTILL and not last:
        how = Repair.LEAST_SQUARES
    return repair(
        dense, small, surgery, job.images, how=how, silent=silent, memory_bytes=job.request.memory_bytes,
        seed=job.request.seed, say=job.say,
    )  # fmt: skip


def _without_empty_branches(
    job: _Job, module: nn.Module, dense_traced: Traced, levels: Sequence[Level]
) -> tuple[nn.Module, Surgery]:
    """Remove the branches that read no channel any more; return the network and the surgery."""
    gone = {root for level in levels for root in level.emptied}
    if not gone or isinstance(module, RecordedProgram):  # a program keeps an empty branch, with zero weights
        return module, Surgery()
    job.say("taking out the empty branches")
    members = [m for g in dense_traced.groups if g.root in gone for m in g.members]
    layers = dict.fromkeys(m.layer for m in members if m.role in (Role.PRODUCES, Role.CONSUMES))
    return emptied(module, tuple(layers), job.checkpoint.example_inputs)


def _lineage(request: Request, levels: Sequence[Level]) -> list[dict[str, object]]:
    """Return the lineage in plain values: a step for the pruning and, if there is one, for the last level's repair."""
    entries: list[dict[str, object]] = [
        {
            "step": "prune",
            "requested": budget_to_json(request.budget),
            "criterion": request.criterion,
            "scope": str(request.scope),
            "align": request.alignment,
            "heads": request.heads,
            "seed": request.seed,
            "plans": [level.plan.to_json() for level in levels],
            "emptied": [root for level in levels for root in level.emptied],
        }
    ]
    repaired = levels[-1].repaired
    if repaired is not None:
        entries.append(repaired.step(seed=request.seed))
    return entries


def _only(traced: Traced, roots: set[str]) -> Traced:
    """Return `traced` with the groups of these roots only: groups that an earlier level left alone stay alone."""
    return dataclasses.replace(traced, groups=tuple(g for g in traced.groups if g.root in roots))
