"""Repair in little memory: no covariance is made that does not fit, and the network is repaired all the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.planning import elimination, moments
from compressor.planning.affording import affords, covariance_bytes, fit_bytes, reserved, rows_within, too_large
from compressor.pruning.pipeline import prune
from compressor.pruning.repair.repairing import Repair, affordable
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget, Scope
from tests.support.topologies import INPUT, alive, checkpoint_of

CHANNELS = 8
FEATURES = CHANNELS * INPUT[2] * INPUT[3]


def flattening() -> nn.Module:
    """A classifier behind all that a convolution gives, flattened."""
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(FEATURES, 5))


def noise(count: int = 96) -> Data:
    images = torch.rand(count, *INPUT[1:], generator=torch.Generator().manual_seed(0))
    return Data(name="noise", source="noise", train=Images(images), tune=None, test=None)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each product of features has that is made."""
    sizes: list[int] = []
    plain = moments._product

    def watched(a: Tensor, b: Tensor) -> Tensor:
        found = plain(a, b)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(moments, "_product", watched)
    return sizes


@pytest.mark.parametrize("scope", [Scope.UNIFORM, Scope.MEASURED])
@pytest.mark.parametrize("how", [Repair.MEAN, Repair.LEAST_SQUARES])
def test_a_wide_classifier_is_judged_and_repaired_within_memory(how: Repair, scope: Scope, made: list[int]) -> None:
    said: list[str] = []
    memory = 4 * 8 * FEATURES**2  # a few covariances, not what fitting takes
    request = Request(
        budget=ChannelBudget(ratio=0.5), criterion="obs", scope=scope, align=1, images=96, repair=how,
        memory_bytes=memory,
    )  # fmt: skip
    found = prune(checkpoint_of(alive(flattening())), request, data=noise(), say=said.append)
    assert max(made, default=0) < FEATURES**2 / 4
    assert found.small_cost.params < 0.6 * found.dense_cost.params
    repaired = found.repair_result.to_json()
    assert repaired is not None
    assert repaired["kept"]
    before, after = repaired["rise"]
    assert after < before
    assert any("`3.weight` reads too many features" in line for line in said)
    assert any("its bias alone is fitted" in line for line in said) == (how is Repair.LEAST_SQUARES)


def test_with_memory_for_it_the_same_classifier_is_fitted_whole(made: list[int]) -> None:
    said: list[str] = []
    request = Request(
        budget=ChannelBudget(ratio=0.5), criterion="obs", align=1, images=96, repair=Repair.LEAST_SQUARES
    )  # fmt: skip
    prune(checkpoint_of(alive(flattening())), request, data=noise(), say=said.append)
    assert max(made) == FEATURES**2
    assert not any("features" in line for line in said)


def test_above_the_widest_no_covariance_is_made_whatever_the_memory(
    made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.pruning.repair.least_squares.WIDEST", FEATURES // 4)
    monkeypatch.setattr(elimination, "WIDEST", FEATURES // 4)
    request = Request(budget=ChannelBudget(ratio=0.5), criterion="obs", align=1, images=96, repair=Repair.LEAST_SQUARES)
    prune(checkpoint_of(alive(flattening())), request, data=noise())
    assert max(made, default=0) < FEATURES**2 / 4


def test_what_is_estimated_holds_what_is_promised() -> None:
    small, large = torch.zeros(2, 3, 10), torch.zeros(1, 3, 100)
    assert covariance_bytes(small) == 2 * 10 * 10 * 8
    assert affords(large, None)
    assert affords(large, 2 * fit_bytes(large))
    assert not affords(large, 2 * fit_bytes(large) - 2)
    assert reserved([small, large], 2 * fit_bytes(large)) == fit_bytes(large)
    assert reserved([small, large], 2 * fit_bytes(large) - 2) == fit_bytes(small)
    assert reserved([large], 0) == 0
    assert rows_within(large, 2 * fit_bytes(large), covariance=True, wanted=10**6) >= 3 * 100
    assert rows_within(large, 0, covariance=False, wanted=5) == 1
    assert rows_within(large, None, covariance=False, wanted=5) == 5


def test_of_all_covariances_that_are_held_at_once_the_largest_goes_first() -> None:
    matrices = {str(n): torch.zeros(1, 1, n) for n in (30, 10, 20)}
    assert too_large(matrices, None) == frozenset()
    assert too_large(matrices, 10**9) == frozenset()
    assert too_large(matrices, 2 * 8 * (100 + 400 + 4 * 400)) == {"30"}
    assert too_large(matrices, 0) == {"10", "20", "30"}


def test_what_a_fit_takes_is_set_aside_before_images_are_counted() -> None:
    batch = (torch.zeros(4, *INPUT[1:]),)
    flat, memory = alive(flattening()), 20 * 8 * FEATURES**2
    with_fit = affordable(flat, batch, images=10**6, memory_bytes=memory)
    assert with_fit < 0.6 * affordable(flat[:3], batch, images=10**6, memory_bytes=memory)  # type: ignore[index]
