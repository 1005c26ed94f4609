"""Prune a network while it trains: channels leave at events during training (Bartoldson et al. 2020).

The number of channels that leave each group is planned before the first step; each event chooses which ones. Removed
channels are held at zero until training ends, and are cut then. The cut changes no output: the small network is
compared with the trained one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup, LeftAlone, Traced
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.examples import with_examples_of
from compressor.checkpoint.recipes import How, Recipe
from compressor.data.splits import Data, SplitName
from compressor.errors import GroupError, PlanError, RetrainError, SurgeryError
from compressor.graph.copies import copy_of
from compressor.planning.costs import count
from compressor.progress import Say, quiet
from compressor.pruning.level_plan import Planned, Scored
from compressor.pruning.pipeline import Pruned, prune
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request
from compressor.pruning.scoring import calibration_images, score
from compressor.results.training import WhileTraining
from compressor.surgery.plan import LatencyBudget, PruningPlan, Scope
from compressor.surgery.zeroed import difference_beyond_rounding, speaking
from compressor.training.events import Departure, EventSchedule, mean_stability
from compressor.training.events_in_training import Choose, Gone, Regrown, TrainedWithEvents, train_with_events
from compressor.training.loop import Callback
from compressor.training.retraining import device_named
from compressor.training.ways import Wishes, recipe_for

EPOCHS = 6
SHARE_WITH_EVENTS = 0.85  # default share of epochs with events: the paper's 275 of 325
STILL_SPEAKING = "its channels still affect others when they are zero while the network trains, as in a layer norm"


@dataclass(frozen=True, slots=True, kw_only=True)
class During:
    """The training of a network while its channels leave; with `regrow`, removed channels train on after each event."""

    recipe: Recipe
    schedule: EventSchedule
    regrow: bool = False
    device: str | None = None
    state_file: Path | None = None
    callbacks: tuple[Callback, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedWhileTraining:
    """The small network, and the training with its events."""

    pruned: Pruned
    trained: TrainedWithEvents
    during: During

    @property
    def result(self) -> WhileTraining:
        """The `while_training` section of an artifact's results."""
        schedule, recipe = self.during.schedule, self.during.recipe
        return WhileTraining(
            start=schedule.start,
            end=schedule.end,
            every=schedule.every,
            regrow=self.during.regrow,
            epochs=recipe.budget.epochs,
            notes=recipe.notes,
            mean_stability=mean_stability(self.trained.events),
            events=self.trained.events,
            history=self.trained.history,
        )


def schedule_to_json(during: During) -> dict[str, Any]:
    """Return the epochs of the events, and whether channels regrow, as plain values."""
    schedule = during.schedule
    return {"start": schedule.start, "end": schedule.end, "every": schedule.every, "regrow": during.regrow}


def during_from(
    checkpoint: Checkpoint,
    *,
    wanted: bool = True,
    epochs: int | None = None,
    every: int | None = None,
    start: int | None = None,
    end: int | None = None,
    rate: float | None = None,
    regrow: bool = False,
    device: str | None = None,
    seed: int = 0,
    callbacks: tuple[Callback, ...] = (),
) -> During | None:
    """Return a fine-tuning recipe and an event schedule from a command line's plain values.

    By default events fall into the first 85 % of the epochs. With `regrow` they begin after the first epoch, because an
    optimiser without momentum may not move a zero, and go on to the last one. `None` if not `wanted`; other values are
    then refused.
    """
    if not wanted:
        options = {"--epochs": epochs, "--every": every, "--start": start, "--end": end, "--lr": rate,
                   "--device": device, "--regrow": regrow or None}  # fmt: skip
        for option in (option for option, value in options.items() if value is not None):
            raise PlanError(f"`{option}` is about training", hint="add `--while-training`, or omit the option")
        return None
    cost = count(checkpoint.module, checkpoint.example_inputs)
    wishes = Wishes(epochs=EPOCHS if epochs is None else epochs, rate=rate, seed=seed)
    recipe = recipe_for(
        How.FINE_TUNE,
        dense_recipe=checkpoint.training,
        dense_cost=cost,
        small_cost=cost,
        wishes=wishes,
        images=checkpoint.reads_images,
    )
    length = recipe.budget.epochs
    first = start if start is not None else int(regrow and length > 1)
    last = max(first, length - 1 if regrow else math.floor(SHARE_WITH_EVENTS * length) - 1)
    schedule = EventSchedule(start=first, end=last if end is None else end, every=1 if every is None else every)
    return During(recipe=recipe, schedule=schedule, regrow=regrow, device=device or "auto", callbacks=callbacks)


def prune_while_training(
    checkpoint: Checkpoint, request: Request, during: During, *, data: Data | None, say: Say = quiet
) -> PrunedWhileTraining:
    """Train the checkpoint's network, remove the requested channels during training, and cut them at the end.

    The checkpoint is not modified. Groups whose channels cannot be cut, or still affect others when they are zero, are
    left alone with the reason. Refused: what `prune` and `train` refuse, no data, a budget of latency, measured widths,
    levels, a repair.
    """
    request = request.resolved(has_data=data is not None, while_training=True)
    _check(request)
    if data is None:
        raise RetrainError("pruning while training needs images with labels", hint="give them: `--data DIR`")
    checkpoint = with_examples_of(checkpoint, data)
    request = dataclasses.replace(request, repair=Repair.NONE)
    first, loud = _planned(checkpoint, request, data, say)
    removed = first.levels[-1].plan.removed
    departures = [
        Departure(root=root, channels=len(gone), schedule=during.schedule) for root, gone in removed.items() if gone
    ]
    module, frozen = _trainable(checkpoint.module)
    home = next(module.parameters()).device
    say("training")
    trained = train_with_events(
        module.to(home if during.device is None else device_named(during.device)),
        data,
        groups=first.traced.groups,
        departures=departures,
        effect=Regrown() if during.regrow else Gone(),
        choose=choosing(checkpoint, first.traced.groups, request, data, say=say),
        recipe=during.recipe,
        preprocessing=checkpoint.preprocessing,
        callbacks=during.callbacks,
        state_file=during.state_file,
    )
    silenced = trained.module.to(home)
    if frozen:
        silenced.requires_grad_(False)
    entry = _entry(during, trained, data)
    retrained = dataclasses.replace(checkpoint, module=silenced, lineage=(*checkpoint.lineage, entry))
    say("cutting what is silent")
    pruned = prune(retrained, request, data=data, say=say, planner=lambda scored: _silent(scored, trained.silent))
    worst = difference_beyond_rounding(silenced, pruned.checkpoint.module, first.traced, checkpoint.example_inputs)
    if worst is not None:
        raise SurgeryError(f"the small network differs from the trained one before its cut, by {worst:.2g}")
    still_speaking = tuple(LeftAlone(layer=root, reason=STILL_SPEAKING) for root in loud)
    traced = dataclasses.replace(pruned.traced, left_alone=_left_alone(pruned.traced, still_speaking))
    return PrunedWhileTraining(pruned=dataclasses.replace(pruned, traced=traced), trained=trained, during=during)


def choosing(
    checkpoint: Checkpoint,
    groups: tuple[ChannelGroup, ...],
    request: Request,
    data: Data | None,
    *,
    say: Say = quiet,
) -> Choose:
    """Return a function that scores the network at an event by the request's criterion, with a new seed per epoch."""
    request = request.resolved(has_data=data is not None, while_training=True)
    images = calibration_images(checkpoint, request, data, say=say)

    def choose(module: nn.Module, epoch: int) -> Mapping[str, Tensor]:
        asked = dataclasses.replace(request, seed=request.seed * 1_000_003 + epoch)
        scores, _ = score(module, groups, asked, data=data, images=images, checkpoint=checkpoint)
        return scores.by_root

    return choose


def _check(request: Request) -> None:
    """Raise where the request cannot be met while the network trains."""
    if isinstance(request.budget, LatencyBudget):
        raise PlanError(
            "a budget of latency cannot be met while training", hint="prune to it first, then `compress retrain`"
        )
    if request.scope is Scope.MEASURED:
        raise PlanError(
            "measured widths depend on the weights, and training changes these", hint="`--scope uniform` or `global`"
        )
    if request.levels > 1:
        raise PlanError("pruning while training has events in place of `--levels`", hint="omit it, use `--every 1`")
    if request.repair is not Repair.NONE:
        raise PlanError(
            f"there is nothing to repair by {request.repair}: this cut changes no output", hint="omit `--repair`"
        )


def _planned(checkpoint: Checkpoint, request: Request, data: Data, say: Say) -> tuple[Pruned, tuple[str, ...]]:
    """Prune once by groups that can be held at zero; return it, and the roots of the groups that cannot be."""
    first = prune(checkpoint, request, data=data, say=say)
    plan, inputs = first.levels[-1].plan, checkpoint.example_inputs
    say("holding channels silent, to see that none speaks")
    loud = speaking(checkpoint.module, first.traced, plan, inputs)
    if not loud:
        return first, ()
    layers = tuple(root.partition("/")[0] for root in loud)
    if {root.partition("/")[0] for root, gone in plan.removed.items() if gone} <= set(layers):
        raise GroupError(
            f"no channels of this network can be held at zero while it trains: {', '.join(loud[:4])}",
            hint="prune it first, then train it: `compress prune`, then `compress retrain`",
        )
    narrower = dataclasses.replace(request, protect=(*request.protect, *layers))
    return prune(checkpoint, narrower, data=data, say=say), loud


def _trainable(module: nn.Module) -> tuple[nn.Module, bool]:
    """Return a copy to train, and whether the module is frozen throughout; all of such a copy is trained."""
    module = copy_of(module)
    frozen = not any(p.requires_grad for p in module.parameters())
    return (module.requires_grad_(True) if frozen else module), frozen


def _silent(scored: Scored, silent: Mapping[str, tuple[int, ...]]) -> Planned:
    """Return the plan that removes the channels held at zero, by root."""
    return Planned(plan=PruningPlan(removed={g.root: silent.get(g.root, ()) for g in scored.traced.groups}))


def _left_alone(traced: Traced, still_speaking: tuple[LeftAlone, ...]) -> tuple[LeftAlone, ...]:
    """Return all layers left alone; the reason in `still_speaking` replaces another reason for the same layer."""
    layers = {one.layer for one in still_speaking}
    return (*(one for one in traced.left_alone if one.layer not in layers), *still_speaking)


def _entry(during: During, trained: TrainedWithEvents, data: Data) -> dict[str, object]:
    """Return the training as a step of a lineage."""
    return {
        "step": "train while pruning",
        **schedule_to_json(during),
        "epochs": during.recipe.budget.epochs,
        "recipe": during.recipe.to_json(),
        "data": data.name,
        "images": len(data.split(SplitName.TRAIN)),
        "splits": data.to_json(),
        "mean_stability": mean_stability(trained.events),
        "history": [record.to_json() for record in trained.history],
    }
