"""Names that come out of files: what they may be as parts of a network, and what they become as names of files.

`torch.export` and fx write the names of modules, parameters and buffers into Python code as they are. So a name holds
letters, digits, `_` and `-` alone: none of them ends a line or a string.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from compressor.errors import CheckpointError

if TYPE_CHECKING:  # the command line's help needs names, and must not wait for torch
    from torch import nn

PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
LONGEST = 200  # characters; file systems take 255 bytes, and endings are added
RENAME = "rename the module or tensor in the code that makes the network, and save it again"


def is_name(name: object) -> bool:
    """Whether `name` is one or more parts of letters, digits, `_` and `-`, with dots between them."""
    return isinstance(name, str) and all(PART.fullmatch(part) for part in name.split("."))


def printable(name: object, *, longest: int = 60) -> str:
    """A name from a file as one may print it: what could move the cursor or end the line is escaped."""
    text = name if isinstance(name, str) else str(name)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: longest + 1])
    return f"{shown[:longest]}…" if len(text) > longest else shown


def check_names(names: Iterable[object], *, where: str) -> None:
    """Refuses names that Python code could not hold as they are."""
    for name in names:
        if not is_name(name):
            raise CheckpointError(
                f"{where} names a part of the network `{printable(name)}`, which is no name", hint=RENAME
            )


def check_names_in(module: nn.Module, *, where: str) -> None:
    """The same for every module, parameter and buffer of a network, at every depth."""
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
    """A name out of a file as the name of a new file: its last part, without what a path or a shell would read."""
    text = unicodedata.normalize("NFC", name if isinstance(name, str) else str(name))
    leaf = re.split(r"[/\\]", text)[-1]
    kept = "".join(c if c.isprintable() and c not in '<>:"|?*' else "_" for c in leaf).strip().lstrip("-.~").rstrip(".")
    while len(kept.encode()) > LONGEST:
        kept = kept[:-1]
    return kept or "network"
