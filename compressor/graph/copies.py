"""Copies of a user's network: every path in a copy leads to the copy's own layers and tensors.

`copy.deepcopy` does not copy functions, so a hook or a lambda that closes over the network goes on reading and writing
the original's layers. It also fails at the first object that cannot be copied, such as a Python module, a lock or a
file. The copies here rebuild functions over the copy, and share what cannot be copied.
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
    """Return a copy that shares only objects that cannot be copied; the module itself stays unchanged.

    For each pair in `instead`, the second tensor replaces the first wherever the module reaches it: under every name,
    in lists, and in closures. Refused: a module that cannot be copied.
    """
    pairs = list(instead)  # kept alive, so that no other object gets one of these ids
    copier = _Copier(module)
    copier.memo.update((id(tensor), other) for tensor, other in pairs)
    try:
        copy: M = copier.of(module)
    except Exception as error:  # a user's class may define its own copy, which can raise anything
        raise GroupError(
            f"this network cannot be copied: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            hint="a network that `copy.deepcopy` takes can be copied",
        ) from error
    return copy


def converted(module: M, convert: Callable[[Tensor], Tensor], *, trainable: bool = True) -> M:
    """Return a copy in which `convert` is applied to every parameter and buffer, wherever the module reaches it.

    A parameter that `convert` returns unchanged takes no memory: the copy's parameter has the same values at the same
    address, behind a storage object of its own. No parameter requires a gradient unless `trainable`.
    """
    replacements: list[tuple[Tensor, Tensor]] = []
    for parameter in module.parameters():
        value = convert(parameter.detach())
        if value.device.type in ("cpu", "cuda") and same_storage(value, parameter):
            value = torch.from_dlpack(value)  # type: ignore[attr-defined]  # torch exports it untyped
        learns = trainable and parameter.requires_grad
        replacements.append((parameter, nn.Parameter(value, learns)))
    for buffer in module.buffers():
        value = convert(buffer.detach())
        replacements.append((buffer, value.clone() if value.data_ptr() == buffer.data_ptr() else value))
    return copy_of(module, instead=replacements)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def same_storage(a: Tensor, b: Tensor) -> bool:
    """True if both are one tensor, or views of the same storage."""
    strided = a.layout is torch.strided and b.layout is torch.strided
    return a is b or (strided and _storage(a) == _storage(b))


class _Copier:
    """The state of one copy.

    `memo` is the memo of `copy.deepcopy`: classes with a `__deepcopy__` of their own receive it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.memo: dict[int, Any] = {}
        tensors = (*module.parameters(), *module.buffers())
        self.own = {id(one) for one in (*nn.Module.modules(module), *tensors)}
        self.by_storage = {_storage(t): t for t in tensors if t.layout is torch.strided}

    def of(self, x: Any) -> Any:
        """Return the copy of an object, or the object itself where it cannot be copied."""
        if id(x) in self.memo:
            return self.memo[id(x)]
        if isinstance(x, (*WHOLE, type)):
            return x
        self.memo.setdefault(id(self.memo), []).append(x)  # kept alive to the end, so that no other object gets its id
        try:
            copy = self._copied(x)
        except Exception:  # from the code of any class
            if isinstance(x, (nn.Module, list, tuple, dict)):
                raise
            copy = x
        self.memo[id(x)] = copy
        return copy

    def _copied(self, x: Any) -> Any:
        """Copy an object by its kind: functions, methods, caches, views of own tensors, weak references, containers,
        others.
        """
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
        """The same view, of the copy of the parameter or buffer `whole`."""
        copy: Tensor = self.of(whole).detach()
        place = x.shape, x.stride(), x.storage_offset() - whole.storage_offset()
        if place == (whole.shape, whole.stride(), 0):
            return copy
        if copy.shape != whole.shape or copy.stride() != whole.stride():
            raise GroupError("it keeps a part of a tensor that becomes narrower")
        return copy.as_strided(*place[:2], place[2] + copy.storage_offset())

    def _filled(self, x: Any) -> Any:
        copy: Any = type(x)()
        self.memo[id(x)] = copy  # before its items: a container may contain itself
        if isinstance(x, list):
            copy.extend(self.of(item) for item in x)
        else:
            copy.update((self.of(key), self.of(value)) for key, value in x.items())
        return copy

    def _tuple(self, x: tuple[Any, ...]) -> Any:
        copy = tuple(map(self.of, x))
        if id(x) in self.memo:  # one of its items contains the tuple, and has copied it
            return self.memo[id(x)]
        return x if all(a is b for a, b in zip(x, copy, strict=True)) else copy

    def _function(self, x: types.FunctionType) -> types.FunctionType:
        """Return the function with copies in its closure, defaults and attributes; the function itself if none of them
        differ.
        """
        if _is_global(x):
            return x
        cells = x.__closure__ or ()
        fresh = [self.memo.setdefault(id(cell), types.CellType()) for cell in cells]
        self.memo.setdefault(id(self.memo), []).extend(cells)
        copy = types.FunctionType(x.__code__, x.__globals__, x.__name__, closure=tuple(fresh) if cells else None)
        self.memo[id(x)] = copy  # before its closure: a function may close over itself
        changed = False
        for cell, other in zip(cells, fresh, strict=True):
            for value in _inside(cell):
                if not list(_inside(other)):
                    other.cell_contents = self.of(value)
                changed |= other.cell_contents is not value
        defaults, named, kept = map(self.of, (x.__defaults__, x.__kwdefaults__ or {}, x.__dict__))
        copy.__defaults__, copy.__kwdefaults__ = defaults, named or None
        copy.__dict__.update(kept)
        copy.__qualname__, copy.__module__, copy.__doc__ = x.__qualname__, x.__module__, x.__doc__
        before = (x.__kwdefaults__ or {}, x.__dict__)
        changed |= defaults is not x.__defaults__
        changed |= any(a[key] is not b[key] for a, b in zip(before, (named, kept), strict=True) for key in a)
        return copy if changed else x

    def _weak(self, x: Any) -> Any:
        """Return a weak reference to the copy if the target belongs to the network, else the reference itself."""
        target = x() if isinstance(x, weakref.ref) else x.__init__.__self__
        if target is None or (id(target) not in self.own and id(target) not in self.memo):
            return x
        return (weakref.ref if isinstance(x, weakref.ref) else weakref.proxy)(self.of(target))

    def _rebuilt(self, x: Any) -> Any:
        """Copy an object by its pickling recipe (`__reduce_ex__`), as `copy.deepcopy` does."""
        reduce = copyreg.dispatch_table.get(type(x))
        recipe = reduce(x) if reduce is not None else x.__reduce_ex__(4)
        if isinstance(recipe, str):
            return x
        parts: list[Any] = [*recipe, None, None, None, None]
        make, args, state, items, pairs = parts[:5]
        copy = make(*map(self.of, args))
        self.memo[id(x)] = copy
        if state is not None:
            self._put_state_(copy, self.of(state))
        for item in items or ():
            copy.append(self.of(item))
        for key, value in pairs or ():
            copy[self.of(key)] = self.of(value)
        return copy

    def _put_state_(self, copy: Any, state: Any) -> None:
        """Set the pickled state of a copy: by `__setstate__`, or as attributes and slots."""
        if hasattr(copy, "__setstate__"):
            copy.__setstate__(state)
            return
        plain, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        copy.__dict__.update(plain or {}) if plain else None
        for name, value in (slots or {}).items():
            setattr(copy, name, value)


def _inside(cell: types.CellType) -> Iterator[Any]:
    """The content of a closure cell, if it has one yet."""
    try:
        yield cell.cell_contents
    except ValueError:
        return


def _is_global(function: types.FunctionType) -> bool:
    """True if a Python module defines the function under its own name: it then belongs to no network."""
    value: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        value = getattr(value, part, None)
    return value is function
