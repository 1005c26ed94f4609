"""Match the labels of a data set to a network's outputs, by the classes' names where both have names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from compressor.data.items import TARGET_NAMES
from compressor.data.samples import UNLABELLED, Images, Samples
from compressor.data.splits import Data
from compressor.errors import DataError


class _Relabelled:
    """Samples in which label `i` is replaced by `targets[i]`."""

    def __init__(self, images: Samples, targets: Sequence[int]) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Any:
        item = self.images[index]
        if isinstance(item, Mapping):
            return {name: self._moved(part) if name in TARGET_NAMES else part for name, part in item.items()}
        image, target = item
        if isinstance(target, Mapping):
            return image, {**target, "labels": self._moved(target["labels"])}
        return image, self._moved(target)

    def _moved(self, label: Any) -> Any:
        """The network's number for a class, or its numbers for several."""
        if isinstance(label, Tensor) and label.ndim:
            return torch.tensor(self.targets, dtype=torch.int64)[label]
        return label if int(label) == UNLABELLED else self.targets[int(label)]


def with_labels_of(data: Data, classes: Sequence[str] | None) -> Data:
    """Return the data with the labels of a network whose outputs are `classes`, matched by name where both have names.

    Names match without regard to case, spaces, `-` and `_`; data may have fewer classes than the network. Refused:
    labels that are names (as of class folders) which the network does not have. Numeric labels stay unchanged where the
    names do not match: two spellings of one class list (`T-shirt/top`, `t-shirt`) are not a reason to refuse it.
    """
    if not classes or not data.classes:
        return data
    index = {_plain(name): i for i, name in enumerate(classes)}
    strangers = [name for name in data.classes if _plain(name) not in index]
    if strangers and all(name.isdecimal() and int(name) < len(classes) for name in data.classes):
        targets = [int(name) for name in data.classes]
    elif strangers and data.by_name:
        raise DataError(
            f"the network has no class called {', '.join(f'`{s}`' for s in strangers[:5])}",
            hint=f"name the class folders as the network does: {', '.join(classes[:20])}{' …' * (len(classes) > 20)}",
        )
    elif strangers:
        return data
    else:
        targets = [index[_plain(name)] for name in data.classes]
    if targets == list(range(len(targets))):
        return replace(data, classes=tuple(classes))

    def relabelled(images: Samples | None) -> Samples | None:
        if isinstance(images, Images):
            moved = torch.tensor([*targets, UNLABELLED])[images.labels]  # -1 selects the last entry
            return Images(images.images, moved)
        return None if images is None else _Relabelled(images, targets)

    train, tune, test = relabelled(data.train), relabelled(data.tune), relabelled(data.test)
    return replace(data, train=train, tune=tune, test=test, classes=tuple(classes), by_name=False)


def _plain(name: str) -> str:
    """A name without case, spaces, `-` and `_`."""
    return "".join(c for c in name.casefold() if c not in " -_")
