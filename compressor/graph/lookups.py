"""Which lookup tables a network's inputs index: these inputs are token numbers, and the tables' rows bound them.

A lookup table is an embedding's weight, or any tensor that the network indexes, gathers from or encodes as one-hot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


@dataclass(frozen=True, slots=True)
class Lookup:
    """One lookup of an input in a table of `rows`; row `padding` stands for no token."""

    input: int
    rows: int
    padding: int | None = None


class Lookups(TorchFunctionMode):
    """While active, collects every table lookup by an input in `lookups`.

    The index may be the input itself, a view of it, or integers computed from it. A real number computed from the input
    counts too: the network then rejects it as an index, because the input should have been of integers.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.lookups: list[Lookup] = []
        self._source: dict[int, int] = {}  # storage → input
        self._computed: dict[int, int] = {}  # the same, of real numbers computed from one input alone
        self._alive: list[Tensor] = []  # keeps the tensors, so that no storage is reused
        for number, tensor in enumerate(inputs):
            self._note(tensor, number)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for index, rows, padding in _looked_up(func, args, kwargs):
            number = self._number(index)
            if number is None and isinstance(index, Tensor) and index.is_floating_point():
                number = self._computed.get(_place(index))
            if number is not None:
                self.lookups.append(Lookup(number, rows, padding))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            for value in pytree.tree_leaves((args, kwargs)):
                self._follow(value, result)
        return result

    def _follow(self, value: Any, result: Tensor) -> None:
        """Note a result that was computed from a value which comes from an input."""
        number = self._number(value)
        if number is not None and _is_integer(result) and result.numel() >= value.numel():
            self._note(result, number)
        elif isinstance(value, Tensor) and result.is_floating_point() and result.numel() == value.numel():
            number = number if number is not None else self._computed.get(_place(value))
            if number is not None and _place(result) not in self._source:
                self._computed.setdefault(_place(result), number)
                self._alive.append(result)

    def _note(self, tensor: Tensor, number: int) -> None:
        self._source.setdefault(_place(tensor), number)
        self._alive.append(tensor)

    def _number(self, value: Any) -> int | None:
        return self._source.get(_place(value)) if isinstance(value, Tensor) else None


def _place(tensor: Tensor) -> int:
    """The address of a tensor's storage, which identifies it."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # for example a sparse tensor has no storage
        return id(tensor)


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def _looked_up(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Any, int, Any]]:
    """The lookups that a call does: index, number of rows and padding row of each."""
    name = getattr(func, "__name__", "")
    arguments = dict(enumerate(args))
    if func is functional.embedding:
        table: Any = arguments.get(1, kwargs.get("weight"))
        return [(arguments.get(0, kwargs.get("input")), len(table), arguments.get(2, kwargs.get("padding_idx")))]
    if func is functional.embedding_bag:
        table = arguments.get(1, kwargs.get("weight"))
        return [(arguments.get(0, kwargs.get("input")), len(table), None)]
    if func is torch.embedding or name in ("embedding.default", "embedding"):
        return [(arguments[1], len(arguments[0]), arguments.get(2))] if {0, 1} <= arguments.keys() else []
    if name == "one_hot":
        count = arguments.get(1, kwargs.get("num_classes", -1))
        return [(arguments.get(0, kwargs.get("tensor")), count, None)] if isinstance(count, int) and count > 0 else []
    if name in ("index_select", "gather"):
        table, dim = arguments.get(0, kwargs.get("input")), arguments.get(1, kwargs.get("dim"))
        return [(arguments.get(2, kwargs.get("index")), table.shape[dim], None)] if isinstance(dim, int) else []
    if name == "__getitem__":
        table, where = args
        parts = where if isinstance(where, tuple) else (where,)
        if any(part is None or part is Ellipsis for part in parts) or len(parts) > table.ndim:
            return []
        return [
            (part, table.shape[at], None)
            for at, part in enumerate(parts)
            if isinstance(part, Tensor) and part.dtype is not torch.bool
        ]
    return []
