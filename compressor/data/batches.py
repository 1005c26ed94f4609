"""Batches of a network's inputs, in an order that a seed decides, with augmentation for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images, Samples
from compressor.errors import DataError, unknown

EVALUATION_BATCH = 256

Augmentation = Callable[[Tensor], Tensor]


def augmentation_named(names: Sequence[str], *, size: tuple[int, int]) -> Augmentation | None:
    """Return torchvision v2 transforms by name, drawn for every image: `flip`, `crop` (padded by 1/14), `erase`."""
    from torchvision.transforms import v2

    transforms: dict[str, Augmentation] = {
        "flip": v2.RandomHorizontalFlip(),
        "crop": v2.RandomCrop(size, padding=max(1, round(max(size) / 14))),  # 2 of 28, the usual share
        "erase": v2.RandomErasing(p=0.25, scale=(0.02, 0.2)),
    }
    unknown_names = [n for n in names if n not in transforms]
    if unknown_names:
        raise DataError(
            f"there is no augmentation called `{unknown_names[0]}`",
            hint=unknown("augmentations", unknown_names[0], transforms),
        )
    return v2.Compose([transforms[n] for n in names]) if names else None


def batches(
    images: Samples,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    augmentation: Augmentation | None = None,
    shuffle_seed: int | None = None,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of inputs `[batch, channels, h, w]` and labels `[batch]`; the last one may be smaller.

    The order is the set's own, or drawn by `shuffle_seed`. Augmentation gets images in the network's size and uses
    torch's global generator.
    """
    if shuffle_seed is None:
        order = torch.arange(len(images))
    else:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(shuffle_seed))
    if isinstance(images, Images):
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            chosen = images.images[indices]
            if augmentation is not None:
                chosen = torch.stack([augmentation(image) for image in preprocessing.shaped(chosen)])
            yield preprocessing(chosen), images.labels[indices]
        return

    def collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        shaped = [preprocessing.shaped(image) for image, _ in items]
        if len({tuple(image.shape) for image in shaped}) > 1:
            raise DataError(
                "the images have different sizes", hint="set the network's input, for example `--input 1x3x224x224`"
            )
        augmented = shaped if augmentation is None else [augmentation(image) for image in shaped]
        return preprocessing(torch.stack(augmented)), torch.tensor([label for _, label in items])

    chosen_set: Subset[Any] = Subset(images, order.tolist())  # type: ignore[arg-type]  # as in `subset`
    own = torch.Generator().manual_seed(shuffle_seed or 0)  # a loader without one draws from the global generator
    yield from DataLoader(chosen_set, batch_size=batch_size, collate_fn=collate, num_workers=workers, generator=own)
