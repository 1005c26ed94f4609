"""Data-dependent networks such as detectors: record which boxes, indices or values they pick, and replay the same
picks.

A detector sorts, thresholds and suppresses. Two networks that agree up to rounding may still return their detections in
another order, or one more at a threshold. So both are compared under the same recorded choices (`choices_of`,
`choosing`). The replay also yields a graph that does not depend on values (`Forced`).
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
    """What one call chose: positions (int64 tensors, nested as the call returns them), or plain values that code
    branches on.

    `late`: no layer with parameters runs after this choice.
    """

    call: str
    value: Any
    late: bool = False

    @property
    def decides(self) -> bool:
        """True if the choice may decide which layers run: code has read the value, and layers are still to come."""
        return self.call in VALUES and not self.late


def choices_of(module: nn.Module, inputs: Sequence[Tensor]) -> list[Choice]:
    """Return every data-dependent choice of a forward pass, in order.

    The second pass is the recorded one, because a network may prepare itself in its first.
    """
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
    """Return a context in which every data-dependent call returns the next of `choices`.

    Raises `IndexError` when there are more calls than choices, or when another function is called.
    """
    return _Choices(choices)


ORDERING = {"topk", "sort"}
POSITIONS = {"argsort", "nonzero", "argwhere", "nms", "unique", "_unique2", "unique_consecutive", "_return_output"}
VALUES = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__"}
READ = {"__getitem__", "masked_select"}
INDEXING = {*READ, "__setitem__"}


class Stopped(Exception):  # not an error of the user: `exported` catches it and records the choices instead
    """A shape in the network's code is data-dependent."""


class StoppedAtValues(TorchFunctionMode):
    """While active, raises `Stopped` where code asks for a data-dependent shape: earlier than exporters complain."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        masked = name in READ and any(_is_mask(index) for index in _indices(args))
        if masked or name in POSITIONS - {"argsort"} or (name == "where" and len(args) == 1 and not kwargs):
            raise Stopped(f"data-dependent: {name}")
        return func(*args, **(kwargs or {}))


class _Choices(TorchFunctionMode):
    """Records choices; with `choices` to replay, returns those instead."""

    def __init__(self, replayed: Sequence[Choice] | None) -> None:
        super().__init__()
        self.replayed, self.choices = replayed, list[Choice]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in INDEXING and any(_depends_on_values(index) for index in _indices(args)):
            chosen = self._next(name, lambda: tuple(_positions(index) for index in _indices(args)))
            index = tuple(
                slice(*picked) if isinstance(before, slice) else one
                for before, picked in zip(_indices(args), chosen, strict=True)
                for one in (picked if isinstance(picked, tuple) and not isinstance(before, slice) else (picked,))
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
        """Record the choice that `make` computes, or return the recorded one with this number."""
        number = len(self.choices)
        choice = Choice(call=name, value=make()) if self.replayed is None else self.replayed[number]
        if choice.call != name:
            raise IndexError(f"it calls `{name}` where `{choice.call}` was called")
        self.choices.append(choice)
        return choice.value


def _indices(args: Sequence[Any]) -> tuple[Any, ...]:
    """The indices of a `tensor[...]` call, always as a tuple."""
    return args[1] if isinstance(args[1], tuple) else (args[1],)


def _depends_on_values(index: Any) -> bool:
    """True if the index is a mask, or if a number in it was computed."""
    if isinstance(index, slice):
        return any(isinstance(bound, Tensor) for bound in (index.start, index.stop, index.step))
    return _is_mask(index) or (isinstance(index, Tensor) and index.ndim == 0)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _positions(index: Any) -> Any:
    """The positions that a data-dependent index selects, or the bounds of a slice; any other index unchanged."""
    if isinstance(index, slice):
        bounds = (index.start, index.stop, index.step)
        return tuple(int(bound) if isinstance(bound, Tensor) else bound for bound in bounds)
    if not _depends_on_values(index):
        return index
    return index.nonzero(as_tuple=True) if _is_mask(index) else int(index)


class Forced(nn.Module):
    """A network that replays the recorded choices, so that its graph does not depend on values.

    The chosen tensors are buffers, because an exporter needs them there.
    """

    def __init__(self, module: nn.Module, choices: Sequence[Choice]) -> None:
        super().__init__()
        self.module = module
        self.plan: list[tuple[str, Any]] = []
        for number, choice in enumerate(choices):
            leaves, spec = pytree.tree_flatten(choice.value)
            for k, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor):
                    self.register_buffer(f"choice_{number}_{k}", leaf)
                    leaves[k] = None
            self.plan.append((choice.call, (leaves, spec)))

    def forward(self, *inputs: Tensor) -> Any:
        """Return the network's output under the recorded choices."""
        choices = []
        for number, (call, (leaves, spec)) in enumerate(self.plan):
            there = [getattr(self, f"choice_{number}_{k}", leaf) for k, leaf in enumerate(leaves)]
            choices.append(Choice(call=call, value=pytree.tree_unflatten(there, spec)))
        with choosing(choices), _own_builtins():
            return self.module(*inputs)


MAX, MIN = max, min


@contextlib.contextmanager
def _own_builtins() -> Iterator[None]:
    """While active, `max` and `min` are Python's own: an exporter replaces them, and its versions do not compare two
    tensors.

    Python's versions choose one of two tensors by value.
    """
    replaced = builtins.max, builtins.min
    builtins.max, builtins.min = MAX, MIN
    try:
        yield
    finally:
        builtins.max, builtins.min = replaced
