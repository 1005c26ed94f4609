"""One group narrowed at a time: what the output loses, against masks and least squares on the module itself."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from compressor.channels.groups import ChannelGroup, Role, trace
from compressor.graph.outputs import outputs_of
from compressor.planning import sensitivity as module_sensitivity
from compressor.planning.elimination import readings_of
from compressor.planning.sensitivity import Curve, real_outputs, rise, rises, sensitivity, writable
from compressor.planning.walk import Program, program_of
from tests.support.topologies import INPUT, TOPOLOGIES, Residual, alive, head

IMAGES = INPUT[1:]


def batches(seed: int, *, count: int = 3, size: int = 8) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, *IMAGES, generator=generator),) for _ in range(count)]


def curves_of(
    net: nn.Module,
    groups: tuple[ChannelGroup, ...],
    widths: dict[str, tuple[int, ...]],
    orders: dict[str, tuple[int, ...]],
) -> dict[str, Curve]:
    program: Program = program_of(net, batches(0)[0], batch=8)
    names = {m.tensor for g in groups for m in g.members if m.role is Role.CONSUMES}
    readings = readings_of(program, batches(0), names)
    return {c.root: c for c in sensitivity(program, groups, readings, orders, widths, batches(1))}


def stacked() -> nn.Module:
    """A convolution without a bias reads the group; its batch norm takes what is made up for."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, bias=False, stride=2), nn.BatchNorm2d(8), nn.ReLU(), head(8)
    )


def with_bias() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.Identity(), nn.ReLU(), head(8))


# Oracles


@pytest.mark.parametrize("make", [stacked, with_bias])
@pytest.mark.parametrize("width", [5, 3, 1, 0])
def test_the_rise_is_that_of_masking_and_least_squares(
    make: object, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_sensitivity, "RIDGE", 1e-8)
    net = alive(make())  # type: ignore[operator]  # one of the two above
    group = trace(net, batches(0)[0]).groups[0]
    order = (4, 0, 2, 5, 1, 3)
    found = curves_of(net, (group,), {"0": (width,)}, {"0": order})["0"]
    kept = sorted(order[6 - width :])

    other = copy.deepcopy(net)
    with torch.no_grad():
        read = torch.cat([net[:2](b[0]) for b in batches(0)]).double()
        rows = functional.unfold(read, 3, stride=2).transpose(1, 2).flatten(0, 1).view(-1, 6, 9)
        wanted = rows.flatten(1) @ net[2].weight.double().flatten(1).T
        design = torch.cat([rows[:, kept].flatten(1), torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
        solution = torch.linalg.lstsq(design, wanted).solution
        other[2].weight.zero_()
        other[2].weight[:, kept] = solution[:-1].T.reshape(8, width, 3, 3).float()
        if other[2].bias is None:
            other[3].running_mean -= solution[-1].float()
        else:
            other[2].bias += solution[-1].float()
        dense, changed = (torch.cat([m(b[0]) for b in batches(1)]) for m in (net, other))
    assert found.widths == (6, width)
    assert found.measured == pytest.approx((0.0, rise(dense, changed)), rel=1e-2, abs=1e-6)
    assert found.measured[1] > 1e-4


def test_channels_that_nobody_reads_cost_nothing() -> None:
    net = alive(Residual())
    group = next(g for g in trace(net, batches(0)[0]).groups if g.root == "conv1")
    dead = (3, 7, 8, 20)
    with torch.no_grad():
        net.conv2.weight[:, list(dead)] = 0
    order = (*dead, *(c for c in range(24) if c not in dead))
    found = curves_of(net, (group,), {"conv1": (22, 20, 8)}, {"conv1": order})["conv1"]
    assert found.measured[:3] == pytest.approx((0, 0, 0), abs=1e-9)
    assert found.measured[3] > 1e-3


def test_each_group_is_narrowed_alone() -> None:
    net = alive(TOPOLOGIES["concatenated"]())
    groups = trace(net, batches(0)[0]).groups
    widths = {g.root: (g.channels // 2, 1) for g in groups}
    orders = {g.root: tuple(range(g.channels)) for g in groups}
    together = curves_of(net, groups, widths, orders)
    assert list(together) == [g.root for g in groups]
    for group in groups:
        alone = curves_of(net, (group,), widths, orders)[group.root]
        assert alone.measured == pytest.approx(together[group.root].measured, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_topology_has_finite_curves_and_keeps_its_weights(name: str) -> None:
    net = alive(TOPOLOGIES[name]()).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    groups = trace(net, batches(0)[0]).groups
    widths = {g.root: (g.channels - 1, 1) for g in groups}
    found = curves_of(net, groups, widths, {g.root: tuple(range(g.channels)) for g in groups})
    assert set(found) == {g.root for g in groups}
    for curve in found.values():
        assert curve.measured[0] == 0
        assert all(0 <= m < math.inf for m in curve.measured)
        assert curve.measured[2] > 0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training


# Properties of curves and rises


@given(st.lists(st.floats(0, 10), min_size=1, max_size=7), st.data())
@settings(max_examples=150, deadline=None)
def test_a_curve_is_monotone_convex_and_below_what_was_measured(measured: list[float], drawn: st.DataObject) -> None:
    widths = sorted(
        drawn.draw(st.sets(st.integers(0, 40), min_size=len(measured), max_size=len(measured))), reverse=True
    )
    curve = Curve(root="a", widths=(50, *widths), measured=(0.0, *measured))
    rises = curve.rises
    assert rises[0] == 0
    assert rises[-1] == pytest.approx(max(measured))
    running = [max(curve.measured[: i + 1]) for i in range(len(curve.measured))]
    assert all(r <= m + 1e-9 for r, m in zip(rises, running, strict=True))
    slopes = [(b - a) / (v - w) for a, b, v, w in zip(rises, rises[1:], curve.widths, curve.widths[1:], strict=False)]
    assert all(s >= -1e-12 for s in slopes)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(slopes))
    for width, r in zip(curve.widths, rises, strict=True):
        assert curve.at(width) == pytest.approx(r)
    between = drawn.draw(st.integers(curve.widths[-1], 50))
    assert rises[0] <= curve.at(between) <= rises[-1] + 1e-12


def test_a_convex_curve_is_its_own() -> None:
    curve = Curve(root="a", widths=(8, 4, 2, 0), measured=(0.0, 0.1, 0.3, 0.9))
    assert curve.rises == pytest.approx(curve.measured)
    assert curve.at(3) == pytest.approx(0.2)


def test_a_bump_is_taken_to_be_noise() -> None:
    assert Curve(root="a", widths=(8, 4, 0), measured=(0.0, 0.9, 0.6)).rises == pytest.approx((0, 0.45, 0.9))


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 4, 4), (6, 1), (6,)])
def test_the_rise_is_the_squared_error_over_the_variance(shape: tuple[int, ...]) -> None:
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert rise(dense, dense.clone()) == 0
    assert rise(dense, dense.mean(0, keepdim=True).expand(shape)) == pytest.approx(1)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert rise(dense, dense + 2 * noise) == pytest.approx(4 * rise(dense, dense + noise))
    assert rise(10 * dense, 10 * (dense + noise)) == pytest.approx(rise(dense, dense + noise))


def test_a_shift_of_all_class_scores_says_nothing_and_one_of_a_map_does() -> None:
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert rise(scores, scores + torch.arange(6.0).unsqueeze(1)) == pytest.approx(0, abs=1e-9)
    maps = scores.view(6, 5, 1, 1)
    assert rise(maps, maps + 1) > 0.5
    assert rise(scores[:, :1], scores[:, :1] + 1) > 0.1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_output_that_is_not_finite_is_infinitely_wrong(value: float) -> None:
    dense = torch.randn(4, 3)
    broken = dense.clone()
    broken[2, 1] = value
    assert rise(dense, broken) == math.inf
    assert json.loads(json.dumps(writable(math.inf), allow_nan=False)) > 1e300
    assert json.loads(json.dumps(writable(value), allow_nan=False)) > 1e300
    assert writable(0.25) == 0.25


def test_an_output_that_is_the_same_for_every_image_has_a_rise_all_the_same() -> None:
    assert rise(torch.ones(4, 3, 2), torch.ones(4, 3, 2)) == 0
    assert rise(torch.ones(4, 3, 2), torch.zeros(4, 3, 2)) == pytest.approx(1)


def test_what_is_said_counts_the_probes() -> None:
    net = alive(stacked())
    groups = trace(net, batches(0)[0]).groups
    program = program_of(net, batches(0)[0], batch=8)
    readings = readings_of(program, batches(0), {"2.weight"})
    said: list[str] = []
    found = sensitivity(program, groups[:1], readings, {"0": range(6)}, {"0": (4, 2)}, batches(1), say=said.append)
    assert len(said) == 2
    assert said[-1] == "probing 0 at 2 of 6 channels (2 of 2)"
    assert len(found) == 1
    assert torch.equal(outputs_of(net, batches(1)[0])[0], outputs_of(alive(stacked()), batches(1)[0])[0])


class TwoHeads(nn.Module):
    """Two branches, each with an output of its own; the second one's is `scale` times as large."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.a, self.b = (nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"first": self.a(x), "second": self.scale * self.b(x)}


def test_every_output_counts_and_its_scale_does_not() -> None:
    measured = []
    for scale in (1.0, 1000.0):
        torch.manual_seed(0)
        net = TwoHeads(scale).eval()
        groups = trace(net, batches(0)[0]).groups
        assert {g.root for g in groups} == {"a.0", "b.0"}
        orders, widths = {g.root: tuple(range(6)) for g in groups}, {g.root: (3,) for g in groups}
        curves = curves_of(net, groups, widths, orders)
        measured.append([curves[root].measured[-1] for root in ("a.0", "b.0")])
    assert min(measured[0]) > 1e-3  # a branch that only the second output reads is not free
    assert measured[0] == pytest.approx(measured[1], rel=1e-4)


def test_outputs_that_cannot_be_compared_are_left_out() -> None:
    values = [[torch.zeros(2, 3)] * 2, [torch.zeros(2, 5), torch.zeros(2, 4)], [torch.tensor(1.0)] * 2,
              [torch.zeros(2, 3, dtype=torch.int64)] * 2]  # fmt: skip
    assert [tuple(t.shape) for t in real_outputs(values)] == [(4, 3)]
    one, other = torch.randn(4, 3), torch.randn(4, 3)
    assert rises([one, one], [one, other]) == pytest.approx(rise(one, other) / 2)
