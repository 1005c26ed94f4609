"""Where a number was measured: versions, processor, threads, device, commit and command."""

from __future__ import annotations

import enum
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ONNXRUNTIMES = ("onnxruntime-gpu", "onnxruntime")  # one package under two names


class Processor(enum.StrEnum):
    """What an int8 file is for: the processor of this machine, or one of a kind."""

    HERE = "here"
    X86 = "x86"
    X86_VNNI = "x86-vnni"
    ARM = "arm"

    @property
    def saturates(self) -> bool:
        """True if products of 8-bit weights may saturate on it."""
        return saturates_int8() if self is Processor.HERE else self is Processor.X86

    def __str__(self) -> str:
        """The processor in words."""
        return {"here": "this processor", "x86": "x86 without VNNI", "x86-vnni": "x86 with VNNI"}.get(self, "arm")


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
        "command": as_typed([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def as_typed(words: Sequence[str]) -> str:
    """A command line as a user would type it, whatever the locale that Python read its words in."""
    return shlex.join(words).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


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
    fields = _fields(cpuinfo)
    if fields is None:
        return platform.processor() or None
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = set(fields.get("flags", "").split())
    vectors = next((v for v in ("avx512f", "avx2") if v in flags), None)
    return name if vectors is None else f"{name} ({vectors})"


def saturates_int8(cpuinfo: Path = Path("/proc/cpuinfo"), *, machine: str | None = None) -> bool:
    """True if products of 8-bit weights may saturate on this processor: x86 that is not known to have VNNI.

    Without VNNI an x86 processor adds two products in 16 bits, which two large weights overflow
    (onnxruntime's documentation on quantisation, "reduce_range").
    """
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    flags = set((_fields(cpuinfo) or {}).get("flags", "").split())
    return not flags & {"avx512_vnni", "avx_vnni"}


def _fields(cpuinfo: Path) -> dict[str, str] | None:
    """What the system says of its processors, the last one's; `None` where it says nothing."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cores() -> int:
    """How many cores this process may use; a container's CPU set or `taskset` may allow it fewer than there are.

    A container's quota of processor time is not among them: it slows all cores, and takes none away.
    """
    import psutil  # `--help` does not need it

    allowed = getattr(psutil.Process(), "cpu_affinity", None)  # macOS binds no process to cores
    return (psutil.cpu_count() if allowed is None else len(allowed())) or 1


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
