"""Pruning from checkpoint to small network: what was asked is what comes out, proved."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor.checkpoint.loading import load
from compressor.data.samples import Images
from compressor.data.sources import load_data
from compressor.data.splits import Data
from compressor.errors import CalibrationError, CompressError, GroupError, PlanError
from compressor.graph.outputs import outputs_of
from compressor.jobs.inspect import inspect
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget, CostBudget, Countable, Scope
from compressor.surgery.surgery import operate
from tests.support.topologies import alive, checkpoint_of, plain

HALF = ChannelBudget(ratio=0.5)
SHARED = [
    Scope.UNIFORM,
    Scope.GLOBAL,
    Scope.ISOMORPHIC,
]  # `measured` takes data: tests/pruning/repair


@pytest.mark.parametrize("model", ["resnet20", "vgg11", "mobilenet_v2"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
def test_the_sample_models_are_proved(samples: Path, model: str, ratio: float) -> None:
    pruned = prune(load(samples / f"fashion_{model}.pt"), Request(budget=ChannelBudget(ratio=ratio), align=1))
    assert pruned.proof.dtype is torch.float64
    assert pruned.proof.largest_relative_difference <= 1e-10


@pytest.mark.parametrize("scope", SHARED)
@pytest.mark.parametrize("counted", list(Countable))
@pytest.mark.parametrize("stays", [0.3, 0.6])
def test_a_cost_budget_is_met_within_one_per_cent(
    samples: Path, scope: Scope, counted: Countable, stays: float
) -> None:
    request = Request(budget=CostBudget(counted=counted, stays=stays), scope=scope, align=1)
    pruned = prune(load(samples / "fashion_resnet20.pt"), request)
    share = getattr(pruned.small_cost, counted) / getattr(pruned.dense_cost, counted)
    assert stays - 0.01 <= share <= stays


class Narrow(nn.Module):
    """Every width but one is 12: rounded up to multiples of eight, a ratio of 0.3 would take nothing out of them."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        layers = [m for i in range(4) for m in (nn.Conv2d(width if i else 3, width, 3, padding=1), nn.ReLU())]
        self.body, self.wide = nn.Sequential(*layers), nn.Conv2d(width, 64, 1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.wide(self.body(x))).mean((2, 3)))


@pytest.mark.parametrize("scope", SHARED)
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6])
def test_a_narrow_network_loses_what_was_asked(scope: Scope, ratio: float) -> None:
    pruned = prune(checkpoint_of(alive(Narrow())), Request(budget=ChannelBudget(ratio=ratio), scope=scope))
    dense, small = pruned.levels[0].channels
    assert small / dense == pytest.approx(1 - ratio, abs=0.02)
    assert pruned.result.to_json()["caveats"] == []


@pytest.mark.parametrize("stays", [0.8, 0.5])
@pytest.mark.parametrize("counted", list(Countable))
def test_a_narrow_network_costs_what_was_asked(counted: Countable, stays: float) -> None:
    pruned = prune(checkpoint_of(alive(Narrow())), Request(budget=CostBudget(counted=counted, stays=stays)))
    share = getattr(pruned.small_cost, counted) / getattr(pruned.dense_cost, counted)
    assert stays - 0.03 <= share <= stays
    assert bool(pruned.result.to_json()["caveats"]) == (share < stays - 0.02)


def test_a_gap_that_an_alignment_leaves_is_said_with_what_would_close_it() -> None:
    dense = checkpoint_of(alive(Narrow(24)))
    some = ChannelBudget(ratio=0.14)
    pruned = prune(dense, Request(budget=some, align=16))
    channels = pruned.levels[0].channels
    finer = prune(dense, Request(budget=some, align=1)).levels[0].channels
    assert pruned.result.to_json()["caveats"] == [
        f"{channels[1] / channels[0]:.1%} of the channels stay where 86.0% was asked: widths are multiples of 16; "
        f"with `--align 1` {finer[1] / finer[0]:.1%} would stay"
    ]
    assert finer[1] / finer[0] == pytest.approx(0.86, abs=0.01)
    costs = prune(dense, Request(budget=CostBudget(counted=Countable.MACS, stays=0.75), align=16))
    assert costs.small_cost.macs / costs.dense_cost.macs < 0.73
    assert (
        "of the MACs stay where 75.0% was asked: widths are multiples of 16; with"
        in costs.result.to_json()["caveats"][0]
    )


def test_a_gap_that_no_alignment_closes_is_said_too() -> None:
    request = Request(budget=ChannelBudget(ratio=0.6), min_channels=40, align=8)
    (caveat,) = prune(checkpoint_of(alive(Narrow())), request).result.caveats
    assert caveat.endswith("some groups keep their least width, and the others come no nearer")


@pytest.mark.parametrize("align", [1, 8])
@pytest.mark.parametrize("scope", SHARED)
def test_levels_reach_the_same_width_as_one_shot(samples: Path, scope: Scope, align: int) -> None:
    dense = load(samples / "fashion_resnet20.pt")
    once = prune(dense, Request(budget=HALF, align=align, scope=scope, criterion="random"))
    thrice = prune(dense, Request(budget=HALF, align=align, scope=scope, criterion="random", levels=3))
    assert len(thrice.levels) == 3
    if scope is Scope.UNIFORM or align == 1:
        assert thrice.levels[-1].channels[1] == once.levels[-1].channels[1]
    assert all(a.channels[1] >= b.channels[1] for a, b in zip(thrice.levels, thrice.levels[1:], strict=False))
    again = operate(dense.module, thrice.checkpoint.surgery)
    for a, b in zip(
        outputs_of(again, dense.example_inputs), outputs_of(thrice.checkpoint.module, dense.example_inputs), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_the_same_request_gives_the_same_bytes(samples: Path) -> None:
    dense = load(samples / "fashion_mobilenet_v2.pt")
    states = [
        prune(dense, Request(budget=HALF, criterion="random", seed=3)).checkpoint.module.state_dict() for _ in range(2)
    ]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    other = prune(dense, Request(budget=HALF, criterion="random", seed=4)).checkpoint.module.state_dict()
    assert any(not torch.equal(states[0][k], other[k]) for k in other)


def test_largest_turns_a_criterion_round(samples: Path) -> None:
    dense = load(samples / "fashion_vgg11.pt")
    low = prune(dense, Request(budget=HALF)).levels[0].plan.removed
    high = prune(dense, Request(budget=HALF, largest=True)).levels[0].plan.removed
    assert all(not set(low[root]) & set(high[root]) for root in low)


def test_a_criterion_that_needs_data_says_so(samples: Path) -> None:
    dense = load(samples / "fashion_resnet20.pt")
    with pytest.raises(CalibrationError, match="needs images"):
        prune(dense, Request(budget=HALF, criterion="taylor"))
    data = load_data(str(samples / "fashion_sample.npz"))
    pruned = prune(dense, Request(budget=HALF, criterion="taylor", images=64), data=data)
    assert pruned.proof.holds


def test_a_frozen_network_gives_the_same_plan(samples: Path) -> None:
    dense = load(samples / "fashion_resnet20.pt")
    live = prune(dense, Request(budget=HALF)).levels[0].plan
    dense.module.requires_grad_(False)
    assert prune(dense, Request(budget=HALF)).levels[0].plan == live


def test_a_group_that_cannot_be_proved_is_left_alone_and_the_others_go() -> None:
    class Cropped(nn.Module):
        """A padding that cuts: where a channel leaves that it cuts off, it cuts off another one."""

        def __init__(self) -> None:
            super().__init__()
            self.mixed, self.read = nn.Conv2d(3, 16, 1), nn.Conv2d(12, 16, 1)
            self.out = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.pad(self.mixed(x), (0, 0, 0, 0, -4, 0))
            return self.out(torch.relu(self.read(y)).mean((2, 3)))

    pruned = prune(checkpoint_of(alive(Cropped())), Request(budget=HALF))
    assert {root: len(gone) for root, gone in pruned.levels[0].plan.removed.items()} == {"mixed/2": 6, "read": 8}
    assert any(a.layer == "mixed" and "cannot be proved" in a.reason for a in pruned.traced.left_alone)
    assert pruned.proof.holds


def test_nothing_provable_is_an_error() -> None:
    class OnlyCropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixed = nn.Conv2d(3, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.pad(self.mixed(x), (0, 0, 0, 0, -4, -4)).mean((2, 3))

    with pytest.raises(GroupError, match="nothing in this network can be pruned safely"):
        prune(checkpoint_of(alive(OnlyCropped())), Request(budget=HALF))


def test_a_softmax_over_channels_is_provable() -> None:
    """Its reference sees the survivors alone; silencing the reader would not be enough."""

    class Softmaxed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixed, self.out = nn.Conv2d(3, 16, 1), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.mixed(x).softmax(1).mean((2, 3)))

    pruned = prune(checkpoint_of(alive(Softmaxed())), Request(budget=HALF))
    assert {root: len(gone) for root, gone in pruned.levels[0].plan.removed.items()} == {"mixed": 8}
    assert pruned.proof.holds


def test_a_ratio_that_rounds_to_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match="nothing would be removed"):
        prune(checkpoint_of(alive(plain())), Request(budget=ChannelBudget(ratio=0.01)))


def test_what_is_said_is_what_was_done(samples: Path) -> None:
    dense = load(samples / "fashion_resnet20.pt")
    pruned = prune(dense, Request(budget=HALF))
    said = pruned.result.to_json()
    assert said["achieved"]["params"][1] == sum(p.numel() for p in pruned.checkpoint.module.parameters())
    assert said["achieved"]["channels"][0] - said["achieved"]["channels"][1] == pruned.levels[0].plan.count
    assert {w["layer"]: w["out"][1] for w in said["widths"]}["conv1"] == pruned.checkpoint.module.conv1.out_channels
    assert pruned.checkpoint.lineage[-1]["step"] == "prune"


def test_pruning_a_pruned_checkpoint_composes(samples: Path) -> None:
    dense = load(samples / "fashion_resnet20.pt")
    first = prune(dense, Request(budget=ChannelBudget(ratio=0.25), align=1)).checkpoint
    second = prune(first, Request(budget=ChannelBudget(ratio=0.25), align=1)).checkpoint
    assert second.surgery is not None
    again = operate(dense.module, second.surgery)
    torch.testing.assert_close(
        outputs_of(again, dense.example_inputs)[0], outputs_of(second.module, dense.example_inputs)[0]
    )
    assert len(second.lineage) == len(dense.lineage) + 2


@pytest.mark.parametrize("change", [{"levels": 0}, {"min_channels": 0}, {"align": 0}])
def test_a_request_out_of_range_is_refused(samples: Path, change: dict[str, int]) -> None:
    with pytest.raises(CompressError):
        prune(load(samples / "fashion_resnet20.pt"), dataclasses.replace(Request(budget=HALF), **change))


@pytest.mark.parametrize("levels", [1, 3])
def test_a_ratio_that_rounds_to_nothing_is_refused_at_any_number_of_levels(levels: int) -> None:
    request = Request(budget=ChannelBudget(ratio=0.01), align=1, levels=levels)
    with pytest.raises(PlanError, match="nothing would be removed"):
        prune(checkpoint_of(alive(plain())), request)


@pytest.mark.parametrize("width", [2, 12, 16])
def test_inspect_lists_the_groups_of_a_network_whatever_its_widths_are_rounded_to(width: int) -> None:
    net = alive(nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 4, 1)))
    found = inspect(checkpoint_of(net))
    assert [g.channels for g in found.traced.groups] == [width]
    assert [row[1] for row in found.would_leave] == pytest.approx([0.75, 0.5, 0.25], abs=0.26)


class TwoStrides(nn.Module):
    """Two scales, read by one weight with two strides: what is read of their channels is no one layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stem = torch.relu(self.stem(x))
        second = torch.relu(self.second(stem))
        return self.out(torch.relu(self.first(stem))), nn.functional.conv2d(second, self.out.weight, stride=2)


def test_a_group_that_the_criterion_cannot_judge_is_judged_otherwise_with_a_word() -> None:
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    data = Data(name="n", source="n", train=Images((images * 255).to(torch.uint8), torch.full((64,), -1)), tune=None,
                test=None, split_seed=0)  # fmt: skip
    dense = checkpoint_of(alive(TwoStrides()), (1, 3, 16, 16))
    lines: list[str] = []
    pruned = prune(dense, Request(budget=HALF, criterion="obs", images=64), data=data, say=lines.append)
    assert all(len(gone) == 8 for gone in pruned.levels[0].plan.removed.values())
    assert [line for line in lines if "cannot judge" in line] == [
        "`obs` cannot judge the group of `second`: `l1-norm` does"
    ]
