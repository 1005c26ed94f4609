"""Masks: exact counts, ties by index, nothing emptied, levels nested, zeros that stay zero."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.errors import PlanError
from compressor.planning.costs import masked_macs
from compressor.surgery.masks import Masker, MaskScope, WeightMask, apply_mask_, magnitude, magnitude_round, maskable


def net(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 3)
    )
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


# Oracles


def test_global_magnitude_removes_the_smallest_of_all_weights() -> None:
    module = net()
    mask = magnitude(module, sparsity=0.5, scope="global")
    everything = sorted(abs(v) for name in ("0", "3", "5") for v in module[int(name)].weight.flatten().tolist())
    threshold = everything[len(everything) // 2]
    for name, kept in mask.kept.items():
        assert torch.equal(kept, module.get_parameter(name).detach().abs() >= threshold)


def test_uniform_magnitude_removes_the_smallest_of_each_tensor() -> None:
    module = net()
    mask = magnitude(module, sparsity=0.75, scope="uniform")
    for name, kept in mask.kept.items():
        weight = module.get_parameter(name).detach().abs()
        assert int((~kept).sum()) == int(0.75 * weight.numel())
        assert float(weight[~kept].max()) < float(weight[kept].min())


def test_rounding_takes_no_weight_from_the_sparsity() -> None:
    weights = nn.Linear(10, 10, bias=False)
    assert magnitude(weights, sparsity=0.29).removed == 29  # 0.29 * 100 is 28.999…


def test_masked_macs_are_those_of_the_weights_that_stay() -> None:
    kept = torch.ones(4, 1, 3, 3, dtype=torch.bool)
    kept[:, :, 0] = False  # 12 of 36 weights, each used at 16 places
    dense = 36 * 16 + 216 * 4 + 72  # two convolutions and the linear layer
    assert masked_macs(net(), WeightMask(kept={"0.weight": kept}), (torch.zeros(1, 1, 4, 4),)) == dense - 12 * 16


def test_a_mask_survives_training_with_momentum_and_weight_decay() -> None:
    module = net().train()
    mask = magnitude(module, sparsity=0.8)
    apply_mask_(module, mask)
    start = copy.deepcopy(module.state_dict())
    masker = Masker(module, mask)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        module(torch.randn(8, 1, 4, 4)).square().mean().backward()
        optimiser.step()
        masker()
    for name, kept in mask.kept.items():
        weight = module.get_parameter(name).detach()
        assert not bool(weight[~kept].any())
        assert not torch.equal(weight[kept], start[name][kept])


def test_only_what_the_mask_removed_changes() -> None:
    module = net()
    before = copy.deepcopy(module.state_dict())
    mask = magnitude(module, sparsity=0.6)
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())  # magnitude only looks
    assert apply_mask_(module, mask) is module
    for name, tensor in module.state_dict().items():
        kept = mask.kept.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor[kept], before[name][kept])
        removed = tensor[~kept]
        assert not bool(removed.any())
        assert not bool(removed.signbit().any())  # +0.0, as the sparse storage wants it


# Properties


@settings(max_examples=40, deadline=None)
@given(
    sparsity=st.floats(0.05, 0.99),
    scope=st.sampled_from(MaskScope),
    levels=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_exactly_as_many_weights_go_as_asked_whatever_ties_there_are(
    sparsity: float, scope: MaskScope, levels: int, seed: int
) -> None:
    module = net(seed)
    for parameter in module.parameters():
        parameter.data = (parameter.data * levels).round() / levels  # few distinct values: many ties
    sizes = [p.numel() for p in maskable(module).values()]
    mask = magnitude(module, sparsity=sparsity, scope=scope)
    parts = [sum(sizes)] if scope is MaskScope.GLOBAL else sizes
    assert mask.removed == sum(int(sparsity * n + 1e-9) for n in parts)
    assert mask.sparsity <= sparsity + 1e-9
    assert all(bool(kept.any()) for kept in mask.kept.values())


@settings(max_examples=25, deadline=None)
@given(
    sparsities=st.lists(st.floats(0.1, 0.98), min_size=2, max_size=4, unique=True).map(sorted),
    scope=st.sampled_from(MaskScope),
    seed=st.integers(0, 1000),
)
def test_levels_are_nested_even_when_the_kept_weights_move(
    sparsities: list[float], scope: MaskScope, seed: int
) -> None:
    module = net(seed)
    generator = torch.Generator().manual_seed(seed)
    mask = None
    for sparsity in sparsities:
        deeper = magnitude(module, sparsity=sparsity, scope=scope, within=mask)
        assert mask is None or deeper.nested_in(mask)
        mask = deeper
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        apply_mask_(module, mask)
        module[0].weight.data[mask.kept["0.weight"]] = 0  # kept weights that happen to be zero


# Hand-made cases


def test_ties_leave_in_the_order_of_their_index() -> None:
    module = nn.Sequential(nn.Linear(5, 2, bias=False))
    module[0].weight.data = torch.ones(2, 5)
    kept = magnitude(module, sparsity=0.3).kept["0.weight"]
    assert kept.flatten().tolist() == [False] * 3 + [True] * 7


def test_no_tensor_is_emptied_unless_asked() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[0].weight.data = torch.full((4, 4), 0.01)
    module[1].weight.data = torch.ones(4, 4)
    assert int(magnitude(module, sparsity=0.5).kept["0.weight"].sum()) == 1
    assert int(magnitude(module, sparsity=0.5, keep_at_least=0).kept["0.weight"].sum()) == 0
    assert int(magnitude(module, sparsity=0.5, keep_at_least=3).kept["0.weight"].sum()) == 3


def test_norms_biases_and_embeddings_are_never_masked_and_attention_is() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 8)
            self.attention = nn.MultiheadAttention(8, 2)
            self.norm = nn.LayerNorm((2, 8))
            self.out = nn.ConvTranspose1d(8, 2, 3)

    assert list(maskable(Mixed())) == ["attention.in_proj_weight", "attention.out_proj.weight", "out.weight"]


def test_a_shared_weight_is_counted_once() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    assert list(maskable(module)) == ["0.weight"]


@pytest.mark.parametrize("glob", ["5", "5.weight", "?.weight"])
def test_protected_layers_stay_whole(glob: str) -> None:
    protect = (glob, "3") if "?" not in glob else ("5.*",)
    assert "5.weight" not in magnitude(net(), sparsity=0.5, protect=protect).kept


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sparsity": 0.0}, "between 0 and 1, not 0.0"),
        ({"sparsity": 1.0}, "between 0 and 1, not 1.0"),
        ({"sparsity": float("nan")}, "between 0 and 1, not nan"),
        ({"sparsity": 0.0001}, "removes none of 324 weights"),
        ({"sparsity": 0.999, "keep_at_least": 2}, "323 weights cannot go: 318 can"),
        ({"sparsity": 0.5, "scope": "layer"}, "no mask scope called `layer`"),
        ({"sparsity": 0.5, "protect": ("fc*",)}, "`--protect fc\\*` matches no weight"),
        ({"sparsity": 0.5, "protect": ("*",)}, "is left to mask"),
    ],
)
def test_what_cannot_be_met_is_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        magnitude(net(), **asked)


def test_weights_that_are_not_finite_are_refused() -> None:
    module = net()
    module[3].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(PlanError, match=r"`3\.weight` holds values that are not finite"):
        magnitude(module, sparsity=0.5)


def test_a_level_below_the_last_one_is_refused() -> None:
    module = net()
    mask = magnitude(module, sparsity=0.8)
    with pytest.raises(PlanError, match=r"is less than the 0\.79"):
        magnitude(module, sparsity=0.5, within=mask)
    with pytest.raises(PlanError, match="covers other weights"):
        magnitude(module, sparsity=0.9, within=mask, protect=("5",))


@pytest.mark.parametrize("kept", [{}, {"w": torch.ones(3)}, {"w": torch.ones(0, dtype=torch.bool)}])
def test_a_mask_that_says_nothing_cannot_exist(kept: dict[str, Tensor]) -> None:
    with pytest.raises(PlanError, match="mask"):
        WeightMask(kept=kept)


@pytest.mark.parametrize("name", ["5.weight", "9.weight"])
def test_a_mask_of_another_network_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match=r"the network has (\[3, 24\]|no such parameter)"):
        apply_mask_(net(), WeightMask(kept={name: torch.ones(2, 2, dtype=torch.bool)}))


class TestRound:
    """`magnitude_round`: a share of what is left."""

    def test_a_round_by_hand(self) -> None:
        module = nn.Sequential(nn.Linear(5, 2, bias=False))
        module[0].weight.data = torch.tensor([[0.5, -0.1, 3.0, 0.2, -4.0], [1.0, 0.3, -0.3, 2.0, -0.05]])
        first = magnitude_round(module, rate=0.3)  # 3 of 10: 0.05, 0.1, 0.2
        assert first.kept["0.weight"].int().tolist() == [[1, 0, 1, 0, 1], [1, 1, 1, 1, 0]]
        second = magnitude_round(module, rate=0.3, within=first)  # 2 of 7: both of 0.3
        assert second.kept["0.weight"].int().tolist() == [[1, 0, 1, 0, 1], [1, 0, 0, 1, 0]]

    def test_a_weight_that_is_gone_stays_gone_although_it_grew(self) -> None:
        module = nn.Sequential(nn.Linear(4, 1, bias=False))
        module[0].weight.data = torch.tensor([[9.0, 1.0, 2.0, 3.0]])
        within = WeightMask(kept={"0.weight": torch.tensor([[False, True, True, True]])})
        found = magnitude_round(module, rate=0.4, within=within)
        assert found.kept["0.weight"].tolist() == [[False, False, True, True]]

    @given(rate=st.floats(0.2, 0.5), own=st.floats(0.0, 0.5), rounds=st.integers(1, 4))
    @settings(max_examples=30, deadline=None)
    def test_every_tensor_loses_exactly_its_share_of_what_is_left_and_masks_are_nested(
        self, rate: float, own: float, rounds: int
    ) -> None:
        mask: WeightMask | None = None
        left = {n: p.numel() for n, p in maskable(net()).items()}
        for number in range(rounds):
            found = magnitude_round(net(number), rate=rate, rates={"5": own}, within=mask)
            for name, before in left.items():
                gone = int((own if name == "5.weight" else rate) * before + 1e-9)
                left[name] = before - gone
            assert {n: int(k.sum()) for n, k in found.kept.items()} == left
            assert mask is None or found.nested_in(mask)
            mask = found

    def test_a_global_round_removes_the_smallest_of_all_that_are_left_but_for_what_is_spared(self) -> None:
        module = net()
        first = magnitude_round(module, rate=0.3, rates={"5": 0.0}, scope="global")
        second = magnitude_round(module, rate=0.3, rates={"5": 0.0}, scope="global", within=first)
        assert bool(second.kept["5.weight"].all())
        values = torch.cat([module.get_parameter(f"{n}.weight").detach().abs().flatten() for n in "03"])
        kept = torch.cat([second.kept[f"{n}.weight"].flatten() for n in "03"])
        weights = len(values)
        once = weights - int(0.3 * weights)
        assert int(kept.sum()) == once - int(0.3 * once)
        assert float(values[~kept].max()) <= float(values[kept].min())

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"rate": 0.0}, "between 0 and 1"),
            ({"rate": 1.0}, "between 0 and 1"),
            ({"rate": 0.2, "rates": {"5": -0.1}}, "between 0 and 1"),
            ({"rate": 0.2, "rates": {"nowhere": 0.1}}, "`nowhere` matches no weight"),
            ({"rate": 0.2, "rates": {"5": 0.1}, "scope": "global"}, "have one rate"),
            ({"rate": 0.001}, "removes none of the 324"),
            ({"rate": 0.2, "rates": {"*": 0.0}, "scope": "global"}, "removes none"),
            ({"rate": 0.2, "scope": "gloabl"}, "no mask scope"),
        ],
    )
    def test_what_makes_no_round_is_refused(self, options: dict[str, Any], says: str) -> None:
        with pytest.raises(PlanError, match=says):
            magnitude_round(net(), **options)
