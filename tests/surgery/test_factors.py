"""Two layers for one: exact at full rank, and at a lower one as good as any two can be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.errors import PlanError, SurgeryError
from compressor.surgery.factors import (
    Factors,
    Kind,
    cost_of_a_rank,
    factorized,
    factors_from_json,
    full_rank,
    kind_named,
    matrices,
    pieces,
    product,
    spectrum,
    why_not,
)

OF_CONVOLUTIONS = (Kind.SPATIAL, Kind.CHANNEL, Kind.SEPARABLE)
GEOMETRIES = [
    {},
    {"padding": 1},
    {"padding": (2, 0), "stride": (2, 1)},
    {"padding": (1, 3), "stride": (1, 3), "dilation": (2, 1)},
    {"padding": "same", "dilation": (1, 2)},
    {"padding": "valid"},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": (2, 1), "padding_mode": "circular", "stride": 2},
]


def convolution(inputs: int = 5, outputs: int = 7, kernel: int | tuple[int, int] = 3, **options: object) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, kernel, **options).double()  # type: ignore[arg-type]  # values of a table


def outputs_of(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = layer(x)
    return found


class TestFullRank:
    @pytest.mark.parametrize("kernel", [3, (5, 2), (1, 4)])
    @pytest.mark.parametrize("options", GEOMETRIES, ids=str)
    @pytest.mark.parametrize("kind", OF_CONVOLUTIONS)
    def test_is_the_convolution_exactly(
        self, kind: Kind, options: dict[str, object], kernel: int | tuple[int, int]
    ) -> None:
        layer = convolution(kernel=kernel, **options)
        both = factorized(layer, Factors(kind=kind, rank=full_rank(layer.weight, kind)))
        x = torch.randn(2, 5, 13, 11, dtype=torch.float64)
        expected, found = outputs_of(layer, x), outputs_of(both, x)
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) < 1e-10

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
    def test_is_the_linear_layer_exactly(self, shape: tuple[int, int], bias: bool) -> None:
        torch.manual_seed(0)
        layer = nn.Linear(*shape, bias=bias).double()
        both = factorized(layer, Factors(kind=Kind.SVD, rank=4))
        x = torch.randn(2, 3, shape[0], dtype=torch.float64)
        assert float((outputs_of(both, x) - outputs_of(layer, x)).abs().max()) < 1e-10

    def test_is_what_each_kind_says(self) -> None:
        weight = torch.zeros(7, 5, 3, 2)
        assert [full_rank(weight, kind) for kind in OF_CONVOLUTIONS] == [14, 7, 6]
        assert full_rank(torch.zeros(7, 5), Kind.SVD) == 5


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(list(Kind)),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)),
    share=st.floats(0, 1),
)
def test_what_is_missed_is_what_was_left_out(
    seed: int, kind: Kind, shape: tuple[int, int, int, int], share: float
) -> None:
    """Eckart and Young's theorem, and so that no other factors of this rank are nearer."""
    weight = torch.randn(
        shape[:2] if kind is Kind.SVD else shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    values = spectrum(weight, kind)
    assert len(values) == full_rank(weight, kind)
    assert float(values.square().sum()) == pytest.approx(float(weight.square().sum()))
    rank = max(1, round(share * len(values)))
    factors = Factors(kind=kind, rank=rank)
    made = pieces(weight, None, factors)
    near = product(made["0.weight"], made["1.weight"], factors)
    assert near.shape == weight.shape
    assert float((near - weight).square().sum()) == pytest.approx(float(values[rank:].square().sum()), abs=1e-12)


class TestOracles:
    def test_a_weight_that_is_a_column_times_a_row_takes_one_rank(self) -> None:
        column, row = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])  # Sobel's filter
        weight = (column.unsqueeze(1) * row)[None, None].double()
        made = pieces(weight, None, Factors(kind=Kind.SPATIAL, rank=1))
        assert made["0.weight"].shape == (1, 1, 3, 1)
        assert made["1.weight"].shape == (1, 1, 1, 3)
        assert torch.allclose(made["0.weight"].flatten() * made["0.weight"].sign().flatten()[0],
                              column.double() * made["0.weight"].flatten()[0].abs())  # fmt: skip
        near = product(made["0.weight"], made["1.weight"], Factors(kind=Kind.SPATIAL, rank=1))
        assert torch.allclose(near, weight)

    def test_separable_is_each_input_channels_own_decomposition(self) -> None:
        weight = convolution(4, 6).weight.detach()
        factors = Factors(kind=Kind.SEPARABLE, rank=1)
        made = pieces(weight, None, factors)
        near = product(made["0.weight"], made["1.weight"], factors)
        assert made["0.weight"].shape == (4, 1, 3, 3)
        for channel in range(4):
            u, s, v = torch.linalg.svd(weight[:, channel].flatten(1))
            assert torch.allclose(near[:, channel].flatten(1), s[0] * torch.outer(u[:, 0], v[0]))

    @pytest.mark.parametrize("kind", OF_CONVOLUTIONS)
    def test_the_product_is_what_the_two_layers_compute(self, kind: Kind) -> None:
        layer, factors = convolution(padding=1, stride=2), Factors(kind=kind, rank=2)
        both = factorized(layer, factors)
        with torch.no_grad():
            layer.weight.copy_(product(both[0].weight, both[1].weight, factors))  # type: ignore[arg-type]
        x = torch.randn(2, 5, 9, 9, dtype=torch.float64)
        assert torch.allclose(outputs_of(both, x), outputs_of(layer, x), atol=1e-12)

    @pytest.mark.parametrize("kind", list(Kind))
    def test_a_ranks_cost_is_the_products_of_the_two_layers(self, kind: Kind) -> None:
        from compressor.planning.costs import count

        layer = nn.Linear(6, 5) if kind is Kind.SVD else nn.Conv2d(6, 5, 3, stride=(2, 3), padding=1)
        x = torch.zeros(1, 4, 6) if kind is Kind.SVD else torch.zeros(1, 6, 12, 15)
        both = factorized(layer, Factors(kind=kind, rank=2))
        given, middle = (4, 0) if kind is Kind.SVD else (6 * 5, 6 * 15)
        assert count(both, (x,)).macs == 2 * cost_of_a_rank(layer.weight, kind, positions=given, middle=middle)


class TestLayers:
    def test_mode_type_and_gradients_are_the_layers(self) -> None:
        layer = convolution(bias=True).eval()
        layer.weight.requires_grad_(False)
        both = factorized(layer, Factors(kind=Kind.SPATIAL, rank=2))
        assert not both[0].training
        assert {name: p.requires_grad for name, p in both.named_parameters()} == {
            "0.weight": False, "1.weight": False, "1.bias": True
        }  # fmt: skip
        assert {p.dtype for p in both.parameters()} == {torch.float64}

    def test_nothing_is_drawn(self) -> None:
        layer = convolution()
        before = torch.random.get_rng_state()
        factorized(layer, Factors(kind=Kind.SPATIAL, rank=2), fill=False)
        assert torch.equal(before, torch.random.get_rng_state())

    @pytest.mark.parametrize(
        ("layer", "kind", "says"),
        [
            (nn.Conv2d(4, 4, 3, groups=2), Kind.SPATIAL, "grouped"),
            (nn.Conv2d(4, 4, 1), Kind.SPATIAL, "1x1"),
            (nn.Conv2d(4, 4, 1), Kind.CHANNEL, None),
            (nn.Conv1d(4, 4, 3), Kind.CHANNEL, "two-dimensional"),
            (nn.ConvTranspose2d(4, 4, 3), Kind.SPATIAL, "two-dimensional"),
            (nn.Linear(4, 4), Kind.CHANNEL, "two-dimensional"),
            (nn.Conv2d(4, 4, 3), Kind.SVD, "linear"),
            (nn.modules.linear.NonDynamicallyQuantizableLinear(4, 4), Kind.SVD, "linear"),  # attention reads its weight
        ],
    )
    def test_what_cannot_be_split_is_said(self, layer: nn.Module, kind: Kind, says: str | None) -> None:
        reason = why_not(layer, kind)
        assert (reason is None) == (says is None)
        if says is not None:
            assert says in str(reason)
            with pytest.raises(SurgeryError, match=says):
                factorized(layer, Factors(kind=kind, rank=1))

    def test_ranks_and_kinds_that_are_none(self) -> None:
        with pytest.raises(SurgeryError, match="leaves nothing"):
            Factors(kind=Kind.SVD, rank=0)
        with pytest.raises(SurgeryError, match="above the full one, 5"):
            pieces(torch.randn(7, 5), None, Factors(kind=Kind.SVD, rank=6))
        with pytest.raises(PlanError, match="`spacial`") as refused:
            kind_named("spacial")
        assert "`spatial`" in str(refused.value.hint)

    def test_json_is_a_way_there_and_back(self) -> None:
        for kind in Kind:
            factors = Factors(kind=kind, rank=3)
            assert factors_from_json(factors.to_json()) == factors
        assert matrices(torch.zeros(7, 5, 3, 2), Kind.SPATIAL).shape == (14, 15)
