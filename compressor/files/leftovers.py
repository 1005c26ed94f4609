"""Files of killed processes: named after their owner, and removed by the next process.

An owner is `PID.PLACE.START`: PLACE identifies the machine (since its boot, and the container on it), and START is when
the process began. So a process id that was reused, or that another machine uses in the same shared folder, is not
confused. Files of another place stay until nobody has touched them for a day.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PART, OLD, SCRATCH = "part", "old", "compress-"
OWNER = r"(?P<pid>\d+)\.(?P<place>[0-9a-f]{6})\.(?P<start>\d+)"
LEFTOVER = re.compile(rf"(?P<name>.+)\.(?P<kind>{PART}|{OLD})-{OWNER}")
TEMPORARY = re.compile(rf"{SCRATCH}[a-z0-9]+-{OWNER}-\w+")
FOREIGN_SECONDS = 24 * 3600


def owner() -> str:
    """Return the name of this process."""
    return f"{os.getpid()}.{_place()}.{_start(os.getpid()) or 0}"


def beside(path: Path, kind: str) -> Path:
    """Return a path beside `path` that belongs to this process: `PART` to be written, `OLD` to be removed."""
    return path.with_name(f"{path.name}.{kind}-{owner()}")


@contextlib.contextmanager
def temporary(what: str) -> Iterator[Path]:
    """Yield a temporary folder for the length of the block; a later process removes that of a dead one."""
    sweep_temp()
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{what}-{owner()}-") as folder:
        yield Path(folder)


def sweep(folder: Path) -> None:
    """Remove the half-written files of dead processes in `folder`; restore what one was about to replace."""
    for path, match in _leftovers(folder, LEFTOVER):
        kept = path.with_name(match["name"])
        if match["kind"] == OLD and not os.path.lexists(kept):
            with contextlib.suppress(OSError):
                path.rename(kept)
        else:
            _remove(path)


@functools.cache
def sweep_temp() -> None:
    """Remove the temporary files of dead processes; once per process."""
    for path, _ in _leftovers(Path(tempfile.gettempdir()), TEMPORARY):
        _remove(path)


def _leftovers(folder: Path, pattern: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    """Files in the folder that belong to a dead owner and to this user."""
    try:
        matches = [(entry, pattern.fullmatch(entry.name)) for entry in os.scandir(folder)]
    except OSError:
        return []
    return [
        (Path(entry.path), match)
        for entry, match in matches
        if match is not None and _is_mine(entry) and _is_dead(entry, match)
    ]


def _is_mine(entry: os.DirEntry[str]) -> bool:
    """True if the file belongs to this user."""
    try:
        return not hasattr(os, "getuid") or entry.stat(follow_symlinks=False).st_uid == os.getuid()
    except OSError:
        return False


def _is_dead(entry: os.DirEntry[str], match: re.Match[str]) -> bool:
    """True if the file's owner runs no more, or is in another place and has not touched the file for a day."""
    if match["place"] != _place():
        with contextlib.suppress(OSError):
            return time.time() - entry.stat(follow_symlinks=False).st_mtime > FOREIGN_SECONDS
        return False
    pid = int(match["pid"])
    if not _exists(pid):
        return True
    start = _start(pid)
    return start is not None and start != int(match["start"])


def _exists(pid: int) -> bool:
    """True if a process has this id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # a process of another user
    return True


def _start(pid: int) -> int | None:
    """When the process began, in ticks since the boot; `None` where the system does not record it.

    psutil returns the time of day instead, which changes when the clock is set: the process would seem to be another
    one.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(fields.rpartition(b")")[2].split()[19])


@functools.cache
def _place() -> str:
    """A name of this machine since its boot, and of the container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115  # not a path but a name in the system
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:6]


def _remove(path: Path) -> None:
    """Remove a file or folder; errors are ignored."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
