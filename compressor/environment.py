"""Where a number was measured: versions, processor, threads, device, commit and command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ONNXRUNTIMES = ("onnxruntime-gpu", "onnxruntime")  # one package under two names


def environment() -> dict[str, object]:
    """Plain values; what cannot be found out is `None`, never a guess."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "onnxruntime": version(*ONNXRUNTIMES),
        "onnx": version("onnx"),
        "platform": f"{platform.system()}-{platform.machine()}",
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": "cpu" if gpu is None else f"cuda ({gpu})",
        "commit": commit(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def version(*names: str) -> str | None:
    """The installed version of the first of these packages that is installed."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The processor's model name, with the widest vectors that it offers where the system says so."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.processor() or None
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = set(fields.get("flags", "").split())
    vectors = next((v for v in ("avx512f", "avx2") if v in flags), None)
    return name if vectors is None else f"{name} ({vectors})"


def cores() -> int:
    """How many cores this process may use; a container or `taskset` may allow it fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def commit(folder: Path | None = None) -> str | None:
    """The git commit of the package's own source, `-dirty` where it was changed since; `None` outside a checkout."""
    folder = Path(__file__).parent if folder is None else folder
    # installed into an environment inside somebody's repository, it would else name that repository's commit
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    return head if _git(folder, "diff", "--quiet", "HEAD", "--", ".") is not None else f"{head}-dirty"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or `None` where there is no git or it says no."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
