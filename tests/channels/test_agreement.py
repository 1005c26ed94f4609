"""The traced program is compared with the user's module: what differs is refused, and what agrees passes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from compressor.channels.agreement import check_agreement, traced_program
from compressor.channels.groups import trace
from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.inputs import example_inputs
from compressor.errors import GroupError
from compressor.graph.exported_program import Exported, exported
from compressor.graph.outputs import outputs_of
from tests.support.follows import FOLLOWED, KEPT, REFUSED, Base, Hooked
from tests.support.topologies import INPUT, TOPOLOGIES, WAYS, alive
from tests.support.versions import refusal_of_kept_features

EXAMPLE = (torch.randn(INPUT, generator=torch.Generator().manual_seed(1)),)


def _node(graph: Exported, operator: str, number: int = 0) -> fx.Node:
    return [n for n in graph.graph.nodes if str(n.target).startswith(f"aten.{operator}")][number]


def _another_operator(graph: Exported) -> None:
    _node(graph, "relu").target = torch.ops.aten.sigmoid.default


def _frozen(graph: Exported) -> None:
    """As an exporter does it that does not see where a value comes from."""
    relu = _node(graph, "relu", 1)
    placeholder = next(n for n in graph.graph.nodes if n.op == "placeholder" and n.name in graph.tensors)
    with graph.graph.inserting_before(placeholder):
        constant = graph.graph.placeholder("lifted_tensor_0")
    graph.constants[constant.name] = torch.full((1, 12, 1, 1), 0.3)
    relu.replace_all_uses_with(constant)


def _another_weight(graph: Exported) -> None:
    names = [n for n, (name, _) in graph.tensors.items() if name in ("a.bias", "c.bias")]
    graph.tensors[names[0]], graph.tensors[names[1]] = graph.tensors[names[1]], graph.tensors[names[0]]


def _another_number(graph: Exported) -> None:
    mean = _node(graph, "mean")
    mean.args = (mean.args[0], [2, 2 + 1], True)


def _slightly_more(graph: Exported) -> None:
    linear = _node(graph, "linear")
    with graph.graph.inserting_after(linear):
        more = graph.graph.call_function(torch.ops.aten.mul.Tensor, (linear, 1.001))
    linear.replace_all_uses_with(more)
    more.args = (linear, 1.001)
    graph.outputs = (more,)


class Wide(Base):
    """Two convolutions of the same width."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(12, 16, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.ended(self.c(self.b(self.a(x).relu()).relu()))


CORRUPTIONS: dict[str, tuple[Callable[[Exported], None], str]] = {
    "another operator": (_another_operator, "layer `b`"),
    "a frozen value": (_frozen, "differ"),
    "another weight": (_another_weight, "layer `a`"),
    "another shape": (_another_number, "the network runs, but the program raises"),
    "a thousandth more": (_slightly_more, "output 0"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_program_that_is_another_network_is_refused(name: str) -> None:
    corrupt, says = CORRUPTIONS[name]
    module = alive(Wide())
    graph = exported(module, EXAMPLE)
    check_agreement(graph, module, EXAMPLE)
    corrupt(graph)
    with pytest.raises(GroupError, match="the traced program is not this network") as refusal:
        check_agreement(graph, module, EXAMPLE)
    assert says in str(refusal.value)


def test_a_layer_that_differs_where_outputs_hide_it_is_refused() -> None:
    class Hides(Base):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.ended(self.b(torch.zeros_like(y) * self.a(-x) + y).relu())

    module = alive(Hides())
    graph = exported(module, EXAMPLE)
    _node(graph, "neg").target = torch.ops.aten.abs.default
    with pytest.raises(GroupError, match="layer `a`"):
        check_agreement(graph, module, EXAMPLE)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_with_a_reason(name: str) -> None:
    make, says = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(GroupError, match=says):
        trace(alive(make()), EXAMPLE)


@pytest.mark.parametrize("name", KEPT)
def test_features_that_hooks_keep_are_followed_or_refused(name: str) -> None:
    with refusal_of_kept_features():
        assert trace(alive(KEPT[name]()), EXAMPLE).groups


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("The tensor attribute self.seen['a'] was assigned during export. Such attributes must …", "`self.seen['a']`"),
        ("The tensor attributes self.one, self.other were assigned during export. Such …", "`self.one`"),
        ("Node arity mismatch; expected 2, but got 0.", "tensors in a list or dict"),
    ],
)
def test_what_torch_2_9_says_of_kept_features_is_explained(
    message: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object, **__: object) -> None:
        raise ValueError(message)

    monkeypatch.setattr(torch.export, "export", refusing)
    with pytest.raises(GroupError, match=f"keeps {re.escape(named)} beside its buffers") as refusal:
        exported(alive(Wide()), EXAMPLE)
    assert "update torch" in str(refusal.value.hint)


def test_the_refusal_names_what_follows_the_input() -> None:
    make, _ = REFUSED["Registered"]
    torch.manual_seed(0)
    module = alive(make())
    outputs_of(module, EXAMPLE)
    with pytest.raises(GroupError, match=r"`seen\['a'\]` follows the input in the network, and is a constant"):
        trace(module, EXAMPLE)


@pytest.mark.parametrize("name", [*TOPOLOGIES, *WAYS, *FOLLOWED])
def test_a_program_that_is_the_network_passes(name: str) -> None:
    torch.manual_seed(0)
    module = alive({**TOPOLOGIES, **WAYS, **FOLLOWED}[name]())
    graph = traced_program(module, EXAMPLE)
    assert len(graph.outputs) == len(outputs_of(module, EXAMPLE))
    assert {name for name, _ in graph.tensors.values()} >= {name for name, _ in module.named_parameters()}


def test_the_module_is_left_as_it_was() -> None:
    module = alive(Hooked())
    module.register_buffer("calls", torch.zeros(1))
    module.a.register_forward_hook(lambda *_: (module.calls.add_(1), None)[1])
    with refusal_of_kept_features():
        traced_program(module, EXAMPLE)
    assert not module.seen
    assert not module.calls.any()
    assert "train" not in module.__dict__
    assert sum(len(m._forward_hooks) for m in module.modules()) == 2


def test_a_network_in_which_rounding_grows_passes() -> None:
    class Chaotic(Base):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).sigmoid()
            for _ in range(14):  # the logistic map doubles an error at each step
                y = 3.99 * y * (1 - y)
            return self.ended(self.b(y.float()))

    module = alive(Chaotic())
    graph = exported(module, EXAMPLE)
    sigmoid = _node(graph, "sigmoid")
    with graph.graph.inserting_after(sigmoid):
        more = graph.graph.call_function(torch.ops.aten.mul.Tensor, (sigmoid, 1 + 2**-22))
    sigmoid.replace_all_uses_with(more)
    more.args = (sigmoid, 1 + 2**-22)
    with pytest.raises(GroupError):  # no rounding of float64
        check_agreement(graph, module, EXAMPLE)
    more.args = (sigmoid, 1 + 2**-51)
    check_agreement(graph, module, EXAMPLE)


@pytest.mark.parametrize("name", ["FirstFeature", "PreviousFeature", "CountsOwn"])
def test_a_shape_is_tried_without_a_trace(name: str) -> None:
    """What a first pass keeps on the network would be of the shape that was tried, and look like a constant."""
    module = alive(REFUSED[name][0]())
    found = example_inputs(
        module, inputs=["x".join(map(str, INPUT))], stored=None, architecture=Architecture(ref="made")
    )
    with pytest.raises(GroupError):
        trace(module, found.tensors)
