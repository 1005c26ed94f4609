"""From a checkpoint to an artifact: trace, score, plan, shrink, prove, write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor import criteria
from compressor.calibration import Needs, gather
from compressor.checkpoint import Checkpoint
from compressor.costs import Cost, CostModel, LayerCost, count, layer_costs
from compressor.data import Data, SplitName, batches, first
from compressor.errors import CalibrationError, PlanError, SurgeryError
from compressor.groups import ChannelGroup, Traced, trace, without
from compressor.plan import AUTO_ALIGN, Budget, ChannelBudget, CostBudget, PruningPlan, Scope, Scores, plan_pruning
from compressor.shrink import Proof, prove, shrink
from compressor.surgery import Surgery

Say = Callable[[str], None]
FLOAT64_AT_MOST = 100_000_000  # parameters; above it the proof in float64 needs too much memory
CALIBRATION_IMAGES, CALIBRATION_BATCH = 512, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a pruning run."""

    budget: Budget
    criterion: str = "l1-norm"
    scope: Scope = Scope.UNIFORM
    align: int | None = None  # None: as wide as the runtime's blocks
    min_channels: int = 1
    protect: tuple[str, ...] = ()
    levels: int = 1
    largest: bool = False
    seed: int = 0
    images: int = CALIBRATION_IMAGES

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise PlanError(f"{self.levels} levels", hint="one-shot is `--levels 1`")

    @property
    def multiple(self) -> int:
        """What widths are rounded up to."""
        return AUTO_ALIGN if self.align is None else self.align


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One round of pruning: what left, relative to the network before it, and the proof that it was right."""

    plan: PruningPlan
    proof: Proof
    channels: tuple[int, int]  # before, after


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """The small network, and what was asked, done and left alone on the way to it."""

    checkpoint: Checkpoint
    request: Request
    dense_cost: Cost
    small_cost: Cost
    dense_layers: tuple[LayerCost, ...]
    small_layers: tuple[LayerCost, ...]
    levels: tuple[Level, ...]
    traced: Traced  # of the dense network

    @property
    def proof(self) -> Proof:
        """The proof with the largest difference."""
        return max((level.proof for level in self.levels), key=lambda p: p.largest_relative_difference)

    def to_json(self) -> dict[str, Any]:
        """The `prune` section of an artifact's results."""
        request = dataclasses.asdict(self.request)
        request["budget"] = budget_to_json(self.request.budget)
        after = {layer.layer: layer for layer in self.small_layers}
        return {
            "requested": request["budget"],
            "achieved": {
                "channels": [self.levels[0].channels[0], self.levels[-1].channels[1]],
                "params": [self.dense_cost.params, self.small_cost.params],
                "macs": [self.dense_cost.macs, self.small_cost.macs],
                "bytes": [self.dense_cost.bytes, self.small_cost.bytes],
            },
            "criterion": self.request.criterion,
            "largest": self.request.largest,
            "scope": str(self.request.scope),
            "align": self.request.multiple,
            "levels": self.request.levels,
            "seed": self.request.seed,
            "proof": {
                "dtype": str(self.proof.dtype).removeprefix("torch."),
                "largest_relative_difference": self.proof.largest_relative_difference,
                "inputs": self.proof.inputs,
            },
            "widths": [
                {
                    "layer": layer.layer,
                    "kind": layer.kind,
                    "in": [layer.inputs, after[layer.layer].inputs],
                    "out": [layer.outputs, after[layer.layer].outputs],
                    "macs": [layer.macs, after[layer.layer].macs],
                }
                for layer in self.dense_layers
            ],
            "left_alone": [{"layer": a.layer, "reason": a.reason} for a in self.traced.left_alone],
        }


def budget_to_json(budget: Budget) -> dict[str, float]:
    """What was asked for, under the name of its option."""
    return {"ratio": budget.ratio} if isinstance(budget, ChannelBudget) else {str(budget.counted): budget.stays}


def prune(checkpoint: Checkpoint, request: Request, *, data: Data | None = None, say: Say | None = None) -> Pruned:
    """The small network that `request` asks for, proved; the checkpoint stays as it was.

    Groups whose removal cannot be proved are left alone with their reason, and the plan is made again without them.
    Refused: nothing prunable, a budget that cannot be met or removes nothing, a criterion without the data it needs.
    """
    say = say or (lambda _: None)
    dense, inputs = checkpoint.module, checkpoint.example_inputs
    say("tracing the channel groups")
    dense_traced = traced = trace(dense, inputs, protect=request.protect)
    dense_cost = count(dense, inputs)
    module, surgery, levels = dense, Surgery(), []
    for level in range(1, request.levels + 1):
        if level > 1:
            traced = _only(trace(module, inputs, protect=request.protect), {g.root for g in dense_traced.groups})
        while True:
            say(f"scoring by {request.criterion}" + (f", level {level} of {request.levels}" * (request.levels > 1)))
            scores = score(module, traced.groups, request, data=data, checkpoint=checkpoint)
            say("planning")
            budget = _budget_at(request, level, module, inputs, dense_cost)
            dense_widths = {g.root: g.channels for g in dense_traced.groups}
            options: dict[str, Any] = {
                "scope": request.scope,
                "align": request.multiple,
                "min_channels": request.min_channels,
                "dense_widths": dense_widths,
                "may_be_empty": request.levels > 1 and (level < request.levels or bool(surgery.slices)),
            }
            plan = _plan(module, traced.groups, scores, budget, inputs, options)
            say("shrinking, and proving it")
            try:
                small, cut = shrink(module, traced.groups, plan, inputs)
                proof = proved(module, cut, traced.groups, plan, inputs)
                break
            except SurgeryError:
                reasons = _unprovable(module, traced.groups, plan, inputs)
                if not reasons:
                    raise
                traced = without(traced, reasons)
                if level == 1:
                    dense_traced = traced
        before = sum(g.channels for g in traced.groups)
        levels.append(Level(plan=plan, proof=proof, channels=(before, before - plan.count)))
        module, surgery = small, surgery.then(cut)
    entry = {
        "step": "prune",
        "requested": budget_to_json(request.budget),
        "criterion": request.criterion,
        "scope": str(request.scope),
        "align": request.multiple,
        "seed": request.seed,
        "plans": [level.plan.to_json() for level in levels],
    }
    already = checkpoint.surgery or Surgery()
    return Pruned(
        checkpoint=dataclasses.replace(
            checkpoint,
            module=module,
            surgery=already.then(surgery),
            lineage=(*checkpoint.lineage, entry),
        ),
        request=request,
        dense_cost=dense_cost,
        small_cost=count(module, inputs),
        dense_layers=layer_costs(dense, inputs),
        small_layers=layer_costs(module, inputs),
        levels=tuple(levels),
        traced=dense_traced,
    )


def score(
    module: nn.Module, groups: tuple[ChannelGroup, ...], request: Request, *, data: Data | None, checkpoint: Checkpoint
) -> Scores:
    """Every group's scores by the requested criterion; refused where it needs data and there is none."""
    criterion = criteria.load(request.criterion)
    stream: Iterable[tuple[Tensor, Tensor]] | None = None
    if criterion.needs is not Needs.NOTHING:
        if data is None:
            raise CalibrationError(
                f"the criterion `{request.criterion}` needs images", hint="give some: `--data DIR`, or use `l1-norm`"
            )
        images = first(data.split(SplitName.TRAIN if data.train else SplitName.TUNE), request.images, seed=request.seed)
        stream = batches(images, batch_size=CALIBRATION_BATCH, preprocessing=checkpoint.preprocessing)
    calibration = gather(module, groups, needs=criterion.needs, batches=stream, seed=request.seed)
    by_root = {group.root: criterion.score(group, calibration=calibration) for group in groups}
    scores = Scores(by_root=by_root, comparable=criterion.comparable)
    return scores.reversed() if request.largest else scores


def proved(
    module: nn.Module,
    surgery: Surgery,
    groups: tuple[ChannelGroup, ...],
    plan: PruningPlan,
    example_inputs: tuple[Tensor, ...],
) -> Proof:
    """The surgery proof, in float64 where the network is small enough; refused where it does not hold."""
    small_enough = sum(p.numel() for p in module.parameters()) <= FLOAT64_AT_MOST
    dtypes = [torch.float64, torch.float32] if small_enough else [torch.float32]
    proof: Proof | None = None
    for dtype in dtypes:
        try:
            proof = prove(module, surgery, groups, plan, example_inputs, dtype=dtype)
            break
        except SurgeryError:
            if dtype is dtypes[-1]:
                raise
    assert proof is not None
    if not proof.holds:
        raise SurgeryError(
            f"the small network differs from the silenced dense one by {proof.largest_relative_difference:.2g}",
            hint="`compress inspect` lists the groups; protect some: `--protect NAME`",
        )
    return proof


def _plan(
    module: nn.Module,
    groups: tuple[ChannelGroup, ...],
    scores: Scores,
    budget: Budget,
    inputs: tuple[Tensor, ...],
    options: dict[str, Any],
) -> PruningPlan:
    """The plan within the budget; a cost budget is corrected by what the small network really costs."""
    if isinstance(budget, ChannelBudget):
        return plan_pruning(groups, scores, budget=budget, **options)
    model = CostModel(module, groups, inputs)
    aim = budget.stays
    for _ in range(4):
        aimed = dataclasses.replace(budget, stays=aim)
        plan = plan_pruning(groups, scores, budget=aimed, cost_of=model.stays, **options)
        try:
            cost = count(shrink(module, groups, plan, inputs)[0], inputs)
        except SurgeryError:
            break  # the caller finds out which group is at fault
        real = {"macs": cost.macs / model.dense.macs, "params": cost.params / model.dense.params}[str(budget.counted)]
        predicted = model.stays(plan)[budget.counted]
        if real <= budget.stays * 1.0001 and abs(real - predicted) < 0.005:
            break
        aim = min(0.999, budget.stays * predicted / real)
    return plan


def _budget_at(request: Request, level: int, module: nn.Module, inputs: tuple[Tensor, ...], dense_cost: Cost) -> Budget:
    """The level's budget: what stays falls by the same factor each time.

    Channels are counted from the dense network's, costs from those of the network before the level.
    """
    share = level / request.levels
    if isinstance(request.budget, ChannelBudget):
        return ChannelBudget(ratio=1 - (1 - request.budget.ratio) ** share)
    if request.levels == 1:
        return request.budget
    counted = str(request.budget.counted)
    stays = request.budget.stays**share * getattr(dense_cost, counted)
    return CostBudget(
        counted=request.budget.counted, stays=min(0.9999, stays / getattr(count(module, inputs), counted))
    )


def _only(traced: Traced, roots: set[str]) -> Traced:
    """The groups with those roots: what an earlier level left alone stays alone."""
    return Traced(groups=tuple(g for g in traced.groups if g.root in roots), left_alone=traced.left_alone)


def _unprovable(
    module: nn.Module, groups: tuple[ChannelGroup, ...], plan: PruningPlan, inputs: tuple[Tensor, ...]
) -> dict[str, str]:
    """The groups whose removal, each alone, breaks the network or fails the proof: root → reason."""
    reasons: dict[str, str] = {}
    for group in groups:
        if not plan.removed.get(group.root):
            continue
        alone = PruningPlan(removed={group.root: plan.removed[group.root]})
        try:
            cut = shrink(module, groups, alone, inputs)[1]
            proved(module, cut, groups, alone, inputs)
        except SurgeryError as error:
            reasons[group.root] = f"removing its channels cannot be proved safe: {error}"
    return reasons
