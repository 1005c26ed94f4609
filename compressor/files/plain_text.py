"""What a text file is that lies where a binary file is expected: a download that failed, a pointer, a link."""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass
from pathlib import Path

from compressor.files.names import printable

LOOKED_AT = 4096  # bytes
LONGEST_PICKLE = 1 << 20  # bytes of a pickle of protocol 0, which is text too


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainText:
    """What a text file is, and what to do about it."""

    what: str
    hint: str


def plain_text_in(path: Path) -> PlainText | None:
    """Return what the text file at `path` is; `None` for a binary file, and for a pickle of protocol 0."""
    with path.open("rb") as stream:
        head = stream.read(LOOKED_AT)
    try:
        text = head.decode("utf-8").strip("\ufeff")
    except UnicodeDecodeError as error:
        if error.start < LOOKED_AT - 4 or len(head) < LOOKED_AT:  # not a character that is cut in two
            return None
        text = head[: error.start].decode("utf-8")
    if not text.strip() or not all(c.isprintable() or c in "\t\n\r\f" for c in text) or _is_pickle(path):
        return None
    first = text.strip().splitlines()[0].strip()
    if first.startswith("version https://git-lfs"):
        return PlainText(what="a git-lfs pointer to a file that was not fetched", hint="fetch it: `git lfs pull`")
    if re.match(r"<(!doctype|html|\?xml|head|body)", first, re.IGNORECASE):
        return PlainText(
            what="a web page", hint="the download needs another address, a login or a consent: fetch it in a browser"
        )
    if first == text.strip() and re.fullmatch(r"[\w./~ -]*/[\w./ -]+|[\w-]+\.\w+", first):
        return PlainText(
            what=f"the text of a link to `{printable(first)}`",
            hint="use that file; git writes links as text where they are switched off (`core.symlinks`)",
        )
    return PlainText(
        what=f"a text file that begins with `{printable(first, longest=40)}`",
        hint="the copy or download may have failed: fetch it again",
    )


def _is_pickle(path: Path) -> bool:
    """True if the file is one pickle, of opcodes that are letters."""
    if path.stat().st_size > LONGEST_PICKLE:
        return False
    try:
        content = path.read_bytes()
        return [at for _, _, at in pickletools.genops(content)][-1] == len(content) - 1
    except Exception:  # whatever the scanner meets in what is none
        return False
