"""A network is called with the inputs that are set and returns the outputs that matter; nothing else of it changes."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from compressor.channels.groups import trace
from compressor.errors import CheckpointError, GroupError
from compressor.graph.calling import calling_, kept, own_class_


@dataclass
class Answer:
    scores: Tensor
    features: Tensor
    cache: Tensor | None = None


class Pair(NamedTuple):
    scores: Tensor
    features: Tensor


class Net(nn.Module):
    """Two outputs, and an optional input between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, shift: Tensor | None = None) -> Answer:
        features = self.first(x if mask is None else x * mask).relu()
        scores = self.last(features)
        return Answer(scores=scores if shift is None else scores + shift, features=features)


def test_inputs_after_a_gap_are_taken_by_position() -> None:
    net, x, shift = Net(), torch.randn(2, 6), torch.ones(2, 3)
    expected = net(x, shift=shift).scores
    calling_(net, inputs=["x", "shift"])
    assert torch.equal(net(x, shift).scores, expected)
    assert list(inspect.signature(net.forward).parameters)[:2] == ["x", "shift"]


def test_by_keywords_it_is_called_as_its_class_defines_it() -> None:
    net, x = Net(), torch.randn(2, 6)
    calling_(net, inputs=["x", "shift"], outputs=["scores"])
    assert isinstance(net(x=x, mask=None), Answer)
    assert net(x).keys() == {"scores"}


def test_the_class_keeps_its_name_and_comes_back() -> None:
    net = Net()
    calling_(net, outputs=["scores"])
    assert isinstance(net, Net)
    assert type(net) is not Net
    assert str(type(net)) == str(Net)
    assert type(copy.deepcopy(net)) is type(net)
    assert type(own_class_(net)) is Net


def test_names_that_the_forward_has_in_this_order_change_nothing() -> None:
    net = calling_(Net(), inputs=["x", "mask"])
    assert type(net) is Net


def test_an_output_that_is_not_named_pins_nothing() -> None:
    net, x = Net().eval(), torch.randn(2, 6)
    with pytest.raises(GroupError):
        trace(net, (x,))
    calling_(net, outputs=["scores"])
    assert [group.root for group in trace(net, (x,)).groups] == ["first"]


@pytest.mark.parametrize(
    ("answer", "names", "expected"),
    [
        ({"a": 1, "b": 2}, ["b"], {"b": 2}),
        ((1, 2, 3), ["0", "2"], (1, 3)),
        ({"a": {"c": 1, "d": 2}}, ["a.d"], {"a.d": 2}),
        (Pair(torch.ones(1), torch.zeros(1)), ["scores"], {"scores": torch.ones(1)}),
        ([1, {"a": 5}], ["1.a"], {"1.a": 5}),
    ],
)
def test_outputs_are_named_as_what_holds_them(answer: object, names: list[str], expected: object) -> None:
    assert kept(answer, names) == expected


def test_an_output_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(CheckpointError) as caught:
        kept(Answer(scores=torch.ones(1), features=torch.ones(1)), ["cache"])
    assert "`scores`, `features`" in str(caught.value.hint)


def test_a_forward_on_the_network_itself_is_refused() -> None:
    net = Net()
    net.forward = net.forward  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="was replaced"):
        calling_(net, outputs=["scores"])


class Cache:
    """Holds tensors, and is no container that torch knows."""


class WithCache(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None, shift: Tensor | None = None) -> Any:
        answer = super().forward(x, mask, shift)
        return {"scores": answer.scores, "cache": Cache(), "more": {"hidden": answer.features, "none": None}}


def test_an_object_without_visible_tensors_is_refused_until_outputs_are_named() -> None:
    net, x = WithCache().eval(), torch.randn(2, 6)
    with pytest.raises(GroupError, match="Cache`, in which no tensors are seen") as caught:
        trace(net, (x,))
    assert "--outputs" in str(caught.value.hint)
    calling_(net, outputs=["scores"])
    assert [group.root for group in trace(net, (x,)).groups] == ["first"]
