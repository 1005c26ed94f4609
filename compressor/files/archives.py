"""Read torch's archives member by member. Refused: an archive that is damaged or can be read in two ways.

torch's writer stores members uncompressed, under one folder, each once. An archive of any other form was not written by
torch. Every member's checksum is verified, which torch's own reader does not do.
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
    """An open archive: its members by their names below its single folder."""

    path: Path
    file: zipfile.ZipFile
    members: Mapping[str, zipfile.ZipInfo]

    def read(self, name: str) -> bytes:
        """Return a member's bytes. Refused: a missing member, a wrong checksum."""
        if name not in self.members:
            raise CheckpointError(f"{self.path} lacks `{printable(name)}`", hint=DAMAGED)
        with _refused(self.path):
            return self.file.read(self.members[name])

    def check(self) -> None:
        """Refuse an archive with a wrong checksum in any member."""
        for name in self.members:
            with _refused(self.path), self.file.open(self.members[name]) as stream:
                while stream.read(1 << 20):
                    pass


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open the archive at `path`. Refused: no archive, a damaged one, members that are repeated, compressed or outside
    its folder.
    """
    check_regular(path, refusal=CheckpointError)
    with contextlib.ExitStack() as stack:
        with _refused(path):
            file = stack.enter_context(zipfile.ZipFile(path))
            infos = file.infolist()
        yield Archive(path=path, file=file, members=_members(path, infos))


def names_in(path: Path) -> list[str]:
    """Return the names of an archive's members, below its single folder. Refused: a damaged archive."""
    check_regular(path, refusal=CheckpointError)
    with _refused(path), zipfile.ZipFile(path) as file:
        return [name.partition("/")[2] for name in file.namelist()]


def _members(path: Path, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The members by name. Refused: what torch does not write."""
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
    """Turn any error of the reader into a `CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the reader can raise anything on broken bytes
        text = printable((str(error).splitlines() or [""])[0], longest=160) or type(error).__name__
        raise CheckpointError(f"{path} is a damaged archive, or is cut short: {text}", hint=DAMAGED) from error
