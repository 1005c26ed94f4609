"""What stands where a layer stood: the same shape, the bias alone; and the surgery that puts it there."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from compressor.errors import SurgeryError
from compressor.graph.outputs import outputs_of
from compressor.surgery.constant import Silent, can_be_silent, silent_from
from compressor.surgery.surgery import Surgery, operate, reshaped, surgery_from_json
from tests.support.topologies import INPUT, Residual, alive

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 3), (4, 5)),
    "linear on tokens": (nn.Linear(5, 3, bias=False), (4, 7, 5)),
    "linear on a vector": (nn.Linear(5, 3), (5,)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (3, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(2, 0), dilation=(1, 3)), (3, 4, 9, 8)),
    "conv2d without a bias": (nn.Conv2d(4, 6, 1, bias=False), (3, 4, 5, 5)),
    "conv2d of groups": (nn.Conv2d(4, 6, 3, groups=2, stride=3), (1, 4, 7, 5)),
    "conv3d": (nn.Conv3d(2, 4, (2, 3, 1), stride=(1, 2, 1), padding=(0, 1, 1)), (2, 2, 4, 5, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_it_gives_what_the_layer_gives_with_zero_weights(name: str) -> None:
    layer, shape = LAYERS[name]
    assert can_be_silent(layer)
    silent = silent_from(layer)
    with torch.no_grad():
        layer.weight.zero_()  # type: ignore[operator,union-attr]  # every layer here has one
        if isinstance(layer.bias, nn.Parameter):
            layer.bias.copy_(torch.arange(len(layer.bias)) - 1.5)
    x = torch.randn(shape)
    torch.testing.assert_close(silent(x), layer(x), rtol=0, atol=0)
    assert silent(x.double()).shape == layer(x).shape


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 3, padding="same"), nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(2, 2, 3), nn.BatchNorm2d(2), nn.MultiheadAttention(4, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_other_layers_are_left_alone(layer: nn.Module) -> None:
    assert not can_be_silent(layer)


def test_a_silent_layer_is_its_own_and_draws_a_bias_of_zero() -> None:
    silent = silent_from(nn.Linear(3, 2))
    assert silent_from(silent) is silent
    silent.reset_parameters()
    assert not bool(silent.bias.any())  # type: ignore[union-attr]  # it has one
    Silent(channels=2, bias=None, kernel=(), stride=(), padding=(), dilation=()).reset_parameters()


def test_its_bias_can_be_trained() -> None:
    silent = silent_from(nn.Conv2d(2, 3, 1))
    silent(torch.randn(4, 2, 5, 5)).sum().backward()
    assert silent.bias is not None
    assert silent.bias.grad is not None
    assert silent.bias.grad.tolist() == [100.0] * 3


# The surgery


def emptied() -> Surgery:
    """The residual branch cut to one channel, then emptied."""
    one = torch.tensor([5])
    cut = Surgery(
        slices={
            "conv1.weight": {0: one}, "conv1.bias": {0: one}, "bn1.weight": {0: one}, "bn1.bias": {0: one},
            "bn1.running_mean": {0: one}, "bn1.running_var": {0: one}, "conv2.weight": {1: one},
        },
        attributes={"conv1": {"out_channels": 1}, "bn1": {"num_features": 1}, "conv2": {"in_channels": 1}},
    )  # fmt: skip
    return cut.then(Surgery(emptied=("conv1",))).then(Surgery(emptied=("conv2", "conv1")))


def test_emptied_layers_are_named_once_and_survive_json() -> None:
    surgery = emptied()
    assert surgery.emptied == ("conv1", "conv2")
    again = surgery_from_json(json.loads(json.dumps(surgery.to_json())))
    assert again.to_json() == surgery.to_json()
    assert again.emptied == surgery.emptied


def test_a_record_from_before_there_were_emptied_layers_is_read() -> None:
    plain = emptied().to_json()
    del plain["emptied"]
    assert surgery_from_json(plain).emptied == ()


def test_an_emptied_branch_gives_its_bias() -> None:
    net = alive(Residual())
    small = operate(net, emptied())
    x = torch.randn(2, *INPUT[1:])
    with torch.no_grad():
        net.conv2.weight.zero_()
    torch.testing.assert_close(outputs_of(small, [x])[0], outputs_of(net, [x])[0])
    assert isinstance(small.conv1, Silent)
    assert isinstance(small.conv2, Silent)
    assert isinstance(net.conv1, nn.Conv2d)


def test_a_cut_state_has_no_weights_of_emptied_layers_and_fits() -> None:
    net, early = alive(Residual()), alive(Residual(), seed=1)
    state = emptied().cut_state(early.state_dict())
    assert not {"conv1.weight", "conv2.weight"} & set(state)
    assert state["conv1.bias"].shape == (1,)
    module = reshaped(net, emptied(), state)
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    torch.testing.assert_close(module.conv2.bias, early.conv2.bias)


def test_a_state_that_still_has_the_weights_is_refused() -> None:
    net = alive(Residual())
    cut = Surgery(slices=emptied().slices, attributes=emptied().attributes)
    with pytest.raises(SurgeryError, match="do not fit"):
        reshaped(net, emptied(), cut.cut_state(net.state_dict()))
