"""Prune a network in rounds while it adapts to another domain (Yu et al. 2019, arXiv:1904.02654, algorithm 1).

Each round scores all channels by the joint loss of both domains (`pruning.transfer.scores`), removes the channels with
the lowest scores of all layers until the round's share of the MACs is met, and trains on with adaptation. A longer
training follows the last round. The share that stays falls by the same factor in every round. Without a target, the
same is done on the source alone: the paper's comparison without a domain loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from compressor.channels.groups import ChannelGroup
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import Recipe
from compressor.data.domains import TargetDomain
from compressor.data.splits import Data
from compressor.errors import PlanError
from compressor.planning.costs import count
from compressor.progress import Say, quiet
from compressor.pruning.pipeline import Judge, Pruned, prune
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request
from compressor.pruning.transfer.scores import CRITERION, check_comparable, pairs_of, transfer_scores
from compressor.surgery.plan import CostBudget, Countable, Scope, Scores
from compressor.training.domains.adaptation import Alignment, adapt
from compressor.training.loop import Callback

ROUNDS, LEAST_WIDTH, IMAGES = 5, 2, 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPruning:
    """The share of the MACs that stays after all rounds, and the training after each round and at the end.

    Channels are scored on up to `images` of the source and as many of the target, in batches of the training's size.
    Each round derives its own seed from the recipe's, so that every round has a different order of images.
    """

    stays: float
    between: Recipe
    final: Recipe | None = None
    rounds: int = ROUNDS
    images: int = IMAGES
    align: int = 1
    min_channels: int = LEAST_WIDTH
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        CostBudget(counted=Countable.MACS, stays=self.stays)  # raises for a number that is no share
        if self.rounds < 1:
            raise PlanError(f"{self.rounds} rounds of pruning", hint=f"at least one: `--rounds {ROUNDS}`")
        if self.images < 2:
            raise PlanError(f"{self.images} image to score channels on", hint=f"for example `--calibration {IMAGES}`")

    def share_after(self, number: int) -> float:
        """Return the share of the dense network's MACs that stays after round `number`, counted from 1."""
        return float(self.stays ** (number / self.rounds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """The small, adapted network, and the prunings of all rounds as the levels of one."""

    checkpoint: Checkpoint
    pruned: Pruned


def prune_while_adapting(
    checkpoint: Checkpoint,
    source: Data,
    target: TargetDomain | None,
    *,
    alignment: Alignment,
    pruning: TransferPruning,
    callbacks: tuple[Callback, ...] = (),
    states: Path | None = None,
    device: str | None = None,
    say: Say = quiet,
) -> Transferred:
    """Remove the channels that matter to neither domain, in rounds with training, and prove each cut.

    The checkpoint is not modified. It should be adapted already: the discrepancy has its full weight from the first
    step. `states` is a folder in which each stage keeps its state, to continue after an interruption. Refused: what
    `prune` and `adapt` refuse.
    """
    check_comparable(checkpoint.module, alignment.layer)
    constant = dataclasses.replace(alignment, rising=False)
    dense_macs = count(checkpoint.module, checkpoint.example_inputs).macs
    done: list[Pruned] = []
    for number in range(1, pruning.rounds + 1):
        say(f"round {number} of {pruning.rounds}")
        now = count(checkpoint.module, checkpoint.example_inputs).macs
        if now > pruning.share_after(number) * dense_macs:  # an earlier round may have removed more than its share
            request = _request(pruning, stays=pruning.share_after(number) * dense_macs / now)
            judge = _judge(
                checkpoint,
                source,
                target,
                request,
                alignment=constant,
                batch_size=pruning.between.batch_size,
                device=device,
            )
            done.append(prune(checkpoint, request, judge=judge, say=say))
            checkpoint = done[-1].checkpoint
        checkpoint = adapt(
            checkpoint,
            source,
            target,
            recipe=_seeded(pruning.between, number),
            alignment=constant,
            callbacks=callbacks,
            state_file=None if states is None else states / f"round-{number}.state",
            device=device,
        )
    if pruning.final is not None:
        say("the last training")
        checkpoint = adapt(
            checkpoint,
            source,
            target,
            recipe=_seeded(pruning.final, pruning.rounds + 1),
            alignment=constant,
            callbacks=callbacks,
            state_file=None if states is None else states / "final.state",
            device=device,
        )
    return Transferred(checkpoint=checkpoint, pruned=_as_one(done, pruning, checkpoint))


def _request(pruning: TransferPruning, *, stays: float) -> Request:
    """Return the request of one round, in which the share `stays` of the current MACs stays."""
    return Request(
        budget=CostBudget(counted=Countable.MACS, stays=stays),
        criterion=CRITERION,
        scope=Scope.GLOBAL,
        align=pruning.align,
        min_channels=pruning.min_channels,
        protect=pruning.protect,
        images=pruning.images,
        seed=pruning.between.seed,
        repair=Repair.NONE,  # training follows
    )


def _judge(
    checkpoint: Checkpoint,
    source: Data,
    target: TargetDomain | None,
    request: Request,
    *,
    alignment: Alignment,
    batch_size: int,
    device: str | None,
) -> Judge:
    """Return the function that scores a round's channels on both domains."""

    def judge(module: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
        pairs = pairs_of(checkpoint, source, target, images=request.images, batch_size=batch_size, seed=request.seed)
        return transfer_scores(module, groups, pairs, alignment=alignment, device=device)

    return judge


def _seeded(recipe: Recipe, number: int) -> Recipe:
    """Return the recipe with the seed of stage `number`."""
    return dataclasses.replace(recipe, seed=recipe.seed * 101 + number)


def _as_one(done: Sequence[Pruned], pruning: TransferPruning, last: Checkpoint) -> Pruned:
    """Return all rounds as the levels of one pruning, which starts from the first round's dense network."""
    budget = CostBudget(counted=Countable.MACS, stays=pruning.stays)
    return dataclasses.replace(
        done[0],
        checkpoint=last,
        request=dataclasses.replace(done[0].request, budget=budget, levels=pruning.rounds),
        small_cost=done[-1].small_cost,
        small_layers=done[-1].small_layers,
        levels=tuple(level for one in done for level in one.levels),
    )
