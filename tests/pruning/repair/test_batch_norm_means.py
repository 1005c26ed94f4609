"""Mean compensation without data: Gauss's integrals against sampling, and a network that it makes exact."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compressor.channels.groups import trace
from compressor.errors import RepairError
from compressor.pruning.repair.batch_norm_means import compensated
from compressor.pruning.repair.repairing import repair_blind
from compressor.surgery.plan import PruningPlan
from compressor.surgery.shrinking import shrink
from compressor.surgery.surgery import Surgery

INPUT = (torch.zeros(2, 3, 8, 8),)


def network(activation: nn.Module) -> nn.Sequential:
    """Two convolutions with norms and an activation; the first norm's channels are alive."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), activation, nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    for parameter in module[1].parameters():
        nn.init.normal_(parameter)
    return module.eval()


def cut(module: nn.Module, gone: tuple[int, ...]) -> tuple[nn.Module, Surgery]:
    return shrink(module, trace(module, INPUT), PruningPlan(removed={"0": gone}), INPUT)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Identity()])
def test_the_bias_takes_what_sampling_says_the_channel_gave(activation: nn.Module) -> None:
    dense = network(activation)
    small, surgery = cut(dense, (1, 4))
    found = compensated(dense, small, surgery, INPUT)
    assert found.layers == ("3",)
    scale, shift = dense[1].weight.detach(), dense[1].bias.detach()
    drawn = torch.randn(400_000, 6, generator=torch.Generator().manual_seed(1))
    means = activation(shift + scale.abs() * drawn).mean(dim=0)
    moved = found.module[3].bias - small[3].bias
    expected = dense[3].weight.detach()[:, [1, 4], 0, 0] @ means[[1, 4]]
    torch.testing.assert_close(moved, expected, atol=5e-3, rtol=0)


def test_a_channel_that_gives_a_constant_is_made_up_for_exactly() -> None:
    dense = network(nn.ReLU())
    with torch.no_grad():
        dense[1].weight[2], dense[1].bias[2] = 0.0, 1.5
    small, surgery = cut(dense, (2,))
    found = compensated(dense, small, surgery, INPUT).module.eval()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found(images), dense(images), atol=1e-5, rtol=0)
    assert not torch.allclose(small(images), dense(images), atol=1e-3)


def test_both_networks_stay_as_they_were() -> None:
    dense = network(nn.ReLU())
    small, surgery = cut(dense, (0,))
    before = [copy.deepcopy(m.state_dict()) for m in (dense, small)]
    compensated(dense, small, surgery, INPUT)
    for module, state in zip((dense, small), before, strict=True):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, state[name])


def test_a_network_without_norms_is_refused_with_the_ways_on() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(256, 2)).eval()
    small, surgery = cut(dense, (0,))
    with pytest.raises(RepairError) as refusal:
        repair_blind(dense, small, surgery, INPUT)
    assert "--data" in str(refusal.value.hint)
