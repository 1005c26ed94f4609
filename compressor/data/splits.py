"""A data set in disjoint train, tune and test splits.

Every choice is made on `tune`; `test` is read once, at the end. `data.sources` decides where the samples come from.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import ConcatDataset

from compressor.data.batches import is_labelled
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import UNLABELLED, Images, Samples
from compressor.errors import DataError
from compressor.tasks.task import Task


class SplitName(enum.StrEnum):
    """The three disjoint parts of a data set."""

    TRAIN = "train"
    TUNE = "tune"
    TEST = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A data set in three disjoint splits; a split without data is `None`.

    `drawn`: the splits that are not the data's own, but drawn by `split_seed`. `by_name`: a label is a position among
    sorted names (as of class folders) and means the name, not the number. `repeated`: the number of images that were
    removed because another split has them too. `task` is what the data is for, where the items do not show it.
    `caveats` are lines for the user.
    """

    name: str
    source: str
    train: Samples | None
    tune: Samples | None
    test: Samples | None
    classes: tuple[str, ...] | None = None
    split_seed: int = 0
    drawn: tuple[SplitName, ...] = ()
    by_name: bool = False
    repeated: int = 0
    task: Task | None = None
    caveats: tuple[str, ...] = ()

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
        """True if the first item of every split has something to judge by, for a network with one input."""
        splits = (s for s in (self.train, self.tune, self.test) if s is not None)
        return all(is_labelled(s, preprocessing=Preprocessing()) for s in splits)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images in each existing split."""
        splits = {name: getattr(self, name) for name in SplitName}
        return {str(name): len(split) for name, split in splits.items() if split is not None}

    def split(self, name: SplitName) -> Samples:
        """Return the split called `name`. Refused: a split that does not exist."""
        images: Samples | None = getattr(self, name)
        if images is None:
            raise DataError(
                f"{self.name} has no {name} split", hint=f"it has: {', '.join(self.sizes)}; use data with all three"
            )
        return images

    @property
    def whole(self) -> Samples:
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
            **({"task": self.task.name} if self.task is not None else {}),
        }
