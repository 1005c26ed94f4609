"""Build a pickled network from stand-ins: stand-ins while the pickle is read, the network when everything is known.

torch's restricted unpickler calls what it is allowed to build, so it is allowed nothing that has an effect. Each layer
class is a stand-in that can be created empty and given its state, as Python pickles any plain object, and that cannot
be called; a function is a value that cannot be called. After reading, each stand-in becomes an object of its class: no
constructor runs, and its state is plain values, tensors and layers under valid names.
"""

from __future__ import annotations

import collections
import functools
import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.errors import CheckpointError
from compressor.files.names import PART, is_name, printable

PACKAGES = (
    "torch.nn.modules.",
    "torch.nn.parallel.data_parallel.",
    "torchvision.models.",
    "torchvision.ops.",
    "timm.models.",
    "timm.layers.",
    "sample_models.networks.",
)
NEVER = ("feature_extraction", "_features", "_builder", "_hub", "_registry")  # these trace, compile or fetch
ACTIVATIONS = (
    "celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_softmax logsigmoid mish prelu relu "
    "relu6 rrelu selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink threshold"
)
FUNCTIONS = frozenset(
    [f"torch.nn.functional.{name}" for name in ACTIVATIONS.split()]
    + [f"torch.{name}" for name in ("relu", "sigmoid", "tanh", "softmax", "selu", "celu", "prelu", "rrelu")]
    + [
        f"torch._C._nn.{name}"
        for name in ("gelu", "silu", "mish", "hardswish", "hardsigmoid", "elu", "relu6", "softplus")
    ]
)
CONTAINERS: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": collections.defaultdict,
    "builtins.set": set,
}
TABLES = ("_parameters", "_buffers", "_modules")
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout,
         torch.memory_format)  # fmt: skip
LARGEST_EXPANDED = 1 << 31  # bytes of a tensor that repeats stored values
DAMAGED = "save it again, or save the weights alone and use `--arch`"


class _NeverCalled(type):
    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise CheckpointError(f"the file calls `{cls.__name__}`, where a network is made and given its state")


class Standin(metaclass=_NeverCalled):
    """A stand-in for an object of a layer class, with its state; `name` is the class."""

    name = ""
    dump_patches = False  # torch reads it, for files of its first format

    def __new__(cls, *args: Any) -> Standin:
        """Return an empty stand-in. Refused: arguments, which layer classes do not pickle."""
        if args:
            raise CheckpointError(f"the file makes `{cls.__name__}` with arguments, where a network is given its state")
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict or "state" in self.__dict__:
            raise CheckpointError(f"the state of a `{type(self).__name__}` in the file is none")
        self.__dict__["state"] = state


class Function:
    """A function as a value, by its name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Refuse the call: nothing that a file names is called."""
        raise CheckpointError(f"the file calls `{self.name}`")

    def __setstate__(self, state: Any) -> None:
        raise CheckpointError(f"the file changes `{self.name}`")


class Partial:
    """`functools.partial` of a class or function, as a value."""

    def __init__(self, *_: Any) -> None:
        self.parts: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 4):
            raise CheckpointError("the file holds a `functools.partial` that is none")
        self.parts = state[:3]


def standin_for(name: str) -> Any:
    """Return the stand-in for the global `name` while a pickle is read; `None` if a pickle may not name it."""
    if name in CONTAINERS:
        return CONTAINERS[name]
    if name == "functools.partial":
        return Partial
    if name in FUNCTIONS:
        return Function(name)
    return _NeverCalled(name, (Standin,), {"name": name}) if layer_class(name) is not None else None


@functools.cache
def layer_class(name: str) -> Any:
    """Return the layer class called `name`, from the packages with known classes; `None` for any other name."""
    home, _, leaf = name.rpartition(".")
    kind: Any
    if not is_name(name) or not f"{home}.".startswith(PACKAGES) or any(n in home for n in NEVER):
        return None
    try:
        kind = getattr(importlib.import_module(home), leaf, None)
    except ImportError:
        return None
    own = isinstance(kind, type) and issubclass(kind, nn.Module) and f"{kind.__module__}.".startswith(PACKAGES)
    if (
        not own
        or issubclass(kind, (fx.GraphModule, torch.jit.ScriptModule))
        or any(n in kind.__module__ for n in NEVER)
    ):
        return None
    return kind


def built(content: Any) -> Any:
    """Return the content with networks in place of stand-ins. Refused: a network with parts that no network has."""
    try:
        return _Builder().value(content)
    except RecursionError as error:
        raise CheckpointError("the file nests values without end", hint=DAMAGED) from error


class _Builder:
    """Builds each object once."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}
        self.kept: list[Any] = []  # keeps the stand-ins alive, so that ids stay unique

    def value(self, one: Any) -> Any:
        """Return the object for `one`; the same object for the same stand-in."""
        if type(one) in PLAIN:
            return one
        if id(one) not in self.objects:
            self.kept.append(one)
            self.objects[id(one)] = self._new(one)
        return self.objects[id(one)]

    def _new(self, one: Any) -> Any:
        """Build an object, by its kind."""
        if isinstance(one, Standin):
            return self._module(one)
        if type(one) in (Tensor, nn.Parameter):
            return _tensor(one)
        if type(one) is torch.Size:
            return one
        if isinstance(one, Function):
            home, _, leaf = one.name.rpartition(".")
            return getattr(importlib.import_module(home), leaf, None)
        if isinstance(one, type) and issubclass(one, Standin):
            return layer_class(one.name)
        if isinstance(one, Partial):
            return self._partial(one)
        if isinstance(one, dict):  # an `OrderedDict` in a pickle may have attributes: only its entries count
            entries: dict[Any, Any] = collections.OrderedDict() if type(one) is collections.OrderedDict else {}
            self.objects[id(one)] = entries
            for key, value in dict.items(one):
                entries[self.value(key)] = self.value(value)
            return entries
        if type(one) is list:
            parts: list[Any] = []
            self.objects[id(one)] = parts
            parts += map(self.value, one)
            return parts
        if type(one) in (tuple, set, frozenset):
            return type(one)(map(self.value, one))
        raise CheckpointError(
            f"the file holds a `{printable(type(one).__name__)}`, where a network has plain values", hint=DAMAGED
        )

    def _partial(self, one: Partial) -> Any:
        """A `functools.partial` of a layer or function."""
        if len(one.parts) != 3 or not isinstance(one.parts[0], (Function, _NeverCalled)):
            raise CheckpointError("the file holds a `functools.partial` of what is no layer", hint=DAMAGED)
        function, args, kwargs = map(self.value, one.parts)
        if not isinstance(args, tuple) or not all(isinstance(key, str) for key in kwargs or {}):
            raise CheckpointError("the file holds a `functools.partial` that is none", hint=DAMAGED)
        return functools.partial(function, *args, **(kwargs or {}))

    def _module(self, one: Standin) -> nn.Module:
        """A module of the stand-in's class with its checked state."""
        kind = layer_class(one.name)
        module: nn.Module = object.__new__(kind)
        self.objects[id(one)] = module
        state = one.__dict__.get("state")
        if state is None or not all(isinstance(state.get(table), dict) for table in TABLES):
            raise CheckpointError(f"a `{printable(one.name)}` in the file lacks its layers or weights", hint=DAMAGED)
        filled = {key: self.value(value) for key, value in state.items()}
        for key, value in filled.items():
            _check_attribute(kind, key, value)
        _check_tables(one.name, filled)
        try:
            torch_own = kind.__setstate__.__module__.startswith("torch.nn.")
            (kind if torch_own else nn.Module).__setstate__(module, filled)
        except Exception as error:  # each class converts states of its older versions in its own way
            raise CheckpointError(
                f"the state of a `{printable(one.name)}` in the file is none", hint=DAMAGED
            ) from error
        return module


def _check_attribute(kind: type, key: object, value: Any) -> None:
    """Refuse hooks, and attributes that replace a class's own methods."""
    if not isinstance(key, str) or not PART.fullmatch(key) or key.startswith("__"):
        raise CheckpointError(f"a `{kind.__name__}` in the file has `{printable(key)}`, which is no name", hint=DAMAGED)
    hooks = "_hooks" in key or "pre_hook" in key
    if hooks and value not in (None, {}) and not (isinstance(value, Mapping) and not value):
        raise CheckpointError(f"a `{kind.__name__}` in the file has hooks, which are code", hint="remove the hooks")
    own = getattr(kind, key, None)
    if callable(own) or isinstance(own, property) or key == "_compiled_call_impl":
        if value is None:
            return
        raise CheckpointError(f"a `{kind.__name__}` in the file replaces its own `{key}`", hint=DAMAGED)


def _check_tables(name: str, state: Mapping[str, Any]) -> None:
    """Refuse parts with invalid names or of a wrong type."""
    kinds: dict[str, Any] = {"_parameters": nn.Parameter, "_buffers": Tensor, "_modules": nn.Module}
    for table, kind in kinds.items():
        for key, value in state[table].items():
            if not isinstance(key, str) or not PART.fullmatch(key):
                raise CheckpointError(
                    f"the file names a part of the network `{printable(key)}`, which is no name",
                    hint="rename it in the code that builds the network, and save it again",
                )
            if value is not None and not isinstance(value, kind):
                raise CheckpointError(
                    f"`{key}` of a `{printable(name)}` in the file is no {kind.__name__}", hint=DAMAGED
                )


def check_tree(module: nn.Module) -> None:
    """Refuse a network that contains itself, because walking through it would not end."""
    path: list[nn.Module] = []
    done: set[int] = set()

    def walk(one: nn.Module) -> None:
        if any(one is other for other in path):
            raise CheckpointError(f"the network in the file holds itself, in a `{type(one).__name__}`", hint=DAMAGED)
        if id(one) in done:
            return
        path.append(one)
        for inner in one._modules.values():
            if inner is not None:
                walk(inner)
        path.pop()
        done.add(id(one))

    walk(module)


def _tensor(one: Tensor) -> Tensor:
    """The tensor without hooks or attributes. Refused: a huge tensor that repeats few stored values."""
    plain = Tensor.detach(one)
    if plain.layout is torch.strided and not plain.is_meta and not plain.is_quantized:
        size = math.prod(plain.shape) * plain.dtype.itemsize
        if size > max(plain.untyped_storage().nbytes(), LARGEST_EXPANDED):
            raise CheckpointError(f"a tensor in the file repeats its values to {size} bytes", hint=DAMAGED)
    if isinstance(one, nn.Parameter):
        return nn.Parameter(plain, requires_grad=one.requires_grad)
    return plain
