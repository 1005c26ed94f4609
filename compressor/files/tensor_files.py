"""Weights in a `.safetensors` file: raw bytes after a table in JSON."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.errors import CheckpointError
from compressor.files.names import printable
from compressor.files.regular import check_regular

LONGEST_TABLE = 100_000_000  # bytes: the format's own bound


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in the file by name. Refused: a damaged file, one that names a tensor twice."""
    from safetensors.torch import load_file

    check_regular(path, refusal=CheckpointError)
    try:
        _check_table(path)
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except Exception as error:  # the reader can raise anything on broken bytes
        text = printable((str(error).splitlines() or [""])[0], longest=160)
        raise CheckpointError(f"{path} is not a complete safetensors file: {text}", hint="fetch it again") from error


def _check_table(path: Path) -> None:
    """Read the table at the file's start. Refused: a repeated name."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        table = stream.read(min(length, LONGEST_TABLE))
    json.loads(table, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    by_name = dict(pairs)
    if len(by_name) != len(pairs):
        raise ValueError("its table names a tensor twice")
    return by_name
