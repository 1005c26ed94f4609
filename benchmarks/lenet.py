"""LeNet-300-100 on Fashion-MNIST without fine-tuning: `python -m benchmarks.lenet --full DIR`.

Half to four fifths of the neurons of both hidden layers leave. Five networks, each trained here (10 epochs of SGD on
the 55,000 training images that are not for tuning); the whole test set. Arms: the published selection (l1-norm,
uniform) alone, repaired without data (least squares on 4,096 synthetic images) and with 512 unlabelled training
images; the same with channels chosen by obs on the same images. Published figures, for l1 alone and for Neuron Merging
(which uses no data) on another dense network (89.80): Kim et al. 2020, github.com/friendshipkim/neuron-merging.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.provenance import provenance
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.loading import load
from compressor.checkpoint.recipes import Recipe, Schedule, Step
from compressor.data.preprocessing import Preprocessing
from compressor.data.sources import load_data
from compressor.data.splits import Data, SplitName
from compressor.pruning.pipeline import prune
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.repair.synthetic import synthetic_data
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget, Scope
from compressor.training.loop import correct_in, train

FILE = Path(__file__).parent / "lenet.json"
TABLE = Path(__file__).parent / "lenet.md"
RATIOS, SEEDS = (0.5, 0.6, 0.7, 0.8), (0, 1, 2, 3, 4)
SYNTHETIC = 4096  # they cost nothing, and a linear layer has one row for each
PUBLISHED = {
    "published: l1 alone": (88.40, 85.17, 71.26, 66.76),
    "published: Neuron Merging, no data": (88.69, 86.92, 82.75, 80.02),
}
ARMS = {
    "l1-norm alone": ("l1-norm", Repair.NONE, "none"),
    "l1-norm, no data": ("l1-norm", Repair.LEAST_SQUARES, "synthetic"),
    "obs, no data": ("obs", Repair.LEAST_SQUARES, "synthetic"),
    "l1-norm, 512 unlabelled images": ("l1-norm", Repair.LEAST_SQUARES, "real"),
    "obs, 512 unlabelled images": ("obs", Repair.LEAST_SQUARES, "real"),
    "random, 512 unlabelled images": ("random", Repair.LEAST_SQUARES, "real"),
}


def lenet() -> nn.Module:
    """LeCun et al.'s fully connected LeNet: `[batch, 1, 28, 28]` to `[batch, 10]`."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def trained(data: Data, *, seed: int) -> Checkpoint:
    """A LeNet trained for 10 epochs with `seed`."""
    torch.manual_seed(seed)
    seen = Preprocessing(mean=(0.2860,), std=(0.3530,), size=(28, 28), channels=1)
    recipe = Recipe(budget=Step(epochs=10), schedule=Schedule(rate=0.05), augment=(), seed=seed)
    module = train(lenet(), data, recipe=recipe, preprocessing=seen).module
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"lenet-{seed}.pt"
        torch.save(module.state_dict(), file)
        found = load(file, arch="benchmarks.lenet:lenet", inputs=("1x1x28x28",))
    return dataclasses.replace(found, preprocessing=seen)


def measure(data: Data, *, seed: int) -> list[dict[str, Any]]:
    """Every arm at every ratio on one network."""
    dense = trained(data, seed=seed)
    test = data.split(SplitName.TEST)
    rows: list[dict[str, Any]] = [
        {"seed": seed, "arm": "dense", "correct": correct_in(dense.module, test, preprocessing=dense.preprocessing)}
    ]
    synthetic = synthetic_data(dense, count=SYNTHETIC, seed=seed)
    for ratio in RATIOS:
        for arm, (criterion, how, images) in ARMS.items():
            request = Request(
                budget=ChannelBudget(ratio=ratio),
                criterion=criterion,
                scope=Scope.UNIFORM,
                repair=how,
                align=1,
                seed=seed,
                images=SYNTHETIC if images == "synthetic" else 512,
            )
            small = prune(dense, request, data={"none": None, "synthetic": synthetic, "real": data}[images]).checkpoint
            correct = correct_in(small.module, test, preprocessing=dense.preprocessing)
            rows.append({"seed": seed, "ratio": ratio, "arm": arm, "correct": correct, "total": len(test)})
    print(seed, rows[0]["correct"], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over networks of the test accuracy in per cent, as Markdown."""

    def told(correct: list[int]) -> str:
        shares = [c / 100 for c in correct]
        return f"{statistics.mean(shares):.2f} ± {statistics.stdev(shares):.2f}"

    lines = ["| arm | " + " | ".join(f"{r:.0%} gone" for r in RATIOS) + " |", "| --- |" + " --- |" * len(RATIOS)]
    for name, figures in PUBLISHED.items():
        lines.append(f"| {name} | " + " | ".join(f"{f:.2f}" for f in figures) + " |")
    dense = told([r["correct"] for r in rows if r["arm"] == "dense"])
    lines.append(f"| dense, here (n = {len(SEEDS)}) | " + " | ".join([dense] * len(RATIOS)) + " |")
    for arm in ARMS:
        cells = [told([r["correct"] for r in rows if r["arm"] == arm and r["ratio"] == ratio]) for ratio in RATIOS]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, measure, keep every count, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", required=True, help="A folder with the whole of Fashion-MNIST.")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_data(arguments.full)
    rows = [row for seed in SEEDS for row in measure(data, seed=seed)]
    FILE.write_text(json.dumps({"rows": rows, "provenance": provenance()}, indent=1) + "\n")
    TABLE.write_text(f"# LeNet-300-100 without fine-tuning\n\n{__doc__}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
