"""Files and folders that appear whole or not at all, readable by whom the user lets read, their text as UTF-8."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.files.leftovers import PART, beside

EXCHANGE = 2  # of renameat2(2) on Linux and of renamex_np(2) on macOS: swap both names


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A neighbour of `file` to write to, which takes its name when the block ends well, and is gone otherwise.

    What the system raises (`OSError`) is for the caller to tell the user.
    """
    part = beside(file.with_name(f".{file.name}"), PART)
    try:
        yield part
        part.replace(file)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(file: Path, content: str) -> None:
    """Write UTF-8, whatever the locale; a file name's bytes that are no text are spelt out, as JSON escapes them."""
    file.write_text(content, encoding="utf-8", errors="backslashreplace")


def save_tensors(state: Mapping[str, Any], file: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that others may read as the umask says: the library makes it the owner's alone."""
    from safetensors.torch import save_file

    save_file(dict(state), file, metadata=None if metadata is None else dict(metadata))
    file.chmod(0o666 & ~umask())


def umask() -> int:
    """The process's umask."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        said = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(said.partition("\nUmask:")[2].split()[0], 8)
    mask = os.umask(0o022)  # elsewhere it is told only when it is set
    os.umask(mask)
    return mask


def exchanged(one: Path, other: Path) -> bool:
    """Swap two files or folders at once; false, and nothing is done, where the system or the disk cannot."""
    try:
        system: Any = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return bool(system.renamex_np(os.fsencode(one), os.fsencode(other), EXCHANGE) == 0)
        here = -100  # AT_FDCWD
        return bool(system.renameat2(here, os.fsencode(one), here, os.fsencode(other), EXCHANGE) == 0)
    except (OSError, AttributeError, TypeError):  # no such call here
        return False
