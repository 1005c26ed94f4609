"""Reading mutants: what happens, told by reader, seed and index, so that each can be read again.

`python -m tests.attacks.mutants READER --seed 0 --first 0 --count 200` prints a line of JSON for each mutant that was
neither read nor refused; `--keep DIR` writes those files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressor.errors import CompressError
from tests.attacks.mutations import CANARY, ESCAPED, mutated
from tests.attacks.readers import READERS, Reader

LIMIT = 30  # seconds that a reader may take
MEMORY = 6 * 2**30  # bytes that it may ask for beside what the process has
ACTIONS = {  # what no reader has to do, by the name of Python's audit event
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "pty.spawn", "subprocess.Popen",
    "socket.connect", "socket.getaddrinfo", "urllib.Request", "webbrowser.open",
}  # fmt: skip
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a mutant did: it was `read` or `refused`, or it is a fault: `raised`, `slow`, `ran`, `wrote`."""

    reader: str
    seed: int
    index: int
    mutation: str
    verdict: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether that is what a reader may do."""
        return self.verdict in ("read", "refused")


class TooLong(BaseException):
    """The alarm; not an `Exception`, so that nobody takes it for one of the file's."""


class _Guard:
    """Sees what the process does while `on`, and stops what no reader has to do."""

    def __init__(self) -> None:
        self.on, self.seen, self.folder = False, list[str](), Path()
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in ACTIONS:
            self._stop(f"ran {event} {arguments!r}"[:200])
        writing = os.O_WRONLY | os.O_RDWR
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & writing):
            self._writes(arguments[0])

    def _writes(self, path: object) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        place = Path(os.fsdecode(path)).absolute()
        if "__pycache__" not in place.parts and not place.is_relative_to(self.folder) and place != Path(os.devnull):
            self._stop(f"wrote {place}")

    def _stop(self, what: str) -> None:
        self.seen.append(what)
        raise PermissionError(what)


_guard: list[_Guard] = []  # an audit hook stays for as long as the process does


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """What happens meanwhile that no reader has to do; writing in `folder` is none of it."""
    if not _guard:
        _guard.append(_Guard())
    guard = _guard[0]
    guard.seen, guard.folder, guard.on = [], folder.absolute(), True
    try:
        yield guard.seen
    finally:
        guard.on = False


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """An alarm; the one that was set before goes on afterwards."""

    def ring(*_: object) -> None:
        raise TooLong

    handler = signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    start = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, max(0.1, left - (time.monotonic() - start)) if left else 0)
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def with_memory(extra: int) -> Iterator[None]:
    """No more address space than the process has and `extra`: what asks for more fails, and the machine stays well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Fuzzed:
    """A reader with its good files in a folder of its own."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.reader, self.folder = reader, folder
        self.file = folder / reader.file
        with _quiet():
            reader.make(folder)
            self.good = self.file.read_bytes()
            self._beside = {p: p.read_bytes() for p in self.file.parent.glob("*.json") if p != self.file}
            with contextlib.chdir(folder):
                reader.read(folder)  # a good file is read; what is imported late is imported now

    def mutant(self, seed: int, index: int) -> tuple[bytes, str]:
        """The mutant of a seed and an index: always the same while the good file is."""
        return mutated(self.good, self.reader.form, random.Random(f"{self.reader.name} {seed} {index}"))

    def outcome(self, seed: int, index: int) -> Outcome:
        """What happens when the mutant is read."""
        content, mutation = self.mutant(seed, index)
        for file, good in self._beside.items():
            file.write_bytes(good)
        self.file.write_bytes(content)
        self.reader.mend(self.folder)
        start = time.monotonic()
        verdict, detail = self._read()
        told = {"reader": self.reader.name, "seed": seed, "index": index, "mutation": mutation}
        return Outcome(**told, verdict=verdict, detail=detail, seconds=round(time.monotonic() - start, 2))

    def _read(self) -> tuple[str, str]:
        with watched(self.folder) as seen, _quiet(), contextlib.chdir(self.folder):
            try:
                with within(LIMIT), with_memory(MEMORY):
                    self.reader.read(self.folder)
                said = "read", ""
            except CompressError as error:
                said = "refused", str(error)
            except TooLong:
                said = "slow", f"more than {LIMIT} s"
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                # whatever a reader lets through is what is looked for
                said = "raised", _where(error)
        if seen:
            return ("ran" if seen[0].startswith("ran") else "wrote"), seen[0]
        for name in (CANARY, ESCAPED):
            for place in (self.folder, *self.folder.parents):
                if (place / name).exists():
                    (place / name).unlink()
                    return "ran", f"{name} appeared in {place}"
        return said


def _where(error: BaseException) -> str:
    """The last line of ours that the exception came through, and what it says."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/compressor/" in f.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{place} {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    nothing = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def opened(reader: Reader, folder: Path) -> Iterator[Fuzzed]:
    """The reader with good files below `folder`; what was trusted and temporary files lie there too."""
    place = folder / "".join(c if c.isalnum() else "-" for c in reader.name)
    (place / "tmp").mkdir(parents=True)
    before = {name: os.environ.get(name) for name in ("COMPRESS_STATE_DIR", "TMPDIR")}
    os.environ |= {"COMPRESS_STATE_DIR": str(place / "state"), "TMPDIR": str(place / "tmp")}
    known, tempfile.tempdir = tempfile.tempdir, None
    try:
        with contextlib.chdir(place):
            yield Fuzzed(reader, place)
    finally:
        tempfile.tempdir = known
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read mutants of one reader, or of all; a line of JSON for each fault, and a summary on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=[*READERS, "all"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="write faulty mutants there")
    parser.add_argument("--all", action="store_true", help="print those that were read or refused, too")
    asked = parser.parse_args(arguments)
    faults = 0
    for name in READERS if asked.reader == "all" else [asked.reader]:
        tally: dict[str, int] = {}
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch, opened(READERS[name], Path(scratch)) as fuzzed:
            for index in range(asked.first, asked.first + asked.count):
                found = fuzzed.outcome(asked.seed, index)
                tally[found.verdict] = tally.get(found.verdict, 0) + 1
                faults += not found.right
                if asked.all or not found.right:
                    print(json.dumps(asdict(found)), flush=True)
                if asked.keep is not None and not found.right:
                    asked.keep.mkdir(parents=True, exist_ok=True)
                    leaf = Path(fuzzed.reader.file).name
                    (asked.keep / f"{asked.seed}-{index}-{leaf}").write_bytes(fuzzed.mutant(asked.seed, index)[0])
        print(f"{name}: {tally}, {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
