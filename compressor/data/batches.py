"""Batches of a network's inputs, in an order that a seed decides, with augmentation for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from compressor.data.items import Batch, Sample, collate_of, sample_of, stacked
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import UNLABELLED, Images, Samples
from compressor.data.targets import augmented, lies_on, resized
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
    samples: Samples,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    augmentation: Augmentation | None = None,
    shuffle_seed: int | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield batches of what the network reads, each input `[batch, ...]`, and the targets; the last may be smaller.

    The order is the set's own, or drawn by `shuffle_seed`. Augmentation gets images in the network's size and uses
    torch's global generator. Only images in memory are read without the set's own code.
    """
    if shuffle_seed is None:
        order = torch.arange(len(samples))
    else:
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(shuffle_seed))
    if isinstance(samples, Images) and len(preprocessing.takes) <= 1:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            chosen = samples.images[indices]
            if augmentation is not None:
                chosen = torch.stack([augmentation(image) for image in preprocessing.shaped(chosen)])
            yield Batch((preprocessing(chosen),), samples.labels[indices])
        return
    chosen_set: Subset[Any] = Subset(samples, order.tolist())  # type: ignore[arg-type]  # as in `subset`
    own = torch.Generator().manual_seed(shuffle_seed or 0)  # a loader without one draws from the global generator
    collate = _Collate(preprocessing=preprocessing, augmentation=augmentation, own=collate_of(samples))
    yield from DataLoader(chosen_set, batch_size=batch_size, collate_fn=collate, num_workers=workers, generator=own)


def first_batch(samples: Samples, *, preprocessing: Preprocessing, size: int = 1) -> Batch:
    """Return the first `size` samples as a batch."""
    return next(iter(batches(samples, batch_size=size, preprocessing=preprocessing)))


def is_labelled(samples: Samples, *, preprocessing: Preprocessing) -> bool:
    """Return true if the first sample has anything to judge by."""
    return first_batch(samples, preprocessing=preprocessing).labelled


@dataclass(frozen=True, slots=True, kw_only=True)
class _Collate:
    """Make a batch of items; a class, so that a loader's processes can be sent it."""

    preprocessing: Preprocessing
    augmentation: Augmentation | None
    own: Callable[[list[Any]], Any] | None

    def __call__(self, items: list[Any]) -> Batch:
        takes = self.preprocessing.takes
        if self.own is not None:  # the user's own loader makes batches of what the network reads
            whole = sample_of(self.own(items), takes)
            missing = isinstance(whole.target, int) and whole.target == UNLABELLED
            return self._finished(
                Batch(whole.inputs, torch.full((len(items),), UNLABELLED) if missing else whole.target)
            )
        samples = [sample_of(item, takes) for item in items]
        if len(samples[0].inputs) == 1 and samples[0].inputs[0].ndim == 3:
            samples = [self._shaped(sample) for sample in samples]
        return self._finished(stacked(samples))

    def _shaped(self, sample: Sample) -> Sample:
        """An image in the network's size, augmented, with the map or the boxes that lie on it."""
        image, target = self.preprocessing.shaped(sample.inputs[0]), sample.target
        if lies_on(target, sample.inputs[0]):
            target = resized(target, before=sample.inputs[0], after=image)
        if self.augmentation is not None:
            image, target = augmented(image, target, self.augmentation)
        return Sample((image,), target)

    def _finished(self, batch: Batch) -> Batch:
        """The batch with its images scaled and normalised."""
        first = batch.inputs[0]
        if first.ndim != 4 or (len(batch.inputs) > 1 and first.dtype != torch.uint8):
            return batch
        return Batch((self.preprocessing(first), *batch.inputs[1:]), batch.target)
