"""How an item of a data set becomes a network's inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from compressor.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an item becomes a network's inputs; an image is resized, scaled to [0, 1], its channels matched, normalised.

    `takes` are the names of the network's inputs, in order: what of an item it reads (`data.items`). They are not a
    part of the record: a network's own inputs decide.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: tuple[int, int] | None = None
    channels: int | None = None
    takes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise DataError(
                f"{len(self.mean)} means but {len(self.std)} standard deviations",
                hint="as many of both: `--mean 0.5 --std 0.25`",
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise DataError(
                f"means and deviations must be finite: {self.mean}, {self.std}",
                hint="for example `--mean 0.5 --std 0.25`",
            )
        if any(s <= 0 for s in self.std):
            raise DataError(
                f"a standard deviation must be positive: {self.std}", hint="for example `--mean 0.5 --std 0.25`"
            )
        if self.channels is not None and len(self.mean) not in (0, 1, self.channels):
            raise DataError(
                f"{len(self.mean)} means for {self.channels} channels", hint="one for each channel, or one for all"
            )
        if self.size is not None and min(self.size) < 1:
            raise DataError(
                f"an image of {self.size[0]}x{self.size[1]} pixels is empty",
                hint="set the network's input: `--input 1x3x224x224`",
            )

    def shaped(self, images: Tensor) -> Tensor:
        """Return images `[..., channels, h, w]` in the network's size and number of channels, with unchanged values."""
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            from torchvision.transforms.v2 import functional

            images = functional.resize(images, list(self.size), antialias=True)
        if self.channels == 3 and images.shape[-3] == 1:
            images = images.expand(*images.shape[:-3], 3, -1, -1)
        elif self.channels == 1 and images.shape[-3] == 3:
            from torchvision.transforms.v2 import functional

            images = functional.rgb_to_grayscale(images)
        if self.channels is not None and images.shape[-3] != self.channels:
            raise DataError(
                f"the network reads {self.channels} channels, the images have {images.shape[-3]}",
                hint="only grey and RGB images are converted into each other; convert the images first",
            )
        return images

    def __call__(self, images: Tensor) -> Tensor:
        """Convert images `[n, channels, h, w]`, uint8 or float, to float32 `[n, channels', *size]`."""
        images = self.shaped(images)
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if not self.mean:
            return images
        if len(self.mean) not in (1, images.shape[1]):
            raise DataError(
                f"{len(self.mean)} means for images of {images.shape[1]} channels",
                hint="one for each channel, or one for all",
            )
        if float(images.min()) < -1e-3:  # resizing rounds
            raise DataError(
                f"the images hold values down to {float(images.min()):.3g}: they seem to be normalised already",
                hint="use raw images, uint8 or floats in [0, 1]: they are normalised here",
            )
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(v, device=images.device).view(shape) for v in (self.mean, self.std))
        return (images - mean) / std


def with_normalisation(preprocessing: Preprocessing, mean: str | None, std: str | None) -> Preprocessing:
    """Return the preprocessing with another mean and deviation, written as `0.5,0.5,0.5`, if set.

    Refused: text that is not numbers, one of both alone.
    """
    if mean is None and std is None:
        return preprocessing
    if mean is None or std is None:
        raise DataError("a mean without a deviation, or the other way round", hint="set both: `--mean` and `--std`")
    try:
        numbers = [tuple(float(part) for part in text.split(",")) for text in (mean, std)]
    except ValueError:
        raise DataError(f"not numbers: `{mean}`, `{std}`", hint="for example `--mean 0.5 --std 0.25`") from None
    return replace(preprocessing, mean=numbers[0], std=numbers[1])
