"""A watched training is the same training, and stops where its tuning loss was lowest."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import nn
from torch.nn import functional

from compressor.checkpoint.recipes import Recipe, Schedule, Step
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.surgery.masks import magnitude
from compressor.training.lottery.early_stopping import train_watched
from compressor.training.watch import state_of
from tests.support.topologies import checkpoint_of
from tests.training.test_loop import PREPROCESSING, same_bytes, small_data, small_network
from tests.training.test_loop import run as plain_run

RECIPE = Recipe(budget=Step(epochs=2), schedule=Schedule(rate=0.05), batch_size=24, augment=(), seed=3)


def loss_of(module: nn.Module, data: Data) -> float:
    tune = data.tune
    assert isinstance(tune, Images)
    with torch.no_grad():
        return float(functional.cross_entropy(module(PREPROCESSING(tune.images)), tune.labels))


def test_it_is_the_training_that_nobody_watches_and_leaves_the_checkpoint() -> None:
    checkpoint = dataclasses.replace(checkpoint_of(small_network()), preprocessing=PREPROCESSING)
    before = copy.deepcopy(checkpoint.module.state_dict())
    found = train_watched(checkpoint, small_data(), recipe=RECIPE, every=2, early_step=3)
    assert same_bytes(found.trained, plain_run(recipe=RECIPE).module)
    assert all(torch.equal(t, before[n]) for n, t in checkpoint.module.state_dict().items())
    assert [s.step for s in found.seen] == [0, 2, 4, 6]
    assert len(found.history) == 2
    assert not torch.equal(found.early["0.weight"], before["0.weight"])
    assert not torch.equal(found.early["0.weight"], state_of(found.trained)["0.weight"])


def test_the_stopped_network_has_the_lowest_loss_that_was_seen() -> None:
    checkpoint = dataclasses.replace(checkpoint_of(small_network()), preprocessing=PREPROCESSING)
    steep = dataclasses.replace(RECIPE, schedule=Schedule(rate=1.5, warmup=0.0), budget=Step(epochs=3))
    found = train_watched(checkpoint, small_data(), recipe=steep, every=1)
    assert found.lowest.loss == min(s.loss for s in found.seen) < found.seen[-1].loss
    assert abs(loss_of(found.stopped, small_data()) - found.lowest.loss) < 1e-4
    assert not found.stopped.training


def test_a_mask_is_kept_at_both_moments() -> None:
    checkpoint = dataclasses.replace(checkpoint_of(small_network()), preprocessing=PREPROCESSING)
    mask = magnitude(checkpoint.module, sparsity=0.7)
    found = train_watched(checkpoint, small_data(), recipe=RECIPE, every=1, mask=mask)
    for module in (found.trained, found.stopped):
        assert all(not bool(module.get_parameter(n)[~k].any()) for n, k in mask.kept.items())
    assert all(not bool(found.early[n][~k].any()) for n, k in mask.kept.items())
