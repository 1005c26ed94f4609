"""Which code this user trusts: by the hash of each file that `--arch` named, the references and the imports' folders.

An entry is written only when the user names the code. A recipe's reference is followed only if an entry has it, and
what the code imports is searched for where the entry says, never where a recipe or its folder lies.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import ArchitectureError

ANY = "*"  # the reference of an entry that an earlier version wrote, which had none


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """A reference that the user named, the file of its code, and the folders from which that file imports.

    `code` is the hash of what the reference depends on in its file (`checkpoint.code.definitions`), where it has one.
    """

    ref: str
    file: Path | None
    roots: tuple[Path, ...] = ()
    code: str | None = None


def remember(digest: str, trusted: Trusted) -> None:
    """Record that the user trusts the file with this hash. Refused: no folder for it can be written."""
    if trusted in entries(digest):
        return
    store = _store()
    try:
        store.mkdir(parents=True, exist_ok=True)
        _append(store / digest, trusted)
        return
    except OSError as error:
        failed = error
    temp = _store_of_temp()
    with contextlib.suppress(OSError):
        temp.mkdir(mode=0o700, exist_ok=True)
        if _is_private(temp):
            _append(temp / digest, trusted)
            return
    raise ArchitectureError(
        f"cannot write to {store}, which remembers trusted files: {failed.strerror or failed}",
        hint="free some space, or name a folder that can be written: `COMPRESS_STATE_DIR=DIR compress …`",
    ) from failed


def entries(digest: str) -> tuple[Trusted, ...]:
    """Return what the user has named of the file with this hash; nothing if the file is not trusted."""
    temp = _store_of_temp()
    files = [_store() / digest] + [temp / digest] * _is_private(temp)
    return tuple(one for file in files for one in _read(file))


def _append(file: Path, trusted: Trusted) -> None:
    """Add an entry to a file of the store."""
    was_empty = file.exists() and not file.stat().st_size
    added = (Trusted(ref=ANY, file=None), trusted) if was_empty else (trusted,)
    lines = [
        json.dumps({"ref": one.ref, "file": str(one.file or ""), "roots": [*map(str, one.roots)], "code": one.code})
        for one in added
    ]
    existed = file.exists()
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write("".join(f"{line}\n" for line in lines))
    except OSError:
        if not existed:  # an empty file is one of an earlier version
            file.unlink(missing_ok=True)
        raise


def _read(file: Path) -> Iterator[Trusted]:
    """The entries in a file of the store; lines that cannot be read are none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    if not lines:
        yield Trusted(ref=ANY, file=None)
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            plain = json.loads(line)
            path = Path(plain["file"]) if plain["file"] else None
            roots = tuple(map(Path, plain["roots"]))
            yield Trusted(ref=str(plain["ref"]), file=path, roots=roots, code=plain.get("code"))


def _store() -> Path:
    """The folder that records trusted files, by their hashes."""
    state = os.environ.get("COMPRESS_STATE_DIR")
    if state:
        return Path(state) / "trusted"
    try:
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    except RuntimeError:  # a user without a home
        return _store_of_temp()
    return home / "compress" / "trusted"


def _store_of_temp() -> Path:
    """The folder for a home that cannot be written, as in containers: it lasts until the machine restarts."""
    return Path(tempfile.gettempdir()) / f"compress-trusted-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def _is_private(folder: Path) -> bool:
    """True if nobody else can write into the folder."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return stat.S_ISDIR(status.st_mode) and mine and not status.st_mode & 0o022
