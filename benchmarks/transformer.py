"""A transformer before any retraining: `python -m benchmarks.transformer --full DIR [--draws 0,1,2]`.

torchvision's `VisionTransformer` in ViT-Tiny's shape (12 blocks of width 192, 3 heads, 768 hidden units; Touvron et al.
2021, arXiv:2012.12877, table 1) on Fashion-MNIST's 28x28 images in patches of 7, trained here for 4 epochs of the whole
training set from random weights (`--train` makes the checkpoint). Then half of the hidden units of every MLP and one of
three heads leave, nothing else, and least squares on 512 unlabelled images of the training split repairs what is left.
Three draws of those images; the test split is read once per cell.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import VisionTransformer

from benchmarks.provenance import provenance
from benchmarks.tables import accuracy
from compressor.checkpoint.loading import load
from compressor.checkpoint.recipes import Optimiser, Recipe, Schedule, Step
from compressor.data.sources import load_data
from compressor.data.splits import SplitName
from compressor.pruning.pipeline import prune
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget
from compressor.training.loop import correct_in
from sample_models.train import train_to

FILE, TABLE = Path(__file__).with_suffix(".json"), Path(__file__).with_suffix(".md")
SAMPLE = Path(__file__).parent.parent / "sample_models" / "fashion_sample.npz"
RECIPE = Recipe(
    budget=Step(epochs=4), optimiser=Optimiser.ADAMW, schedule=Schedule(rate=1e-3, warmup=0.1), weight_decay=0.05,
    label_smoothing=0.05,
)  # fmt: skip


def vit_tiny() -> nn.Module:
    """`[batch, 1, 28, 28]` to `[batch, 10]`."""
    network: VisionTransformer = VisionTransformer(
        image_size=28, patch_size=7, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=10
    )
    network.conv_proj = nn.Conv2d(1, 192, 7, stride=7)
    nn.init.trunc_normal_(network.conv_proj.weight, std=1 / 7)  # its fan-in is 49
    nn.init.zeros_(network.conv_proj.bias)
    nn.init.trunc_normal_(network.heads.head.weight, std=0.02)  # torchvision's is zero
    return network


def cell(checkpoint: Path, how: Repair, draw: int) -> dict[str, Any]:
    """Half of the hidden units and one of three heads gone, repaired on 512 unlabelled images; the test split once."""
    dense = load(checkpoint, arch="benchmarks.transformer:vit_tiny")
    data = load_data(str(SAMPLE))
    request = Request(
        budget=ChannelBudget(ratio=0.5), criterion="obs", align=1, protect=("conv_proj",), seed=draw, images=512,
        repair=how,
    )  # fmt: skip
    started = time.process_time()
    pruned = prune(dense, request, data=data)
    spent = time.process_time() - started
    test = data.split(SplitName.TEST)
    repaired = {} if pruned.repair_result is None else pruned.repair_result.to_json()
    return {
        "how": str(how),
        "draw": draw,
        "groups": {g.root: [g.channels, len(pruned.levels[0].plan.removed[g.root])] for g in pruned.traced.groups},
        "params": [pruned.dense_cost.params, pruned.small_cost.params],
        "macs": [pruned.dense_cost.macs, pruned.small_cost.macs],
        "repair": {k: v for k, v in repaired.items() if k in ("rise", "kept", "images")},
        "dense_correct": correct_in(dense.module, test, preprocessing=dense.preprocessing),
        "correct": correct_in(pruned.checkpoint.module, test, preprocessing=dense.preprocessing),
        "total": len(test),
        "processor_s": spent,
        "training": RECIPE.to_json(),
        "provenance": provenance(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over draws of the test accuracy in per cent, as Markdown."""
    lines = ["| repair | draws | parameters left | MACs left | dense | pruned | processor seconds |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for how in dict.fromkeys(r["how"] for r in rows):
        mine = [r for r in rows if r["how"] == how]
        one = mine[0]
        left = [f"{one[cost][1] / one[cost][0]:.1%}" for cost in ("params", "macs")]
        lines.append(
            f"| {how} | {len(mine)} | {' | '.join(left)} "
            f"| {100 * one['dense_correct'] / one['total']:.2f} | {accuracy(mine, count=False)} "
            f"| {statistics.median(r['processor_s'] for r in mine):.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train the network where there is none, run the cells that have no result, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", help="A folder with the whole of Fashion-MNIST, to train on.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="Where the trained network is, or goes.")
    parser.add_argument("--draws", default="0,1,2")
    parser.add_argument("--repairs", default="none,least-squares,distill")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.checkpoint.exists():
        if arguments.full is None:
            parser.error("there is no trained network yet: `--full DIR` says what to train on")
        train_to(
            arguments.checkpoint, load_data(arguments.full), recipe=RECIPE, make=vit_tiny,
            architecture="benchmarks.transformer:vit_tiny",
        )  # fmt: skip
    rows: list[dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else []
    for how in map(Repair, arguments.repairs.split(",")):
        for draw in map(int, arguments.draws.split(",")):
            if (str(how), draw) in {(r["how"], r["draw"]) for r in rows}:
                continue
            rows.append(cell(arguments.checkpoint, how, draw))
            FILE.write_text(json.dumps(rows, indent=1) + "\n")
            print(how, draw, rows[-1]["correct"] / rows[-1]["total"], flush=True)
    TABLE.write_text(f"# A transformer, before any retraining\n\n{__doc__}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
