"""The tutorial and the how-to pages, run: `python -m benchmarks.walkthroughs PAGE` writes its output anew.

A page is run from its first block to its last, in an empty folder in which `sample_models` lies:

- a `console` block holds commands behind `$ `, and below each what it prints, both streams together;
- a `bash` block is run as it is; nothing is shown;
- a `python` block that begins with `# name.py` is written to that file, any other one is run;
- blocks of other languages are for reading, and so is a block behind `<!-- not run: REASON -->`.

A command ends in 0, unless the next one is `echo $?`. What is printed is compared without its numbers, since times are
those of a machine, and without the caveats about that machine. A line `…` stands for any lines.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?:<!-- (?P<why>not run: [^>]+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```", re.M | re.S)
SHIM = "import sys; sys.argv[0] = 'compress'; from compressor.cli.main import main; sys.exit(main())"
CAVEAT = re.compile(
    r"(caveat: )?(loaded machine|unstable|few blocks|null check failed|clock rate|other processes took)\b"
)
LONGEST_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page: its language, its text, where the text stands, and why it is not run, if it is not."""

    kind: str
    text: str
    span: tuple[int, int]
    not_run: str | None

    @property
    def file(self) -> str | None:
        """The file that a block of Python is, by its first line."""
        named = re.match(r"# (\w+\.py)\n", self.text)
        return named[1] if named and self.kind == "python" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of a `console` block with the lines that the page shows below it."""

    line: str
    shown: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Session:
    """A working folder in which `compress` is this repository's, and the exit status of the last command."""

    folder: Path
    status: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        programs = self.folder / ".bin"
        programs.mkdir()
        (self.folder / "sample_models").symlink_to(ROOT / "sample_models")
        for name, arguments in (("compress", f'-c "{SHIM}"'), ("python", "")):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
            (programs / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "COMPRESS_STATE_DIR": str(self.folder / ".state"),
            "COLUMNS": "120",
            "NO_COLOR": "1",
        }

    def run(self, script: str) -> str:
        """What a shell prints for the script; the status of the one before is its `$?`."""
        done = subprocess.run(
            ["bash", "-c", f"(exit {self.status})\n{script}"], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LONGEST_S, check=False,
        )  # fmt: skip
        self.status = done.returncode
        return done.stdout.replace(f"{self.folder}/", "")


def blocks(page: str) -> Iterator[Block]:
    """Every fenced block that names its language."""
    for match in BLOCK.finditer(page):
        yield Block(kind=match["kind"], text=match["text"], span=match.span("text"), not_run=match["why"])


def commands(text: str) -> Iterator[Command]:
    """The commands of a `console` block."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        whole = re.match(r"(?:.*\\\n)*.*\n?", part)
        line = whole[0] if whole else part
        yield Command(line=line.strip(), shown=tuple(part[len(line) :].strip("\n").splitlines()))


def run_block(block: Block, session: Session) -> tuple[str, list[str]]:
    """The block with what it really prints, and what went wrong."""
    if block.not_run or block.kind not in ("console", "bash", "python"):
        return block.text, []
    if block.file:
        (session.folder / block.file).write_text(block.text)
        return block.text, []
    if block.kind != "console":
        (session.folder / ".block").write_text(block.text)
        printed = session.run("python .block" if block.kind == "python" else f"set -e\n{block.text}")
        return block.text, [f"exit status {session.status} of\n{block.text}\n{printed}"] if session.status else []
    text, wrong = "", []
    listed = list(commands(block.text))
    for command, following in zip(listed, [*listed[1:], None], strict=True):
        printed = session.run(command.line)
        if session.status and not (following and following.line.startswith("echo $?")):
            wrong.append(f"exit status {session.status}: {command.line}\n{printed}")
        lines = printed.strip("\n").splitlines()
        wrong += [f"not printed by `{command.line}`: {line}\nbut:\n{printed}" for line in missing(command.shown, lines)]
        kept = cut(command.shown, lines)
        text += "".join(f"{line.rstrip()}\n" for line in (f"$ {command.line}", *kept))
        text += "\n" if following and len(kept) > 1 else ""
    return text, wrong


def shape(line: str) -> str:
    """The line without what differs from run to run: numbers, and whether a speed-up is significant."""
    line = " ".join(line.split())  # the spaces before units do not break a line, and are ordinary ones here
    line = re.sub(r"no significant difference \([^)]*\)|[\d.]+× \([^)]*\)(, slower)?", "SPEED", line)
    return re.sub(r"\d[\d,.]*(?:e-?\d+| × 10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?( [kMG]\b)?", "#", line)


def missing(shown: tuple[str, ...], printed: list[str]) -> list[str]:
    """The lines that the page shows and the command does not print, numbers and caveats about the machine aside."""
    real = {shape(line) for line in printed} | {"", "…"}
    return [line for line in shown if shape(line) not in real and not CAVEAT.match(line)]


def cut(shown: tuple[str, ...], printed: list[str]) -> list[str]:
    """What was printed; where the page leaves lines out, by `…`, the lines that it shows, as they were printed."""
    if "…" not in shown:
        return printed
    kept: list[str] = []
    position = 0
    for line in shown:
        same = [i for i in range(position, len(printed)) if shape(printed[i]) == shape(line)]
        if line == "…":
            kept.append(line)
        elif same:
            kept.append(printed[same[0]])
            position = same[0] + 1
    return kept


def walk(page: Path, folder: Path) -> tuple[str, list[str]]:
    """The page with the output that its commands really have, and what differs from what it shows."""
    text = page.read_text()
    session = Session(folder=folder)
    parts, wrong, end = [], [], 0
    for block in blocks(text):
        fresh, mistakes = run_block(block, session)
        parts += [text[end : block.span[0]], fresh]
        wrong += mistakes
        end = block.span[1]
    return "".join([*parts, text[end:]]), wrong


def main() -> None:
    """Run the pages, write what their commands print, and say what had changed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path)
    for page in parser.parse_args().pages:
        with tempfile.TemporaryDirectory() as folder:
            fresh, wrong = walk(page, Path(folder))
        page.write_text(fresh)
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{page}: {spent.ru_utime:.0f} s of processor time so far, {len(wrong)} changed", *wrong, sep="\n")


if __name__ == "__main__":
    main()
