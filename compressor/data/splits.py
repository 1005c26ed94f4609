"""Images and labels as disjoint train, tune and test splits, and batches of them.

Every choice is made on `tune`; `test` is read once, at the end. `data.sources` decides where the images come from.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset

from compressor.errors import DataError, unknown

EVALUATION_BATCH = 256

UNLABELLED = -1
TUNE_SHARE, TUNE_AT_MOST = 0.1, 5000  # as in Frankle & Carbin 2019: 5,000 of 60,000


class ImageSet(Protocol):
    """A split: a length, and an image `[channels, height, width]` with its label for every index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


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


class SplitName(enum.StrEnum):
    """The three disjoint parts of a data set."""

    TRAIN = "train"
    TUNE = "tune"
    TEST = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes a network's input: resized, scaled to [0, 1], channels matched, normalised."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: tuple[int, int] | None = None
    channels: int | None = None

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A data set in three disjoint splits; a split without data is `None`.

    `drawn`: the splits that are not the data's own, but drawn by `split_seed`. `by_name`: a label is a position among
    sorted names (as of class folders) and means the name, not the number. `repeated`: the number of images that were
    removed because another split has them too.
    """

    name: str
    source: str
    train: ImageSet | None
    tune: ImageSet | None
    test: ImageSet | None
    classes: tuple[str, ...] | None = None
    split_seed: int = 0
    drawn: tuple[SplitName, ...] = ()
    by_name: bool = False
    repeated: int = 0

    def __post_init__(self) -> None:
        splits = [s for s in (self.train, self.tune, self.test) if s is not None]
        if not any(len(s) for s in splits):
            raise DataError(f"no images in {self.source}", hint="check that the path leads to the images")
        if not all(len(s) for s in splits):
            raise DataError(f"{self.source} has an empty split", hint="add images to it, or remove its folder")
        labels = [int(end) for s in splits if isinstance(s, Images) for end in s.labels.aminmax()]
        if labels and min(labels) < UNLABELLED:
            raise DataError(f"{self.source} has the label {min(labels)}", hint="labels count from 0")
        if labels and self.classes is not None and max(labels) >= len(self.classes):
            raise DataError(
                f"{self.source} has the label {max(labels)} but only {len(self.classes)} classes",
                hint="name every class, or omit `classes`",
            )

    @property
    def labelled(self) -> bool:
        """True if the first image of every split has a label."""
        return all(s[0][1] != UNLABELLED for s in (self.train, self.tune, self.test) if s is not None)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images in each existing split."""
        splits = {name: getattr(self, name) for name in SplitName}
        return {str(name): len(split) for name, split in splits.items() if split is not None}

    def split(self, name: SplitName) -> ImageSet:
        """Return the split called `name`. Refused: a split that does not exist."""
        images: ImageSet | None = getattr(self, name)
        if images is None:
            raise DataError(
                f"{self.name} has no {name} split", hint=f"it has: {', '.join(self.sizes)}; use data with all three"
            )
        return images

    @property
    def whole(self) -> ImageSet:
        """All images of all splits."""
        splits = [s for s in (self.train, self.tune, self.test) if s is not None]
        if all(isinstance(s, Images) for s in splits) and len({s[0][0].shape for s in splits}) == 1:
            in_memory: list[Any] = splits
            return Images(torch.cat([s.images for s in in_memory]), torch.cat([s.labels for s in in_memory]))
        joined: ConcatDataset[Any] = ConcatDataset(splits)  # type: ignore[arg-type]  # maps with a length
        return joined

    def to_json(self) -> dict[str, object]:
        """Return the record of the data: the name, the splits' sizes and how they were drawn."""
        return {
            "name": self.name,
            "sizes": self.sizes,
            "split_seed": self.split_seed,
            "drawn": [str(s) for s in self.drawn],
            **({"repeated": self.repeated} if self.repeated else {}),
        }


def subset(images: ImageSet, indices: Sequence[int]) -> ImageSet:
    """Return the images at `indices`; in memory if the whole set is."""
    if isinstance(images, Images):
        return images.subset(torch.as_tensor(indices, dtype=torch.long))
    return Subset(images, indices)  # type: ignore[arg-type]  # a torch Dataset is a map with a length


def hold_out(images: ImageSet, *, share: float, at_most: int | None = None, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return two disjoint parts, the second with `share` of the images (at least one, at most `at_most`), drawn by
    `seed`.
    """
    if len(images) < 2:
        raise DataError(f"{len(images)} image cannot be split", hint="use at least two images")
    count = min(max(1, round(len(images) * share)), len(images) - 1)
    count = min(count, at_most) if at_most is not None else count
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    return subset(images, sorted(order[:-count])), subset(images, sorted(order[-count:]))


def first(images: ImageSet, count: int, *, seed: int) -> ImageSet:
    """Return `count` images drawn by `seed`; all if there are fewer."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return subset(images, order.tolist())


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
    images: ImageSet,
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
