"""Archives that torch writes, read member by member: what could be read in two ways, or is damaged, is refused.

torch's writer stores members as they are, under one folder, each once. Anything else was made by hand. Every member's
checksum is verified, which torch's own reader does not do.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import CheckpointError
from compressor.files.names import printable
from compressor.files.regular import check_regular

DAMAGED = "fetch or copy it again: the file was changed since it was written, or is cut short"


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """An open archive: its members by their names below the one folder that holds them."""

    path: Path
    file: zipfile.ZipFile
    members: Mapping[str, zipfile.ZipInfo]

    def read(self, name: str) -> bytes:
        """A member's bytes. Refused: one that is not there, or whose checksum is another."""
        if name not in self.members:
            raise CheckpointError(f"{self.path} lacks `{printable(name)}`", hint=DAMAGED)
        with _refused(self.path):
            return self.file.read(self.members[name])

    def check(self) -> None:
        """Refuses an archive of which any member's checksum is another."""
        for name in self.members:
            with _refused(self.path), self.file.open(self.members[name]) as stream:
                while stream.read(1 << 20):
                    pass


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The archive at `path`. Refused: no archive, a damaged one, members twice, packed or outside the one folder."""
    check_regular(path, refusal=CheckpointError)
    with contextlib.ExitStack() as stack:
        with _refused(path):
            file = stack.enter_context(zipfile.ZipFile(path))
            infos = file.infolist()
        yield Archive(path=path, file=file, members=_members(path, infos))


def names_in(path: Path) -> list[str]:
    """The names of an archive's members, below the folder that holds them. Refused: a damaged archive."""
    check_regular(path, refusal=CheckpointError)
    with _refused(path), zipfile.ZipFile(path) as file:
        return [name.partition("/")[2] for name in file.namelist()]


def _members(path: Path, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    roots = {info.filename.partition("/")[0] for info in infos}
    members: dict[str, zipfile.ZipInfo] = {}
    folded: set[str] = set()
    for info in infos:
        _, slash, name = info.filename.partition("/")
        shown = printable(info.filename)
        if not slash or not name or len(roots) > 1 or name.startswith("/") or ".." in name.split("/"):
            raise CheckpointError(
                f"{path} holds `{shown}`, which torch does not write", hint="save it again with torch"
            )
        if name.casefold() in folded:
            raise CheckpointError(f"{path} holds `{shown}` twice", hint="save it again with torch")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CheckpointError(f"{path} was packed again: `{shown}` is compressed", hint="save it again with torch")
        folded.add(name.casefold())
        members[name] = info
    return members


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the reader follows the file's own bytes: a broken one makes it raise anything
        said = printable((str(error).splitlines() or [""])[0], longest=160) or type(error).__name__
        raise CheckpointError(f"{path} is a damaged archive, or is cut short: {said}", hint=DAMAGED) from error
