"""CIFAR-10 and the ResNets trained on it, from a local folder: what the repair benchmark measures on.

The folder holds `cifar10/{train,test}_NN.webp` (lossless sheets of 50 columns of 32x32 tiles, 2,500 a sheet),
`cifar10/{train,test}_labels.npy`, and `checkpoints/resnet{20,56}-*.th` of akamaster/pytorch_resnet_cifar10
(BSD-2-Clause): ResNets with option-A shortcuts (He et al. 2016, sec. 4.2).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from compressor.data.samples import Images, hold_out
from compressor.data.splits import Data

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut without weights: every second pixel, channels padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.more:
            half = self.more // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return functional.relu(y + x)


class CifarResNet(nn.Module):
    """He et al.'s CIFAR layout: 6 n + 2 layers, widths 16, 32, 64."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    def _stage(self, inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        scores: Tensor = self.linear(functional.adaptive_avg_pool2d(y, 1).flatten(1))
        return scores


def resnet20() -> nn.Module:
    return CifarResNet(3)


def resnet56() -> nn.Module:
    return CifarResNet(9)


def cifar10(folder: Path, *, seed: int = 0) -> Data:
    """The images in three disjoint splits: train and tune drawn by `seed` from the training set, test as it is."""
    train, tune = hold_out(_sheets(folder, "train"), share=0.1, seed=seed)
    return Data(name="cifar10", source="cifar10", train=train, tune=tune, test=_sheets(folder, "test"), split_seed=seed)


def _sheets(folder: Path, split: str) -> Images:
    labels = torch.from_numpy(np.load(folder / "cifar10" / f"{split}_labels.npy")).long()
    tiles = []
    for path in sorted((folder / "cifar10").glob(f"{split}_*.webp")):
        sheet = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 32, 50, 32, 3)
        tiles.append(torch.from_numpy(sheet.transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)))
    return Images(torch.cat(tiles)[: len(labels)].contiguous(), labels)
