"""Was it worth inheriting the weights? `python -m benchmarks.accuracy [--full DIR] [--ratios 0.3,0.5,0.7]`.

The three sample models, pruned by l1-norm, uniformly, widths aligned to 8, then fine-tuned for 5 epochs, or trained
from scratch (Scratch-E: as many epochs as the dense network had; Scratch-B: as many MACs, at most twice the epochs; Liu
et al. 2019), three seeds each, last epoch. Epochs are of the shipped sample (10,000 images), or with `--full` of the
whole training set (55,000), where fine-tuning takes 2 epochs. Nothing is chosen here; the test split is read once, at
the end of each cell. One JSON file per cell in `benchmarks/accuracy/`; a cell that has one is not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import provenance
from benchmarks.tables import accuracy
from compressor.checkpoint.loading import load
from compressor.checkpoint.recipes import How
from compressor.data.sources import load_data
from compressor.data.splits import SplitName
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.surgery.plan import ChannelBudget
from compressor.training.loop import correct_in
from compressor.training.retraining import retrain
from compressor.training.ways import Wishes, recipe_for

FOLDER = Path(__file__).parent / "accuracy"
SAMPLES = Path(__file__).parent.parent / "sample_models"
MODELS = ("resnet20", "vgg11", "mobilenet_v2")
ARMS = (How.FINE_TUNE, How.SCRATCH_E, How.SCRATCH_B)
SEEDS = (0, 1, 2)
CAP = 2.0


def cell(model: str, ratio: float, how: How, seed: int, *, full: str | None, fine_tune_epochs: int) -> dict[str, Any]:
    """One model, ratio, arm and seed: the accuracy on the tuning split by epoch, and on the test split once."""
    dense = load(SAMPLES / f"fashion_{model}.pt")
    pruned = prune(dense, Request(budget=ChannelBudget(ratio=ratio)))
    wishes = Wishes(epochs=fine_tune_epochs if how is How.FINE_TUNE else None, cap=CAP, seed=seed)
    recipe = recipe_for(
        how, dense_recipe=dense.training, dense_cost=pruned.dense_cost, small_cost=pruned.small_cost, wishes=wishes
    )
    data = load_data(full or str(SAMPLES / "fashion_sample.npz"))
    trained = retrain(pruned.checkpoint, data, recipe=recipe)
    test = data.split(SplitName.TEST)
    return {
        "model": model,
        "ratio": ratio,
        "how": str(how),
        "seed": seed,
        "data": "whole training set" if full else "shipped sample",
        "images": data.sizes,
        "macs": [pruned.dense_cost.macs, pruned.small_cost.macs],
        "params": [pruned.dense_cost.params, pruned.small_cost.params],
        "recipe": recipe.to_json(),
        "history": trained.lineage[-1]["history"],
        "dense_correct": correct_in(dense.module, test, preprocessing=dense.preprocessing),
        "pruned_correct": correct_in(pruned.checkpoint.module, test, preprocessing=dense.preprocessing),
        "correct": correct_in(trained.module, test, preprocessing=dense.preprocessing),
        "total": len(test),
        "provenance": provenance(),
    }


def table() -> str:
    """Mean ± standard deviation over seeds of the test accuracy in per cent, as Markdown."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        row = json.loads(path.read_text())
        found.setdefault((row["data"], row["model"], row["ratio"], row["how"]), []).append(row)
    lines = [
        "| data | model | ratio | MACs left | arm | epochs | seeds | dense | without training | test accuracy, % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (data, model, ratio, how), rows in found.items():
        one = rows[0]
        lines.append(
            f"| {data} | {model} | {ratio} | {one['macs'][1] / one['macs'][0]:.1%} | {how} | "
            f"{one['recipe']['budget']['epochs']} | {len(rows)} | {100 * one['dense_correct'] / one['total']:.2f} | "
            f"{100 * one['pruned_correct'] / one['total']:.2f} | {accuracy(rows, count=False)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the cells that have no result yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", help="A folder with the whole of Fashion-MNIST.")
    parser.add_argument("--ratios", default="0.5,0.3,0.7")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    FOLDER.mkdir(exist_ok=True)
    for ratio in map(float, arguments.ratios.split(",")):
        for seed in SEEDS:
            for model in arguments.models.split(","):
                for how in map(How, arguments.arms.split(",")):
                    kind = "full" if arguments.full else "sample"
                    path = FOLDER / f"{kind}-{model}-{ratio}-{how}-{seed}.json"
                    if path.exists():
                        continue
                    epochs = 2 if arguments.full else 5
                    result = cell(model, ratio, how, seed, full=arguments.full, fine_tune_epochs=epochs)
                    path.write_text(json.dumps(result, indent=1) + "\n")
                    print(path.stem, result["correct"] / result["total"], flush=True)
    note = f"# Accuracy after retraining\n\n{__doc__}\n\n"
    (FOLDER / "README.md").write_text(note + table())


if __name__ == "__main__":
    main()
