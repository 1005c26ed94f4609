"""Names that come from files: which names a network's parts may have, and how a name becomes a file name.

`torch.export` and fx write the names of modules, parameters and buffers into Python code unchanged. So a name may hold
only letters, digits, `_` and `-`: none of them ends a line or a string.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from compressor.errors import CheckpointError

if TYPE_CHECKING:  # the command line's help needs this module, and must not wait for torch
    from torch import nn

PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
LONGEST = 200  # bytes; file systems allow 255, and endings are added
RENAME = "rename the module or tensor in the code that makes the network, and save it again"


def is_name(name: object) -> bool:
    """Return true if `name` is one or more parts of letters, digits, `_` and `-`, separated by dots."""
    return isinstance(name, str) and all(PART.fullmatch(part) for part in name.split("."))


def printable(name: object, *, longest: int = 60) -> str:
    """Return a name from a file in printable form: characters that move the cursor or end the line are escaped."""
    text = name if isinstance(name, str) else str(name)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: longest + 1])
    return f"{shown[:longest]}…" if len(text) > longest else shown


def check_names(names: Iterable[object], *, where: str) -> None:
    """Refuse names that Python code could not contain unchanged."""
    for name in names:
        if not is_name(name):
            raise CheckpointError(
                f"{where} names a part of the network `{printable(name)}`, which is no name", hint=RENAME
            )


def check_names_in(module: nn.Module, *, where: str) -> None:
    """Check the names of every module, parameter and buffer of a network, at every depth."""
    seen: set[int] = set()
    waiting = [module]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        tables: tuple[Mapping[str, object], ...] = (one._modules, one._parameters, one._buffers)
        for table in tables:
            for name in table:
                if not isinstance(name, str) or not PART.fullmatch(name):
                    check_names(
                        [name if not isinstance(name, str) else f"{name}." if "." in name else name], where=where
                    )
        waiting += [m for m in one._modules.values() if m is not None]


def file_name_from(name: object) -> str:
    """Return a name from a file as the name of a new file: its last part, without special characters of paths or
    shells.
    """
    text = unicodedata.normalize("NFC", name if isinstance(name, str) else str(name))
    leaf = re.split(r"[/\\]", text)[-1]
    kept = "".join(c if c.isprintable() and c not in '<>:"|?*' else "_" for c in leaf).strip().lstrip("-.~").rstrip(".")
    while len(kept.encode()) > LONGEST:
        kept = kept[:-1]
    return kept or "network"
