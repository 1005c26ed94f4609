"""Plain files alone: a pipe, a device or a socket would block whoever opens it, or give no end of bytes."""

from __future__ import annotations

import stat
from pathlib import Path

from compressor.errors import CompressError


def check_regular(path: Path, *, refusal: type[CompressError]) -> None:
    """Refuses what is there and is no plain file, before anything opens it; links are followed."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise refusal(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
        what = kinds.get(stat.S_IFMT(mode), "a folder")
        raise refusal(f"{path} is {what}, not a regular file", hint="copy what it gives to a file, and give that")
