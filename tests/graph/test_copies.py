"""Copies of a network: every path leads to the copy's own layers, and what cannot be copied is shared."""

import functools
import logging
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compressor
from compressor.errors import GroupError
from compressor.graph.copies import converted, copy_of
from compressor.graph.precision import copy_in_precision


class Paths(nn.Module):
    """Reaches itself, its layer or its layer's weight in many ways; each is a method's name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        layer, weight, seen = self.layer, self.layer.weight, {"net": self}
        self.closure = lambda: self
        self.nested = {"k": [lambda: (lambda: self)()]}
        self.default = lambda net=self: net
        self.partial = functools.partial(self.itself)
        self.bound = self.itself
        self.cached = functools.lru_cache(self.itself)
        self.reference = weakref.ref(self.layer)
        self.proxies = [weakref.proxy(self.layer)]
        self.lone = [layer, weight]
        self.captured = lambda: (layer, weight)
        self.seen = seen
        self.keep = lambda: seen
        self.items: list[int] = []
        self.append = self.items.append

        def again(n: int) -> nn.Module:
            return again(n - 1) if n else self

        self.again = again

    def itself(self) -> nn.Module:
        return self


PATHS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {  # what a path leads to, what it should lead to
    "closure": (lambda n: n.closure(), lambda n: n),
    "lambda in a dict": (lambda n: n.nested["k"][0](), lambda n: n),
    "default argument": (lambda n: n.default(), lambda n: n),
    "partial": (lambda n: n.partial(), lambda n: n),
    "bound method": (lambda n: n.bound(), lambda n: n),
    "cached method": (lambda n: n.cached(), lambda n: n),
    "weak reference": (lambda n: n.reference(), lambda n: n.layer),
    "proxy": (lambda n: n.proxies[0].weight, lambda n: n.layer.weight),
    "layer in a list": (lambda n: n.lone[0], lambda n: n.layer),
    "weight in a list": (lambda n: n.lone[1], lambda n: n.layer.weight),
    "captured layer": (lambda n: n.captured()[0], lambda n: n.layer),
    "captured weight": (lambda n: n.captured()[1], lambda n: n.layer.weight),
    "captured dict": (lambda n: n.keep(), lambda n: n.seen),
    "what a dict holds": (lambda n: n.seen["net"], lambda n: n),
    "method of a list": (lambda n: n.append.__self__, lambda n: n.items),
    "recursion": (lambda n: n.again(2), lambda n: n),
}


@pytest.mark.parametrize("path", PATHS)
def test_a_path_in_the_copy_leads_to_the_copy(path: str) -> None:
    led, wanted = PATHS[path]
    network = Paths()
    copied = copy_of(network)
    assert led(copied) is wanted(copied)
    assert led(network) is wanted(network)
    assert led(copied) is not led(network)


@pytest.mark.parametrize("path", [p for p in PATHS if "weight" in p or p == "proxy"])
def test_another_tensor_takes_the_place_of_one_on_every_path(path: str) -> None:
    network, narrow = Paths(), nn.Parameter(torch.zeros(2, 3))
    copied = copy_of(network, instead=[(network.layer.weight, narrow)])
    led, _ = PATHS[path]
    assert led(copied) is narrow
    assert led(network) is network.layer.weight


def test_a_hook_of_the_copy_writes_into_the_copy() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    network.seen = {}
    network[0].register_forward_hook(lambda _, __, output: network.seen.__setitem__("first", output))
    copied = copy_of(network)
    output = copied[0](torch.ones(1, 3))
    assert copied.seen["first"] is output
    assert not network.seen


def test_what_cannot_be_copied_is_shared() -> None:
    network = nn.Sequential(nn.Linear(3, 4))
    kept = {
        "module": types.ModuleType("settings"),
        "lock": threading.Lock(),
        "logger": logging.getLogger("a network's"),
        "generator": (n for n in range(3)),
    }
    network.kept = kept
    with Path(__file__).open() as file:
        network.file = file
        copied = copy_of(network)
    assert copied.kept is not kept
    assert all(copied.kept[name] is one for name, one in kept.items())
    assert copied.file is network.file
    assert copied[0].weight is not network[0].weight


def test_a_tensor_of_an_earlier_pass_is_copied_without_its_gradient() -> None:
    network = nn.Sequential(nn.Linear(3, 4))
    network.kept = network(torch.ones(1, 3))
    copied = copy_of(network)
    assert torch.equal(copied.kept, network.kept)
    assert copied.kept.is_leaf


def test_a_function_of_a_python_module_stays_itself() -> None:
    network = nn.Sequential(nn.Linear(3, 4))
    network.act = nn.functional.relu
    network.none = lambda x: x
    copied = copy_of(network)
    assert copied.act is nn.functional.relu
    assert copied.none is network.none


def test_a_tied_weight_stays_one() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    copied = copy_of(network)
    assert copied[1].weight is copied[0].weight


def test_converted_tensors_stand_on_every_path() -> None:
    network = Paths()
    wide = copy_in_precision(network, torch.float64)
    assert wide.layer.weight.dtype is torch.float64
    assert wide.captured()[1] is wide.layer.weight
    assert wide.layer.weight.requires_grad
    assert network.layer.weight.dtype is torch.float32
    bare = converted(network, lambda t: t.to("meta"), trainable=False)
    assert bare.lone[1].is_meta
    assert not bare.layer.weight.requires_grad


def test_a_buffer_is_never_shared() -> None:
    norm = nn.BatchNorm1d(3)
    twin = copy_in_precision(norm, torch.float32)
    twin.running_mean.add_(1)
    assert not norm.running_mean.any()


class Stubborn(nn.Linear):
    """Does not let itself be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        raise RuntimeError("not me")


def test_a_layer_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(GroupError, match="cannot be copied: RuntimeError: not me"):
        copy_of(nn.Sequential(Stubborn(3, 4)))


def test_networks_are_copied_in_one_place() -> None:
    folder = Path(compressor.__file__).parent
    own = {"copies.py", "recorded.py"}
    calls = [
        f"{file.name}: {line.strip()}"
        for file in folder.rglob("*.py")
        if file.name not in own
        for line in file.read_text().splitlines()
        if "deepcopy(" in line and "deepcopy(proto)" not in line
    ]
    assert not calls
