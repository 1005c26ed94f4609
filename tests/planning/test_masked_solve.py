"""Rows with unknowns of their own: each is the solution of its own small system, and exactly zero elsewhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.planning import masked_solve as support
from compressor.planning.masked_solve import on_support


def drawn(groups: int, rows: int, width: int, *, density: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A positive definite system, right-hand sides, and which features each row may use."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 2 * width, width, generator=generator, dtype=torch.float64)
    right = torch.randn(groups, rows, width, generator=generator, dtype=torch.float64)
    kept = torch.rand(groups, rows, width, generator=generator) < density
    return x.mT @ x / (2 * width) + 0.1 * torch.eye(width, dtype=torch.float64), right, kept


def one_by_one(system: Tensor, right: Tensor, kept: Tensor) -> Tensor:
    """The same by `torch.linalg.solve`, a row at a time."""
    found = torch.zeros_like(right)
    for group in range(len(right)):
        for row in range(right.shape[1]):
            chosen = kept[group, row].nonzero().flatten()
            block = system[group][chosen][:, chosen]
            found[group, row, chosen] = torch.linalg.solve(block, right[group, row, chosen])
    return found


# Oracles


@pytest.mark.parametrize("chunk_bytes", [1, 8 * 9 * 3, support.CHUNK_BYTES])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_every_row_is_the_solution_on_what_it_may_use(
    density: float, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "CHUNK_BYTES", chunk_bytes)
    system, right, kept = drawn(3, 7, 11, density=density)
    found = on_support(system, right, kept)
    torch.testing.assert_close(found, one_by_one(system, right, kept), rtol=1e-9, atol=1e-10)


def test_rows_that_may_use_few_and_rows_that_may_use_many_are_solved_together() -> None:
    system, right, kept = drawn(2, 5, 9, density=0.5)
    kept[0, 0], kept[0, 1], kept[1, 0] = False, True, torch.arange(9) < 7
    found = on_support(system, right, kept)
    torch.testing.assert_close(found, one_by_one(system, right, kept), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_no_row_is_factorised_on_more_than_half_of_its_features(
    density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, right, kept = drawn(1, 20, 16, density=density)
    factorise, widths = torch.linalg.cholesky_ex, list[int]()

    def watched(block: Tensor) -> tuple[Tensor, Tensor]:
        widths.append(block.shape[-1])
        return factorise(block)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", watched)
    on_support(system, right, kept)
    assert widths.count(16) <= 1  # what the rows share
    assert all(width <= 8 for width in widths if width != 16)
    assert min(widths) <= 8


# Properties


@given(
    groups=st.integers(1, 3), rows=st.integers(1, 5), width=st.integers(1, 12), density=st.floats(0, 1),
    seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_what_a_row_may_not_use_is_exactly_zero(groups: int, rows: int, width: int, density: float, seed: int) -> None:
    system, right, kept = drawn(groups, rows, width, density=density, seed=seed)
    found = on_support(system, right, kept)
    assert found is not None
    assert not bool(found[~kept].any())
    assert bool(found.isfinite().all())


# Hand-made cases


@pytest.mark.parametrize("used", [1, 2, 3])
def test_a_system_that_is_not_positive_definite_has_no_solution(used: int) -> None:
    kept = (torch.arange(3) < used).view(1, 1, 3)
    assert on_support(-torch.eye(3, dtype=torch.float64).unsqueeze(0), torch.ones(1, 1, 3).double(), kept) is None


def test_a_row_without_features_is_zero_whatever_the_system() -> None:
    found = on_support(torch.zeros(1, 4, 4), torch.ones(1, 2, 4), torch.zeros(1, 2, 4, dtype=torch.bool))
    assert found is not None
    assert not bool(found.any())
