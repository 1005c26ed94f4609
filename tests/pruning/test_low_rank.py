"""Ranks within a budget, and the network of low-rank layers: proved, replayed, composed with pruning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.checkpoint.architectures import Architecture, build
from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.artifacts import load_artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import How
from compressor.data.preprocessing import Preprocessing
from compressor.errors import CompressError, GroupError, OutOfReach, PlanError, SurgeryError
from compressor.graph.outputs import outputs_of
from compressor.jobs.factorize import low_rank_from
from compressor.planning.costs import count
from compressor.planning.ranks import EnergyBudget, RankBudget, Split, ranks_within, splits_of
from compressor.pruning.low_rank import Factorized, LowRank, factorize, prove_factors
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.surgery.factors import Factors, Kind, spectrum
from compressor.surgery.plan import ChannelBudget, CostBudget, Countable
from compressor.surgery.surgery import Surgery, operate, reshaped, surgery_from_json
from compressor.training.retraining import starting_module

MACS = Countable.MACS


def checkpoint_of(module: nn.Module, shape: tuple[int, ...] = (1, 1, 28, 28), ref: str = "tests:made") -> Checkpoint:
    return Checkpoint(
        module=module.eval(), example_inputs=(torch.zeros(shape),), architecture=Architecture(ref=ref),
        preprocessing=Preprocessing(size=(28, 28), channels=1), classes=None, name="made", path="made.pt", sha256="0",
    )  # fmt: skip


def resnet8() -> Checkpoint:
    """A network with shortcuts, strides and 1x1 convolutions, its norms drawn, so that nothing is the identity."""
    ref = "sample_models.networks:resnet8"
    torch.manual_seed(0)
    module = build(Architecture(ref=ref))
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.running_mean)
    return checkpoint_of(module, ref=ref)


def at(stays: float, *how: Kind, **options: Any) -> LowRank:
    return LowRank(budget=CostBudget(counted=MACS, stays=stays), how=how or (Kind.SPATIAL,), **options)


@pytest.fixture(scope="module")
def half() -> Factorized:
    return factorize(resnet8(), at(0.5, align=1))


def split(layer: str, values: list[float], *, dense: int, per_rank: int, align: int = 1) -> Split:
    return Split(
        layer=layer, kind=Kind.SPATIAL, values=torch.tensor(values, dtype=torch.float64),
        dense={MACS: dense, Countable.PARAMS: dense}, per_rank={MACS: per_rank, Countable.PARAMS: per_rank},
        align=align,
    )  # fmt: skip


class TestRanks:
    def test_by_hand(self) -> None:
        """Energies 9, 1 of 10 and 4, 4, 2 of 10: at 0.8 the ranks are 1 and 2, at 0.9 they are 1 and 3."""
        splits = (
            split("a", [3, 1], dense=100, per_rank=40),
            split("b", [2, 2, 2**0.5], dense=100, per_rank=30),
        )
        assert ranks_within(splits, EnergyBudget(keeps=0.8), total=250) == {"a": 1, "b": 2}
        assert ranks_within(splits, EnergyBudget(keeps=0.85), total=250) == {"a": 1, "b": 3}
        # 50 elsewhere and 40 + 90 of 250: 180 is what energy 0.9 takes
        assert ranks_within(splits, CostBudget(counted=MACS, stays=180 / 250), total=250) == {"a": 1, "b": 3}
        assert ranks_within(splits, CostBudget(counted=MACS, stays=179 / 250), total=250) == {"a": 1, "b": 2}
        assert ranks_within(splits, CostBudget(counted=MACS, stays=120 / 250), total=250) == {"a": 1, "b": 1}
        with pytest.raises(OutOfReach, match=r"leave 48\.0% of the macs, and 47\.6% may stay"):
            ranks_within(splits, CostBudget(counted=MACS, stays=119 / 250), total=250)

    def test_a_layer_that_would_cost_no_less_stays_one(self) -> None:
        splits = (split("a", [3, 1], dense=100, per_rank=100), split("b", [3, 1], dense=100, per_rank=50))
        assert ranks_within(splits, EnergyBudget(keeps=0.8), total=200) == {"b": 1}
        assert ranks_within(splits, RankBudget(rank=2), total=200) == {}
        assert ranks_within(splits, RankBudget(rank=1), total=200) == {"b": 1}

    def test_ranks_are_multiples_of_the_alignment_or_full(self) -> None:
        layer = split("a", [5, 4, 3, 2, 1], dense=100, per_rank=1, align=4)
        assert [layer.rank_keeping(share) for share in (0.1, 0.9, 0.95, 0.99)] == [4, 4, 4, 5]

    @settings(max_examples=60, deadline=None)
    @given(
        seed=st.integers(0, 2**16),
        stays=st.floats(0.05, 0.99),
        align=st.sampled_from([1, 3]),
    )
    def test_the_budget_is_met_and_the_next_energy_would_break_it(self, seed: int, stays: float, align: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        splits = tuple(
            split(
                str(index),
                sorted(torch.rand(5, generator=generator).add(0.01).tolist(), reverse=True),
                dense=int(torch.randint(20, 100, (), generator=generator)),
                per_rank=int(torch.randint(5, 40, (), generator=generator)),
                align=align,
            )
            for index in range(4)
        )
        total = 50 + sum(s.dense[MACS] for s in splits)

        def cost(ranks: dict[str, int]) -> int:
            return 50 + sum(s.cost(ranks.get(s.layer, 10**6), MACS) for s in splits)

        budget = CostBudget(counted=MACS, stays=stays)
        shares = sorted({float(kept) for s in splits for kept in s.kept})
        fitting = [e for e in shares if cost({s.layer: s.rank_keeping(e) for s in splits}) <= stays * total]
        if not fitting:
            with pytest.raises(OutOfReach):
                ranks_within(splits, budget, total=total)
            return
        ranks = ranks_within(splits, budget, total=total)
        assert cost(ranks) <= stays * total
        expected = {s.layer: s.rank_keeping(max(fitting)) for s in splits}
        assert ranks == {s.layer: expected[s.layer] for s in splits if s.pays(expected[s.layer], MACS)}


class TestNetwork:
    def test_costs_are_within_the_budget_and_as_counted(self, half: Factorized) -> None:
        dense, small = half.dense_cost, half.small_cost
        assert small == count(half.checkpoint.module, half.checkpoint.example_inputs)
        assert 0.48 * dense.macs < small.macs <= 0.5 * dense.macs
        assert dense.macs - small.macs == sum(layer.macs[0] - layer.macs[1] for layer in half.layers)
        assert dense.params - small.params == sum(layer.params[0] - layer.params[1] for layer in half.layers)

    def test_params_are_a_budget_too(self) -> None:
        found = factorize(resnet8(), low_rank_from(params=0.6))
        assert 0.5 < found.small_cost.params / found.dense_cost.params <= 0.6
        assert all(layer.rank % 8 == 0 for layer in found.layers)

    def test_every_layer_keeps_the_same_energy_at_the_least(self, half: Factorized) -> None:
        dense = resnet8().module
        least = min(layer.energy for layer in half.layers)
        for layer in half.layers:
            squares = spectrum(dense.get_parameter(f"{layer.layer}.weight"), Kind.SPATIAL).square()
            rank = layer.rank
            assert layer.energy == pytest.approx(float(squares[:rank].sum() / squares.sum()))
            assert rank == 1 or float(squares[: rank - 1].sum() / squares.sum()) < least

    def test_what_is_left_alone_says_why(self, half: Factorized) -> None:
        reasons = dict(half.left_alone)
        assert reasons["fc"] == "not a two-dimensional convolution"
        assert reasons["stages.1.0.shortcut.0"] == "a 1x1 convolution"
        found = factorize(resnet8(), at(0.6, Kind.CHANNEL, Kind.SVD, align=1, protect=("stages.0.*",)))
        assert dict(found.left_alone)["stages.0.0.conv1"] == "protected"
        assert {layer.kind for layer in found.layers} == {Kind.CHANNEL, Kind.SVD}

    def test_the_checkpoint_stays_as_it_was(self) -> None:
        checkpoint = resnet8()
        before = {name: tensor.clone() for name, tensor in checkpoint.module.state_dict().items()}
        checkpoint.module.stages.train()  # type: ignore[union-attr]
        modes = [m.training for m in checkpoint.module.modules()]
        factorize(checkpoint, at(0.5))
        assert modes == [m.training for m in checkpoint.module.modules()]
        assert all(torch.equal(before[name], tensor) for name, tensor in checkpoint.module.state_dict().items())
        assert not any(m._forward_hooks for m in checkpoint.module.modules())
        assert checkpoint.surgery is None

    def test_the_proof_sees_a_network_that_is_another_one(self, half: Factorized) -> None:
        assert half.proof.largest_relative_difference < 1e-10
        assert half.proof.moved > 1e-3
        small = operate(half.checkpoint.module, Surgery())
        chosen = {one.layer: Factors(kind=Kind(one.kind), rank=one.rank) for one in half.layers}
        with torch.no_grad():
            small.fc.bias[0] += 1  # type: ignore[index,union-attr,operator]
        with pytest.raises(SurgeryError, match="differs from its own products"):
            prove_factors(resnet8().module, small, chosen, half.checkpoint.example_inputs)

    def test_separable_is_a_block_of_mobilenets(self) -> None:
        found = factorize(resnet8(), low_rank_from(how="separable"))
        block = found.checkpoint.module.get_submodule("stages.1.0.conv1")
        assert isinstance(block, nn.Sequential)
        assert (block[0].groups, tuple(block[0].weight.shape), block[0].stride) == (16, (16, 1, 3, 3), (2, 2))
        assert tuple(block[1].weight.shape) == (32, 16, 1, 1)
        assert found.small_cost.macs < 0.2 * found.dense_cost.macs

    def test_a_step_of_the_lineage_says_what_was_done(self, half: Factorized) -> None:
        (step,) = half.checkpoint.lineage
        assert step["step"] == "factorize"
        assert step["requested"] == {"macs": 0.5}
        assert json.loads(json.dumps(step))["ranks"]["conv1"] == {"kind": "spatial", "rank": 2}
        assert json.loads(json.dumps(half.result.to_json()))["achieved"]["macs"] == [
            half.dense_cost.macs,
            half.small_cost.macs,
        ]


class Odd(nn.Module):
    """Layers that must stay: grouped, shared, read by name, never called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3, groups=2), nn.Conv2d(16, 16, 3)
        self.d, self.e, self.idle = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.d.weight = self.c.weight
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(self.d(self.c(self.b(self.a(x))))).flatten(2).transpose(1, 2)
        found: Tensor = self.attention(x, x, x, need_weights=False)[0].mean(1)
        return found


class TestWhatMustStay:
    def test_says_why(self) -> None:
        splits, left = splits_of(Odd().eval(), (torch.zeros(1, 1, 14, 14),), how=(Kind.SPATIAL, Kind.SVD))
        assert [s.layer for s in splits] == ["a", "e"]
        assert dict(left) == {
            "b": "a grouped convolution",
            "c": "another layer has the same weight",
            "d": "another layer has the same weight",
            "idle": "the forward pass does not call it as a layer",
            "attention.out_proj": "not a two-dimensional convolution",
        }

    def test_a_weight_that_code_reads_is_a_refusal_with_a_way_out(self) -> None:
        class Reads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.a, self.b = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)

            def forward(self, x: Tensor) -> Tensor:
                found: Tensor = self.b(self.a(x)) * self.b.weight.mean()  # type: ignore[operator]
                return found

        checkpoint = checkpoint_of(Reads())
        with pytest.raises(SurgeryError, match="no attribute 'weight'") as refused:
            factorize(checkpoint, at(0.5))
        assert "--protect" in str(refused.value.hint)

    @pytest.mark.parametrize(
        ("module", "request_", "kind", "says"),
        [
            (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), at(0.5), GroupError, "nothing to factorise by spatial"),
            (nn.Conv2d(1, 8, 3), at(0.5), GroupError, "does not call it"),
            (nn.Sequential(nn.Conv2d(1, 8, 3)), at(0.05), OutOfReach, "the lowest ranks leave"),
            (
                nn.Sequential(nn.Conv2d(1, 8, 3)),
                LowRank(budget=EnergyBudget(keeps=0.999)),
                PlanError,
                "no layer becomes",
            ),
            (nn.Sequential(nn.Conv2d(1, 8, 3)), at(0.5, protect=("nothing*",)), GroupError, "matches no layer"),
        ],
    )
    def test_nothing_to_do_is_an_error(
        self, module: nn.Module, request_: LowRank, kind: type[CompressError], says: str
    ) -> None:
        with pytest.raises(kind, match=says) as refused:
            factorize(checkpoint_of(module), request_)
        assert refused.value.hint

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({}, "no budget"),
            ({"macs": 0.5, "energy": 0.9}, "several budgets"),
            ({"macs": 1.5}, "between 0 and 1"),
            ({"energy": 1.0}, "between 0 and 1"),
            ({"rank": 0}, "at least 1"),
            ({"macs": 0.5, "how": "tucker"}, "`tucker`"),
            ({"macs": 0.5, "how": "svd,svd"}, "appears twice"),
            ({"macs": 0.5, "align": 0}, "positive"),
        ],
    )
    def test_requests_that_are_none(self, given: dict[str, Any], says: str) -> None:
        with pytest.raises(PlanError, match=says) as refused:
            low_rank_from(**given)
        assert refused.value.hint


def said(checkpoint: Checkpoint) -> Tensor:
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    return outputs_of(checkpoint.module, [x])[0]


class TestReplay:
    def test_a_dense_state_is_decomposed_as_the_layers_were(self, half: Factorized) -> None:
        surgery = half.checkpoint.surgery
        assert surgery is not None
        cut = surgery.cut_state(resnet8().module.state_dict())
        own = half.checkpoint.module.state_dict()
        assert cut.keys() == own.keys()
        assert all(torch.equal(cut[name], own[name]) for name in own)

    def test_json_rebuilds_the_shapes_and_takes_the_weights(self, half: Factorized) -> None:
        surgery = half.checkpoint.surgery
        assert surgery is not None
        again = surgery_from_json(json.loads(json.dumps(surgery.to_json())))
        assert again == surgery
        small = reshaped(resnet8().module, again, half.checkpoint.module.state_dict()).eval()
        assert torch.equal(outputs_of(small, half.checkpoint.example_inputs)[0],
                           outputs_of(half.checkpoint.module, half.checkpoint.example_inputs)[0])  # fmt: skip
        with pytest.raises(SurgeryError, match="no layer `gone`"):
            operate(resnet8().module, Surgery(factors={"gone": Factors(kind=Kind.SPATIAL, rank=1)}))

    @pytest.mark.parametrize("order", ["prune, factorize", "factorize, prune, factorize"])
    def test_with_pruning_it_is_written_and_read_in_a_fresh_process(self, order: str, tmp_path: Path) -> None:
        checkpoint = resnet8()
        for step in order.split(", "):
            if step == "prune":
                checkpoint = prune(checkpoint, Request(budget=ChannelBudget(ratio=0.25), align=1)).checkpoint
            else:
                checkpoint = factorize(checkpoint, at(0.7, Kind.SPATIAL, Kind.CHANNEL, align=1)).checkpoint
        write_artifact(  # which reads it back in a fresh process, and compares
            tmp_path / "x.compressed", checkpoint, source={"path": "made.pt", "sha256": "0" * 64}, results=Results()
        )
        found = load_artifact(tmp_path / "x.compressed")
        assert torch.allclose(said(found), said(checkpoint), atol=1e-6)
        assert list(found.lineage) == json.loads(json.dumps(checkpoint.lineage))
        surgery = found.surgery
        assert surgery is not None
        cut = surgery.cut_state(resnet8().module.state_dict())
        own = checkpoint.module.state_dict()
        assert {name: t.shape for name, t in cut.items()} == {name: t.shape for name, t in own.items()}
        assert all(torch.allclose(cut[name], own[name], atol=1e-6) for name in own)

    def test_fresh_and_rewound_weights_are_had(self, half: Factorized) -> None:
        fresh = starting_module(half.checkpoint, How.SCRATCH_E, seed=1)
        weight = half.checkpoint.module.state_dict()["stages.0.0.conv1.0.weight"]
        assert fresh.state_dict()["stages.0.0.conv1.0.weight"].shape == weight.shape
        assert not torch.equal(fresh.state_dict()["stages.0.0.conv1.0.weight"], weight)
        rewound = starting_module(half.checkpoint, How.REWIND_WEIGHTS, early_state=resnet8().module.state_dict())
        assert torch.equal(rewound.state_dict()["stages.0.0.conv1.0.weight"], weight)
