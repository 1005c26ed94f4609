"""Plug-ins: one file each in a package, found by its name; a criterion, a runtime and a study are some."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from compressor.errors import CompressError, unknown


def plugin_names(path: Iterable[str]) -> tuple[str, ...]:
    """The names of all plug-ins in a package with this `__path__`, sorted; nothing of theirs is imported."""
    return tuple(sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(path) if m.name[0] != "_"))


def plugin_named(
    name: str, *, package: str, names: tuple[str, ...], one: str, many: str, refusal: type[CompressError]
) -> ModuleType:
    """The plug-in called `name` of a package, imported; refused where there is none: `there is no ONE called ...`."""
    if name not in names:
        raise refusal(f"there is no {one} called `{name}`", hint=unknown(many, name, names))
    return importlib.import_module(f"{package}.{name.replace('-', '_')}")


def help_of(module: ModuleType) -> str:
    """The first line of a plug-in's docstring."""
    return (module.__doc__ or "").strip().partition("\n")[0]
