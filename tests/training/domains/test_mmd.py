from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.errors import RetrainError
from compressor.training.domains.mmd import Kernels, linear_mmd, mmd

Estimate = Callable[..., Tensor]
ESTIMATES = (mmd, linear_mmd)


def drawn(count: int, *, seed: int, shift: float = 0.0, features: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, features, generator=generator, dtype=torch.float64) + shift


def by_loops(x: Tensor, y: Tensor, kernels: Kernels) -> float:
    """The definition, pair by pair, in Python's own floats."""
    rows = [*x.tolist(), *y.tolist()]
    n, total = len(x), len(rows)

    def squared(a: list[float], b: list[float]) -> float:
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))

    every = [squared(rows[i], rows[j]) for i in range(total) for j in range(total) if i != j]
    middle = kernels.width or sum(every) / len(every)
    widths = [middle * kernels.factor ** (k - kernels.count // 2) for k in range(kernels.count)]

    def k(i: int, j: int) -> float:
        return sum(math.exp(-squared(rows[i], rows[j]) / w) for w in widths) / len(widths)

    within = [k(i, j) for i in range(n) for j in range(n) if i != j]
    beyond = [k(i, j) for i in range(n, total) for j in range(n, total) if i != j]
    across = [k(i, j) for i in range(n) for j in range(n, total)]
    return sum(within) / len(within) + sum(beyond) / len(beyond) - 2 * sum(across) / len(across)


class TestOracle:
    @settings(max_examples=25, deadline=None)
    @given(
        st.integers(2, 7), st.integers(2, 7), st.integers(1, 6), st.sampled_from([1.5, 2.0, 3.0]),
        st.sampled_from([None, 0.7, 20.0]), st.integers(0, 10**6),
    )  # fmt: skip
    def test_it_is_the_double_loop(
        self, n: int, m: int, count: int, factor: float, width: float | None, seed: int
    ) -> None:
        kernels = Kernels(count=count, factor=factor, width=width)
        x, y = drawn(n, seed=seed), drawn(m, seed=seed + 1, shift=0.5)
        assert float(mmd(x, y, kernels=kernels)) == pytest.approx(by_loops(x, y, kernels), abs=1e-12)

    def test_the_linear_one_is_what_the_paper_writes_for_quadruples(self) -> None:
        x, y = drawn(5, seed=0), drawn(4, seed=1, shift=1.0)  # two quadruples; the fifth is left over

        def k(a: Tensor, b: Tensor) -> float:
            return math.exp(-float((a - b).square().sum()) / 3.0)

        terms = [k(x[i], x[i + 1]) + k(y[i], y[i + 1]) - k(x[i], y[i + 1]) - k(x[i + 1], y[i]) for i in (0, 2)]
        found = linear_mmd(x, y, kernels=Kernels(count=1, width=3.0))
        assert float(found) == pytest.approx(sum(terms) / 2, abs=1e-12)


class TestExpectation:
    @pytest.mark.parametrize("estimate", ESTIMATES)
    def test_over_every_way_to_part_one_sample_it_is_exactly_zero(self, estimate: Estimate) -> None:
        """What makes it unbiased under equality; the widths come from the sample as a whole and do not spoil it."""
        rows = drawn(6, seed=3)
        orders = itertools.permutations(range(6)) if estimate is linear_mmd else itertools.combinations(range(6), 3)
        found = []
        for order in orders:
            rest = [i for i in range(6) if i not in order[:3]]
            there = order[3:] if len(order) == 6 else rest
            found.append(float(estimate(rows[list(order[:3])], rows[list(there)])))
        assert max(map(abs, found)) > 1e-3
        assert sum(found) / len(found) == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("estimate", ESTIMATES)
    def test_equal_distributions_give_about_zero_and_shifted_ones_more_the_further(self, estimate: Estimate) -> None:
        def mean(shift: float) -> float:
            pairs = [(drawn(64, seed=2 * s), drawn(64, seed=2 * s + 1, shift=shift)) for s in range(20)]
            return sum(float(estimate(x, y)) for x, y in pairs) / 20

        same, near, far = mean(0.0), mean(0.5), mean(2.0)
        assert abs(same) < 0.25 * near
        assert 0 < near < far

    def test_it_takes_both_samples_alike(self) -> None:
        x, y = drawn(9, seed=0), drawn(7, seed=1, shift=1.0)
        assert float(mmd(x, y)) == pytest.approx(float(mmd(y, x)), abs=1e-14)


class TestNumbers:
    def test_moving_both_samples_or_their_unit_changes_nothing(self) -> None:
        x, y = drawn(20, seed=0), drawn(20, seed=1, shift=0.5)
        for moved in ((x + 1000, y + 1000), (x * 50, y * 50)):
            assert float(mmd(*moved)) == pytest.approx(float(mmd(x, y)), abs=1e-8)
        assert float(mmd(x.float() + 1000, y.float() + 1000)) == pytest.approx(float(mmd(x, y)), abs=1e-3)

    @pytest.mark.parametrize("estimate", ESTIMATES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_gradient_is_finite_and_going_down_it_brings_the_samples_together(
        self, estimate: Estimate, dtype: torch.dtype
    ) -> None:
        x, y = drawn(32, seed=0).to(dtype), drawn(32, seed=1, shift=1.0).to(dtype).requires_grad_()
        apart = estimate(x, y)
        (gradient,) = torch.autograd.grad(apart, y)
        assert bool(gradient.isfinite().all())
        assert float(estimate(x, y.detach() - 5 * gradient)) < float(apart.detach())

    def test_images_that_are_all_the_same_give_zero_and_no_nan(self) -> None:
        x = torch.ones(4, 3, requires_grad=True)
        apart = mmd(x, torch.ones(4, 3))
        (gradient,) = torch.autograd.grad(apart, x)
        assert float(apart.detach()) == 0
        assert bool(gradient.isfinite().all())

    def test_the_widths_carry_no_gradient(self) -> None:
        """Otherwise a network could lower the loss by moving everything apart, which makes the kernels wider."""
        x, y = drawn(8, seed=0), drawn(8, seed=1, shift=1.0)
        both = torch.cat([x, y])
        pairs = (both[:, None] - both[None]).square().sum(dim=2)
        middle = float(pairs.sum()) / (16 * 15)
        free, fixed = x.clone().requires_grad_(), x.clone().requires_grad_()
        (one,) = torch.autograd.grad(mmd(free, y), free)
        (other,) = torch.autograd.grad(mmd(fixed, y, kernels=Kernels(width=middle)), fixed)
        torch.testing.assert_close(one, other)

    def test_half_precision_is_computed_in_single(self) -> None:
        x, y = drawn(16, seed=0).float(), drawn(16, seed=1, shift=1.0).float()
        assert mmd(x.bfloat16(), y.bfloat16()).dtype is torch.float32
        plain = float(mmd(x, y))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert float(mmd(x, y)) == pytest.approx(plain, rel=1e-6)


class TestRefusals:
    @pytest.mark.parametrize("estimate", ESTIMATES)
    @pytest.mark.parametrize(
        ("n", "m", "said"), [(1, 4, "1 images against 4"), (4, 1, "4 images against 1"), (4, 0, "against 0")]
    )
    def test_too_few_images(self, estimate: Estimate, n: int, m: int, said: str) -> None:
        with pytest.raises(RetrainError, match=said):
            estimate(torch.zeros(n, 3), torch.zeros(m, 3))

    def test_features_that_differ(self) -> None:
        with pytest.raises(RetrainError, match="cannot be compared"):
            mmd(torch.zeros(4, 3), torch.zeros(4, 2))

    @pytest.mark.parametrize("wrong", [{"count": 0}, {"factor": 0.0}, {"width": 0.0}, {"width": -1.0}])
    def test_kernels_that_are_none(self, wrong: dict[str, float]) -> None:
        with pytest.raises(RetrainError):
            Kernels(**wrong)
