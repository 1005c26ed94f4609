"""Write files and folders that appear whole or not at all, with the permissions of the umask, and text as UTF-8."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.files.leftovers import OLD, PART, beside

EXCHANGE = 2  # flag of renameat2(2) on Linux and of renamex_np(2) on macOS: swap both names


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Yield a path beside `file` to write to; it replaces `file` when the block succeeds, and is removed otherwise.

    The caller reports what the system raises (`OSError`).
    """
    part = beside(file.with_name(f".{file.name}"), PART)
    try:
        yield part
        part.replace(file)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(file: Path, content: str) -> None:
    """Write UTF-8, whatever the locale; bytes of a file name that are not text are escaped, as in JSON."""
    file.write_text(content, encoding="utf-8", errors="backslashreplace")


def save_tensors(state: Mapping[str, Any], file: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions of the umask: the library itself makes it private to its owner."""
    from safetensors.torch import save_file

    save_file(dict(state), file, metadata=None if metadata is None else dict(metadata))
    file.chmod(0o666 & ~umask())


def umask() -> int:
    """Return the process's umask."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("\nUmask:")[2].split()[0], 8)
    mask = os.umask(0o022)  # other systems return it only when it is set
    os.umask(mask)
    return mask


def exchanged(one: Path, other: Path) -> bool:
    """Swap two files or folders atomically; return false, without any change, if the system or the disk cannot."""
    try:
        system: Any = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return bool(system.renamex_np(os.fsencode(one), os.fsencode(other), EXCHANGE) == 0)
        here = -100  # AT_FDCWD
        return bool(system.renameat2(here, os.fsencode(one), here, os.fsencode(other), EXCHANGE) == 0)
    except (OSError, AttributeError, TypeError):  # the system has no such call
        return False


def put_in_place(part: Path, place: Path) -> None:
    """Rename the folder `part` to `place`, and delete the folder that was there.

    At any moment one of both exists or can be restored: where the system cannot swap two names atomically, a process
    that is killed between the two renames leaves the old folder under a name that the next process's `sweep` restores.
    """
    if not place.exists():
        part.rename(place)
        return
    if exchanged(part, place):
        shutil.rmtree(part, ignore_errors=True)  # after the swap it is the old folder
        return
    old = beside(place, OLD)
    place.rename(old)
    try:
        part.rename(place)
    except BaseException:  # an interruption too: the old folder stays
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
