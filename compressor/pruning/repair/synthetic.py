"""Synthetic images for repair without data: random noise with the spectrum of natural images.

The amplitude of a natural image falls like one over the frequency (Field 1987, J. Opt. Soc. Am. A 4). Such noise
contains nothing of the training data, but it shows how similar the responses of channels are. Least squares needs just
this: how far a channel can be predicted from others.
"""

from __future__ import annotations

import torch

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.samples import Images
from compressor.data.splits import Data
from compressor.errors import DataError

NAME = "synthetic images"


def synthetic_images(count: int, *, channels: int, size: tuple[int, int], seed: int) -> Images:
    """Return `count` unlabelled images `[channels, *size]` in [0, 1], drawn by `seed`; contrast and brightness vary."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    rows, columns = torch.fft.fftfreq(height).unsqueeze(1), torch.fft.rfftfreq(width)
    frequency = (rows.square() + columns.square()).sqrt().clamp(min=1 / max(size))
    noise = torch.fft.rfft2(torch.randn(count, channels, height, width, generator=generator))
    pictures = torch.fft.irfft2(noise / frequency, s=size)
    pictures = pictures / pictures.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    contrast = 0.1 + 0.3 * torch.rand(count, 1, 1, 1, generator=generator)
    brightness = 0.2 + 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
    return Images((brightness + contrast * pictures).clamp(0, 1))


def synthetic_data(checkpoint: Checkpoint, *, count: int, seed: int) -> Data:
    """Return data of synthetic images for the checkpoint's network; refused: a network that does not read images."""
    seen = checkpoint.preprocessing
    if seen.size is None or seen.channels is None:
        raise DataError("a network whose inputs are not images needs data", hint="give some: `--data DIR`")
    images = synthetic_images(count, channels=seen.channels, size=seen.size, seed=seed)
    return Data(name=NAME, source="drawn at random", train=images, tune=None, test=None, split_seed=seed)
