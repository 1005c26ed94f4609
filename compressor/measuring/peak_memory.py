"""Measure the peak memory of each candidate in a process of its own.

Networks in one process share an allocator, so the second one reuses memory of the first. A server process therefore
imports the libraries once, and forks for each candidate. Only growth counts, because the libraries are common to all.
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
    """Return why no peak can be read on this system; `None` if it can."""
    if STATUS.exists() and CLEAR.exists() and hasattr(os, "fork"):
        return None
    return "only Linux says what a process held at most"


def peak_memory(loads: Sequence[Load], *, architecture: Mapping[str, Any] | None = None) -> tuple[int | None, ...]:
    """Return the bytes for each load, `None` where its process failed; `architecture` imports the code of a user's
    file.
    """
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
        peaks = json.loads(lines[-1])
    except (IndexError, ValueError):
        return (None,) * len(loads)  # the server died, of memory perhaps
    return tuple(peaks)


def serve() -> None:
    """Run the server: a request as JSON on stdin, bytes on stdout."""
    request = json.load(sys.stdin)
    if request["architecture"] is not None:
        from compressor.checkpoint.architectures import Architecture, build

        plain = request["architecture"]
        arguments = tuple((key, value) for key, value in plain["arguments"])
        with contextlib.suppress(CompressError):  # then its module does not load, and each candidate has no peak
            build(Architecture(ref=plain["ref"], arguments=arguments, sha256=plain["sha256"]))
    loads = [Load(**one) for one in request["loads"]]
    for one in loads:
        load(one.runtime)  # its imports do not count for a candidate
    sys.stdout.write(json.dumps([_in_a_fork(one) for one in loads]) + "\n")


def _in_a_fork(one: Load) -> int | None:
    """The load's peak, measured in a fork; no thread has started before it."""
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
        text = stream.read()
    os.waitpid(child, 0)
    return int(text) if text.isdecimal() else None


def _peak(one: Load) -> int:
    """The growth of this process while the network runs."""
    import torch

    runtime = load(one.runtime)
    inputs = tuple(torch.load(one.inputs, weights_only=True))
    # a file that this package has just written, in its own folder
    model: Any = torch.load(one.model, weights_only=False) if runtime.reads is Reads.MODULE else Path(one.model)
    with contextlib.suppress(
        OSError, AttributeError
    ):  # another C library keeps freed memory; the growth is then smaller
        ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5", encoding="utf-8")  # resets the peak
    before, mapped = _kilobytes("VmRSS"), _kilobytes("RssFile")
    with runtime.prepare(model, inputs, threads=one.threads) as prepared:
        for _ in range(CALLS):
            prepared.run()
    if runtime.memory is Memory.DEVICE:
        return int(torch.cuda.max_memory_allocated())
    # pages of a library's code are mapped at first use, and do not count for a candidate
    return 1024 * (_kilobytes("VmHWM") - before - (_kilobytes("RssFile") - mapped))


def _kilobytes(field: str) -> int:
    """A field of this process's status."""
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])


if __name__ == "__main__":
    serve()
