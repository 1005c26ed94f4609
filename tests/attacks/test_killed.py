"""Asked to end at any moment, a command leaves the artifact whole, and the next one leaves nothing of it behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from compressor.checkpoint.artifacts import open_artifact
from tests.support.command_line import ARCH, make_inputs

COMMANDS: Mapping[str, Sequence[str]] = {
    "prune": ("prune", "tiny.pt", *ARCH, "--ratio", "0.25", "--align", "1", "--out", "tiny.compressed", "--force"),
    "retrain": ("retrain", "tiny.compressed", "--data", "data.npz", "--epochs", "2", "--threads", "1", "--force"),
    "export": ("export", "tiny.compressed", "--onnx"),
}
KILLS = {"prune": 14, "retrain": 14, "export": 12}
ENDED, ASKED = (0, 143), (-signal.SIGTERM,)  # by itself; before Python knew what to do about a signal


class Place:
    """A working folder with an artifact in it, and folders of its own for trust and temporary files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "work").mkdir()
        (folder / "temp").mkdir()
        make_inputs(folder / "work")

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """The command in a process of its own."""
        own = {"COMPRESS_STATE_DIR": str(self.folder / "state"), "TMPDIR": str(self.folder / "temp")}
        return subprocess.Popen(
            [sys.executable, "-c", "from compressor.cli.main import main; main()", *command],
            cwd=self.folder / "work", env={**os.environ, **own, "OMP_NUM_THREADS": "1"}, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def whole(self, command: Sequence[str]) -> float:
        """Run it to its end; how long that took."""
        start = time.monotonic()
        with self.start(command) as going:
            _, said = going.communicate(timeout=300)
        assert going.returncode == 0, said
        return time.monotonic() - start

    def killed(self, command: Sequence[str], after: float) -> int:
        """Ask it to end after so many seconds; how it ended."""
        with self.start(command) as going:
            try:
                going.wait(after)
            except subprocess.TimeoutExpired:
                going.send_signal(signal.SIGTERM)
            _, said = going.communicate(timeout=60)
        assert going.returncode in (*ENDED, *ASKED), said
        assert "Traceback" not in said or going.returncode in ASKED, said
        return going.returncode

    def names(self) -> set[str]:
        """All that lies there, but for what Python and the trust store keep, and the trained state that goes on."""
        files = (p.relative_to(self.folder) for p in self.folder.rglob("*") if p.is_file())
        return {str(f) for f in files if f.parts[0] != "state" and "__pycache__" not in f.parts}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_asked_to_end_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    place, command, dice = Place(tmp_path), COMMANDS[name], random.Random(name)
    place.whole(COMMANDS["prune"])
    took = place.whole(command)
    expected, ends = place.names(), []
    for _ in range(KILLS[name]):
        start = time.monotonic()
        ends.append(place.killed(command, dice.uniform(0.1, 0.9) * took))
        took = min(took, time.monotonic() - start) if ends[-1] == 0 else took  # the machine may be less busy by now
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path / "work")
            patch.setenv("COMPRESS_STATE_DIR", str(tmp_path / "state"))
            small = open_artifact(Path("tiny.compressed")).checkpoint()
            assert bool(torch.isfinite(small.module(*small.example_inputs)).all())
    assert any(end != 0 for end in ends)
    place.whole(command)
    assert place.names() == expected
