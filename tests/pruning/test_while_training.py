"""Pruning while training, from a checkpoint to a small one, and on the command line."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor.checkpoint.artifacts import open_artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import Recipe, Schedule, Step
from compressor.data.preprocessing import Preprocessing
from compressor.errors import CompressError, GroupError, PlanError, RetrainError
from compressor.graph.input_spec import random_like
from compressor.graph.outputs import outputs_of
from compressor.jobs.prune import partial_of
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request
from compressor.pruning.while_training import During, during_from, prune_while_training
from compressor.surgery.plan import ChannelBudget, CostBudget, Countable, LatencyBudget, Scope
from compressor.surgery.surgery import operate
from compressor.training.events import EventSchedule
from compressor.training.loop import correct_in
from tests.support.command_line import ARCH, done, refused, run
from tests.support.topologies import checkpoint_of
from tests.training.test_events_in_training import DATA
from tests.training.test_loop import bars

RECIPE = Recipe(budget=Step(epochs=3), schedule=Schedule(rate=0.05), batch_size=16, augment=(), seed=1)
DURING = During(recipe=RECIPE, schedule=EventSchedule(start=0, end=1))
HALF = Request(budget=ChannelBudget(ratio=0.5), align=1, criterion="l2-norm")
TRAIN = ("--ratio", 0.5, "--align", 1, "--while-training", "--data", "data.npz")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 2),
    ).eval()  # fmt: skip


def checkpoint(make: Callable[[], nn.Module] = network) -> Checkpoint:
    seen = Preprocessing(mean=(0.5,), std=(0.5,), size=(8, 8), channels=1)
    return dataclasses.replace(checkpoint_of(make(), (1, 1, 8, 8)), preprocessing=seen)


class Normed(nn.Module):
    """A layer norm over the channels of the first layer; those of the second can be held at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(64, 12), nn.LayerNorm(12), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.c(torch.sigmoid(self.b(self.norm(self.a(x.flatten(1))))))
        return scores


@pytest.mark.parametrize("regrow", [False, True])
def test_the_small_network_is_the_held_one_and_the_checkpoint_is_lent(regrow: bool) -> None:
    dense = checkpoint()
    before = copy.deepcopy(dense.module.state_dict())
    found = prune_while_training(dense, HALF, dataclasses.replace(DURING, regrow=regrow), data=DATA)
    assert all(torch.equal(t, before[n]) for n, t in dense.module.state_dict().items())
    small, held = found.pruned.checkpoint.module, found.trained.module
    assert [small.get_parameter(f"{i}.weight").shape[0] for i in (0, 3)] == [4, 3]
    inputs = random_like(dense.example_inputs, batch=8)
    torch.testing.assert_close(outputs_of(small, inputs), outputs_of(held, inputs))
    assert found.pruned.proof.holds
    tune = DATA.tune
    assert tune is not None
    assert found.trained.events[-1].after == correct_in(held, tune, preprocessing=dense.preprocessing) or not regrow
    again = operate(held, found.pruned.checkpoint.surgery)  # type: ignore[arg-type]  # there is one
    torch.testing.assert_close(outputs_of(again, inputs), outputs_of(small, inputs))
    steps = found.pruned.checkpoint.lineage
    assert [step["step"] for step in steps] == ["train while pruning", "prune"]
    assert steps[0]["regrow"] is regrow
    assert json.loads(json.dumps(found.result.to_json()))["mean_stability"] == found.result.to_json()["mean_stability"]


def test_a_budget_of_macs_is_met() -> None:
    request = dataclasses.replace(HALF, budget=CostBudget(counted=Countable.MACS, stays=0.5))
    pruned = prune_while_training(checkpoint(), request, DURING, data=DATA).pruned
    assert pruned.small_cost.macs <= 0.5 * pruned.dense_cost.macs


def test_channels_that_are_normalised_together_are_left_alone_with_the_reason() -> None:
    found = prune_while_training(checkpoint(Normed), HALF, DURING, data=DATA)
    assert set(found.trained.silent) == {"b"}
    assert found.pruned.checkpoint.module.get_parameter("a.weight").shape[0] == 12
    reasons = {one.layer: one.reason for one in found.pruned.traced.left_alone}
    assert "still affect others" in reasons["a"]


def test_a_network_of_which_nothing_can_be_held_is_refused() -> None:
    with pytest.raises(GroupError, match="no channels of this network can be held at zero"):
        prune_while_training(checkpoint(Normed), dataclasses.replace(HALF, protect=("b",)), DURING, data=DATA)


def test_a_frozen_network_is_trained_and_comes_back_frozen() -> None:
    dense = checkpoint()
    dense.module.requires_grad_(False)
    small = prune_while_training(dense, HALF, DURING, data=DATA).pruned.checkpoint.module
    assert not any(p.requires_grad for p in small.parameters())
    assert not torch.equal(small.get_parameter("8.bias"), dense.module.get_parameter("8.bias"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"budget": LatencyBudget(speedup=2.0)}, "a budget of latency cannot be met while training"),
        ({"scope": Scope.MEASURED}, "measured widths depend on the weights"),
        ({"levels": 2}, "events in place of `--levels`"),
        ({"repair": Repair.BATCH_NORM}, "nothing to repair by batch-norm"),
    ],
)
def test_what_does_not_go_with_training_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says) as caught:
        prune_while_training(checkpoint(), dataclasses.replace(HALF, **change), DURING, data=DATA)
    assert caught.value.hint


def test_images_with_labels_are_needed() -> None:
    with pytest.raises(RetrainError, match="needs images with labels"):
        prune_while_training(checkpoint(), HALF, DURING, data=None)
    bare = dataclasses.replace(DATA, train=type(bars(4, seed=0))(bars(40, seed=0).images))
    with pytest.raises(CompressError, match="no labels"):
        prune_while_training(checkpoint(), HALF, DURING, data=bare)


@pytest.mark.parametrize(
    ("values", "epochs"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"epochs": 20}, [*range(17)]),
        ({"epochs": 20, "every": 5, "end": 12}, [0, 5, 10]),
        ({"regrow": True}, [1, 2, 3, 4, 5]),
        ({"epochs": 1, "regrow": True}, [0]),
        ({"epochs": 10, "start": 9}, [9]),
    ],
)
def test_events_are_where_the_options_say(values: dict[str, Any], epochs: list[int]) -> None:
    during = during_from(checkpoint(), **values)
    assert during is not None
    assert list(during.schedule.epochs) == epochs
    assert during.recipe.budget.epochs == values.get("epochs", 6)


class TestCommand:
    @pytest.mark.usefixtures("inputs")
    @pytest.mark.parametrize("how", [(), ("--regrow",)])
    def test_it_writes_an_artifact_that_goes_on(self, how: tuple[str, ...]) -> None:
        result = done("prune", "tiny.pt", *ARCH, *TRAIN, "--epochs", 3, "--every", 1, *how, "--json")
        results = json.loads(result.stdout)
        assert results["prune"]["achieved"]["channels"] == [48, 24]
        assert results["prune"]["criterion"] == "l2-norm"
        events = results["while_training"]["events"]
        assert [e["epoch"] for e in events] == ([1, 2, 3] if how else [0, 1])
        assert [s["step"] for s in results["lineage"]] == ["train while pruning", "prune"]
        artifact = open_artifact(Path("tiny.compressed"))
        assert artifact.checkpoint().module.get_parameter("body.3.weight").shape[:2] == (16, 8)
        assert not partial_of(Path("tiny.compressed")).exists()
        done("evaluate", "--data", "data.npz")
        done("retrain", "--epochs", 1, "--data", "data.npz")
        done("report")

    @pytest.mark.usefixtures("inputs")
    def test_it_says_what_every_event_cost(self) -> None:
        result = done("prune", "tiny.pt", *ARCH, *TRAIN, "--epochs", 2, "--dry-run")
        assert "silenced for good" in result.stdout
        assert "tune before" in result.stdout
        assert "caveat" not in result.stderr
        assert "epoch 2/2" in result.stderr
        assert not Path("tiny.compressed").exists()

    @pytest.mark.usefixtures("inputs")
    def test_an_interrupted_run_goes_on_with_the_same_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import compressor.cli.prune as cli

        ask = ("prune", "tiny.pt", *ARCH, *TRAIN, "--epochs", 3)
        done(*ask, "--out", "whole.compressed")

        def stop(progress: Any) -> None:
            if progress.record is not None and progress.epoch == 1:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(cli, "tell_epoch", stop)
            assert run(*ask).exit_code == 130
        assert partial_of(Path("tiny.compressed")).exists()
        done(*ask)
        one, two = (open_artifact(Path(f"{n}.compressed")).checkpoint().module for n in ("whole", "tiny"))
        assert all(torch.equal(t, two.state_dict()[n]) for n, t in one.state_dict().items())

    @pytest.mark.usefixtures("inputs")
    @pytest.mark.parametrize(
        ("options", "says", "hints"),
        [
            (("--ratio", 0.5, "--epochs", 3), "`--epochs` is about training", "--while-training"),
            (("--ratio", 0.5, "--regrow"), "`--regrow` is about training", "--while-training"),
            (("--sparsity", 0.5, "--while-training"), "share of the channels or of the cost", "--ratio"),
            (("--max-drop", 1, "--while-training"), "share of the channels or of the cost", "--ratio"),
            (("--speedup", 2, "--while-training"), "share of the channels or of the cost", "--ratio"),
            (("--ratio", 0.5, "--while-training", "--every", 0), "events cannot be every 0 epochs", "--every 1"),
            (("--ratio", 0.5, "--while-training", "--end", 6), "the last event is before epoch 6", "--end"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, options: tuple[object, ...], says: str, hints: str) -> None:
        refused("prune", "tiny.pt", *ARCH, *options, "--data", "data.npz", says=says, hints=hints)
