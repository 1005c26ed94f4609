"""Two domains: a target without labels, and a copy of a data set that a stated transform has shifted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.data.batches import Augmentation, batches
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import UNLABELLED, Images, Samples, subset
from compressor.data.splits import Data, SplitName
from compressor.errors import DataError

AT_ONCE = 1000  # images that are transformed together


class TargetDomain:
    """The images of the domain that a network is adapted to; their labels are removed here.

    Code that adapts to a domain gets only a `TargetDomain`: neither a loss, nor a score, nor a choice can use a label
    that it does not have.
    """

    __slots__ = ("images", "name")

    def __init__(self, images: Samples, *, name: str) -> None:
        self.images: Samples = without_labels(images)
        self.name = name

    def __len__(self) -> int:
        return len(self.images)

    def to_json(self) -> dict[str, object]:
        """Return the record of the target."""
        return {"name": self.name, "images": len(self)}

    def batch(
        self,
        number: int,
        *,
        size: int,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Return inputs `[size, channels, h, w]`: batch `number` of an endless stream, with a new order in each round.

        Between two uses of an image all others are used once. (An iterator that restarts at every step would read its
        first batches again and again.) Any batch can be computed by its number, so that an interrupted run continues
        bit by bit.
        """
        places = torch.arange(number * size, (number + 1) * size)
        rounds = places // len(self)
        chosen = [
            _order(len(self), seed=seed, number=r)[places[rounds == r] % len(self)]
            for r in range(int(rounds[0]), int(rounds[-1]) + 1)
        ]
        stream = batches(
            subset(self.images, torch.cat(chosen).tolist()),
            batch_size=size,
            preprocessing=preprocessing,
            augmentation=augmentation,
        )
        return next(iter(stream)).inputs[0]


def target_of(data: Data) -> TargetDomain:
    """Return the training images of a data set as a target, without their labels; the other splits are not used."""
    return TargetDomain(data.split(SplitName.TRAIN), name=data.name)


def without_labels(images: Samples) -> Samples:
    """Return the same images, all unlabelled; in memory if they were."""
    return Images(images.images) if isinstance(images, Images) else _WithoutLabels(images)


class _WithoutLabels:
    """Samples in which every image is unlabelled."""

    def __init__(self, images: Samples) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self._images[index][0], UNLABELLED


def _order(count: int, *, seed: int, number: int) -> Tensor:
    """A random order of `count` images."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """The change of every image, in this order: rotation, inverted grey levels, noise.

    `degrees` counter-clockwise (pixels from outside are black), `noise` the standard deviation of Gaussian noise where
    white is 1; grey levels are clipped to black and white.
    """

    degrees: float = 0.0
    inverted: bool = False
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise DataError(f"noise of {self.noise:g}", hint="its standard deviation, where white is 1")
        if not (self.degrees or self.inverted or self.noise):
            raise DataError("a shift that changes nothing", hint="rotate, invert or add noise")

    def __str__(self) -> str:
        parts = [f"turned by {self.degrees:g} degrees"] if self.degrees else []
        parts += ["inverted"] if self.inverted else []
        return ", ".join([*parts, f"noise of {self.noise:g}"] if self.noise else parts)

    def to_json(self) -> Mapping[str, object]:
        """Return plain values."""
        return dataclasses.asdict(self)


def shifted(images: Samples, shift: Shift, *, seed: int) -> Images:
    """Return a shifted copy with the same labels, as uint8; the noise is drawn by `seed`. Refused: images not in
    memory.
    """
    if not isinstance(images, Images):
        raise DataError("only images that fit in memory are shifted", hint="an `.npz` file or a folder of IDX files")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for some in torch.split(images.images, AT_ONCE):
        values = some.float() / 255 if some.dtype == torch.uint8 else some.float()
        if shift.degrees:
            from torchvision.transforms import v2

            values = v2.functional.rotate(values, shift.degrees, interpolation=v2.InterpolationMode.BILINEAR)
        if shift.inverted:
            values = 1 - values
        if shift.noise:
            values = values + shift.noise * torch.randn(values.shape, generator=generator)
        parts.append((255 * values.clamp(0, 1)).round().to(torch.uint8))
    return Images(torch.cat(parts), images.labels.clone())


def shifted_data(data: Data, shift: Shift, *, seed: int = 0) -> Data:
    """Return a data set's shifted copy, split by split, each with noise of its own."""
    train, tune, test = (
        None if split is None else shifted(split, shift, seed=seed * 1_000_003 + number)
        for number, split in enumerate((data.train, data.tune, data.test))
    )
    return dataclasses.replace(
        data, name=f"{data.name}, {shift}", source=f"{data.source}, {shift}", train=train, tune=tune, test=test
    )


def parted(data: Data, shift: Shift, *, images: int, seed: int) -> tuple[Data, Data]:
    """Return a source of `images` training images and a shifted target of as many others; no image is in both.

    Both are drawn by `seed`; the source has the other splits unchanged, the target their shifted copies. Refused: fewer
    than two training images.
    """
    train = data.split(SplitName.TRAIN)
    if len(train) < 2 or images < 1:
        raise DataError(f"{images} of {len(train)} training images make no two domains", hint="at least one for each")
    count = min(images, len(train) // 2)
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: 2 * count].tolist()
    source, target = (dataclasses.replace(data, train=subset(train, part)) for part in (drawn[:count], drawn[count:]))
    return source, shifted_data(target, shift, seed=seed)
