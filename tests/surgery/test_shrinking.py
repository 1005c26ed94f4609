"""The surgery: proved on every topology, and proofs that fail when the surgery is wrong."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup, Role, trace
from compressor.channels.silenced import silenced_outputs
from compressor.errors import SurgeryError
from compressor.graph.input_spec import random_like
from compressor.graph.outputs import outputs_of
from compressor.surgery import proved as proving
from compressor.surgery.plan import ChannelBudget, PruningPlan, Scores, gone_labels, plan_pruning
from compressor.surgery.proof import TOLERANCE, prove, reference_of
from compressor.surgery.proved import shrink_proved
from compressor.surgery.shrinking import shrink, surgery_of
from compressor.surgery.surgery import Surgery, operate, surgery_from_json
from tests.support.topologies import INPUT, TOPOLOGIES, Residual, alive, head, plain

EXAMPLE = (torch.randn(INPUT, generator=torch.Generator().manual_seed(1)),)


def random_plan(groups: tuple[ChannelGroup, ...], ratio: float, *, seed: int = 0) -> PruningPlan:
    generator = torch.Generator().manual_seed(seed)
    by_root = {g.root: torch.rand(g.channels, generator=generator, dtype=torch.float64) for g in groups}
    return plan_pruning(groups, Scores(by_root=by_root, comparable=True), budget=ChannelBudget(ratio=ratio))


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_small_network_equals_the_silenced_dense_one(name: str, ratio: float) -> None:
    module = alive(TOPOLOGIES[name]())
    traced = trace(module, EXAMPLE)
    groups = traced.groups
    plan = random_plan(groups, ratio)
    small, _ = shrink(module, traced, plan, EXAMPLE)
    exact = prove(small, reference_of(module, traced, plan, EXAMPLE, dtype=torch.float64))
    single = prove(small, reference_of(module, traced, plan, EXAMPLE, dtype=torch.float32))
    assert exact.largest_relative_difference <= 1e-10
    assert single.largest_relative_difference <= 1e-5


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_small_network_trains_and_can_be_pruned_again(name: str) -> None:
    module = alive(TOPOLOGIES[name]())
    traced = trace(module, EXAMPLE)
    groups = traced.groups
    small, first = shrink(module, traced, random_plan(groups, 0.3), EXAMPLE)
    trained = copy.deepcopy(small).train()
    trained(torch.cat([*EXAMPLE] * 4)).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in trained.parameters())
    traced = trace(small, EXAMPLE)
    plan = random_plan(traced.groups, 0.4)
    smaller, second = shrink(small, traced, plan, EXAMPLE)
    assert prove(smaller, reference_of(small, traced, plan, EXAMPLE)).holds
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in small.parameters())
    at_once = operate(module, first.then(second))
    for a, b in zip(outputs_of(at_once, EXAMPLE), outputs_of(smaller, EXAMPLE), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_silenced_network_differs_from_the_dense_one(name: str) -> None:
    """A proof against a reference that silences nothing would prove nothing."""
    module = alive(TOPOLOGIES[name]())
    traced = trace(module, EXAMPLE)
    groups = traced.groups
    gone = gone_labels(groups, random_plan(groups, 0.5))
    inputs = random_like(EXAMPLE)
    silent = silenced_outputs(traced.ground, module, gone, inputs, {}, dtype=torch.float32)
    pairs = list(zip(silent, outputs_of(module, inputs), strict=True))
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in pairs)
    spoken = silenced_outputs(traced.ground, module, set(), inputs, {}, dtype=torch.float32)
    for a, b in zip(spoken, outputs_of(module, inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_callers_network_stays_as_it_was(name: str) -> None:
    module = alive(TOPOLOGIES[name]())
    module.train()
    next(module.children()).eval()
    next(module.parameters()).requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    grads = [p.requires_grad for p in module.parameters()]
    traced = trace(module, EXAMPLE)
    groups = traced.groups
    plan = random_plan(groups, 0.5)
    small, surgery = shrink(module, traced, plan, EXAMPLE)
    prove(small, reference_of(module, traced, plan, EXAMPLE))
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == grads
    assert small.training == module.training
    if surgery.program is None:
        assert [m.training for m in small.modules()] == modes
        assert [p.requires_grad for p in small.parameters()] == grads
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_a_wrong_row_fails_the_proof() -> None:
    module = alive(Residual())
    traced = trace(module, EXAMPLE)
    groups = traced.groups
    plan = random_plan(groups, 0.5)
    surgery = surgery_of(module, groups, plan)
    name = "conv1.weight"
    wrong = {**surgery.slices, name: {**surgery.slices[name], 0: surgery.slices[name][0].flip(0)}}
    small = operate(module, dataclasses.replace(surgery, slices=wrong))
    proof = prove(small, reference_of(module, traced, plan, EXAMPLE))
    assert not proof.holds
    assert proof.largest_relative_difference > 1e-3


def test_attention_without_its_scale_fails_the_proof() -> None:
    """The scale 1/sqrt(head_dim) changes with the width; the dense network's is written into the program."""
    module = alive(TOPOLOGIES["attention"]())
    traced = trace(module, EXAMPLE, heads=False)
    plan = random_plan(traced.groups, 0.5)
    small, surgery = shrink(module, traced, plan, EXAMPLE)
    assert prove(small, reference_of(module, traced, plan, EXAMPLE)).holds
    assert surgery.program is not None
    plain = json.loads(json.dumps(surgery.program))
    scaled = [node for node in plain["nodes"] if "scaled_dot_product" in node.get("call", "")]
    assert [node["kwargs"].pop("scale") for node in scaled] == [pytest.approx(8**-0.5)]
    assert not prove(
        operate(module, dataclasses.replace(surgery, program=plain)), reference_of(module, traced, plan, EXAMPLE)
    ).holds


def test_silencing_where_channels_are_made_is_not_enough() -> None:
    """Behind a batch norm a zeroed producer speaks again: the reference must silence the readers."""
    module = alive(TOPOLOGIES["norm after activation"]())
    traced = trace(module, EXAMPLE)
    groups = traced.groups
    plan = random_plan(groups, 0.5)
    small, _ = shrink(module, traced, plan, EXAMPLE)
    at_producers = copy.deepcopy(module)
    state = dict(at_producers.named_parameters())
    with torch.no_grad():
        for group in groups:
            for member in group.members:
                if member.role is Role.PRODUCES:
                    gone = torch.tensor(plan.removed[group.root])
                    state[member.tensor].index_fill_(member.dim, gone, 0)
                    state[member.tensor.replace("weight", "bias")].index_fill_(0, gone, 0)
    inputs = random_like(EXAMPLE)
    assert not torch.allclose(at_producers(*inputs), small(*inputs), rtol=1e-3)


def test_an_early_state_is_cut_like_the_network() -> None:
    module = alive(plain())
    traced = trace(module, EXAMPLE)
    groups = traced.groups
    small, surgery = shrink(module, traced, random_plan(groups, 0.5), EXAMPLE)
    early = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in module.state_dict().items()}
    small.load_state_dict(surgery.cut_state(early), strict=True)
    assert torch.equal(small[0].bias, early["0.bias"][surgery.slices["0.weight"][0]])


def test_a_surgery_survives_json() -> None:
    module = alive(TOPOLOGIES["grouped"]())
    traced = trace(module, EXAMPLE)
    groups = traced.groups
    small, surgery = shrink(module, traced, random_plan(groups, 0.5), EXAMPLE)
    again = operate(module, surgery_from_json(surgery.to_json()))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in small.state_dict().items())
    with pytest.raises(SurgeryError):
        surgery_from_json({"slices": 3})


def test_a_surgery_that_empties_a_dimension_cannot_exist() -> None:
    with pytest.raises(SurgeryError, match="empty"):
        Surgery(slices={"0.weight": {0: torch.tensor([], dtype=torch.int64)}})


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    ratio=st.floats(0.15, 0.9),
    norms=st.lists(st.booleans(), min_size=4, max_size=4),
    skip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_networks_are_proved(widths: list[int], ratio: float, norms: list[bool], skip: bool, seed: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            ins = [3, *widths[:-1]]
            self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip(ins, widths, strict=True))
            self.norms = nn.ModuleList(
                nn.BatchNorm2d(o) if n else nn.Identity() for o, n in zip(widths, norms, strict=False)
            )
            self.skip = nn.Conv2d(3, widths[-1], 1)
            self.fc = nn.Linear(widths[-1] * 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x
            for conv, norm in zip(self.convs, self.norms, strict=True):
                y = torch.relu(norm(conv(y)))
            y = y + self.skip(x) if skip else y
            return self.fc(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))

    module = alive(Net(), seed=seed)
    traced = trace(module, EXAMPLE)
    groups = traced.groups
    by_root = {g.root: torch.rand(g.channels, generator=torch.Generator().manual_seed(seed)).double() for g in groups}
    if all(int(g.channels * ratio) == 0 for g in groups):
        return
    plan = plan_pruning(groups, Scores(by_root=by_root, comparable=True), budget=ChannelBudget(ratio=ratio))
    small, _ = shrink(module, traced, plan, EXAMPLE)
    assert prove(small, reference_of(module, traced, plan, EXAMPLE)).holds


class Bare(nn.Module):
    """Norms without tensors: behind a concatenation, and before a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.joined = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(10)
        self.c, self.norm, self.grouped = nn.Conv2d(10, 8, 1), nn.InstanceNorm2d(8), nn.Conv2d(8, 4, 1, groups=2)
        self.head = head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c(torch.relu(self.joined(torch.cat([self.a(x), self.b(x)], 1))))
        return self.head(torch.relu(self.grouped(torch.relu(self.norm(x)))))


def test_a_norm_without_tensors_counts_what_is_left_of_all_that_reach_it() -> None:
    module = alive(Bare())
    traced = trace(module, EXAMPLE)
    removed = {g.root: tuple(range(g.channels // 2)) for g in traced.groups}
    small, surgery = shrink(module, traced, PruningPlan(removed=removed), EXAMPLE)
    assert surgery.program is None
    assert (small.joined.num_features, small.norm.num_features) == (3 + 2, 4)  # type: ignore[union-attr]


def test_the_form_is_the_one_that_is_proved_not_one_that_comes_close() -> None:
    class Faint(nn.Module):
        """Heads that a plain cut would divide wrongly, which hardly shows in what the network says."""

        def __init__(self) -> None:
            super().__init__()
            self.part = 4
            self.inner, self.outer, self.beside = nn.Linear(12, 16), nn.Linear(16, 5), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            units = self.inner(x).view(len(x), -1, self.part).softmax(1)
            return self.beside(x) + 3e-4 * self.outer(units.flatten(1))

    module, example = Faint().eval(), (torch.randn(2, 12, generator=torch.Generator().manual_seed(0)),)
    traced = trace(module, example)
    plan = PruningPlan(removed={g.root: tuple(range(g.channels // 2)) for g in traced.groups})
    _, surgery, proof = shrink_proved(module, traced, plan, example)
    assert surgery.attributes[""]["part"] == 2
    assert proof.holds


def test_a_large_network_is_proved_in_float64_where_rounding_moves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = alive(TOPOLOGIES["residual"]())
    traced = trace(module, EXAMPLE)
    plan = random_plan(traced.groups, 0.5)
    assert shrink_proved(module, traced, plan, EXAMPLE)[2].dtype is torch.float64
    monkeypatch.setattr(proving, "FLOAT64_FIRST", 0)
    assert shrink_proved(module, traced, plan, EXAMPLE)[2].dtype is torch.float32
    monkeypatch.setitem(TOLERANCE, torch.float32, 0.0)
    assert shrink_proved(module, traced, plan, EXAMPLE)[2].dtype is torch.float64
