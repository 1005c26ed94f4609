"""Regular files only: opening a pipe, a device or a socket would block, or never end."""

from __future__ import annotations

import stat
from pathlib import Path

from compressor.errors import CompressError


def check_regular(path: Path, *, refusal: type[CompressError]) -> None:
    """Refuse a path that exists but is not a regular file, before anything opens it; links are followed."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise refusal(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
        what = kinds.get(stat.S_IFMT(mode), "a folder")
        raise refusal(f"{path} is {what}, not a regular file", hint="copy its content to a file, and use that file")
