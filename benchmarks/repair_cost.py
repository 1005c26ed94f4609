"""What repair costs: `python -m benchmarks.repair_cost`.

Wall time and peak memory of `prune` with measured widths and least squares (trace, calibrate, probe, allocate, rebuild,
prove) at half of the MACs, each in a process of its own: a CIFAR ResNet-56 with 512 and 1,024 images, torchvision's
resnet50 at 224² with 256, the sample ResNet-20 with 64 to 2,048 images, and CIFAR ResNet-20s that are 1, 2 and 4 times
as wide. Random weights and synthetic images: neither time nor memory hangs on what they hold. Memory is what was added
to what the process held when `prune` started; processor time tells what a busy machine did to the wall's. One JSON
file, a table and a picture; a cell that has a result is not run again.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from benchmarks import cifar
from benchmarks.lines import Panel, Series, picture
from benchmarks.provenance import provenance
from compressor.checkpoint.loading import load
from compressor.pruning.pipeline import prune
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.repair.synthetic import synthetic_data
from compressor.pruning.request import Request
from compressor.surgery.plan import CostBudget, Countable, Scope

FILE = Path(__file__).parent / "repair_cost.json"
TABLE = Path(__file__).parent / "repair_cost.md"
PICTURE = Path(__file__).parent / "repair_cost.svg"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CELLS = {
    "resnet56, 512 images": ("benchmarks.repair_cost:resnet56", "1x3x32x32", 512),
    "resnet56, 1,024 images": ("benchmarks.repair_cost:resnet56", "1x3x32x32", 1024),
    "resnet20, 64 images": ("sample_models.networks:resnet20", "1x1x28x28", 64),
    "resnet20, 256 images": ("sample_models.networks:resnet20", "1x1x28x28", 256),
    "resnet20, 1,024 images": ("sample_models.networks:resnet20", "1x1x28x28", 1024),
    "resnet20, 2,048 images": ("sample_models.networks:resnet20", "1x1x28x28", 2048),
    "resnet20, width x1, 256 images": ("benchmarks.repair_cost:wide1", "1x3x32x32", 256),
    "resnet20, width x2, 256 images": ("benchmarks.repair_cost:wide2", "1x3x32x32", 256),
    "resnet20, width x4, 256 images": ("benchmarks.repair_cost:wide4", "1x3x32x32", 256),
    "torchvision resnet50 at 224², 256 images": ("benchmarks.repair_cost:resnet50", "1x3x224x224", 256),
}


def resnet56() -> nn.Module:
    return cifar.resnet56()


def wide1() -> nn.Module:
    return wide(1)


def wide2() -> nn.Module:
    return wide(2)


def wide4() -> nn.Module:
    return wide(4)


def wide(times: int) -> nn.Module:
    from sample_models.networks import ResNet

    network = ResNet(blocks=3, widths=(16 * times, 32 * times, 64 * times), classes=10)
    network.conv1 = nn.Conv2d(3, 16 * times, 3, padding=1, bias=False)
    return network


def resnet50() -> nn.Module:
    network: nn.Module = torchvision.models.resnet50()
    return network


def one(name: str, threads: int) -> dict[str, Any]:
    """One cell, in this process."""
    arch, shape, images = CELLS[name]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module_name, _, factory = arch.partition(":")
    module = getattr(__import__(module_name, fromlist=[factory]), factory)()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.pt"
        torch.save(module.state_dict(), file)
        dense = load(file, arch=arch, inputs=(shape,))
    data = synthetic_data(dense, count=images, seed=0)
    request = Request(
        budget=CostBudget(counted=Countable.MACS, stays=0.5), criterion="obs", scope=Scope.MEASURED, images=images,
        repair=Repair.LEAST_SQUARES,
    )  # fmt: skip
    CLEAR.write_text("5")  # the peak starts anew
    before = resident_bytes("VmRSS")
    started, worked = time.perf_counter(), time.process_time()
    pruned = prune(dense, request, data=data)
    wall, busy = time.perf_counter() - started, time.process_time() - worked
    peak = resident_bytes("VmHWM")
    found = None if pruned.repair_result is None else pruned.repair_result.to_json()
    assert found is not None
    return {
        "cell": name,
        "asked_images": images,
        "images": found["images"],
        "channels": pruned.levels[0].channels[0],
        "wall_s": wall,
        "cpu_s": busy,
        "rss_before_bytes": before,
        "peak_rss_bytes": peak,
        "threads": threads,
        "load": os.getloadavg()[0],
        "provenance": provenance(),
    }


def resident_bytes(field: str) -> int:
    """What the process holds (`VmRSS`) or held at most (`VmHWM`)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def added_gb(row: dict[str, Any]) -> float:
    """What the peak was above what the process held before."""
    return float(row["peak_rss_bytes"] - row["rss_before_bytes"]) / 1e9


def table(rows: list[dict[str, Any]]) -> str:
    """Seconds and gigabytes, as Markdown."""
    lines = [
        "| network | images held at once | channels | wall time, s | processor time, s | threads | added memory, GB "
        "| held before, GB | load of the machine |"
    ]
    lines.append("| --- |" + " --- |" * 8)
    for r in rows:
        cells = (
            r["cell"],
            f"{r['images']:,}",
            f"{r['channels']:,}",
            f"{r['wall_s']:.0f}",
            f"{r['cpu_s']:.0f}",
            f"{r['threads']}",
            f"{added_gb(r):.2f}",
            f"{r['rss_before_bytes'] / 1e9:.2f}",
            f"{r['load']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]]) -> str:
    """Wall time and memory of the ResNet-20s against images and against channels, as SVG."""
    small = [r for r in rows if r["cell"].startswith("resnet20, ")]
    panels = []
    for wide, x, across in ((False, "images", "images"), (True, "channels", "channels that can leave, at 256 images")):
        found = sorted((r for r in small if ("width" in r["cell"]) is wide), key=operator.itemgetter(x))
        wall, busy = (tuple((float(r[x]), float(r[key])) for r in found) for key in ("wall_s", "cpu_s"))
        added = tuple((float(r[x]), added_gb(r)) for r in found)
        seconds = (Series(name="wall time", points=wall), Series(name="processor time", points=busy))
        panels.append(Panel(title="seconds", across=across, series=seconds))
        panels.append(Panel(title="gigabytes added", across=across, series=(Series(name="peak", points=added),)))
    below = (
        "ResNet-20, half of the MACs, widths by measurement, least squares; each point one run in a process of its own"
    )
    return picture("What repair costs", below, panels)


def main() -> None:
    """Measure what has no result yet, one process after the other; write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="What the names of the cells to run begin with.")
    parser.add_argument("--one", help="One cell, whose result goes to stdout.")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.threads)))
        return
    rows: list[dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else []
    for name in CELLS:
        if name in {row["cell"] for row in rows} or not name.startswith(arguments.only):
            continue
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.repair_cost", "--one", name]
        done = subprocess.run(
            [*command, "--threads", str(arguments.threads)], capture_output=True, text=True, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        FILE.write_text(json.dumps(rows, indent=1) + "\n")
        print(name, rows[-1]["wall_s"], added_gb(rows[-1]), flush=True)
    TABLE.write_text(f"# What repair costs\n\n{__doc__}\n\n![Seconds and gigabytes]({PICTURE.name})\n\n{table(rows)}")
    PICTURE.write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
