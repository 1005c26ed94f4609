"""Reduce a data set: fewer images per split, and smaller ones, for cheap runs."""

from __future__ import annotations

import dataclasses

from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images, Samples, first
from compressor.data.splits import Data
from compressor.errors import DataError


def reduced(data: Data, *, train: int = 0, tune: int = 0, test: int = 0, side: int = 0) -> Data:
    """Return the data with at most this many images of each split; 0 keeps all.

    The images are always the same ones, drawn at random because sets may be sorted. With `side`, images are resized to
    `side` x `side`. Refused: images that are not in memory.
    """
    limits = {"train": train, "tune": tune, "test": test}
    splits = {name: _part(getattr(data, name), limit, side, name=data.name) for name, limit in limits.items()}
    return dataclasses.replace(data, train=splits["train"], tune=splits["tune"], test=splits["test"])


def _part(images: Samples | None, limit: int, side: int, *, name: str) -> Images | None:
    if images is None:
        return None
    kept = first(images, limit, seed=0) if limit else images
    if not isinstance(kept, Images):
        raise DataError(
            f"the images of {name} are not held in memory", hint="give an `.npz` file or a folder of IDX files"
        )
    return Images(Preprocessing(size=(side, side)).shaped(kept.images), kept.labels) if side else kept
