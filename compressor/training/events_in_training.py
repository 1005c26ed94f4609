"""Training with events: before some epochs channels are chosen, and pruned, noised, or zeroed and left to grow again.

What happens to the chosen channels is a value. `Gone` and `Regrown` end in a smaller network; `Zeroed` and `Noisy` take
no capacity out and show what the shock alone does (Bartoldson et al. 2020, arXiv:1906.03728, sec. 4.4; what each does
to the weights is the published code's).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup
from compressor.checkpoint import forms
from compressor.checkpoint.recipes import Recipe
from compressor.data.splits import Data, ImageSet, Preprocessing, SplitName
from compressor.errors import PlanError, RetrainError
from compressor.files.atomic import whole, write_text
from compressor.files.json_files import read_json
from compressor.files.schema import check
from compressor.graph.copies import copy_of
from compressor.surgery.zeroed import ALL, PRODUCERS, Holder, add_noise_, slices_of
from compressor.training.events import Departure, Event, event_from_json, targeted
from compressor.training.loop import Callback, Hooks, correct_in, iterations_per_epoch, train
from compressor.training.resume import EpochRecord

Choose = Callable[[nn.Module, int], Mapping[str, Tensor]]
"""A network in eval mode on the CPU and an epoch, to scores by the group's root; the lowest are chosen first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """The chosen channels are silent for good, and can be cut out at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrown:
    """Every event chooses all channels anew and zeroes the weights that make them, which then train on.

    Soft filter pruning (He et al. 2018, arXiv:1808.06866). Once training is over the channels are chosen a last time,
    and silent. Behind a batch norm and a ReLU a channel of zeros with a negative shift has no gradient: what moves it
    then is the optimiser's momentum, so that an event before the first step may be for good.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Zeroed:
    """The weights that make the chosen channels are zero for so many batches, and train on from zero."""

    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Noisy:
    """Gaussian noise is added to the weights that make the chosen channels, before each of so many batches."""

    batches: int


Effect = Gone | Regrown | Zeroed | Noisy


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedWithEvents:
    """A trained module, one record per epoch, the events, and the channels that are silent in it, by their root."""

    module: nn.Module
    history: tuple[EpochRecord, ...]
    events: tuple[Event, ...]
    silent: Mapping[str, tuple[int, ...]]


def train_with_events(
    module: nn.Module,
    data: Data,
    *,
    groups: Sequence[ChannelGroup],
    departures: Sequence[Departure],
    effect: Effect,
    choose: Choose,
    recipe: Recipe,
    preprocessing: Preprocessing,
    callbacks: tuple[Callback, ...] = (),
    state_file: Path | None = None,
) -> TrainedWithEvents:
    """Train a copy of `module`, whose channel groups are `groups`, with the events that `departures` schedule.

    No channel is chosen twice, but by `Regrown`. At each event the accuracy is counted on the tuning split, just before
    and just after. A run that finds its `state_file` goes on from it; its events lie beside that file. Refused: what
    `train` refuses, an event behind the last epoch, a group that is not there or would lose all of its channels.
    """
    _check(groups, departures, recipe)
    events = _Events(
        groups={g.root: g for g in groups}, departures=departures, effect=effect, choose=choose, recipe=recipe,
        tune=data.split(SplitName.TUNE), preprocessing=preprocessing,
        per_epoch=iterations_per_epoch(len(data.split(SplitName.TRAIN)), recipe.batch_size),
        file=None if state_file is None else events_file(state_file),
    )  # fmt: skip
    if state_file is not None and state_file.exists():
        events.restore()
    try:
        trained = train(
            module, data, recipe=recipe, preprocessing=preprocessing, state_file=state_file,
            hooks=Hooks(callbacks=callbacks, before_epoch=(events.before_epoch,), after_step=(events.after_step,)),
        )  # fmt: skip
    except BaseException:
        if state_file is not None and not state_file.exists():
            _clear_away(events_file(state_file))  # there is nothing that it could be gone on with
        raise
    silent = events.finish(trained.module)
    return TrainedWithEvents(
        module=trained.module, history=trained.history, events=tuple(events.happened), silent=silent
    )


def events_file(state_file: Path) -> Path:
    """Where the events of the run lie whose state is in `state_file`."""
    return state_file.with_name(f"{state_file.name}.events.json")


def _clear_away(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()  # where nothing else lies in it


def _check(groups: Sequence[ChannelGroup], departures: Sequence[Departure], recipe: Recipe) -> None:
    channels = {g.root: g.channels for g in groups}
    for departure in departures:
        last = departure.schedule.epochs[-1]
        if last >= recipe.budget.epochs:
            raise PlanError(
                f"an event before epoch {last}, and epochs 0 to {recipe.budget.epochs - 1} are trained",
                hint="train longer, or let the events end earlier: `--end`",
            )
        there = channels.get(departure.root)
        if there is None:
            raise PlanError(f"there is no group `{departure.root}`", hint=f"there are: {', '.join(channels)}")
        if departure.channels >= there:
            raise PlanError(
                f"{departure.channels} of the {there} channels of `{departure.root}` would leave",
                hint="leave at least one: ask for less",
            )


class _Events:
    """The hooks of one run: `before_epoch` lets events happen, `after_step` keeps up what they did."""

    def __init__(
        self,
        *,
        groups: Mapping[str, ChannelGroup],
        departures: Sequence[Departure],
        effect: Effect,
        choose: Choose,
        recipe: Recipe,
        tune: ImageSet,
        preprocessing: Preprocessing,
        per_epoch: int,
        file: Path | None,
    ) -> None:
        self.groups, self.departures, self.effect, self.choose = groups, departures, effect, choose
        self.recipe, self.tune, self.preprocessing = recipe, tune, preprocessing
        self.per_epoch, self.file = per_epoch, file
        self.happened: list[Event] = []
        self.step: int | None = None  # before which the run is, counted from its beginning
        self._holder: Holder | None = None

    def before_epoch(self, module: nn.Module, epoch: int) -> None:
        """Let the epoch's event happen; what an interrupted run had begun after its last whole epoch is forgotten."""
        self.happened = [event for event in self.happened if event.epoch < epoch]
        self.step = epoch * self.per_epoch
        chosen = self._chosen(module, epoch)
        if chosen:
            before = self._correct(module)
            self._zero(module, chosen)
            if isinstance(self.effect, Noisy):
                self._add_noise(module, chosen)
            self._record(epoch, chosen, before=before, after=self._correct(module))
        if isinstance(self.effect, Gone):
            self._holder = Holder(module, slices_of(self.groups.values(), targeted(self.happened)))

    def after_step(self, module: nn.Module) -> None:
        """Hold what is gone; zero or noise again what an event did that to less than its number of batches ago."""
        if self.step is None:
            return
        self.step += 1
        if self._holder is not None:
            self._holder()
        if isinstance(self.effect, Zeroed | Noisy):
            for event in self.happened:
                if self.step - event.epoch * self.per_epoch < self.effect.batches:
                    self._zero(module, event.chosen)
                    if isinstance(self.effect, Noisy):
                        self._add_noise(module, event.chosen)

    def finish(self, module: nn.Module) -> Mapping[str, tuple[int, ...]]:
        """What is silent in the trained module; where channels grew again, they are chosen a last time."""
        if isinstance(self.effect, Gone):
            return targeted(self.happened)
        if not isinstance(self.effect, Regrown):
            return {}
        epochs = self.recipe.budget.epochs
        self.happened = [event for event in self.happened if event.epoch < epochs]
        scores = self._scores(module, epochs)
        chosen = {d.root: _lowest(scores[d.root], d.channels, spare=()) for d in self.departures}
        before = self._correct(module)
        Holder(module, slices_of(self.groups.values(), chosen))()
        self._record(epochs, chosen, before=before, after=self._correct(module))
        return chosen

    def restore(self) -> None:
        """Take up the events of the run that left its state; refused where there are none, or those of another."""
        assert self.file is not None
        hint = "delete it and start again"
        found = read_json(self.file, refusal=RetrainError, hint=hint)
        check(found, forms.EVENTS, where=f"{self.file} does not say what happened", hint=hint, refusal=RetrainError)
        self.happened = [event_from_json(event) for event in found["events"]]
        if found.get("of") != self._identity():
            raise RetrainError(
                f"{self.file} belongs to a run with other events", hint="delete its folder, or repeat its command"
            )

    def _identity(self) -> dict[str, Any]:
        """What makes these events these."""
        departures = [[d.root, d.channels, list(d.schedule.epochs)] for d in self.departures]
        return {"effect": [type(self.effect).__name__, dataclasses.asdict(self.effect)], "departures": departures}

    def _chosen(self, module: nn.Module, epoch: int) -> dict[str, tuple[int, ...]]:
        again = isinstance(self.effect, Regrown)
        due = {d.root: d.channels if again and epoch in d.schedule.epochs else d.due(epoch) for d in self.departures}
        due = {root: count for root, count in due.items() if count}
        if not due:
            return {}
        already = {} if again else targeted(self.happened)
        scores = self._scores(module, epoch)
        return {root: _lowest(scores[root], count, spare=already.get(root, ())) for root, count in due.items()}

    def _scores(self, module: nn.Module, epoch: int) -> Mapping[str, Tensor]:
        plain = copy_of(module).cpu().to(memory_format=torch.contiguous_format).eval()
        return self.choose(plain, epoch)

    def _correct(self, module: nn.Module) -> int:
        return correct_in(module.eval(), self.tune, preprocessing=self.preprocessing)

    def _zero(self, module: nn.Module, chosen: Mapping[str, Sequence[int]]) -> None:
        """Silence for good what is gone, the weights alone of what may come back; noise is not a zero."""
        if isinstance(self.effect, Noisy):
            return
        roles = ALL if isinstance(self.effect, Gone) else PRODUCERS
        Holder(module, slices_of(self.groups.values(), chosen, roles=roles))()

    def _add_noise(self, module: nn.Module, chosen: Mapping[str, Sequence[int]]) -> None:
        assert self.step is not None
        hit = targeted(self.happened)
        spared = {
            root: sorted({*range(group.channels)} - {*hit.get(root, ())} - {*chosen.get(root, ())})
            for root, group in self.groups.items()
        }
        seed = (self.recipe.seed * 1_000_003 + self.step) % 2**63
        add_noise_(module, tuple(self.groups.values()), chosen, spared=spared, seed=seed)

    def _record(self, epoch: int, chosen: Mapping[str, tuple[int, ...]], *, before: int, after: int) -> None:
        event = Event(epoch=epoch, chosen=chosen, before=before, after=after, total=len(self.tune))
        self.happened.append(event)
        if self.file is not None:
            told = {"of": self._identity(), "events": [event.to_json() for event in self.happened]}
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with whole(self.file) as part:
                    write_text(part, json.dumps(told))
            except OSError as error:
                raise RetrainError(f"cannot write {self.file}: {error}", hint="free some space and repeat") from error


def _lowest(scores: Tensor, count: int, *, spare: Sequence[int]) -> tuple[int, ...]:
    """The `count` channels with the lowest scores but for `spare`, ties by index; sorted."""
    left = scores.double().cpu().index_fill(0, torch.tensor(spare, dtype=torch.int64), math.inf)
    return tuple(sorted(left.argsort(stable=True)[:count].tolist()))
