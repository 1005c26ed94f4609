"""Train a sample model on Fashion-MNIST: `python -m sample_models.train resnet20 --data DIR`.

DIR holds the four IDX files (Debian's `dataset-fashion-mnist` puts them there), or `--data FashionMNIST --data-root DIR
--download` fetches them through torchvision. Writes `sample_models/fashion_NAME.pt` (tensors and plain values only) and
the weights after the first epoch, which weight rewinding starts from, `fashion_NAME.early.pt`. The result is the last
epoch's; nothing is chosen on the test split, which is read once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from compressor.checkpoint.recipes import Recipe, Schedule, Step
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.sources import load_data
from compressor.data.splits import Data, SplitName
from compressor.training.loop import Hooks, Progress, correct_in, train
from sample_models import networks

HERE = Path(__file__).parent
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PREPROCESSING = Preprocessing(mean=(0.2860,), std=(0.3530,), size=(28, 28), channels=1)  # of the training images
RECIPES = {
    "resnet20": Recipe(budget=Step(epochs=12), schedule=Schedule(rate=0.1, warmup=0.15), label_smoothing=0.05),
    "vgg11": Recipe(budget=Step(epochs=12), schedule=Schedule(rate=0.05, warmup=0.15), label_smoothing=0.05),
    "mobilenet_v2": Recipe(
        budget=Step(epochs=10), schedule=Schedule(rate=0.1, warmup=0.15), label_smoothing=0.05, weight_decay=2e-4
    ),
}


def main() -> None:
    """Parse, train, evaluate once, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(RECIPES))
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_data(arguments.data, root=arguments.data_root, download=arguments.download)
    train_to(
        arguments.out / f"fashion_{arguments.network}.pt",
        data,
        recipe=RECIPES[arguments.network],
        make=getattr(networks, arguments.network),
        architecture=f"sample_models.networks:{arguments.network}",
        snapshot=(Step(epochs=1), arguments.out / f"fashion_{arguments.network}.early.pt"),
    )


def train_to(
    file: Path,
    data: Data,
    *,
    recipe: Recipe,
    make: Callable[[], nn.Module],
    architecture: str,
    snapshot: tuple[Step, Path] | None = None,
) -> None:
    """Train a network of Fashion-MNIST from fresh weights, read the test split once, and save it to `file`."""
    torch.manual_seed(recipe.seed)
    epochs = recipe.budget.epochs

    def show(progress: Progress) -> None:
        if progress.record is not None:
            record = progress.record
            tune = f"{100 * record.tuned:.2f} %"
            print(f"epoch {record.epoch + 1}/{epochs}: loss {record.train_loss:.4f}, tune {tune}", flush=True)

    state = file.with_suffix(".state")
    trained = train(
        make(),
        data,
        recipe=recipe,
        preprocessing=PREPROCESSING,
        hooks=Hooks(callbacks=(show,)),
        state_file=state,
        snapshot=snapshot,
    )
    test = data.split(SplitName.TEST)
    assert isinstance(test, Images)
    correct = correct_in(trained.module, test, preprocessing=PREPROCESSING)
    print(f"test: {correct}/{len(test)}")
    torch.save(
        {
            "state_dict": trained.module.state_dict(),
            "architecture": architecture,
            "input": [[1, 1, 28, 28]],
            "preprocessing": {"mean": [0.2860], "std": [0.3530], "size": [28, 28], "channels": 1},
            "classes": list(CLASSES),
            "training": recipe.to_json(),
            "accuracy": {"correct": correct, "total": len(test), "split": "test", "data": "Fashion-MNIST"},
        },
        file,
    )
    state.unlink()


if __name__ == "__main__":
    main()
