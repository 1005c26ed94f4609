"""Training with events: what is gone stays silent at every step, what may come back does, and nothing is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compressor.training.events_in_training as subject
from compressor.channels.groups import ChannelGroup, trace
from compressor.checkpoint.recipes import Recipe, Schedule, Step
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import PlanError, RetrainError
from compressor.surgery.zeroed import ALL, slices_of
from compressor.training.events import Departure, EventSchedule, targeted
from compressor.training.events_in_training import (
    Effect,
    Gone,
    Noisy,
    Regrown,
    TrainedWithEvents,
    Zeroed,
    events_file,
    train_with_events,
)
from compressor.training.loop import Progress, train
from tests.training.test_loop import PREPROCESSING, bars, same_bytes

RECIPE = Recipe(budget=Step(epochs=4), schedule=Schedule(rate=0.05, warmup=0.0), batch_size=16, augment=(), seed=4)
STEPS = 5  # of an epoch: 72 images
DATA = Data(name="bars", source="made", train=bars(72, seed=0), tune=bars(40, seed=1), test=bars(20, seed=2))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip


def groups() -> tuple[ChannelGroup, ...]:
    return trace(network().eval(), (torch.zeros(1, 1, 8, 8),)).groups


def lowest_index(module: nn.Module, epoch: int) -> Mapping[str, Tensor]:
    assert not module.training
    assert 0 <= epoch <= 4
    return {"0": torch.arange(8.0), "3": torch.arange(6.0)}


def departures(**schedule: int) -> list[Departure]:
    at = EventSchedule(**{"start": 0, "end": 2, "every": 1, **schedule})
    return [Departure(root="0", channels=6, schedule=at), Departure(root="3", channels=2, schedule=at)]


def run(effect: Effect, **options: Any) -> TrainedWithEvents:
    given = {
        "groups": groups(), "departures": departures(), "choose": lowest_index, "recipe": RECIPE,
        "preprocessing": PREPROCESSING, **options,
    }  # fmt: skip
    return train_with_events(network(), DATA, effect=effect, **given)


class Watch:
    """The training copy's own tensors, seen at every forward pass, by way of `choose`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[dict[str, Tensor]] = []
        plain = train

        def watched(module: nn.Module, *arguments: Any, **options: Any) -> Any:
            def note(module: nn.Module, _: Any) -> None:
                if module.training:
                    self.seen.append({n: p.detach().clone() for n, p in module.named_parameters()})

            with_hook = module.register_forward_pre_hook(note)  # the copy takes its hooks along
            trained = plain(module, *arguments, **options)
            with_hook.remove()
            return trained

        monkeypatch.setattr(subject, "train", watched)

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        return self  # a copy of the network, hooks and all, writes into the same list

    def rows(self, tensor: str) -> list[list[int]]:
        """The channels whose weights were all zero, pass by pass."""
        return [(step[tensor].flatten(1).abs().sum(1) == 0).nonzero().flatten().tolist() for step in self.seen]


def test_what_is_gone_is_silent_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    done = run(Gone())
    assert [dict(e.chosen) for e in done.events] == [{"0": (0, 1)}, {"0": (2, 3), "3": (0,)}, {"0": (4, 5), "3": (1,)}]
    assert [e.epoch for e in done.events] == [0, 1, 2]
    assert len(watch.seen) == 4 * STEPS
    for step, parameters in enumerate(watch.seen):
        gone = targeted([e for e in done.events if e.epoch <= step // STEPS])
        for place in slices_of(groups(), gone, roles=ALL):
            if place.tensor in parameters:
                assert not parameters[place.tensor].index_select(place.dim, place.positions).any()
        assert bool(parameters["1.weight"][6:].all())
    assert done.silent == {"0": (0, 1, 2, 3, 4, 5), "3": (0, 1)}
    assert not done.module.get_parameter("0.weight")[:6].any()


def test_zeroed_channels_are_zero_for_as_many_batches_and_then_move(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    done = run(Zeroed(batches=3), departures=departures(start=1, end=1))
    zero = list(range(6))
    assert watch.rows("0.weight") == [[]] * STEPS + [zero] * 3 + [[]] * (3 * STEPS - 3)
    assert bool(watch.seen[STEPS]["1.weight"].all())  # the batch norm is left alone
    assert done.silent == {}
    assert bool(done.module.get_parameter("0.weight").flatten(1).any(1).all())


def test_zeroing_may_last_into_the_next_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    run(Zeroed(batches=STEPS + 2), departures=departures(start=1))
    zero = watch.rows("0.weight")
    first, both, second = [0, 1, 2], [0, 1, 2, 3, 4, 5], [3, 4, 5]
    assert zero == [[]] * STEPS + [first] * STEPS + [both] * 2 + [second] * STEPS + [[]] * (STEPS - 2)


def test_noise_moves_the_chosen_weights_alone_and_takes_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    done = run(Noisy(batches=1), departures=departures(end=0))
    start = network().get_parameter("0.weight").detach()
    moved = (watch.seen[0]["0.weight"] - start).flatten(1).abs().amax(1)
    assert bool((moved[:6] > 0.01).all())
    assert not moved[6:].any()
    assert not any(watch.rows("0.weight"))
    assert done.silent == {}


def test_regrown_channels_move_again_and_are_silent_at_the_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    done = run(Regrown(), departures=departures(start=1))
    zero, every = watch.rows("0.weight"), list(range(6))
    assert [zero[e * STEPS] for e in range(4)] == [[], every, every, []]  # each event chooses all of them
    assert all(not zero[e * STEPS + 1] for e in range(4))  # and the next step moves them
    assert [e.epoch for e in done.events] == [1, 2, 4]
    assert done.silent == {"0": (0, 1, 2, 3, 4, 5), "3": (0, 1)}
    for place in slices_of(groups(), done.silent, roles=ALL):
        held = dict(done.module.named_parameters()).get(place.tensor)
        assert held is None or not held.index_select(place.dim, place.positions).any()


def test_the_scores_decide_and_a_channel_leaves_once() -> None:
    def choose(_: nn.Module, epoch: int) -> Mapping[str, Tensor]:
        rising = torch.arange(8.0)
        return {"0": rising if epoch == 0 else -rising, "3": torch.zeros(6)}

    done = run(Gone(), choose=choose)
    assert [e.chosen["0"] for e in done.events] == [(0, 1), (6, 7), (4, 5)]
    assert [e.chosen.get("3") for e in done.events] == [None, (0,), (1,)]  # ties by index, none twice


def test_before_and_after_are_counted_on_the_tuning_split() -> None:
    dead = Images(DATA.tune.images, torch.full_like(DATA.tune.labels, 1))  # type: ignore[union-attr]  # Images
    data = dataclasses.replace(DATA, tune=dead)
    module = network()
    with torch.no_grad():
        module[7].bias.copy_(torch.tensor([-9.0, 9.0]))
    done = train_with_events(
        module, data, groups=groups(), departures=departures(end=0), effect=Gone(), choose=lowest_index,
        recipe=dataclasses.replace(RECIPE, budget=Step(epochs=1)), preprocessing=PREPROCESSING,
    )  # fmt: skip
    (event,) = done.events
    assert (event.before, event.after, event.total) == (40, 40, 40)
    assert event.instability == 0


class StoppedError(Exception):
    """What a callback raises where a user would press Ctrl-C."""


@pytest.mark.parametrize("effect", [Gone(), Regrown(), Zeroed(batches=7), Noisy(batches=7)])
@pytest.mark.parametrize(("epoch", "iteration"), [(0, 4), (1, 2), (2, 4)])
def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path: Path, effect: Effect, epoch: int, iteration: int) -> None:
    def stop(progress: Progress) -> None:
        if (progress.epoch, progress.iteration) == (epoch, iteration):
            raise StoppedError

    whole, state = run(effect), tmp_path / "run" / "train.state"
    with pytest.raises(StoppedError):
        run(effect, state_file=state, callbacks=(stop,))
    resumed = run(effect, state_file=state)
    assert same_bytes(whole.module, resumed.module)
    assert whole.events == resumed.events
    assert whole.silent == resumed.silent
    again = run(effect, state_file=state)
    assert same_bytes(whole.module, again.module)
    assert whole.events == again.events


def test_a_run_with_other_events_is_not_gone_on_with(tmp_path: Path) -> None:
    state = tmp_path / "train.state"
    run(Gone(), state_file=state)
    with pytest.raises(RetrainError, match="belongs to a run with other events"):
        run(Gone(), state_file=state, departures=departures(every=2))
    with pytest.raises(RetrainError, match="belongs to a run with other events"):
        run(Regrown(), state_file=state)
    events_file(state).write_text("{}")
    with pytest.raises(RetrainError, match="does not contain events"):
        run(Gone(), state_file=state)


@pytest.mark.parametrize(
    ("leaving", "says"),
    [
        (departures(end=4), "the last event is before epoch 4, and training ends with epoch 3"),
        ([dataclasses.replace(departures()[0], root="9")], "there is no group `9`"),
        ([dataclasses.replace(departures()[0], channels=8)], "8 of the 8 channels of `0` would leave"),
    ],
)
def test_departures_that_cannot_be_are_refused(leaving: list[Departure], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        run(Gone(), departures=leaving)
