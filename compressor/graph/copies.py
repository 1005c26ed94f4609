"""Copies of a user's network: every path in a copy leads to the copy's own layers and tensors.

`copy.deepcopy` keeps functions as they are, so that a hook or a lambda that closes over the network goes on reading
and writing the original's layers. And it stops at the first object that cannot be copied, as a Python module, a lock
or a file is. Here functions are made anew over the copy, and what cannot be copied is shared.
"""

from __future__ import annotations

import copyreg
import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from compressor.errors import GroupError

M = TypeVar("M", bound=nn.Module)
WHOLE = (type(None), bool, int, float, complex, str, bytes, type(...), types.ModuleType, types.CodeType, property)
PROXIES = (weakref.ProxyType, weakref.CallableProxyType)


def copy_of(module: M, *, instead: Iterable[tuple[Tensor, Tensor]] = ()) -> M:
    """A copy that shares nothing with the module but what cannot be copied; the module stays as it was.

    Of each pair in `instead` the second tensor takes the first one's place wherever the module reaches it: under every
    name, in lists, and in what functions close over. Refused: a module that cannot be copied.
    """
    pairs = list(instead)  # alive, so that no other object has one of these ids
    copier = _Copier(module)
    copier.memo.update((id(tensor), other) for tensor, other in pairs)
    try:
        found: M = copier.of(module)
    except Exception as error:  # the code of a user's class says how it is copied, and raises whatever it raises
        raise GroupError(
            f"this network cannot be copied: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            hint="a network that `copy.deepcopy` takes can be copied",
        ) from error
    return found


def converted(module: M, convert: Callable[[Tensor], Tensor], *, trainable: bool = True) -> M:
    """A copy that holds what `convert` makes of every parameter and buffer, wherever the module reaches it.

    A parameter that `convert` gives back as it is takes no memory: the copy's has the same values in the same place,
    behind a storage of its own. Nothing has a gradient unless `trainable`.
    """
    made: list[tuple[Tensor, Tensor]] = []
    for parameter in module.parameters():
        value = convert(parameter.detach())
        if value.device.type in ("cpu", "cuda") and same_storage(value, parameter):
            value = torch.from_dlpack(value)  # type: ignore[attr-defined]  # torch exports it untyped
        learns = trainable and parameter.requires_grad
        made.append((parameter, nn.Parameter(value, learns)))
    for buffer in module.buffers():
        value = convert(buffer.detach())
        made.append((buffer, value.clone() if value.data_ptr() == buffer.data_ptr() else value))
    return copy_of(module, instead=made)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def same_storage(a: Tensor, b: Tensor) -> bool:
    """Whether one tensor is the other, or a part or another view of it."""
    strided = a.layout is torch.strided and b.layout is torch.strided
    return a is b or (strided and _storage(a) == _storage(b))


class _Copier:
    """One copy. Its `memo` is that of `copy.deepcopy`, which classes with a copy of their own call with it."""

    def __init__(self, module: nn.Module) -> None:
        self.memo: dict[int, Any] = {}
        held = (*module.parameters(), *module.buffers())
        self.own = {id(one) for one in (*nn.Module.modules(module), *held)}
        self.by_storage = {_storage(t): t for t in held if t.layout is torch.strided}

    def of(self, x: Any) -> Any:
        """The copy of an object; the object itself where it cannot be copied."""
        if id(x) in self.memo:
            return self.memo[id(x)]
        if isinstance(x, (*WHOLE, type)):
            return x
        self.memo.setdefault(id(self.memo), []).append(x)  # alive to the end: no other object has its id
        try:
            made = self._copied(x)
        except Exception:  # from the code of any class
            if isinstance(x, (nn.Module, list, tuple, dict)):
                raise
            made = x
        self.memo[id(x)] = made
        return made

    def _copied(self, x: Any) -> Any:
        match x:
            case types.FunctionType():
                return self._function(x)
            case types.MethodType():
                return types.MethodType(self.of(x.__func__), self.of(x.__self__))
            case types.BuiltinFunctionType():  # a method of a list, say
                return x if isinstance(x.__self__, WHOLE) else getattr(self.of(x.__self__), x.__name__)
            case functools._lru_cache_wrapper():
                return functools.lru_cache(**x.cache_parameters())(self.of(x.__wrapped__))
            case Tensor() if id(x) not in self.own and x.layout is torch.strided and _storage(x) in self.by_storage:
                return self._view(x, self.by_storage[_storage(x)])
            case Tensor() if not x.is_leaf:  # kept from an earlier pass
                return x.detach().clone()
        kind = type(x)
        if kind is weakref.ref or kind in PROXIES:
            return self._weak(x)
        if kind is list or kind is dict:
            return self._filled(x)
        if kind is tuple:
            return self._tuple(x)
        if hasattr(kind, "__deepcopy__"):
            return x.__deepcopy__(self.memo)
        return self._rebuilt(x)

    def _view(self, x: Tensor, whole: Tensor) -> Tensor:
        """The same view of the copy of the parameter or buffer `whole`."""
        made: Tensor = self.of(whole).detach()
        place = x.shape, x.stride(), x.storage_offset() - whole.storage_offset()
        if place == (whole.shape, whole.stride(), 0):
            return made
        if made.shape != whole.shape or made.stride() != whole.stride():
            raise GroupError("it keeps a part of a tensor that becomes narrower")
        return made.as_strided(*place[:2], place[2] + made.storage_offset())

    def _filled(self, x: Any) -> Any:
        made: Any = type(x)()
        self.memo[id(x)] = made  # it may hold itself
        if isinstance(x, list):
            made.extend(self.of(item) for item in x)
        else:
            made.update((self.of(key), self.of(value)) for key, value in x.items())
        return made

    def _tuple(self, x: tuple[Any, ...]) -> Any:
        made = tuple(map(self.of, x))
        if id(x) in self.memo:  # one of its items holds it
            return self.memo[id(x)]
        return x if all(a is b for a, b in zip(x, made, strict=True)) else made

    def _function(self, x: types.FunctionType) -> types.FunctionType:
        """The function over the copies of what it closes over; itself where these are the same."""
        if _is_global(x):
            return x
        cells = x.__closure__ or ()
        fresh = [self.memo.setdefault(id(cell), types.CellType()) for cell in cells]
        self.memo.setdefault(id(self.memo), []).extend(cells)
        made = types.FunctionType(x.__code__, x.__globals__, x.__name__, closure=tuple(fresh) if cells else None)
        self.memo[id(x)] = made  # a function may close over itself
        changed = False
        for cell, other in zip(cells, fresh, strict=True):
            for value in _inside(cell):
                if not list(_inside(other)):
                    other.cell_contents = self.of(value)
                changed |= other.cell_contents is not value
        defaults, named, kept = map(self.of, (x.__defaults__, x.__kwdefaults__ or {}, x.__dict__))
        made.__defaults__, made.__kwdefaults__ = defaults, named or None
        made.__dict__.update(kept)
        made.__qualname__, made.__module__, made.__doc__ = x.__qualname__, x.__module__, x.__doc__
        before = (x.__kwdefaults__ or {}, x.__dict__)
        changed |= defaults is not x.__defaults__
        changed |= any(a[key] is not b[key] for a, b in zip(before, (named, kept), strict=True) for key in a)
        return made if changed else x

    def _weak(self, x: Any) -> Any:
        """A reference to the copy where what it refers to is the network's own; else the same."""
        whom = x() if isinstance(x, weakref.ref) else x.__init__.__self__
        if whom is None or (id(whom) not in self.own and id(whom) not in self.memo):
            return x
        return (weakref.ref if isinstance(x, weakref.ref) else weakref.proxy)(self.of(whom))

    def _rebuilt(self, x: Any) -> Any:
        """As the object's class says that it is pickled, and as `copy.deepcopy` does it."""
        reduce = copyreg.dispatch_table.get(type(x))
        recipe = reduce(x) if reduce is not None else x.__reduce_ex__(4)
        if isinstance(recipe, str):
            return x
        parts: list[Any] = [*recipe, None, None, None, None]
        make, args, state, items, pairs = parts[:5]
        made = make(*map(self.of, args))
        self.memo[id(x)] = made
        if state is not None:
            self._put_state_(made, self.of(state))
        for item in items or ():
            made.append(self.of(item))
        for key, value in pairs or ():
            made[self.of(key)] = self.of(value)
        return made

    def _put_state_(self, made: Any, state: Any) -> None:
        if hasattr(made, "__setstate__"):
            made.__setstate__(state)
            return
        plain, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        made.__dict__.update(plain or {}) if plain else None
        for name, value in (slots or {}).items():
            setattr(made, name, value)


def _inside(cell: types.CellType) -> Iterator[Any]:
    """What a cell holds, if it holds anything yet."""
    try:
        yield cell.cell_contents
    except ValueError:
        return


def _is_global(function: types.FunctionType) -> bool:
    """Whether the function is one of a Python module's own: it belongs to no network."""
    found: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function
