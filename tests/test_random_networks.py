"""Networks drawn at random from the operators that couple channels: each is shrunk at a random ratio, and proved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.errors import GroupError, PlanError
from compressor.groups import trace
from compressor.input_spec import random_like
from compressor.outputs import outputs_of
from compressor.plan import ChannelBudget, Scores, plan_pruning
from compressor.proving import shrink_proved
from tests.topologies import alive

EXAMPLE = (torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1)),)
WIDTHS = (2, 4, 6, 8, 12)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu, "sigmoid": torch.sigmoid, "gelu": nn.functional.gelu, "tanh": torch.tanh,
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One operator: its kind, which earlier values it reads (0 is the input), and its numbers."""

    kind: str
    reads: tuple[int, ...]
    numbers: tuple[Any, ...] = ()


class Drawn(nn.Module):
    """The network of a list of nodes; `[batch, 3, 6, 6]` to `[batch, 4]`.

    Every value that no node reads goes through a layer of its own into the output.
    """

    def __init__(self, nodes: list[Node]) -> None:
        super().__init__()
        self.nodes, self.layers = nodes, nn.ModuleDict()
        widths = [3]
        for i, node in enumerate(nodes):
            layer = self._layer(node, widths[node.reads[0]])
            if layer is not None:
                self.layers[str(i)] = layer
            widths += _widths_after(node, widths)
        read = {r for node in nodes for r in node.reads}
        self.leaves = [i for i in range(1, len(widths)) if i not in read]
        for i in self.leaves:
            self.layers[f"out{i}"] = nn.Linear(widths[i], 4)

    def _layer(self, node: Node, width: int) -> nn.Module | None:
        match node.kind, node.numbers:
            case "conv", (out, size, groups, bias):
                return nn.Conv2d(width, out, size, padding=size // 2, groups=groups, bias=bias)
            case "depthwise", (times,):
                return nn.Conv2d(width, width * times, 3, padding=1, groups=width)
            case "linear", (out,):
                return nn.Linear(width, out)
            case "transposed", (out,):
                return nn.ConvTranspose2d(width, out, 3, padding=1)
            case "norm", ("batch",):
                return nn.BatchNorm2d(width)
            case "norm", ("layer",):
                return nn.LayerNorm(width)
            case "norm", ("group", groups):
                return nn.GroupNorm(groups, width)
            case "norm", ("instance", affine):
                return nn.InstanceNorm2d(width, affine=affine)
        return None

    def forward(self, x: Tensor) -> Tensor:
        values, layers = [x], dict(self.layers.items())
        for i, node in enumerate(self.nodes):
            values += _run(node, layers.get(str(i)), [values[r] for r in node.reads])
        return torch.stack([self.layers[f"out{i}"](values[i].mean((2, 3))) for i in self.leaves]).sum(0)


def _widths_after(node: Node, widths: list[int]) -> list[int]:
    """How many channels the values have that the node gives."""
    first = widths[node.reads[0]]
    match node.kind, node.numbers:
        case (("conv" | "linear" | "transposed"), (out, *_)):
            return [out]
        case "depthwise", (times,):
            return [first * times]
        case "cat", _:
            return [sum(widths[r] for r in node.reads)]
        case "split", (at,):
            return [at, first - at]
    return [first]


def _run(node: Node, layer: Any, given: list[Tensor]) -> list[Tensor]:
    x = given[0]
    match node.kind, node.numbers:
        case (("conv" | "depthwise" | "transposed"), _):
            return [layer(x)]
        case "linear", _:
            return [layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)]
        case "norm", ("layer",):
            return [layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)]
        case "norm", _:
            return [layer(x)]
        case "act", (which,):
            return [ACTIVATIONS[which](x)]
        case "pool", (which,):
            pool = nn.functional.max_pool2d if which == "max" else nn.functional.avg_pool2d
            return [pool(x, 3, stride=1, padding=1)]
        case "add", _:
            return [x + given[1]]
        case "cat", _:
            return [torch.cat(given, dim=1)]
        case "split", (at,):
            return list(x.split([at, x.shape[1] - at], dim=1))
        case "shuffle", (groups,):
            batch, channels, height, width = x.shape
            x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2)
            return [x.reshape(batch, channels, height, width)]
        case "gate", ("mean",):
            return [x * torch.sigmoid(x.mean(1, keepdim=True))]
        case "gate", ("soft",):
            return [x * x.mean((2, 3), keepdim=True).softmax(1)]
    raise AssertionError(node)


KINDS = ("conv", "conv", "conv", "depthwise", "linear", "transposed", "norm", "act", "pool", "add", "cat", "split",
         "shuffle", "gate")  # fmt: skip


def _divisors(*widths: int) -> list[int]:
    return [n for n in range(1, min(widths) + 1) if all(w % n == 0 for w in widths)]


@st.composite
def nodes(draw: Callable[..., Any]) -> list[Node]:
    """A layer on the input, and up to nine nodes on what is there by then."""
    width = draw(st.sampled_from(WIDTHS))
    found, widths = [Node("conv", (0,), (width, 1, 1, True))], [3, width]
    for _ in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(KINDS))
        read = draw(st.integers(max(1, len(widths) - 4), len(widths) - 1))
        here = widths[read]
        node = None
        if kind == "conv":
            out = draw(st.sampled_from(WIDTHS))
            groups = draw(st.sampled_from([1, *_divisors(here, out)]))
            node = Node(kind, (read,), (out, draw(st.sampled_from([1, 3])), groups, draw(st.booleans())))
        elif kind == "depthwise":
            node = Node(kind, (read,), (draw(st.sampled_from([1, 1, 2])),))
        elif kind in ("linear", "transposed"):
            node = Node(kind, (read,), (draw(st.sampled_from(WIDTHS)),))
        elif kind == "norm":
            groups = draw(st.sampled_from(_divisors(here)))
            norms = [("batch",), ("layer",), ("group", groups), ("instance", True), ("instance", False)]
            node = Node(kind, (read,), draw(st.sampled_from(norms)))
        elif kind == "act":
            node = Node(kind, (read,), (draw(st.sampled_from(list(ACTIVATIONS))),))
        elif kind == "pool":
            node = Node(kind, (read,), (draw(st.sampled_from(["max", "avg"])),))
        elif kind == "add":
            alike = [i for i in range(1, len(widths)) if widths[i] == here]
            node = Node(kind, (read, draw(st.sampled_from(alike))))
        elif kind == "cat":
            node = Node(kind, (read, draw(st.integers(1, len(widths) - 1))))
        elif kind == "split" and here > 1:
            node = Node(kind, (read,), (draw(st.integers(1, here - 1)),))
        elif kind == "shuffle":
            node = Node(kind, (read,), (draw(st.sampled_from(_divisors(here))),))
        elif kind == "gate":
            node = Node(kind, (read,), (draw(st.sampled_from(["mean", "soft"])),))
        if node is not None and sum(_widths_after(node, widths)) <= 32:
            found.append(node)
            widths += _widths_after(node, widths)
    return found


def check(drawn: list[Node], ratio: float, heads: bool, seed: int) -> None:
    """Shrink and prove; the small network has fewer parameters and runs in training mode too."""
    module = alive(Drawn(drawn), seed=seed)
    try:
        traced = trace(module, EXAMPLE, heads=heads)
    except GroupError as error:
        assert "nothing in this network can be pruned" in str(error)  # noqa: PT017  # its channels are all held
        event("nothing can be pruned")
        return
    note(str([(g.root, g.channels, g.size, g.layers) for g in traced.groups]))
    generator = torch.Generator().manual_seed(seed)
    by_root = {g.root: torch.rand(g.channels, generator=generator, dtype=torch.float64) for g in traced.groups}
    try:
        plan = plan_pruning(traced.groups, Scores(by_root=by_root, comparable=True), budget=ChannelBudget(ratio=ratio))
    except PlanError:
        event("nothing would be removed")
        return
    note(str(plan))
    small, surgery, proof = shrink_proved(module, traced, plan, EXAMPLE)
    event("a program" if surgery.program is not None else "its own class")
    assert proof.dtype is torch.float64
    assert proof.largest_relative_difference <= 1e-10
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters())
    small.train()
    assert outputs_of(small, random_like(EXAMPLE, batch=4))[0].shape == (4, 4)


SMALL = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


@settings(max_examples=25, **SMALL)  # type: ignore[arg-type]
@given(nodes(), st.floats(0.2, 0.9), st.booleans(), st.integers(0, 99))
def test_random_graphs_are_proved(drawn: list[Node], ratio: float, heads: bool, seed: int) -> None:
    check(drawn, ratio, heads, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=1000, **SMALL)  # type: ignore[arg-type]
@given(nodes(), st.floats(0.2, 0.9), st.booleans(), st.integers(0, 99))
def test_a_thousand_random_graphs_are_proved(drawn: list[Node], ratio: float, heads: bool, seed: int) -> None:
    check(drawn, ratio, heads, seed)
