"""The peak memory of each candidate, measured in a process of its own.

Many networks in one process share an allocator, and the first one's leavings serve the second: so a server process
imports what is needed once, and forks for each candidate. What counts is growth: the libraries are everybody's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressor.children import python_module
from compressor.errors import CompressError
from compressor.measuring.runtimes import Memory, Reads, load
from compressor.stopping import die_with_parent

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
CALLS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One candidate on one runtime at one batch size: its ONNX file or saved module, and the file of its inputs."""

    runtime: str
    model: str
    inputs: str
    threads: int


def unmeasurable() -> str | None:
    """Why no peak can be read on this system."""
    if STATUS.exists() and CLEAR.exists() and hasattr(os, "fork"):
        return None
    return "only Linux says what a process held at most"


def peak_memory(loads: Sequence[Load], *, architecture: Mapping[str, Any] | None = None) -> tuple[int | None, ...]:
    """Bytes for each load, `None` where its process failed; `architecture` makes a network of a user's file known."""
    if not loads or unmeasurable() is not None:
        return (None,) * len(loads)
    request = json.dumps({"loads": [asdict(one) for one in loads], "architecture": architecture})
    done = subprocess.run(
        python_module("compressor.measuring.peak_memory"),
        input=request,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    lines = done.stdout.splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        return (None,) * len(loads)  # the server died, of memory perhaps
    return tuple(found)


def serve() -> None:
    """The server: a request as JSON on stdin, bytes on stdout."""
    request = json.load(sys.stdin)
    if request["architecture"] is not None:
        from compressor.checkpoint.architectures import Architecture, build

        plain = request["architecture"]
        arguments = tuple((key, value) for key, value in plain["arguments"])
        with contextlib.suppress(CompressError):  # then its module does not load, which is told for each candidate
            build(Architecture(ref=plain["ref"], arguments=arguments, sha256=plain["sha256"]))
    loads = [Load(**one) for one in request["loads"]]
    for one in loads:
        load(one.runtime)  # what it imports is no candidate's
    sys.stdout.write(json.dumps([_in_a_fork(one) for one in loads]) + "\n")


def _in_a_fork(one: Load) -> int | None:
    """The load's peak, measured in a fork; nothing has started a thread before it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        die_with_parent()
        status = 1
        try:
            os.write(writer, str(_peak(one)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return int(said) if said.isdecimal() else None


def _peak(one: Load) -> int:
    import torch

    runtime = load(one.runtime)
    inputs = tuple(torch.load(one.inputs, weights_only=True))
    # our own file of a moment ago, in a folder of our own
    model: Any = torch.load(one.model, weights_only=False) if runtime.reads is Reads.MODULE else Path(one.model)
    with contextlib.suppress(OSError, AttributeError):  # another C library keeps what it freed; the growth is less
        ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5", encoding="utf-8")  # the peak starts anew
    before, mapped = _kilobytes("VmRSS"), _kilobytes("RssFile")
    with runtime.prepare(model, inputs, threads=one.threads) as prepared:
        for _ in range(CALLS):
            prepared.run()
    if runtime.memory is Memory.DEVICE:
        return int(torch.cuda.max_memory_allocated())
    # a library's code counts from its first use on, and is no candidate's
    return 1024 * (_kilobytes("VmHWM") - before - (_kilobytes("RssFile") - mapped))


def _kilobytes(field: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])


if __name__ == "__main__":
    serve()
