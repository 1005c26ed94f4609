from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import GroupError
from compressor.training.domains.features import features_in, last_linear, reading


class OutOfOrder(nn.Module):
    """Its layers run in another order than they stand in, and one of them never does."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.unused = nn.Linear(3, 2), nn.Linear(4, 3), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x).relu())
        return y


def test_the_last_linear_layer_is_the_one_that_runs_last() -> None:
    assert last_linear(OutOfOrder(), (torch.zeros(1, 4),)) == "head"


def test_the_features_are_what_the_layer_reads_and_carry_their_gradient() -> None:
    module, x = OutOfOrder(), torch.randn(5, 4)
    with reading(module, "head") as read:
        module(x)
    features = features_in(read, "head")
    torch.testing.assert_close(features, module.body(x).relu())
    assert features.requires_grad
    assert features_in([torch.zeros(2, 3, 4)], "pool").shape == (2, 12)


def test_the_module_is_left_without_hooks_and_in_its_modes() -> None:
    module = OutOfOrder().train()
    last_linear(module, (torch.zeros(1, 4),))
    with pytest.raises(ZeroDivisionError), reading(module, "head"):
        raise ZeroDivisionError
    assert module.training
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_a_layer_that_is_not_there_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(GroupError, match="no layer called `haed`") as caught, reading(OutOfOrder(), "haed"):
        pass
    assert caught.value.hint == "did you mean `head`?"
    with pytest.raises(GroupError, match="no layer called ``"), reading(OutOfOrder(), ""):
        pass


def test_a_layer_that_runs_twice_or_never_is_refused() -> None:
    for times in (0, 2):
        with pytest.raises(GroupError, match=f"ran {times} times"):
            features_in([torch.zeros(1, 1)] * times, "fc")


def test_a_network_without_a_linear_layer_asks_for_one() -> None:
    with pytest.raises(GroupError, match="no linear layer runs") as caught:
        last_linear(nn.Sequential(nn.Conv2d(1, 2, 1)), (torch.zeros(1, 1, 2, 2),))
    assert "--layer" in str(caught.value.hint)
