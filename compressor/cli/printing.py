"""How every command talks: data to stdout, everything else to stderr, and every text as it is.

Names come from files and from users: no square bracket in one is markup, no colon an emoji, and no control character
reaches the terminal.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from compressor.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# a terminal acts on these: an escape sequence in a file's name must not move its cursor or set its title
SHOWN_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
NO_BREAK = ord("\N{NO-BREAK SPACE}")  # between a number and its unit: a plain one can be searched for and copied


def console() -> Console:
    """Where tables go: stdout."""
    return _kind()(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)


def talk() -> Console:
    """Where progress, caveats and hints go: stderr."""
    return _kind()(stderr=True, highlight=False, markup=False, emoji=False)


def strong(text: object, style: str = "bold") -> Text:
    """The text, to stand out."""
    from rich.text import Text

    return Text(visible(str(text)), style=style)


def visible(text: str) -> str:
    """The text with its control characters spelt out."""
    return text.translate(SHOWN_CONTROLS | {NO_BREAK: " "})


def print_json(value: object) -> None:
    """The value as JSON on stdout."""
    text = json.dumps(value, indent=1, ensure_ascii=(sys.stdout.encoding or "").lower() not in ("utf-8", "utf8"))
    with writing_stdout():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


@contextlib.contextmanager
def status(first: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr that shows what is going on; a pipe gets nothing instead."""
    from rich.text import Text

    out = talk()
    if not out.is_terminal:
        yield lambda _: None
        return
    with out.status(Text(visible(first))) as spinner:
        yield lambda text: spinner.update(Text(visible(text)))


@contextlib.contextmanager
def writing_stdout(*, only_full: bool = False) -> Iterator[None]:
    """Raises `OutputError` where stdout takes no more: a closed pipe, a full disk behind it, or `only_full` that."""
    try:
        yield
    except OSError as error:
        if only_full and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # what is buffered would be written, and fail, once more when the interpreter ends
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        raise OutputError(
            f"cannot write to stdout: {error.strerror or error}",
            hint="all files are written; free some space, or print to another place",
            closed=isinstance(error, BrokenPipeError),
        ) from error


def take_any_text() -> None:
    """Let stdout and stderr print what their encoding lacks (a name in another script) spelt out."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@cache
def _kind() -> type[Console]:
    """The console's class; rich is imported only once something is printed."""
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text), **options)

        def on_broken_pipe(self) -> None:  # rich would end the process
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

        def print(self, *objects: Any, **options: Any) -> None:
            if self.stderr:
                with contextlib.suppress(OSError):  # nobody listens: no reason to lose the work
                    super().print(*objects, **options)
                return
            with writing_stdout():
                super().print(*objects, **options)

    return Plain
