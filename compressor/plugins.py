"""Plug-ins: one file each in a package, loaded by name; criteria, runtimes and studies are plug-ins."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from compressor.errors import CompressError, unknown


def plugin_names(path: Iterable[str]) -> tuple[str, ...]:
    """Return the names of all plug-ins in a package with this `__path__`, sorted, without importing them."""
    return tuple(sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(path) if m.name[0] != "_"))


def plugin_named(
    name: str, *, package: str, names: tuple[str, ...], one: str, many: str, refusal: type[CompressError]
) -> ModuleType:
    """Return the imported plug-in `name` of a package. Refused if there is none: `there is no ONE called ...`."""
    if name not in names:
        raise refusal(f"there is no {one} called `{name}`", hint=unknown(many, name, names))
    return importlib.import_module(f"{package}.{name.replace('-', '_')}")


def help_of(module: ModuleType) -> str:
    """Return the first line of a plug-in's docstring."""
    return (module.__doc__ or "").strip().partition("\n")[0]
