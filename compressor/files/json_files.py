"""JSON in files: strictly read, and written whole.

What a parser forgives and a reader then trips over is refused here: numbers that are not finite or have no end, a key
that stands twice, nesting without end, bytes that are no UTF-8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import ArtifactError, CompressError
from compressor.files.atomic import whole, write_text

DEEPEST = 64  # as nested as our own files never are
DIGITS = 20  # of a whole number; 2**64 has as many
AGAIN = "another program wrote or edited it; make it again with the command that writes it"


def read_json(path: Path, *, refusal: type[CompressError] = ArtifactError, hint: str = AGAIN) -> dict[str, Any]:
    """The JSON object in `path`; refused by `refusal` where there is none."""
    try:
        if path.exists() and not path.is_file():  # a pipe would block whoever opens it
            raise refusal(f"{path} is not a regular file", hint="give a file")
        content = path.read_bytes()
    except OSError as error:
        raise refusal(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    return parsed(content, where=str(path), refusal=refusal, hint=hint)


def parsed(
    content: bytes | str, *, where: str, refusal: type[CompressError] = ArtifactError, hint: str = AGAIN
) -> dict[str, Any]:
    """The JSON object in a text; `where` says whose it is."""
    try:
        found = json.loads(
            content.decode() if isinstance(content, bytes) else content,
            object_pairs_hook=_once,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_whole,
        )
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise refusal(f"cannot read {where}: {why}", hint=hint) from error
    if not isinstance(found, dict):
        raise refusal(f"{where} holds no JSON object", hint=hint)
    if _is_deep(found):
        raise refusal(f"cannot read {where}: it is nested too deep", hint=hint)
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write canonical JSON, whole or not at all."""
    try:
        with whole(path) as part:
            write_text(part, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror or error}", hint="free some space and repeat the command"
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)[:60]!r} stands twice")
    return found


def _no_number(said: str) -> Any:
    raise ValueError(f"{said} is no number")


def _finite(said: str) -> float:
    found = float(said)
    if not math.isfinite(found):
        raise ValueError(f"{said[:40]} is no finite number")
    return found


def _whole(said: str) -> int:
    if len(said) > DIGITS:
        raise ValueError(f"a whole number of {len(said)} digits")
    return int(said)


def _is_deep(found: dict[str, Any]) -> bool:
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True
