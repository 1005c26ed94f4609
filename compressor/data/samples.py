"""Samples: sets of items that a network reads, with what it is judged by; images in memory, and parts of a set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Subset

from compressor.errors import DataError

UNLABELLED = -1
TUNE_SHARE, TUNE_AT_MOST = 0.1, 5000  # as in Frankle & Carbin 2019: 5,000 of 60,000


class Samples(Protocol):
    """A split: a length, and an item for every index.

    An item is an image `[channels, height, width]` with its label, or any other structure that `data.items` can divide.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Images:
    """Images that fit in memory: uint8 or float `[n, channels, height, width]` with labels `[n]`, or -1 for none."""

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        if images.ndim == 3:
            images = images.unsqueeze(1)
        if images.ndim != 4 or not images.numel():
            raise DataError(
                f"images must be a non-empty `[n, channels, height, width]`, not {list(images.shape)}",
                hint="use grey or RGB images",
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise DataError(
                f"images must be uint8 in [0, 255] or float in [0, 1], not {str(images.dtype).removeprefix('torch.')}",
                hint="convert them first",
            )
        labels = torch.full((len(images),), UNLABELLED) if labels is None else labels.long()
        if labels.shape != images.shape[:1]:
            raise DataError(
                f"{len(images)} images have labels of shape {list(labels.shape)}", hint="give one label an image"
            )
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def subset(self, indices: Tensor) -> Images:
        """Return the images at `indices`, in that order."""
        return Images(self.images[indices], self.labels[indices])


def subset(images: Samples, indices: Sequence[int]) -> Samples:
    """Return the images at `indices`; in memory if the whole set is."""
    if isinstance(images, Images):
        return images.subset(torch.as_tensor(indices, dtype=torch.long))
    return Subset(images, indices)  # type: ignore[arg-type]  # a torch Dataset is a map with a length


def hold_out(images: Samples, *, share: float, at_most: int | None = None, seed: int) -> tuple[Samples, Samples]:
    """Return two disjoint parts, the second with `share` of the images (at least one, at most `at_most`), drawn by
    `seed`.
    """
    if len(images) < 2:
        raise DataError(f"{len(images)} image cannot be split", hint="use at least two images")
    count = min(max(1, round(len(images) * share)), len(images) - 1)
    count = min(count, at_most) if at_most is not None else count
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    return subset(images, sorted(order[:-count])), subset(images, sorted(order[-count:]))


def first(images: Samples, count: int, *, seed: int) -> Samples:
    """Return `count` images drawn by `seed`; all if there are fewer."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return subset(images, order.tolist())
