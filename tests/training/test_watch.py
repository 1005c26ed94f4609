"""What is looked at on the way: weights at a step, and the tuning loss, without any effect on the training."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.checkpoint.recipes import Schedule, Shape, Step
from compressor.data.splits import SplitName
from compressor.errors import RetrainError
from compressor.training.loop import iterations_per_epoch
from compressor.training.watch import StateAt, TuningLoss, state_of
from tests.training.test_loop import PREPROCESSING, RECIPE, interrupt_at, run, same_bytes, small_data, small_network

PER_EPOCH = iterations_per_epoch(72, RECIPE.batch_size)  # 5


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def watcher(every: int) -> TuningLoss:
    return TuningLoss(small_data().split(SplitName.TUNE), preprocessing=PREPROCESSING, every=every)


def test_the_loss_is_what_torch_says_of_the_whole_split() -> None:
    module = small_network().eval()
    looked = watcher(1)
    looked(module)
    tune = small_data().tune
    assert tune is not None
    with torch.no_grad():
        scores = module(PREPROCESSING(tune.images))
    assert looked.seen[0].loss == pytest.approx(float(functional.cross_entropy(scores, tune.labels)), rel=1e-5)
    assert looked.seen[0].correct == int((scores.argmax(1) == tune.labels).sum())
    assert looked.seen[0].total == len(tune)


def test_watching_changes_nothing_although_the_network_has_dropout_and_batch_norms() -> None:
    looked = watcher(2)
    watched = run(after_step=(looked, StateAt(3)))
    assert same_bytes(watched.module, run().module)
    assert [s.step for s in looked.seen] == list(range(0, 3 * PER_EPOCH + 1, 2))
    assert not watched.module.training


def test_the_lowest_is_the_earliest_of_the_lowest_and_its_weights_are_kept() -> None:
    looked = watcher(1)
    run(after_step=(looked,))
    low = looked.lowest
    assert low.loss == min(s.loss for s in looked.seen)
    assert all(s.loss > low.loss for s in looked.seen if s.step < low.step)
    again = StateAt(low.step)
    run(after_step=(again,))
    assert equal(looked.lowest_state, again.state)
    ties = watcher(1)
    module = small_network()
    ties(module)
    ties(module)
    assert ties.lowest.step == 0


def test_the_weights_of_a_step_are_those_of_a_run_that_ends_there() -> None:
    module = small_network()
    first, later = StateAt(0), StateAt(2 * PER_EPOCH)
    schedule = Schedule(rate=0.05, shape=Shape.CONSTANT, warmup=0.0)
    constant = dataclasses.replace(RECIPE, schedule=schedule)
    run(module, recipe=constant, after_step=(first, later))
    assert equal(first.state, state_of(module))
    ended = run(module, recipe=dataclasses.replace(constant, budget=Step(epochs=2)))
    assert equal(later.state, state_of(ended.module))


@pytest.mark.parametrize(("step", "at"), [(2, (0, 3)), (2, (2, 1)), (12, (1, 0)), (5, (1, 2))])
def test_a_resumed_run_still_has_the_weights(tmp_path: Path, step: int, at: tuple[int, int]) -> None:
    from compressor.training.resume import epochs_done
    from tests.training.test_loop import InterruptionError

    whole = StateAt(step)
    run(after_step=(whole,))
    state, file = tmp_path / "train.state", tmp_path / "early.state"
    with pytest.raises(InterruptionError):
        run(state_file=state, callbacks=(interrupt_at(*at),), after_step=(StateAt(step, file=file),))
    resumed = StateAt(step, file=file, done=epochs_done(state) * PER_EPOCH)
    assert resumed._next == at[0] * PER_EPOCH
    run(state_file=state, after_step=(resumed,))
    assert equal(resumed.state, whole.state)


def test_a_copy_is_no_view_and_lies_as_usual() -> None:
    module = small_network().to(memory_format=torch.channels_last)
    kept = state_of(module)
    before = copy.deepcopy(kept)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert equal(kept, before)
    assert all(t.is_contiguous() for t in kept.values())


def test_what_cannot_be_watched_is_refused() -> None:
    with pytest.raises(RetrainError, match="cannot be negative: -1"):
        StateAt(-1)
    with pytest.raises(RetrainError, match="every 0 steps"):
        watcher(0)
    late = StateAt(9)
    late(nn.Linear(1, 1))
    with pytest.raises(RetrainError, match="the run has 0 steps") as caught:
        _ = late.state
    assert "earlier step" in str(caught.value.hint)
