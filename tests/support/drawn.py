"""Networks drawn at random: layers that couple channels, and the ways in which people write them down.

A `Spec` is plain values, so that hypothesis shrinks it; `Drawn` is its network. `features` names what is in one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

T = TypeVar("T")
SIDE, VOCABULARY, VECTOR, CLASSES = 6, 20, 5, 4
WIDTHS = (2, 4, 6, 8, 12)
MOST = 32  # channels of a value
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu, "sigmoid": torch.sigmoid, "gelu": functional.gelu, "tanh": torch.tanh, "silu": functional.silu,
}  # fmt: skip
NORMS = ("batch", "layer", "group", "instance", "rms")
WRITTEN = ("closure", "partial", "bound method", "hook", "changing hook", "pre-hook", "shared", "two names")
KINDS = (
    "conv", "conv", "grouped", "depthwise", "transposed", "linear", "flattened", "attention", "split attention",
    *(f"{norm} norm" for norm in NORMS), "activation", "pool", "residual", "cat", "split", "chunk", "shuffle",
    "transpose", "mean gate", "soft gate", "squeezed gate", "branch gate", "logic", "where", "reduction", "arange",
    "channel arange", "cast", *WRITTEN,
)  # fmt: skip
SOURCES = ("floats", "floats", "tokens")
SECONDS = ("none", "none", "map", "vector", "tokens")
OUTPUTS = ("tensor", "tensor", "dict", "tuple", "nested")


@dataclass(frozen=True)
class Node:
    """One operator: its kind, which earlier values it reads, and its numbers."""

    kind: str
    reads: tuple[int, ...]
    numbers: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A network: its inputs, its nodes, what it returns, and how many dimensions its values have beside channels."""

    nodes: tuple[Node, ...]
    stems: tuple[int, ...]  # the width that each input gets
    source: str = "floats"
    second: str = "none"
    output: str = "tensor"
    space: int = 2
    length: bool = False  # whether its code asks a tensor for its `len`, and not for its `shape`

    @property
    def features(self) -> frozenset[str]:
        """What is in it, by name."""
        found = {node.kind for node in self.nodes} | {f"{self.output} output", f"{self.space}-D"}
        if "tokens" in (self.source, self.second):
            found.add("integer input")
        if self.length:
            found.add("batch by len()")
        return frozenset(found | ({"two inputs"} if self.second != "none" else set()))

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Random inputs; every batch size has its own."""
        generator = torch.Generator().manual_seed(batch)
        size = [SIDE] * self.space
        made = []
        for kind in (self.source, *([self.second] if self.second != "none" else [])):
            if kind == "tokens":
                made.append(torch.randint(VOCABULARY, (batch, SIDE), generator=generator))
            elif kind == "vector":
                made.append(torch.randn(batch, VECTOR, generator=generator))
            else:
                made.append(torch.randn(batch, 3, *size, generator=generator))
        return tuple(made)


# Drawing


class Dice(Protocol):
    """What draws: hypothesis, which shrinks, or a seed, whose draws do not lean on each other."""

    def one_of(self, choices: Sequence[T]) -> T:
        """Any of them."""

    def between(self, low: int, high: int) -> int:
        """A whole number; both ends count."""

    def flip(self) -> bool:
        """A coin."""


class Seeded:
    """Dice of a seed."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(str(seed))
        self.one_of, self.between = self._random.choice, self._random.randint

    def flip(self) -> bool:
        """A coin."""
        return self._random.random() < 0.5


class _Drawing:
    def __init__(self, draw: Callable[..., Any]) -> None:
        self._draw = draw

    def one_of(self, choices: Sequence[T]) -> T:
        found: T = self._draw(st.sampled_from(choices))
        return found

    def between(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))

    def flip(self) -> bool:
        return bool(self._draw(st.booleans()))


def without(spec: Spec, at: int) -> Spec:
    """The spec without a node; what read it reads what it read, which may be of another width and make no network."""
    widths, moved = list(spec.stems), {i: i for i in range(len(spec.stems))}
    nodes = []
    for i, node in enumerate(spec.nodes):
        first, count = len(widths), len(widths_after(node, widths))
        widths += widths_after(node, widths)
        if i == at:
            moved |= dict.fromkeys(range(first, first + count), moved[node.reads[0]])
        else:
            here = first - (at < i) * (max(moved) + 1 - len(set(moved.values())))
            moved |= {first + k: here + k for k in range(count)}
            nodes.append(dataclasses.replace(node, reads=tuple(moved[r] for r in node.reads)))
    return dataclasses.replace(spec, nodes=tuple(nodes))


def without_second(spec: Spec) -> Spec:
    """The spec without its second input; what read that reads the first one."""
    nodes = [dataclasses.replace(n, reads=tuple(max(0, r - 1) for r in n.reads)) for n in spec.nodes]
    return dataclasses.replace(spec, second="none", stems=spec.stems[:1], nodes=tuple(nodes))


@st.composite
def specs(draw: Callable[..., Any]) -> Spec:
    """Specs that hypothesis draws."""
    return spec_by(_Drawing(draw))


def spec_by(dice: Dice) -> Spec:
    """Two layers in a row, so that something can leave, and four to eleven nodes on what is there by then."""
    source, second = dice.one_of(SOURCES), dice.one_of(SECONDS)
    space = 1 if source == "tokens" else dice.one_of((1, 2))
    stems = tuple(dice.one_of(WIDTHS[1:]) for _ in range(1 + (second != "none")))
    widths = list(stems)
    found: list[Node] = []

    def add(node: Node) -> None:
        after = widths_after(node, widths)
        if sum(after) <= MOST:
            found.append(node)
            widths.extend(after)

    add(Node("conv", (0,), (dice.one_of(WIDTHS[1:]), 3)))
    add(Node("activation", (len(widths) - 1,), ("relu",)))
    add(Node("conv", (len(widths) - 1,), (dice.one_of(WIDTHS), 1)))
    for _ in range(dice.between(4, 11)):
        kind = dice.one_of(KINDS)
        read = dice.between(max(0, len(widths) - 4), len(widths) - 1)
        node = _node(dice, kind, read, widths)
        if node is not None:
            add(node)
    return Spec(
        nodes=tuple(found),
        stems=stems,
        source=source,
        second=second,
        output=dice.one_of(OUTPUTS),
        space=space,
        length=dice.between(1, 8) == 1,
    )


def _node(dice: Dice, kind: str, read: int, widths: Sequence[int]) -> Node | None:
    here = widths[read]
    match kind:
        case "conv":
            return Node(kind, (read,), (dice.one_of(WIDTHS), dice.one_of((1, 3))))
        case "grouped":
            out = dice.one_of([w for w in WIDTHS if math.gcd(w, here) > 1] or [here])
            return Node(kind, (read,), (out, dice.one_of(divisors(here, out)[-2:])))
        case "depthwise":
            return Node(kind, (read,), (dice.one_of((1, 1, 2)),))
        case "transposed" | "linear" | "flattened" | "closure" | "partial" | "bound method" | "hook" | "pre-hook":
            return Node(kind, (read,), (dice.one_of(WIDTHS),))
        case "attention" | "split attention":
            heads = dice.one_of(divisors(here)[:2])
            return Node(kind, (read,), (heads, dice.one_of((2, 3))))
        case "group norm" | "shuffle" | "reduction":
            return Node(kind, (read,), (dice.one_of(divisors(here)), dice.between(0, 3)))
        case "instance norm":
            return Node(kind, (read,), (dice.flip(),))
        case "activation":
            return Node(kind, (read,), (dice.one_of(sorted(ACTIVATIONS)),))
        case "pool":
            return Node(kind, (read,), (dice.one_of(("max", "avg")),))
        case "residual" | "branch gate":
            alike = [i for i in range(len(widths)) if widths[i] == here]
            return Node(kind, (read, dice.one_of(alike)))
        case "cat":
            return Node(kind, (read, dice.between(0, len(widths) - 1)))
        case "split":
            return Node(kind, (read,), (dice.between(1, here - 1),)) if here > 1 else None
        case "chunk":
            return Node(kind, (read,)) if here % 2 == 0 else None
    return Node(kind, (read,), (here,))


def divisors(*widths: int) -> list[int]:
    """What divides all of them."""
    return [n for n in range(1, min(widths) + 1) if all(w % n == 0 for w in widths)]


def widths_after(node: Node, widths: Sequence[int]) -> list[int]:
    """How many channels the values have that the node gives."""
    first = widths[node.reads[0]]
    match node.kind, node.numbers:
        case (
            (
                "conv"
                | "grouped"
                | "transposed"
                | "linear"
                | "flattened"
                | "closure"
                | "partial"
                | "bound method"
                | "pre-hook"
            ),
            (out, *_),
        ):
            return [out]
        case "hook", (out,):
            return [out, out]  # what it returns, and what was seen
        case "depthwise", (times,):
            return [first * times]
        case "cat", _:
            return [sum(widths[r] for r in node.reads)]
        case "split", (at,):
            return [at, first - at]
        case "chunk", _:
            return [first // 2, first // 2]
    return [first]


# Building


def scaled(layer: nn.Module, x: Tensor, *, by: float) -> Tensor:
    """A function that people bind by `functools.partial`."""
    found: Tensor = layer(x) * by
    return found


class Holder:
    """Plain object that keeps a layer, and whose method is the network's step."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def run(self, x: Tensor) -> Tensor:
        """The layer, and an activation."""
        return torch.tanh(self.layer(x))


class Drawn(nn.Module):
    """The network of a spec; every value that no node reads goes through a layer of its own into the output."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec, self.layers, self.seen = spec, nn.ModuleDict(), {}
        for i, (kind, width) in enumerate(zip((spec.source, spec.second), spec.stems, strict=False)):
            self.layers[f"stem{i}"] = self._stem(kind, width)
        widths = list(spec.stems)
        for i, node in enumerate(spec.nodes):
            layer = self._layer(node, widths[node.reads[0]])
            if layer is not None:
                self.layers[f"n{i}"] = layer
                self._write_down(node.kind, i, layer)
            widths += widths_after(node, widths)
        read = {r for node in spec.nodes for r in node.reads}
        self.leaves = [i for i in range(len(widths)) if i not in read]
        for i in self.leaves:
            self.layers[f"out{i}"] = nn.Linear(widths[i], CLASSES)

    def _stem(self, kind: str, width: int) -> nn.Module:
        if kind == "tokens":
            return nn.Embedding(VOCABULARY, width)
        return nn.Linear(VECTOR, width) if kind == "vector" else self._of("Conv")(3, width, 1)

    def _of(self, name: str) -> Any:
        return getattr(nn, f"{name}{self.spec.space}d")

    def _layer(self, node: Node, width: int) -> nn.Module | None:
        match node.kind, node.numbers:
            case "conv", (out, size):
                return self._of("Conv")(width, out, size, padding=size // 2)
            case "grouped", (out, groups):
                return self._of("Conv")(width, out, 3, padding=1, groups=groups)
            case "depthwise", (times,):
                return self._of("Conv")(width, width * times, 3, padding=1, groups=width)
            case "transposed", (out,):
                return self._of("ConvTranspose")(width, out, 3, padding=1)
            case "linear", (out,):
                return nn.Linear(width, out)
            case "flattened", (out,):
                return nn.Linear(width * SIDE**self.spec.space, out)
            case "attention", (heads, _):
                return nn.MultiheadAttention(width, heads, batch_first=True)
            case "split attention", (heads, size):
                return nn.ModuleList((nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)))
            case "batch norm", _:
                return self._of("BatchNorm")(width)
            case "layer norm", _:
                return nn.LayerNorm(width)
            case "rms norm", _:
                return nn.RMSNorm(width)
            case "group norm", (groups, _):
                return nn.GroupNorm(groups, width)
            case "instance norm", (affine,):
                return self._of("InstanceNorm")(width, affine=affine)
            case "squeezed gate", _:
                return nn.Sequential(nn.Linear(width, 3), nn.ReLU(), nn.Linear(3, width), nn.Sigmoid())
            case (("shared" | "two names" | "changing hook"), _):
                return self._of("Conv")(width, width, 3, padding=1)
            case (("closure" | "partial" | "bound method" | "hook" | "pre-hook"), (out,)):
                return self._of("Conv")(width, out, 3, padding=1)
        return None

    def _write_down(self, kind: str, i: int, layer: Any) -> None:
        """The ways in which a layer is reached, or changed, from outside of its module."""
        match kind:
            case "closure":
                setattr(self, f"step{i}", lambda z: torch.relu(layer(z)))
            case "partial":
                setattr(self, f"step{i}", functools.partial(scaled, layer, by=0.5))
            case "bound method":
                setattr(self, f"step{i}", Holder(layer).run)
            case "two names":
                setattr(self, f"other{i}", layer)
            case "hook":
                layer.register_forward_hook(lambda _m, _x, y: self.seen.__setitem__(i, torch.sigmoid(y)))
            case "changing hook":
                layer.register_forward_hook(lambda _m, x, y: y * torch.sigmoid(x[0]))
            case "pre-hook":
                layer.register_forward_pre_hook(lambda _m, x: (torch.tanh(x[0]),))

    def forward(self, x: Tensor, second: Tensor | None = None) -> Any:
        """All values in order, then what no node reads."""
        layers = dict(self.layers.items())
        values = [self._entered(layers["stem0"], x)]
        if second is not None:
            values.append(self._entered(layers["stem1"], second))
        for i, node in enumerate(self.spec.nodes):
            values += self._run(i, node, layers.get(f"n{i}"), [values[r] for r in node.reads])
        leaves = [layers[f"out{i}"](values[i].flatten(2).mean(2)) for i in self.leaves]
        scores = torch.stack(leaves).sum(0)
        match self.spec.output:
            case "dict":
                return {"logits": scores, "first": leaves[0]}
            case "tuple":
                return scores, leaves[0]
            case "nested":
                return {"logits": scores, "others": (leaves[0], [leaves[-1]])}
        return scores

    def _batch(self, x: Tensor) -> int:
        return len(x) if self.spec.length else x.shape[0]

    def _entered(self, stem: nn.Module, x: Tensor) -> Tensor:
        """`[batch, width, *space]` of whatever came in."""
        if not x.is_floating_point():
            found = stem(x).transpose(1, 2)  # [batch, width, SIDE]
            return found if self.spec.space == 1 else found.unsqueeze(2).expand(-1, -1, SIDE, -1)
        if x.ndim == 2:
            return stem(x).view(self._batch(x), -1, *[1] * self.spec.space).expand(-1, -1, *[SIDE] * self.spec.space)
        entered: Tensor = stem(x)
        return entered

    def _run(self, i: int, node: Node, layer: Any, given: list[Tensor]) -> list[Tensor]:
        x = given[0]
        match node.kind:
            case "conv" | "grouped" | "depthwise" | "transposed" | "batch norm" | "group norm" | "instance norm":
                return [layer(x)]
            case "changing hook" | "pre-hook":
                return [layer(x)]
            case "linear" | "layer norm" | "rms norm":
                return [layer(x.movedim(1, -1)).movedim(-1, 1)]
            case "closure" | "partial" | "bound method":
                return [getattr(self, f"step{i}")(x)]
            case "hook":
                returned = layer(x)
                return [returned, self.seen[i]]
            case "shared":
                return [layer(torch.relu(layer(x)))]
            case "two names":
                return [getattr(self, f"other{i}")(x) + layer(torch.tanh(x))]
            case "flattened":
                flat = layer(x.flatten(1))
                return [flat.view(*flat.shape, *[1] * self.spec.space).expand(-1, -1, *x.shape[2:])]
            case "attention":
                tokens = x.flatten(2).transpose(1, 2)
                return [(tokens + layer(tokens, tokens, tokens)[0]).transpose(1, 2).reshape(x.shape)]
            case "split attention":
                return [_attention(x, layer, *node.numbers, batch=self._batch(x))]
            case "squeezed gate":
                return [x * layer(x.flatten(2).mean(2)).view(*x.shape[:2], *[1] * self.spec.space)]
        return _plain(node, given, batch=self._batch(x))


def _attention(x: Tensor, layer: Any, heads: int, size: int, *, batch: int) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    qkv = layer[0](tokens).reshape(batch, -1, 3, heads, size).permute(2, 0, 3, 1, 4)
    seen = functional.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).flatten(2)
    found: Tensor = (tokens + layer[1](seen)).transpose(1, 2).reshape(x.shape)
    return found


def _plain(node: Node, given: list[Tensor], *, batch: int) -> list[Tensor]:
    """The nodes without layers."""
    x, over = given[0], tuple(range(2, given[0].ndim))
    match node.kind, node.numbers:
        case "activation", (which,):
            return [ACTIVATIONS[which](x)]
        case "pool", (which,):
            pool = getattr(functional, f"{which}_pool{x.ndim - 2}d")
            return [pool(x, 3, stride=1, padding=1)]
        case "residual", _:
            return [x + given[1]]
        case "branch gate", _:
            return [x * torch.sigmoid(given[1])]
        case "cat", _:
            return [torch.cat(given, dim=1)]
        case "split", (at,):
            return list(x.split([at, x.shape[1] - at], dim=1))
        case "chunk", _:
            return list(x.chunk(2, dim=1))
        case "shuffle", (groups, _):
            return [x.view(batch, groups, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)]
        case "transpose", _:
            return [x.transpose(2, 3) if x.ndim == 4 else x.transpose(1, 2).flip(1).transpose(1, 2)]
        case "mean gate", _:
            return [x * torch.sigmoid(x.mean(1, keepdim=True))]
        case "soft gate", _:
            return [x * x.mean(over, keepdim=True).softmax(1)]
        case "logic", _:
            return [x * ((x > -0.5) & (x < 0.5))]
        case "where", _:
            return [torch.where(x > 0, x, 0.1 * x).clamp(max=1.5).masked_fill(x < -1, 0.0)]
        case "reduction", (_, which):
            return [_reduced(x, which)]
        case "arange", _:
            return [x + torch.arange(x.shape[-1], dtype=x.dtype) / x.shape[-1]]
        case "channel arange", (channels,):
            angle = torch.arange(channels, dtype=x.dtype).view(-1, *[1] * len(over))
            return [x + torch.sin(angle)]
        case "cast", _:
            y = x.float()
            return [(y / (1 + y.abs().mean(over, keepdim=True))).to(x.dtype)]
    raise AssertionError(node)


def _reduced(x: Tensor, which: int) -> Tensor:
    match which:
        case 0:
            return x - x.mean(1, keepdim=True)
        case 1:
            return x / (1 + x.abs().amax(1, keepdim=True))
        case 2:
            return x / (1 + x.square().sum(1, keepdim=True).sqrt())
    return x - x.amax(tuple(range(2, x.ndim)), keepdim=True)
