"""Two small domains and a small network: what the tests of domain adaptation share."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, nn

from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import Recipe, Schedule, Shape, Step
from compressor.data.domains import Shift, shifted_data
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.training.loop import train

SHIFT = Shift(inverted=True, noise=0.1)
PREPROCESSING = Preprocessing(mean=(0.5,), std=(0.5,), size=(8, 8), channels=1)
RECIPE = Recipe(
    budget=Step(epochs=2),
    schedule=Schedule(rate=0.05, shape=Shape.INVERSE, warmup=0.0),
    batch_size=16,
    augment=(),
    seed=3,
)


def bars(count: int, *, seed: int) -> Images:
    """Noisy 8x8 images with a bright bar, upright (0) or lying (1)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    images = torch.randint(0, 120, (count, 1, 8, 8), generator=generator)
    at = torch.randint(0, 8, (count,), generator=generator)
    for image, label, place in zip(images, labels, at, strict=True):
        (image[0, :, place] if label == 0 else image[0, place]).add_(120)
    return Images(images.to(torch.uint8), labels)


def source_data(train: int = 64) -> Data:
    return Data(name="bars", source="made", train=bars(train, seed=0), tune=bars(20, seed=1), test=bars(20, seed=2))


def target_data(train: int = 64) -> Data:
    return shifted_data(source_data(train), SHIFT, seed=5)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 2),
    ).eval()  # fmt: skip


@functools.cache
def _trained_state() -> dict[str, Tensor]:
    recipe = dataclasses.replace(RECIPE, budget=Step(epochs=6))
    return train(network(), source_data(), recipe=recipe, preprocessing=PREPROCESSING).module.state_dict()


def trained_network() -> nn.Module:
    """The network after a few epochs on the source."""
    module = network()
    module.load_state_dict(_trained_state())
    return module


def checkpoint(module: nn.Module | None = None, **fields: Any) -> Checkpoint:
    known: dict[str, Any] = {
        "module": module or network(),
        "example_inputs": (torch.zeros(1, 1, 8, 8),),
        "architecture": Architecture(ref="tests.support.two_domains:network"),
        "preprocessing": PREPROCESSING,
        "classes": None,
        "name": "bars",
        "path": "bars.pt",
        "sha256": "0",
    }
    return Checkpoint(**{**known, **fields})


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in module.state_dict().items()}


def same_bytes(one: nn.Module, other: nn.Module) -> bool:
    pair = one.state_dict(), other.state_dict()
    return pair[0].keys() == pair[1].keys() and all(torch.equal(t, pair[1][n]) for n, t in pair[0].items())
