"""Which tables of a network its inputs are looked up in, and so which inputs are token numbers, and of how many tokens.

An embedding's weights are such a table, and whatever the network indexes, gathers from or encodes as one-hot vectors.
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
    """An input that is looked up in a table of `rows`; row `padding` stands for no token."""

    input: int
    rows: int
    padding: int | None = None


class Lookups(TorchFunctionMode):
    """What is looked up while it is active: `found`. An input counts as it is, viewed, and as integers made from it.

    So does a real number computed from it where that is what is looked up: the network will not have it, and the input
    was to be of integers.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.found: list[Lookup] = []
        self._source: dict[int, int] = {}  # storage → input
        self._computed: dict[int, int] = {}  # likewise, of real numbers computed from it alone
        self._held: list[Tensor] = []  # for as long as this lives no storage is another's
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
                self.found.append(Lookup(number, rows, padding))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            for value in pytree.tree_leaves((args, kwargs)):
                self._follow(value, result)
        return result

    def _follow(self, value: Any, result: Tensor) -> None:
        """Note what was made of a value that comes from an input."""
        number = self._number(value)
        if number is not None and _is_integer(result) and result.numel() >= value.numel():
            self._note(result, number)
        elif isinstance(value, Tensor) and result.is_floating_point() and result.numel() == value.numel():
            number = number if number is not None else self._computed.get(_place(value))
            if number is not None and _place(result) not in self._source:
                self._computed.setdefault(_place(result), number)
                self._held.append(result)

    def _note(self, tensor: Tensor, number: int) -> None:
        self._source.setdefault(_place(tensor), number)
        self._held.append(tensor)

    def _number(self, value: Any) -> int | None:
        return self._source.get(_place(value)) if isinstance(value, Tensor) else None


def _place(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # some kinds of tensors have no storage
        return id(tensor)


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def _looked_up(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Any, int, Any]]:
    """Index, number of rows and padding row of each look-up that a call is."""
    name = getattr(func, "__name__", "")
    given = dict(enumerate(args))
    if func is functional.embedding:
        table: Any = given.get(1, kwargs.get("weight"))
        return [(given.get(0, kwargs.get("input")), len(table), given.get(2, kwargs.get("padding_idx")))]
    if func is functional.embedding_bag:
        table = given.get(1, kwargs.get("weight"))
        return [(given.get(0, kwargs.get("input")), len(table), None)]
    if func is torch.embedding or name in ("embedding.default", "embedding"):
        return [(given[1], len(given[0]), given.get(2))] if {0, 1} <= given.keys() else []
    if name == "one_hot":
        count = given.get(1, kwargs.get("num_classes", -1))
        return [(given.get(0, kwargs.get("tensor")), count, None)] if isinstance(count, int) and count > 0 else []
    if name in ("index_select", "gather"):
        table, dim = given.get(0, kwargs.get("input")), given.get(1, kwargs.get("dim"))
        return [(given.get(2, kwargs.get("index")), table.shape[dim], None)] if isinstance(dim, int) else []
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
