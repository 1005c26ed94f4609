"""Training with events: before some epochs, channels are chosen and then removed, regrown, zeroed or made noisy.

The effect on the chosen channels is a value. `Gone` and `Regrown` lead to a smaller network. `Zeroed` and `Noisy`
remove no capacity and show the effect of the disturbance alone (Bartoldson et al. 2020, arXiv:1906.03728, sec. 4.4; the
changes to the weights follow the published code).
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
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Samples
from compressor.data.splits import Data, SplitName
from compressor.errors import PlanError, RetrainError
from compressor.files.atomic import whole, write_text
from compressor.files.json_files import read_json
from compressor.files.schema import check
from compressor.graph.copies import copy_of
from compressor.results.training import EpochRecord, Event
from compressor.surgery.zeroed import ALL, PRODUCERS, Holder, add_noise_, slices_of
from compressor.training.events import Departure, targeted
from compressor.training.loop import Callback, Hooks, correct_in, iterations_per_epoch, train

Choose = Callable[[nn.Module, int], Mapping[str, Tensor]]
"""Takes a network in eval mode on the CPU and an epoch; returns scores by group root. The lowest are chosen first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """The chosen channels stay zero until the end, and can be cut then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrown:
    """Every event chooses all channels again and zeroes the weights that produce them; these weights then train on.

    This is soft filter pruning (He et al. 2018, arXiv:1808.06866). After training, the channels are chosen a last time
    and set to zero. Behind a batch norm and a ReLU, a channel of zeros with a negative shift has no gradient, and only
    the optimiser's momentum can move it; an event before the first step may therefore be permanent.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Zeroed:
    """The weights that produce the chosen channels stay zero for `batches` steps, and then train on."""

    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Noisy:
    """Gaussian noise is added to the weights that produce the chosen channels, before each of `batches` steps."""

    batches: int


Effect = Gone | Regrown | Zeroed | Noisy


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedWithEvents:
    """A trained module, one record per epoch, the events, and the channels that are zero in it, by group root."""

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

    Only `Regrown` can choose a channel twice. The accuracy on the tuning split is measured right before and right after
    each event. If `state_file` exists, the run continues from it; the events are stored next to it. Refused: what
    `train` refuses, an event after the last epoch, an unknown group, a group that would lose all channels.
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
            _remove(events_file(state_file))  # without a state, no run can continue with these events
        raise
    silent = events.finish(trained.module)
    return TrainedWithEvents(
        module=trained.module, history=trained.history, events=tuple(events.happened), silent=silent
    )


def events_file(state_file: Path) -> Path:
    """Return the file with the events of the run whose state is in `state_file`."""
    return state_file.with_name(f"{state_file.name}.events.json")


def _remove(file: Path) -> None:
    """Delete the file, and its folder if it is empty then."""
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()  # raises if the folder is not empty


def _check(groups: Sequence[ChannelGroup], departures: Sequence[Departure], recipe: Recipe) -> None:
    """Raise for an event after the last epoch, an unknown group, or a group that would lose all channels."""
    channels = {g.root: g.channels for g in groups}
    for departure in departures:
        last = departure.schedule.epochs[-1]
        if last >= recipe.budget.epochs:
            raise PlanError(
                f"the last event is before epoch {last}, and training ends with epoch {recipe.budget.epochs - 1}",
                hint="train longer, or end the events earlier: `--end`",
            )
        in_group = channels.get(departure.root)
        if in_group is None:
            raise PlanError(f"there is no group `{departure.root}`", hint=f"there are: {', '.join(channels)}")
        if departure.channels >= in_group:
            raise PlanError(
                f"{departure.channels} of the {in_group} channels of `{departure.root}` would leave",
                hint="at least one channel must stay: remove fewer",
            )


class _Events:
    """The hooks of one run: `before_epoch` carries out events, `after_step` maintains their effect."""

    def __init__(
        self,
        *,
        groups: Mapping[str, ChannelGroup],
        departures: Sequence[Departure],
        effect: Effect,
        choose: Choose,
        recipe: Recipe,
        tune: Samples,
        preprocessing: Preprocessing,
        per_epoch: int,
        file: Path | None,
    ) -> None:
        self.groups, self.departures, self.effect, self.choose = groups, departures, effect, choose
        self.recipe, self.tune, self.preprocessing = recipe, tune, preprocessing
        self.per_epoch, self.file = per_epoch, file
        self.happened: list[Event] = []
        self.step: int | None = None  # the next step, counted from the start of the run; `None` before the first epoch
        self._holder: Holder | None = None

    def before_epoch(self, module: nn.Module, epoch: int) -> None:
        """Carry out the epoch's event; events that an interrupted run recorded for this epoch or later are dropped."""
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
        """Set removed channels to zero again; repeat zeros or noise for the batches that the effect lasts."""
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
        """Return the channels that are zero in the trained module; with `Regrown`, choose them a last time."""
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
        """Read the events of an interrupted run; refused: no such file, events of another run."""
        assert self.file is not None
        hint = "delete it and start again"
        plain = read_json(self.file, refusal=RetrainError, hint=hint)
        check(plain, forms.EVENTS, where=f"{self.file} does not contain events", hint=hint, refusal=RetrainError)
        self.happened = [Event.from_json(event, place="events") for event in plain["events"]]
        if plain.get("of") != self._identity():
            raise RetrainError(
                f"{self.file} belongs to a run with other events", hint="delete its folder, or repeat its command"
            )

    def _identity(self) -> dict[str, Any]:
        """Return plain values that are equal for equal effects and departures."""
        departures = [[d.root, d.channels, list(d.schedule.epochs)] for d in self.departures]
        return {"effect": [type(self.effect).__name__, dataclasses.asdict(self.effect)], "departures": departures}

    def _chosen(self, module: nn.Module, epoch: int) -> dict[str, tuple[int, ...]]:
        """Return the channels that the event before `epoch` chooses, by group root; empty without an event."""
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
        """Set the chosen channels to zero: all their values with `Gone`, else the weights alone; not with `Noisy`."""
        if isinstance(self.effect, Noisy):
            return
        roles = ALL if isinstance(self.effect, Gone) else PRODUCERS
        Holder(module, slices_of(self.groups.values(), chosen, roles=roles))()

    def _add_noise(self, module: nn.Module, chosen: Mapping[str, Sequence[int]]) -> None:
        """Add noise to the chosen channels' weights, scaled by the weights of channels that no event chose."""
        assert self.step is not None
        hit = targeted(self.happened)
        spared = {
            root: sorted({*range(group.channels)} - {*hit.get(root, ())} - {*chosen.get(root, ())})
            for root, group in self.groups.items()
        }
        seed = (self.recipe.seed * 1_000_003 + self.step) % 2**63
        add_noise_(module, tuple(self.groups.values()), chosen, spared=spared, seed=seed)

    def _record(self, epoch: int, chosen: Mapping[str, tuple[int, ...]], *, before: int, after: int) -> None:
        """Append the event, and write all events to the run's file."""
        event = Event(epoch=epoch, chosen=chosen, before=before, after=after, total=len(self.tune))
        self.happened.append(event)
        if self.file is not None:
            plain = {"of": self._identity(), "events": [event.to_json() for event in self.happened]}
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with whole(self.file) as part:
                    write_text(part, json.dumps(plain))
            except OSError as error:
                raise RetrainError(f"cannot write {self.file}: {error}", hint="free some space and repeat") from error


def _lowest(scores: Tensor, count: int, *, spare: Sequence[int]) -> tuple[int, ...]:
    """Return the `count` channels with the lowest scores, without those in `spare`; ties by index; sorted."""
    eligible = scores.double().cpu().index_fill(0, torch.tensor(spare, dtype=torch.int64), math.inf)
    return tuple(sorted(eligible.argsort(stable=True)[:count].tolist()))
