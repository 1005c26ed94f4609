"""Accuracy of masked networks before any retraining: `python -m benchmarks.masked_repair [--draws 0,1,2]`.

The sample models (Fashion-MNIST) without 90 and 95 of 100 weights, the smallest of all (global magnitude), zeroed in
place, and the others as they are (none), behind batch norms re-estimated (batch-norm), or fitted by least squares. No
gradient step anywhere. Three draws of 512 calibration images from the training split, labels not looked at; the whole
test set, read once per cell. Without repair nothing is drawn: one cell. One JSON file; a cell that is in it is not run
again.

At 95 of 100, global magnitude leaves one weight of the 36,864 of MobileNetV2's last projection: that no repair mends.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import provenance
from benchmarks.tables import accuracy
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.loading import load
from compressor.data.sources import load_data
from compressor.data.splits import Data, SplitName
from compressor.pruning.masking import mask_weights
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import MaskRequest
from compressor.surgery.masks import MaskScope
from compressor.training.loop import correct_in

FILE = Path(__file__).parent / "masked_repair.json"
TABLE = FILE.with_suffix(".md")
SAMPLES = Path(__file__).parent.parent / "sample_models"
MODELS = ("resnet20", "vgg11", "mobilenet_v2")
SPARSITIES = (0.9, 0.95)
ARMS = (Repair.NONE, Repair.BATCH_NORM, Repair.LEAST_SQUARES)
IMAGES = 512


@functools.cache
def sample(model: str) -> tuple[Checkpoint, Data, int]:
    """A sample model, its data, and how much of the test set the dense network has right."""
    checkpoint, data = load(SAMPLES / f"fashion_{model}.pt"), load_data(str(SAMPLES / "fashion_sample.npz"))
    test = data.split(SplitName.TEST)
    return checkpoint, data, correct_in(checkpoint.module, test, preprocessing=checkpoint.preprocessing)


def cell(model: str, sparsity: float, how: Repair, draw: int) -> dict[str, Any]:
    checkpoint, data, dense_correct = sample(model)
    test = data.split(SplitName.TEST)
    request = MaskRequest(sparsity=sparsity, scope=MaskScope.GLOBAL, seed=draw, images=IMAGES, repair=how)
    started, worked = time.perf_counter(), time.process_time()
    masked = mask_weights(checkpoint, request, data=data)
    spent, busy = time.perf_counter() - started, time.process_time() - worked
    state = masked.checkpoint.module.state_dict()
    assert not any(bool(state[name][~kept].any()) for name, kept in masked.mask.kept.items())
    found = {} if masked.repair_result is None else masked.repair_result.to_json()
    return {
        "model": model,
        "sparsity": sparsity,
        "achieved": masked.mask.sparsity,
        "arm": str(how),
        "draw": draw,
        "dense_correct": dense_correct,
        "correct": correct_in(masked.checkpoint.module.eval(), test, preprocessing=checkpoint.preprocessing),
        "total": len(test),
        "wall_s": spent,
        "cpu_s": busy,
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        **{k: found.get(k) for k in ("images", "judged", "rise", "kept")},
        "provenance": provenance(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over draws of the test accuracy in per cent, one row per model and sparsity."""
    lines = ["| model | weights zero | dense | " + " | ".join(map(str, ARMS)) + " | least-squares, seconds of a core |"]
    lines.append("| --- | --- |" + " --- |" * (len(ARMS) + 2))
    for model in MODELS:
        for sparsity in SPARSITIES:
            mine = [r for r in rows if (r["model"], r["sparsity"]) == (model, sparsity)]
            if not mine:
                continue
            by_arm = {arm: [r for r in mine if r["arm"] == arm] for arm in ARMS}
            fitted = [r["cpu_s"] for r in by_arm[Repair.LEAST_SQUARES]]
            cells = (
                model,
                f"{sparsity:.0%}",
                f"{100 * mine[0]['dense_correct'] / mine[0]['total']:.2f}",
                *(accuracy(by_arm[arm]) for arm in ARMS),
                f"{statistics.median(fitted):.0f}" if fitted else "–",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the cells that have no result yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else []
    draws = list(map(int, arguments.draws.split(",")))
    cells = [
        (m, s, how, d) for d in draws for m in MODELS for s in SPARSITIES for how in ARMS
        if how is not Repair.NONE or d == draws[0]
    ]  # fmt: skip
    for wanted in cells:
        if wanted in {(r["model"], r["sparsity"], r["arm"], r["draw"]) for r in rows}:
            continue
        rows.append(cell(*wanted))
        FILE.write_text(json.dumps(rows, indent=1) + "\n")
        print(*wanted, rows[-1]["correct"] / rows[-1]["total"], round(rows[-1]["wall_s"]), flush=True)
    TABLE.write_text(f"# Masked weights, repaired\n\n{__doc__}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
