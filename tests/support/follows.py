"""Tiny networks that reach their layers by other paths than names; all map `[batch, 3, 12, 12]` to `[batch, 5]`."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.versions import KEPT_FEATURES_ARE_REFUSED


class Base(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.ended(self.b(self.a(x).relu()))

    def ended(self, x: Tensor) -> Tensor:
        return self.head(x.relu().mean((2, 3)))


class Hooked(Base):
    """A forward hook closes over the network, and keeps a feature that is read later."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}
        self.skip = nn.Conv2d(16, 12, 1)
        self.a.register_forward_hook(lambda _, __, output: self.seen.__setitem__("a", output))

    def forward(self, x: Tensor) -> Tensor:
        return self.ended(self.b(self.a(x).relu()) + self.skip(self.seen["a"]))


class HookList(Base):
    """Hooks of two children write into a list on the parent, which a third layer reads."""

    def __init__(self) -> None:
        super().__init__()
        features: list[Tensor] = []
        self.features, self.join = features, nn.Conv2d(28, 12, 1)
        for layer in (self.a, self.b):
            layer.register_forward_hook(lambda _, __, output: features.append(output))

    def forward(self, x: Tensor) -> Tensor:
        self.features.clear()
        self.b(self.a(x).relu())
        return self.ended(self.join(torch.cat(self.features, 1)))


class HookReplaces(Base):
    """A forward hook gives another output."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(16, 16, 1)
        self.a.register_forward_hook(lambda _, __, output: output * self.gate(output).sigmoid())


class PreHook(Base):
    """A forward pre-hook gives another input."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(16, 16, 1)
        self.b.register_forward_pre_hook(lambda _, given: (given[0] + self.before(given[0]),))


class Lambda(Base):
    """A function kept on the instance."""

    def __init__(self) -> None:
        super().__init__()
        self.step = lambda z: self.b(z).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.ended(self.step(self.a(x).relu()))


class LambdaInDict(Base):
    """Functions in a dict of lists, one within another, over a layer and its weight."""

    def __init__(self) -> None:
        super().__init__()
        a, weight = self.a, self.b.weight
        self.steps = {"first": [lambda x: (lambda y: a(y).relu())(x)], "then": [lambda x: self.convolved(x, weight)]}

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.conv2d(x, weight, self.b.bias, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.ended(self.steps["then"][0](self.steps["first"][0](x)))


class Partial(Base):
    """A partial of a bound method."""

    def __init__(self) -> None:
        super().__init__()
        self.step = functools.partial(self.scaled, scale=2.0)

    def scaled(self, x: Tensor, *, scale: float) -> Tensor:
        return self.b(x) * scale

    def forward(self, x: Tensor) -> Tensor:
        return self.ended(self.step(self.a(x).relu()))


class Bound(Base):
    """Methods bound and stored: one of its own, one of a layer; and a `forward` put on a layer afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = self.a.forward, self.ended
        self.b.forward = types.MethodType(lambda layer, x: nn.Conv2d.forward(layer, x).tanh(), self.b)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.b(self.first(x).relu()))


class PlainList(Base):
    """Layers in a plain list beside their registration."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [self.a, self.b]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x).relu()
        return self.ended(x)


class WeightInList(Base):
    """A weight in a plain list, used again the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = [self.b.weight]

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = x + nn.functional.conv_transpose2d(self.b(x).relu(), self.weights[0], padding=1)
        return self.ended(self.b(x))


class Property(Base):
    """A weight that is read through a property of the parent."""

    @property
    def kernel(self) -> Tensor:
        return self.b.weight * 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.ended(nn.functional.conv2d(self.a(x).relu(), self.kernel, padding=1))


class TwoNames(nn.Module):
    """A batch norm reached by two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), self.norm, nn.ReLU(), nn.Conv2d(16, 12, 3))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().mean((2, 3)))


class TwoNamesShuffled(TwoNames):
    """The same, with widths frozen in the code: it comes back as a program."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.body[:3](x)
        x = x.view(x.shape[0], 2, 8, *x.shape[2:]).transpose(1, 2).reshape(x.shape[0], 16, *x.shape[2:])
        return self.head(self.body[3](x).relu().mean((2, 3)))


class Table(Base):
    """A table that the first pass makes and keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(-1, 1, 16).view(1, 16, 1, 1)
        return self.ended(self.b((self.a(x) + self.table).relu()))


SETTINGS = types.ModuleType("settings")
SETTINGS.__dict__["scale"] = 0.5


class HoldsModule(Base):
    """Keeps a Python module, its settings, as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.settings: Any = SETTINGS

    def forward(self, x: Tensor) -> Tensor:
        return self.ended(self.b(self.a(x).relu() * self.settings.scale))


KEPT: dict[str, Callable[[], nn.Module]] = {kind.__name__: kind for kind in (Hooked, HookList)}  # features, by hooks
FOLLOWED: dict[str, Callable[[], nn.Module]] = ({} if KEPT_FEATURES_ARE_REFUSED else KEPT) | {
    kind.__name__: kind
    for kind in (HookReplaces, PreHook, Lambda, LambdaInDict, Partial, Bound, PlainList, WeightInList,
                 Property, TwoNames, TwoNamesShuffled, Table, HoldsModule)
}  # fmt: skip


class Registered(Base):
    """A hook finds the network by a list of the Python module, so that a copy's hook writes into the original."""

    networks: list[Registered] = []  # noqa: RUF012  # a class's own list is what this is about

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {"a": torch.zeros(1)}
        self.skip = nn.Conv2d(16, 12, 1)
        self.networks.append(self)
        number = len(self.networks) - 1
        self.a.register_forward_hook(lambda _, __, output: Registered.networks[number].seen.__setitem__("a", output))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        seen = self.seen["a"]
        return self.ended(y + self.skip(seen) if seen.ndim == 4 else y)


class RegisteredWeight(Base):
    """A function finds a weight by a list of the Python module."""

    weights: list[Tensor] = []  # noqa: RUF012  # as above

    def __init__(self) -> None:
        super().__init__()
        self.weights.append(self.b.weight)
        self.number = len(self.weights) - 1

    def forward(self, x: Tensor) -> Tensor:
        weight = RegisteredWeight.weights[self.number]
        return self.ended(nn.functional.conv2d(self.a(x).relu(), weight, padding=1))


class FirstFeature(Base):
    """Keeps a feature of the first input for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.first: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.first is None:
            self.first = y.mean((0, 2, 3)).detach().view(1, -1, 1, 1)
        return self.ended(self.b(y * self.first))


class PreviousFeature(Base):
    """Adds what it computed on the input before."""

    def __init__(self) -> None:
        super().__init__()
        self.before = torch.zeros(1, 16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        before, self.before = self.before, y.mean((0, 2, 3)).view(1, -1, 1, 1)
        return self.ended(self.b(y + before))


class Counts(Base):
    """Its class counts calls, and every second one is another."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counts.calls += 1
        return self.ended(self.b(self.a(x).relu()) * (1 + Counts.calls % 2))


class CountsOwn(Base):
    """The first call is another one than all that follow."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.ended(self.b(self.a(x).relu()) * (1 if self.calls > 1 else 2))


class PartOfWeight(Base):
    """Takes a part of a weight once and for all."""

    def __init__(self) -> None:
        super().__init__()
        self.part = self.b.weight.detach()[:, :8]

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.ended(self.b(y) + nn.functional.conv2d(y[:, :8], self.part, padding=1))


class OfTheExample(Base):
    """Code that reads a value freezes it: the program has the example's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.ended(self.b(self.a(x).relu()) * float(x.detach().abs().max().numpy()))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {  # network, and what the refusal says
    "Registered": (Registered, "not this network"),
    "RegisteredWeight": (RegisteredWeight, "reads `b.weight` in a way that a copy of it does not follow"),
    "FirstFeature": (FirstFeature, "not this network"),
    "PreviousFeature": (PreviousFeature, "beside its buf" if KEPT_FEATURES_ARE_REFUSED else "not this network"),
    "Counts": (Counts, "returns something else when it is called again"),
    "CountsOwn": (CountsOwn, "not this network"),
    "PartOfWeight": (PartOfWeight, "reads a part of `b.weight`"),
    "OfTheExample": (OfTheExample, "cannot be traced"),
}
