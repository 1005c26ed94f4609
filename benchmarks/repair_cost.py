"""What repair costs: `python -m benchmarks.repair_cost`.

Wall time and peak memory of `prune` with measured widths and least squares (trace, calibrate, probe, allocate, rebuild,
prove) at half of the MACs, each in a process of its own: a CIFAR ResNet-56 with 512 and 1,024 images, torchvision's
resnet50 at 224² with 256, the sample ResNet-20 with 64 to 2,048 images, and CIFAR ResNet-20s that are 1, 2 and 4 times
as wide. Random weights and synthetic images: neither time nor memory hangs on what they hold. One JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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
from benchmarks.provenance import provenance
from compressor.checkpoint import load
from compressor.pipeline import prune
from compressor.plan import CostBudget, Countable, Scope
from compressor.repair import Repair
from compressor.request import Request
from compressor.synthetic import synthetic_data

FILE = Path(__file__).parent / "repair_cost.json"
TABLE = Path(__file__).parent / "repair_cost.md"
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
    started = time.perf_counter()
    pruned = prune(dense, request, data=data)
    wall = time.perf_counter() - started
    found = pruned.repair_to_json()
    assert found is not None
    return {
        "cell": name,
        "asked_images": images,
        "images": found["images"],
        "wall_s": wall,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": threads,
        "load": os.getloadavg()[0],
        "provenance": provenance(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Seconds and gigabytes, as Markdown."""
    lines = ["| network | images held at once | wall time, s | peak memory, GB | load of the machine |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for r in rows:
        cells = (
            r["cell"],
            f"{r['images']:,}",
            f"{r['wall_s']:.0f}",
            f"{r['peak_rss_bytes'] / 1e9:.2f}",
            f"{r['load']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what has no result yet, one process after the other, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help="One cell, whose result goes to stdout.")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.threads)))
        return
    rows: list[dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else []
    for name in CELLS:
        if name in {row["cell"] for row in rows}:
            continue
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.repair_cost", "--one", name]
        done = subprocess.run(
            [*command, "--threads", str(arguments.threads)], capture_output=True, text=True, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        FILE.write_text(json.dumps(rows, indent=1) + "\n")
        print(name, rows[-1]["wall_s"], rows[-1]["peak_rss_bytes"] / 1e9, flush=True)
    TABLE.write_text(f"# What repair costs\n\n{__doc__}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
