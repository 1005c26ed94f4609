"""The machine's state during timing: the load of other processes, and the control of the clock rate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compressor.environment import cores

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
PAUSE_S = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticks:
    """Seconds of all processors since the start, summed: busy, and busy plus idle."""

    busy: float
    total: float
    processors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What was observed while this process slept; `None` if the system does not report it.

    `busy_cores`: the time of other processes, in cores. `load_average`: of the last minute, with our own work.
    """

    cores: int
    busy_cores: float | None
    load_average: float | None
    governor: str | None

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        busy, load = self.busy_cores, self.load_average
        return {
            "cores": self.cores,
            "busy_cores": None if busy is None else round(busy, 2),
            "load_average": None if load is None else round(load, 2),
            "governor": self.governor,
        }


def ticks() -> Ticks | None:
    """Return the system's totals for all processes; `None` if the system does not report them."""
    import psutil  # 30 ms, which `--help` does not need

    try:
        processors = psutil.cpu_times(
            percpu=True
        )  # per processor: `psutil.cpu_count` may omit those that this process cannot use
    except (OSError, psutil.Error):
        return None
    # `user` and `nice` include a guest's seconds; only Linux reports guests and waiting for a disk
    total = sum(sum(p) - getattr(p, "guest", 0.0) - getattr(p, "guest_nice", 0.0) for p in processors)
    idle = sum(p.idle + getattr(p, "iowait", 0.0) for p in processors)
    return Ticks(busy=total - idle, total=total, processors=len(processors))


def conditions(
    *,
    sleep: Callable[[float], None] = time.sleep,
    ticks: Callable[[], Ticks | None] = ticks,
    governor: Path = GOVERNOR,
) -> Conditions:
    """Return the load of other processes, observed for a moment in which this process sleeps."""
    before = ticks()
    sleep(PAUSE_S)
    after = ticks()
    busy = None
    if before is not None and after is not None and after.total > before.total:
        busy = after.processors * (after.busy - before.busy) / (after.total - before.total)
    return Conditions(
        cores=cores(),
        busy_cores=busy,
        # not psutil's: Windows has no load average, and psutil's own count is zero for the first five seconds
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        governor=_text(governor),
    )


def _text(file: Path) -> str | None:
    """The text of a file, if it can be read."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
