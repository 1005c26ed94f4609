"""Networks that choose by values what they give, as detectors do: their choices, noted and made beforehand.

A detector sorts, thresholds and suppresses. Two that agree up to rounding may still give their detections in another
order, or one more at a threshold. So two of them are compared with the same choices made beforehand (`choices_of`,
`choosing`), which also gives a graph that hangs on no values (`Forced`).
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from compressor.graph.detector_heads import with_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one call chose: positions (int64 tensors, as the call nests them), or plain values that code branches on.

    `late` says that no layer runs after it.
    """

    call: str
    made: Any
    late: bool = False

    @property
    def decides(self) -> bool:
        """Whether it may decide which layers run: code has seen the value, and layers are still to come."""
        return self.call in VALUES and not self.late


def choices_of(module: nn.Module, inputs: Sequence[Tensor]) -> list[Choice]:
    """Every choice by values in a forward pass, in order: of the second one, for in the first a network may prepare."""
    mode, chosen_before = _Choices(None), 0

    def note(*_: Any) -> None:
        nonlocal chosen_before
        chosen_before = len(mode.choices)

    with torch.no_grad():
        module(*inputs)
        hooks = [layer.register_forward_hook(note) for _, layer in with_parameters(module)]
        try:
            with mode:
                module(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
    return [dataclasses.replace(choice, late=i >= chosen_before) for i, choice in enumerate(mode.choices)]


def choosing(choices: Sequence[Choice]) -> _Choices:
    """While it lasts, every choice by values is the one in `choices`; an `IndexError` where there is none."""
    return _Choices(choices)


ORDERING = {"topk", "sort"}
POSITIONS = {"argsort", "nonzero", "argwhere", "nms", "unique", "_unique2", "unique_consecutive", "_return_output"}
VALUES = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__"}
READ = {"__getitem__", "masked_select"}
INDEXING = {*READ, "__setitem__"}


class Stopped(Exception):  # no error: another way is taken
    """A shape in a network's code is data-dependent."""


class StoppedAtValues(TorchFunctionMode):
    """While it lasts, `Stopped` where the shape of what code asks for hangs on values: sooner than exporters say so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        masked = name in READ and any(_is_mask(index) for index in _indices(args))
        if masked or name in POSITIONS - {"argsort"} or (name == "where" and len(args) == 1 and not kwargs):
            raise Stopped(f"data-dependent: {name}")
        return func(*args, **(kwargs or {}))


class _Choices(TorchFunctionMode):
    """Notes choices, or makes those that are given."""

    def __init__(self, given: Sequence[Choice] | None) -> None:
        super().__init__()
        self.given, self.choices = given, list[Choice]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in INDEXING and any(_hangs_on_values(index) for index in _indices(args)):
            chosen = self._next(name, lambda: tuple(_positions(index) for index in _indices(args)))
            index = tuple(
                slice(*given) if isinstance(before, slice) else one
                for before, given in zip(_indices(args), chosen, strict=True)
                for one in (given if isinstance(given, tuple) and not isinstance(before, slice) else (given,))
            )
            if name == "__setitem__":
                return func(args[0], index, args[2])
            return args[0][index]
        if name in VALUES:
            return self._next(name, lambda: func(*args, **kwargs))
        if name in ORDERING:
            order = self._next(name, lambda: func(*args, **kwargs)[1])
            values = args[0] if args else kwargs["input"]
            place = 2 if name == "topk" else 1
            dim = args[place] if len(args) > place else kwargs.get("dim", -1)
            return getattr(torch.return_types, name)((values.gather(dim, order), order))
        if name in POSITIONS or (name == "where" and len(args) == 1 and not kwargs):
            return self._next(name, lambda: func(*args, **kwargs))
        return func(*args, **kwargs)

    def _next(self, name: str, make: Callable[[], Any]) -> Any:
        number = len(self.choices)
        choice = Choice(call=name, made=make()) if self.given is None else self.given[number]
        if choice.call != name:
            raise IndexError(f"it calls `{name}` where `{choice.call}` was called")
        self.choices.append(choice)
        return choice.made


def _indices(args: Sequence[Any]) -> tuple[Any, ...]:
    return args[1] if isinstance(args[1], tuple) else (args[1],)


def _hangs_on_values(index: Any) -> bool:
    """Whether an index is a mask, or has numbers that were computed."""
    if isinstance(index, slice):
        return any(isinstance(bound, Tensor) for bound in (index.start, index.stop, index.step))
    return _is_mask(index) or (isinstance(index, Tensor) and index.ndim == 0)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _positions(index: Any) -> Any:
    """An index that hangs on values as the positions that it names: of a slice its bounds; any other as it is."""
    if isinstance(index, slice):
        bounds = (index.start, index.stop, index.step)
        return tuple(int(bound) if isinstance(bound, Tensor) else bound for bound in bounds)
    if not _hangs_on_values(index):
        return index
    return index.nonzero(as_tuple=True) if _is_mask(index) else int(index)


class Forced(nn.Module):
    """A network that makes the given choices: its graph hangs on no values.

    It holds their tensors as buffers, as an exporter needs them.
    """

    def __init__(self, module: nn.Module, choices: Sequence[Choice]) -> None:
        super().__init__()
        self.module = module
        self.plan: list[tuple[str, Any]] = []
        for number, choice in enumerate(choices):
            leaves, spec = pytree.tree_flatten(choice.made)
            for k, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor):
                    self.register_buffer(f"choice_{number}_{k}", leaf)
                    leaves[k] = None
            self.plan.append((choice.call, (leaves, spec)))

    def forward(self, *inputs: Tensor) -> Any:
        """What the network gives."""
        choices = []
        for number, (call, (leaves, spec)) in enumerate(self.plan):
            there = [getattr(self, f"choice_{number}_{k}", leaf) for k, leaf in enumerate(leaves)]
            choices.append(Choice(call=call, made=pytree.tree_unflatten(there, spec)))
        with choosing(choices), _own_builtins():
            return self.module(*inputs)


MAX, MIN = max, min


@contextlib.contextmanager
def _own_builtins() -> Iterator[None]:
    """Python's `max` and `min`, which an exporter replaces: of two tensors they choose by value, and it does not."""
    replaced = builtins.max, builtins.min
    builtins.max, builtins.min = MAX, MIN
    try:
        yield
    finally:
        builtins.max, builtins.min = replaced
