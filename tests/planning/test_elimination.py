"""Channels leave one by one: every step against least squares by brute force."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.channels.groups import ChannelGroup, Member, Role, trace
from compressor.errors import CalibrationError
from compressor.planning import criteria, elimination
from compressor.planning.calibration import Calibration, Needs
from compressor.planning.elimination import Elimination, ReaderMoments, consumers, eliminate, features_of, readings_of
from compressor.planning.gathering import gather
from compressor.planning.walk import program_of
from tests.support.topologies import INPUT, TOPOLOGIES, Residual, alive, head


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1, stride=2), head(4))


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), head(4))


def flattened() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


NETS = {"linear": (linear, (4,), "2"), "convolution": (convolution, (3, 8, 8), "2"),
        "grouped": (grouped, (3, 6, 6), "2"), "flattened": (flattened, (3, 9, 9), "3")}  # fmt: skip


def batches(shape: Sequence[int], *, count: int = 4, size: int = 32) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, *shape, generator=generator),) for _ in range(count)]


def readings(
    net: nn.Module, groups: Sequence[ChannelGroup], given: list[tuple[Tensor, ...]]
) -> dict[str, ReaderMoments]:
    names = {m.tensor for g in groups for m in g.members if m.role is Role.CONSUMES}
    return readings_of(program_of(net, given[0], batch=len(given[0][0])), given, names)


def lost_without(
    net: nn.Sequential, layer: str, group: ChannelGroup, given: list[tuple[Tensor, ...]], gone: set[int]
) -> float:
    """The share of the layer's variance that no weights on the other channels can give; torch's unfold and lstsq."""
    reader = net[int(layer)]
    with torch.no_grad():
        x = torch.cat([net[: int(layer)](b[0]) for b in given]).double()
    weight = reader.weight.detach().double()
    if isinstance(reader, nn.Conv2d):
        windows = functional.unfold(x, reader.kernel_size, padding=reader.padding, stride=reader.stride)
        rows = windows.transpose(1, 2).flatten(0, 1)  # [rows, in * window]
        weight, each, blocks = weight.flatten(1), weight[0, 0].numel(), reader.groups
    else:
        rows, each, blocks = x, 1, 1
    (member,) = (m for m in group.members if m.role is Role.CONSUMES)
    left = torch.ones(rows.shape[1] // each // blocks, dtype=torch.bool)  # what leaves one block leaves every one
    left[[int(p) for p, c in zip(member.positions, member.channels, strict=True) if int(c) in gone]] = False
    keep = left.repeat_interleave(each).repeat(blocks)
    rows = rows - rows.mean(0)
    total = 0.0
    for mine, w, k in zip(rows.chunk(blocks, 1), weight.chunk(blocks), keep.chunk(blocks), strict=True):
        wanted = mine @ w.T
        given_back = mine[:, k] @ torch.linalg.lstsq(mine[:, k], wanted, driver="gelsd").solution
        error, variance = float((wanted - given_back).square().sum()), float(wanted.square().sum())
        total += error / variance
    return total


# Oracles


@pytest.mark.parametrize("name", NETS)
def test_every_step_is_the_cheapest_one_and_costs_what_least_squares_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elimination, "RIDGE", 1e-8)
    make, shape, layer = NETS[name]
    net, given = alive(make()), batches(shape)
    group = trace(net, given[0]).groups[0]
    found = eliminate(group, readings(net, [group], given))
    assert found is not None
    assert sorted(found.order) == list(range(group.channels))
    for step in range(group.channels - 1):
        gone = set(found.order[:step])
        costs = {c: lost_without(net, layer, group, given, gone | {c}) for c in range(group.channels) if c not in gone}
        assert found.lost[step] == pytest.approx(min(costs.values()), rel=1e-2, abs=1e-4)
        assert costs[found.order[step]] == pytest.approx(min(costs.values()), rel=1e-2, abs=1e-4)
    assert found.lost[-1] == pytest.approx(2 if name == "grouped" else 1, rel=1e-3)


def test_a_group_with_several_readers_costs_the_sum_of_them() -> None:
    net, given = alive(Residual()), batches(INPUT[1:], count=2, size=8)
    group = next(g for g in trace(net, given[0]).groups if g.channels == 16)
    known = readings(net, [group], given)
    whole = eliminate(group, known)
    assert whole is not None
    assert len(consumers(group, known)) == 2
    assert whole.lost[-1] == pytest.approx(2, rel=1e-2)
    costs = [next(iter(elimination._parts(m, r))).costs(16) for m, r in consumers(group, known)]
    assert whole.order[0] == int(sum(costs).argmin())  # type: ignore[union-attr]  # a sum of tensors
    assert whole.lost[0] == pytest.approx(float(sum(costs).min()))  # type: ignore[union-attr]


def test_where_only_variances_are_known_a_channel_costs_its_weights_squared_times_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elimination, "WIDEST", 4)
    net, given = alive(linear()), batches((4,))
    group = trace(net, given[0]).groups[0]
    known = readings(net, [group], given)
    assert known["2.weight"].wide
    found = eliminate(group, known)
    assert found is not None
    x = net[:2](torch.cat([b[0] for b in given])).detach()
    parts = net[2].weight.detach().square().sum(0) * x.var(0, correction=0)
    costs = (parts / parts.sum()).sort()
    assert list(found.order) == costs.indices.tolist()
    torch.testing.assert_close(torch.tensor(found.lost), costs.values.cumsum(0), rtol=1e-2, atol=1e-3)


# Properties


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_channel_leaves_once_and_nothing_is_won_by_it(name: str) -> None:
    net, given = alive(TOPOLOGIES[name]()), batches(INPUT[1:], count=2, size=4)
    groups = trace(net, given[0]).groups
    known = readings(net, groups, given)
    for group in groups:
        found = eliminate(group, known)
        assert isinstance(found, Elimination)
        assert sorted(found.order) == list(range(group.channels))
        assert len(found.lost) == group.channels
        assert all(a <= b for a, b in zip(found.lost, found.lost[1:], strict=False))
        assert found.lost[0] >= 0


def test_several_leave_in_a_turn_where_a_group_is_very_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    net, given = alive(nn.Sequential(nn.Linear(4, 11), nn.ReLU(), nn.Linear(11, 3))), batches((4,))
    group = trace(net, given[0]).groups[0]
    known = readings(net, [group], given)
    slow = eliminate(group, known)
    monkeypatch.setattr(elimination, "TURNS", 4)
    fast = eliminate(group, known)
    assert slow is not None
    assert fast is not None
    assert sorted(fast.order) == list(range(11))
    assert fast.order[0] == slow.order[0]
    assert fast.lost[-1] <= slow.lost[-1] * 1.01


# Hand-made cases


@pytest.mark.parametrize("first", [0, 3])
def test_of_two_equal_channels_one_leaves_for_nothing_and_the_other_does_not(first: int) -> None:
    net, given = alive(linear(), seed=3), batches((4,))
    with torch.no_grad():
        net[2].weight.mul_(5)
        net[0].weight[first], net[0].bias[first] = net[0].weight[first + 2], net[0].bias[first + 2]
    group = trace(net, given[0]).groups[0]
    found = eliminate(group, readings(net, [group], given))
    assert found is not None
    assert found.order[0] in (first, first + 2)
    assert found.lost[0] < 1e-3
    other = ({first, first + 2} - {found.order[0]}).pop()
    at = found.order.index(other)
    assert found.lost[at] - found.lost[at - 1] > 1e-2


def test_dead_channels_leave_first_and_cost_nothing() -> None:
    net, given = alive(linear()), batches((4,))
    with torch.no_grad():
        net[0].weight[[1, 4]] = 0
        net[0].bias[1], net[0].bias[4] = -1.0, 3.0  # one gives nothing, the other always the same
    group = trace(net, given[0]).groups[0]
    found = eliminate(group, readings(net, [group], given))
    assert found is not None
    assert set(found.order[:2]) == {1, 4}
    assert found.lost[1] < 1e-3 < found.lost[2]  # the ridge: a thousandth of the mean variance


@pytest.mark.parametrize("bias", [-1.0, 1.0])
def test_a_reader_that_gives_the_same_for_every_image_loses_nothing(bias: float) -> None:
    net, given = alive(convolution()), batches((3, 8, 8))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(bias)
        net[2].padding = (0, 0)  # a rim of zeros would vary
    group = trace(net, given[0]).groups[0]
    found = eliminate(group, readings(net, [group], given))
    assert found is not None
    assert found.lost == (0.0,) * group.channels


@pytest.mark.parametrize("scale", [1e-3, 1e-4, 1e-5])
def test_channels_that_hardly_vary_can_be_judged(scale: float) -> None:
    """Their variance is below float32's rounding of their squares: the covariance must not become indefinite."""
    net, given = alive(convolution()), batches((3, 8, 8))
    with torch.no_grad():
        net[0].bias.fill_(0.0)
        net[2].padding = (0, 0)
    group = trace(net, given[0]).groups[0]
    net[1] = nn.Identity()
    plain = eliminate(group, readings(net, [group], given))
    with torch.no_grad():
        net[0].weight.mul_(scale)
        net[0].bias.fill_(1.0)
    moved = eliminate(group, readings(net, [group], given))
    assert plain is not None
    assert moved is not None
    assert moved.order == plain.order
    assert moved.lost == pytest.approx(plain.lost, rel=0.1, abs=1e-3)


def test_positions_that_some_channels_lack_are_judged_one_by_one() -> None:
    net, given = alive(linear()), batches((4,))
    known = readings(net, trace(net, given[0]).groups, given)
    member = Member(
        layer="2", tensor="2.weight", dim=1, role=Role.CONSUMES, positions=torch.arange(6),
        channels=torch.tensor([0, 1, 2, 3, 0, 1]),
    )  # fmt: skip
    producer = Member(
        layer="0", tensor="0.weight", dim=0, role=Role.PRODUCES, positions=torch.arange(6), channels=member.channels
    )
    found = eliminate(ChannelGroup(root="0", channels=4, members=(producer, member)), known)
    assert found is not None
    assert sorted(found.order) == [0, 1, 2, 3]


def test_features_of_a_grouped_convolution_stand_in_its_blocks() -> None:
    net, given = alive(grouped()), batches((3, 6, 6))
    group = trace(net, given[0]).groups[0]
    ((member, reading),) = consumers(group, readings(net, [group], given))
    at, channels = features_of(member, reading)
    assert at.tolist() == [[0, 0], [0, 9], [0, 18], [1, 0], [1, 9], [1, 18]]
    assert channels.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_group_that_no_known_layer_reads_has_no_curve_and_no_score() -> None:
    net, given = alive(linear()), batches((4,))
    group = trace(net, given[0]).groups[0]
    assert eliminate(group, {}) is None
    calibration = Calibration(module=net, weights={}, generator=torch.Generator(), readings={})
    with pytest.raises(CalibrationError, match="cannot be observed at any layer") as caught:
        criteria.load("obs").score(group, calibration=calibration)
    assert "--protect 0" in str(caught.value.hint)


def test_what_is_not_finite_is_refused() -> None:
    net, given = alive(linear()), batches((4,))
    group = trace(net, given[0]).groups[0]
    given[1][0][0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="not finite"):
        eliminate(group, readings(net, [group], given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_obs_scores_rise_in_the_order_of_the_elimination(dtype: torch.dtype) -> None:
    net, given = alive(convolution()).to(dtype), batches((3, 8, 8))
    group = trace(net, given[0]).groups[0]
    stream = [(b[0], None) for b in given] + [(given[0][0][:5], None)]  # a smaller last batch does not count
    calibration = gather(net, [group], needs=Needs.SECOND_MOMENTS, batches=stream, seed=0)
    scores = criteria.load("obs").score(group, calibration=calibration)
    found = eliminate(group, calibration.readings or {})
    assert found is not None
    assert scores.argsort().tolist() == list(found.order)
    assert calibration.images == 4 * 32
    assert float(scores[found.order[0]]) == pytest.approx(found.lost[0])
