"""A transformer before any retraining: `python -m benchmarks.transformer --full DIR [--draws 0,1,2]`.

torchvision's `VisionTransformer` in ViT-Tiny's shape (12 blocks of width 192, 3 heads, 768 hidden units; Touvron et al.
2021, arXiv:2012.12877, table 1) on Fashion-MNIST's 28x28 images in patches of 7, trained here for 4 epochs of the whole
training set from random weights (`--train` makes the checkpoint). Then half of the hidden units of every MLP and one of
three heads leave, nothing else, and least squares on 512 unlabelled images of the training split repairs what is left.
Three draws of those images; the test split is read once per cell.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torchvision.models import VisionTransformer

from compressor.data import Images, SplitName
from compressor.recipe import Optimiser, Recipe, Schedule, Step
from compressor.sources import load_data
from compressor.train import Progress, correct_in, train
from sample_models.train import PREPROCESSING

RECIPE = Recipe(
    budget=Step(epochs=4), optimiser=Optimiser.ADAMW, schedule=Schedule(rate=1e-3, warmup=0.1), weight_decay=0.05,
    label_smoothing=0.05,
)  # fmt: skip


def vit_tiny() -> nn.Module:
    """`[batch, 1, 28, 28]` to `[batch, 10]`."""
    network = VisionTransformer(
        image_size=28, patch_size=7, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=10
    )
    network.conv_proj = nn.Conv2d(1, 192, 7, stride=7)
    nn.init.trunc_normal_(network.conv_proj.weight, std=1 / 7)  # its fan-in is 49
    nn.init.zeros_(network.conv_proj.bias)  # type: ignore[arg-type]  # it has one
    nn.init.trunc_normal_(network.heads.head.weight, std=0.02)  # type: ignore[union-attr,arg-type]  # torchvision's is zero
    return network


def trained(full: str, checkpoint: Path) -> None:
    """Train from random weights and save; the test split is read once."""
    data = load_data(full)
    torch.manual_seed(RECIPE.seed)

    def show(progress: Progress) -> None:
        if progress.record is not None:
            record = progress.record
            print(f"epoch {record.epoch + 1}: tune {record.tune_correct / record.tune_total:.2%}", flush=True)

    found = train(
        vit_tiny(), data, recipe=RECIPE, preprocessing=PREPROCESSING, callbacks=(show,),
        state_file=checkpoint.with_suffix(".state"),
    )  # fmt: skip
    test = data.split(SplitName.TEST)
    assert isinstance(test, Images)
    correct = correct_in(found.module, test, preprocessing=PREPROCESSING)
    print(f"test: {correct}/{len(test)}")
    torch.save(
        {
            "state_dict": found.module.state_dict(),
            "architecture": "benchmarks.transformer:vit_tiny",
            "input": [[1, 1, 28, 28]],
            "preprocessing": {"mean": [0.2860], "std": [0.3530], "size": [28, 28], "channels": 1},
            "training": RECIPE.to_json(),
            "accuracy": {"correct": correct, "total": len(test), "split": "test", "data": "Fashion-MNIST"},
        },
        checkpoint,
    )


def main() -> None:
    """Train the network where there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", required=True, help="A folder with the whole of Fashion-MNIST.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="Where the trained network is, or goes.")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.checkpoint.exists():
        trained(arguments.full, arguments.checkpoint)


if __name__ == "__main__":
    main()
