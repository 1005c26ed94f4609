"""The machine's state while something is timed: what other processes take of it, and who sets its clock rate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compressor.environment import cores

STAT = Path("/proc/stat")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
PAUSE_S = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What was seen while this process slept; `None` is what the system does not say.

    `busy_cores`: how many cores' worth of time others took. `load_average`: of the last minute, our own work included.
    """

    cores: int
    busy_cores: float | None
    load_average: float | None
    governor: str | None

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        busy, load = self.busy_cores, self.load_average
        return {
            "cores": self.cores,
            "busy_cores": None if busy is None else round(busy, 2),
            "load_average": None if load is None else round(load, 2),
            "governor": self.governor,
        }


def conditions(
    *, sleep: Callable[[float], None] = time.sleep, stat: Path = STAT, governor: Path = GOVERNOR
) -> Conditions:
    """What others take of the machine: looked at for a moment in which this process does nothing."""
    before = _ticks(stat)
    sleep(PAUSE_S)
    after = _ticks(stat)
    busy = None
    if before is not None and after is not None and after[1] > before[1]:
        busy = after[2] * (after[0] - before[0]) / (after[1] - before[1])
    return Conditions(
        cores=cores(),
        busy_cores=busy,
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        governor=_text(governor),
    )


def _ticks(stat: Path) -> tuple[int, int, int] | None:
    """Busy and all ticks of all processors since the start, and how many processors; `None` where nobody says."""
    lines = (_text(stat) or "").splitlines()
    if not lines or not lines[0].startswith("cpu "):
        return None
    ticks = [int(field) for field in lines[0].split()[1:9]]  # user nice system idle iowait irq softirq steal
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks), sum(line.startswith("cpu") for line in lines[1:])


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
