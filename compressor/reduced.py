"""Less of a data set: the first images of its splits, and smaller ones, for what is to be cheap."""

from __future__ import annotations

import dataclasses

from compressor.data import Data, Images, ImageSet, Preprocessing
from compressor.errors import DataError


def reduced(data: Data, *, train: int = 0, others: int = 0, side: int | None = None) -> Data:
    """The first `train` images of the training split and the first `others` of each other one; 0 leaves all.

    With `side` they are made square and so large. Refused: images that are not held in memory.
    """
    limits = {"train": train, "tune": others, "test": others}
    splits = {name: _part(getattr(data, name), limit, side, name=data.name) for name, limit in limits.items()}
    return dataclasses.replace(data, train=splits["train"], tune=splits["tune"], test=splits["test"])


def _part(images: ImageSet | None, limit: int, side: int | None, *, name: str) -> Images | None:
    if images is None:
        return None
    if not isinstance(images, Images):
        raise DataError(f"the images of {name} are not held in memory", hint="an `.npz` file or a folder of IDX files")
    count = min(len(images), limit or len(images))
    kept = images.images[:count]
    return Images(kept if side is None else Preprocessing(size=(side, side)).shaped(kept), images.labels[:count])
