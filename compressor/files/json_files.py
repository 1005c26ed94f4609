"""JSON in files: read strictly, and written whole.

Refused is what a parser accepts but a reader may misread: numbers that are not finite or too long, repeated keys,
excessive nesting, bytes that are not UTF-8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import ArtifactError, CompressError
from compressor.files.atomic import whole, write_text

DEEPEST = 64  # deeper than our own files
DIGITS = 20  # of an integer; 2**64 has as many
AGAIN = "another program wrote or edited it; make it again with the command that writes it"


def read_json(path: Path, *, refusal: type[CompressError] = ArtifactError, hint: str = AGAIN) -> dict[str, Any]:
    """Return the JSON object in `path`. Refused by `refusal`: a file without one."""
    try:
        if path.exists() and not path.is_file():  # a pipe would block whoever opens it
            raise refusal(f"{path} is not a regular file", hint="use a file")
        content = path.read_bytes()
    except OSError as error:
        raise refusal(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    return parsed(content, where=str(path), refusal=refusal, hint=hint)


def parsed(
    content: bytes | str, *, where: str, refusal: type[CompressError] = ArtifactError, hint: str = AGAIN
) -> dict[str, Any]:
    """Return the JSON object in a text; `where` names its source in errors."""
    try:
        value = json.loads(
            content.decode() if isinstance(content, bytes) else content,
            object_pairs_hook=_once,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_whole,
        )
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise refusal(f"cannot read {where}: {why}", hint=hint) from error
    if not isinstance(value, dict):
        raise refusal(f"{where} holds no JSON object", hint=hint)
    if _is_deep(value):
        raise refusal(f"cannot read {where}: it is nested too deep", hint=hint)
    return value


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
    """The object of these pairs. Refused: a repeated key."""
    by_key = dict(pairs)
    if len(by_key) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)[:60]!r} stands twice")
    return by_key


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _is_deep(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
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
