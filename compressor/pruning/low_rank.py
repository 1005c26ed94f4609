"""Factorise a checkpoint's layers into low-rank ones: ranks within a budget (`planning.ranks`), surgery, proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.errors import PlanError, SurgeryError
from compressor.graph.input_spec import random_like
from compressor.graph.outputs import outputs_of, relative_difference
from compressor.graph.precision import copy_in_precision, in_precision
from compressor.planning.costs import Cost, count
from compressor.planning.ranks import EnergyBudget, RankBudget, Split, ranks_within, splits_of
from compressor.progress import Say, quiet
from compressor.results.changes import Achieved, FactorizedLayer, Factorizing, LeftAlone
from compressor.surgery.factors import Factors, Kind, product
from compressor.surgery.plan import CostBudget, Countable
from compressor.surgery.proof import Proof
from compressor.surgery.rounding import AUTO_ALIGN
from compressor.surgery.surgery import Surgery, operate


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """The request for a factorised network: kinds of factors, budget, and the layers to leave alone (globs).

    Each layer takes the first kind of `how` that fits it. Ranks are rounded up to multiples of `align`, because the
    rank is the number of channels between the two layers. At 0.4 of the MACs, by `spatial`, the sample networks ran
    1.39 and 1.45 times as fast as dense at any ranks, 1.80 and 2.01 times at multiples of 8 (onnxruntime, batch 1, one
    thread with AVX-512).
    """

    budget: CostBudget | EnergyBudget | RankBudget
    how: tuple[Kind, ...] = (Kind.SPATIAL,)
    protect: tuple[str, ...] = ()
    align: int = AUTO_ALIGN

    def __post_init__(self) -> None:
        if not self.how:
            raise PlanError("no kind of factors is chosen", hint=f"choose one: `--how {Kind.SPATIAL}`")
        if self.align < 1:
            raise PlanError(f"an alignment must be positive, not {self.align}", hint="for example `--align 8`")
        if len(set(self.how)) != len(self.how):
            raise PlanError(f"a kind of factors appears twice: {', '.join(self.how)}", hint="name each kind once")

    @property
    def requested(self) -> dict[str, object]:
        """The budget as plain values."""
        match self.budget:
            case CostBudget(counted=counted, stays=stays):
                return {str(counted): stays}
            case EnergyBudget(keeps=keeps):
                return {"energy": keeps}
            case RankBudget(rank=rank):
                return {"rank": rank}

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "requested": self.requested,
            "how": [str(kind) for kind in self.how],
            "protect": list(self.protect),
            "align": self.align,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Factorized:
    """The network of low-rank layers with its request, its costs, the factorised layers and those left alone."""

    checkpoint: Checkpoint
    request: LowRank
    dense_cost: Cost
    small_cost: Cost
    layers: tuple[FactorizedLayer, ...]
    left_alone: tuple[tuple[str, str], ...]  # layer, reason
    proof: Proof

    @property
    def result(self) -> Factorizing:
        """The `factorize` section of an artifact's results."""
        dense, small = self.dense_cost, self.small_cost
        return Factorizing(
            requested=self.request.requested,
            how=tuple(str(kind) for kind in self.request.how),
            protect=self.request.protect,
            align=self.request.align,
            achieved=Achieved(
                params=(dense.params, small.params), macs=(dense.macs, small.macs), bytes=(dense.bytes, small.bytes)
            ),
            layers=self.layers,
            left_alone=tuple(LeftAlone(layer=layer, reason=reason) for layer, reason in self.left_alone),
            proof=self.proof.result,
        )


def factorize(checkpoint: Checkpoint, request: LowRank, *, say: Say = quiet) -> Factorized:
    """Return the checkpoint's network with layers factorised within the budget; the checkpoint is not modified.

    The lineage gets a step with the ranks; the surgery replays the factorisation. Refused: no layer to factorise or
    nothing to gain, a budget that the lowest ranks exceed, a network whose code reads a factorised layer's weights.
    """
    module, inputs = checkpoint.module, checkpoint.example_inputs
    say("decomposing")
    splits, left_alone = splits_of(module, inputs, how=request.how, protect=request.protect, align=request.align)
    dense_cost = count(module, inputs)
    counted = request.budget.counted if isinstance(request.budget, CostBudget) else Countable.MACS
    ranks = ranks_within(splits, request.budget, total=getattr(dense_cost, str(counted)))
    chosen = {s.layer: Factors(kind=s.kind, rank=ranks[s.layer]) for s in splits if s.layer in ranks}
    reason = "as two layers it would cost no less"
    left_alone = (*left_alone, *((s.layer, reason) for s in splits if s.layer not in ranks))
    if not chosen:
        raise PlanError(
            "no layer becomes cheaper within this budget", hint="try a lower one: `--energy 0.9`, `--macs 0.5`"
        )
    surgery = Surgery(factors=chosen)
    small = operate(module, surgery)
    say("proving it")
    proof = prove_factors(module, small, chosen, inputs)
    layers = tuple(_layer(s, chosen[s.layer]) for s in splits if s.layer in chosen)
    step = {"step": "factorize", **request.to_json(), "ranks": {layer: f.to_json() for layer, f in chosen.items()}}
    return Factorized(
        checkpoint=dataclasses.replace(
            checkpoint,
            module=small,
            surgery=(checkpoint.surgery or Surgery()).then(surgery),
            lineage=(*checkpoint.lineage, step),
        ),
        request=request,
        dense_cost=dense_cost,
        small_cost=count(small, inputs),
        layers=layers,
        left_alone=left_alone,
        proof=proof,
    )


def _layer(split: Split, factors: Factors) -> FactorizedLayer:
    """Return the record of one factorised layer."""
    macs, params = ((split.dense[c], factors.rank * split.per_rank[c]) for c in (Countable.MACS, Countable.PARAMS))
    return FactorizedLayer(
        layer=split.layer, kind=str(factors.kind), rank=factors.rank, full_rank=len(split.values),
        energy=float(split.kept[factors.rank - 1]), macs=macs, params=params,
    )  # fmt: skip


def prove_factors(
    module: nn.Module, small: nn.Module, chosen: Mapping[str, Factors], example_inputs: Sequence[Tensor]
) -> Proof:
    """Compare the small network on random inputs with the dense one whose weights are the products of the factors.

    The comparison runs in float64, or in float32 if the network does not run in float64. Refused: a difference beyond
    rounding, a network that does not run.
    """
    for dtype in (torch.float64, torch.float32):
        dense, twin = (copy_in_precision(m, dtype).eval() for m in (module, small))
        inputs = [in_precision(t, dtype) for t in random_like(example_inputs)]
        try:
            before, answers = outputs_of(dense, inputs), outputs_of(twin, inputs)
            with torch.no_grad():
                for layer, factors in chosen.items():
                    first, second = (twin.get_parameter(f"{layer}.{n}.weight") for n in (0, 1))
                    dense.get_parameter(f"{layer}.weight").copy_(product(first, second, factors))
            expected = outputs_of(dense, inputs)
        except (RuntimeError, AttributeError, TypeError, ValueError, IndexError, AssertionError) as error:
            # the network's own code can raise anything, for example where it reads a removed weight by name
            if dtype is torch.float64:
                continue
            raise SurgeryError(
                f"the network does not run with two layers in place of one: {error}",
                hint="its code may read the layer's weight: leave the layer alone, `--protect NAME`",
            ) from error
        proof = Proof(
            largest_relative_difference=max(map(relative_difference, answers, expected)),
            moved=max(map(relative_difference, expected, before)),
            dtype=dtype,
            outputs=len(answers),
            inputs="random",
        )
        if not proof.holds:
            raise SurgeryError(
                f"the network of factors differs from its own products by {proof.largest_relative_difference:.2g}",
                hint="please report this as a bug, with the network",
            )
        return proof
    raise AssertionError("float32 returns or raises")
