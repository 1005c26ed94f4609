"""Synthetic images: in range, the same for a seed, and with the spectrum that they claim."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compressor.checkpoint.loading import load
from compressor.data.preprocessing import Preprocessing
from compressor.errors import DataError
from compressor.pruning.repair.synthetic import synthetic_data, synthetic_images


def test_they_lie_in_the_unit_interval_and_differ() -> None:
    images = synthetic_images(16, channels=3, size=(20, 31), seed=0).images
    assert images.shape == (16, 3, 20, 31)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert float(images.std(dim=0).min()) > 0.01


def test_a_seed_gives_the_same_bytes_and_another_does_not() -> None:
    one, same, other = (synthetic_images(4, channels=1, size=(16, 16), seed=s).images for s in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_amplitude_falls_like_one_over_the_frequency() -> None:
    images = synthetic_images(512, channels=1, size=(64, 64), seed=0).images
    spectrum = torch.fft.rfft2(images - images.mean(dim=(2, 3), keepdim=True)).abs().mean(dim=(0, 1))
    along, frequency = spectrum[0, 2:16].log(), torch.arange(2, 16).double().log()
    along, frequency = along - along.mean(), frequency - frequency.mean()
    slope = ((along - along.mean()) * (frequency - frequency.mean())).sum() / (
        frequency - frequency.mean()
    ).square().sum()
    assert -1.3 < float(slope) < -0.7


def test_a_network_that_reads_no_images_is_refused(samples: Path) -> None:
    import dataclasses

    checkpoint = load(samples / "fashion_resnet20.pt")
    blind = dataclasses.replace(checkpoint, preprocessing=Preprocessing(mean=(), std=(), size=None, channels=None))
    with pytest.raises(DataError, match="inputs are not images"):
        synthetic_data(blind, count=8, seed=0)
    assert len(synthetic_data(checkpoint, count=8, seed=0).train or ()) == 8
