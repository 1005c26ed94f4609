"""What processes that were killed left behind: named after its owner, and taken away by the next process.

An owner is `PID.PLACE.START`: PLACE stands for the machine (since its boot, and the container on it) and START for when
the process began, so that a number which was given to another process, or by another machine with the same shared
folder, is not mistaken. What another place owns is left alone until nobody has touched it for a day.
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
LEFT = re.compile(rf"(?P<name>.+)\.(?P<kind>{PART}|{OLD})-{OWNER}")
LEFT_IN_TEMP = re.compile(rf"{SCRATCH}[a-z0-9]+-{OWNER}-\w+")
FOREIGN_SECONDS = 24 * 3600


def owner() -> str:
    """The name of this process."""
    return f"{os.getpid()}.{_place()}.{_start(os.getpid()) or 0}"


def beside(path: Path, kind: str) -> Path:
    """A neighbour of `path` that is this process's: `PART` to be written, `OLD` to be taken away."""
    return path.with_name(f"{path.name}.{kind}-{owner()}")


@contextlib.contextmanager
def temporary(what: str) -> Iterator[Path]:
    """A folder for the length of the block, in the system's place for such; a later process sweeps a dead one's."""
    sweep_temp()
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{what}-{owner()}-") as folder:
        yield Path(folder)


def sweep(folder: Path) -> None:
    """Take away what dead processes left half written in `folder`; put back what one was about to replace."""
    for path, found in _left(folder, LEFT):
        kept = path.with_name(found["name"])
        if found["kind"] == OLD and not os.path.lexists(kept):
            with contextlib.suppress(OSError):
                path.rename(kept)
        else:
            _remove(path)


@functools.cache
def sweep_temp() -> None:
    """Take away what dead processes left in the system's place for temporary files; once in a process."""
    for path, _ in _left(Path(tempfile.gettempdir()), LEFT_IN_TEMP):
        _remove(path)


def _left(folder: Path, pattern: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    """What lies in the folder under a dead owner's name, and is this user's."""
    try:
        matches = [(entry, pattern.fullmatch(entry.name)) for entry in os.scandir(folder)]
    except OSError:
        return []
    return [
        (Path(entry.path), found)
        for entry, found in matches
        if found is not None and _is_mine(entry) and _is_dead(entry, found)
    ]


def _is_mine(entry: os.DirEntry[str]) -> bool:
    try:
        return not hasattr(os, "getuid") or entry.stat(follow_symlinks=False).st_uid == os.getuid()
    except OSError:
        return False


def _is_dead(entry: os.DirEntry[str], found: re.Match[str]) -> bool:
    if found["place"] != _place():
        with contextlib.suppress(OSError):
            return time.time() - entry.stat(follow_symlinks=False).st_mtime > FOREIGN_SECONDS
        return False
    pid = int(found["pid"])
    if not _exists(pid):
        return True
    start = _start(pid)
    return start is not None and start != int(found["start"])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # somebody else's
    return True


def _start(pid: int) -> int | None:
    """When the process began, in ticks since the boot; `None` where the system does not say.

    psutil gives the hour instead, which moves when somebody sets the clock: a process would seem to be another.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(fields.rpartition(b")")[2].split()[19])


@functools.cache
def _place() -> str:
    known = [platform.node()]
    with contextlib.suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        known.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115  # no path: a name of the system's
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:6]


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
