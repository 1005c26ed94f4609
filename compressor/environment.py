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
    """The target of an int8 file: this machine's processor, or one of a kind."""

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
    """Return plain values; what cannot be determined is `None`, never a guess."""
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
    """Return a command line as a user would type it, whatever the locale in which Python read its words."""
    return shlex.join(words).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def version(*names: str) -> str | None:
    """Return the installed version of the first of these packages that is installed; `None` if none is."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the processor's model name, with its widest vector instructions where the system lists them."""
    fields = _fields(cpuinfo)
    if fields is None:
        return platform.processor() or None
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = set(fields.get("flags", "").split())
    vectors = next((v for v in ("avx512f", "avx2") if v in flags), None)
    return name if vectors is None else f"{name} ({vectors})"


def saturates_int8(cpuinfo: Path = Path("/proc/cpuinfo"), *, machine: str | None = None) -> bool:
    """Return true if products of 8-bit weights may saturate on this processor: x86 without a VNNI flag.

    Without VNNI an x86 processor adds two products in 16 bits, which two large weights overflow
    (onnxruntime's documentation on quantisation, "reduce_range").
    """
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    flags = set((_fields(cpuinfo) or {}).get("flags", "").split())
    return not flags & {"avx512_vnni", "avx_vnni"}


def _fields(cpuinfo: Path) -> dict[str, str] | None:
    """The fields of the last processor in the system's list; `None` where there is no list."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cores() -> int:
    """Return the number of cores that this process may use; a container's CPU set or `taskset` may restrict it.

    A container's quota of processor time does not count: it slows all cores and removes none.
    """
    import psutil  # `--help` does not need it

    allowed = getattr(psutil.Process(), "cpu_affinity", None)  # macOS binds no process to cores
    return (psutil.cpu_count() if allowed is None else len(allowed())) or 1


def commit(folder: Path | None = None) -> str | None:
    """Return the git commit of the package's own source, with `-dirty` if it was changed; `None` outside a checkout."""
    folder = Path(__file__).parent if folder is None else folder
    # without this check a package installed inside another repository would return that repository's commit
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    return head if _git(folder, "diff", "--quiet", "HEAD", "--", ".") is not None else f"{head}-dirty"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or `None` if git is missing or fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
