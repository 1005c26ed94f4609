"""Running commands as a user does, on a tiny network: what the tests of the command line share."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typer.testing import CliRunner

from compressor.cli.main import app

DONE, REFUSED, USAGE, GATE_MISSED, INTERRUPTED = 0, 1, 2, 3, 130
NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width=16, classes=2):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes),
        )

    def forward(self, x):
        return self.body(x)
"""
ARCH = ("--arch", "net.py:Net", "--input", "1x1x16x16")


def make_inputs(folder: Path, *, images: int = 200) -> None:
    """`net.py`, the weights of its `Net` in `tiny.pt`, and easy images of two classes in `data.npz`."""
    (folder / "net.py").write_text(NET)
    scope: dict[str, Any] = {}
    exec(NET, scope)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(scope["Net"]().state_dict(), folder / "tiny.pt")
    labels = np.arange(images) % 2
    noise = np.random.default_rng(0).integers(0, 100, (images, 16, 16))
    np.savez(folder / "data.npz", images=(noise + 100 * labels[:, None, None]).astype(np.uint8), labels=labels)


def run(*arguments: object) -> Any:
    """The command in this process; anything but an exit is a bug and is raised."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert "Traceback" not in result.stderr
    return result


def done(*arguments: object) -> Any:
    result = run(*arguments)
    assert result.exit_code == DONE, result.stderr
    return result


def snapshot(folder: Path) -> dict[str, str]:
    """Everything that lies below the folder, by content; which files are trusted does not count."""
    files = (
        p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in ("state", "__pycache__")
    )
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def refused(*arguments: object, says: str, hints: str) -> Any:
    """Exit 1 with one message and one hint on stderr, nothing on stdout, and nothing changed in the working folder."""
    before = snapshot(Path.cwd())
    result = run(*arguments)
    assert result.exit_code == REFUSED, result.output
    assert result.stdout == ""
    assert len(re.findall(r"^error: ", result.stderr, flags=re.MULTILINE)) == 1
    assert len(re.findall(r"^hint: ", result.stderr, flags=re.MULTILINE)) == 1
    message, _, hint = result.stderr.partition("\nhint: ")
    assert says in message.partition("error: ")[2]
    assert hints in hint
    assert snapshot(Path.cwd()) == before
    return result


@contextmanager
def full_disk(left: int) -> Iterator[None]:
    """No file may grow beyond `left` bytes: writing fails as on a full disk, in Python and in the libraries."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def interrupted(
    arguments: list[str], *, when: str, then: float, by: int = signal.SIGINT, code: int = INTERRUPTED
) -> str:
    """What a process said after Ctrl-C, or another signal, `then` seconds after a line that begins with `when`."""
    command = [str(Path(sys.executable).parent / "compress"), *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs do not hear it
    ) as going:  # fmt: skip
        assert going.stderr is not None
        said = ""
        for line in going.stderr:
            said += line
            if line.startswith(when):
                break
        time.sleep(then)
        going.send_signal(by)
        printed, rest = going.communicate(timeout=60)
    assert going.returncode == code, said + rest
    assert "Traceback" not in rest
    assert printed == ""
    return rest
