"""Less of a data set: fewer images, made smaller."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from compressor.data.samples import Images, subset
from compressor.data.splits import Data
from compressor.errors import DataError
from compressor.studies.smaller import reduced


def data() -> Data:
    def images(count: int) -> Images:
        shades = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        return Images(shades.clone(), torch.arange(count) % 3)

    return Data(name="shades", source="here", train=images(9), tune=images(6), test=images(5))


def test_nothing_asked_is_everything_as_it_was() -> None:
    found = reduced(data())
    for name in ("train", "tune", "test"):
        before, after = getattr(data(), name), getattr(found, name)
        assert torch.equal(before.images, after.images)
        assert torch.equal(before.labels, after.labels)


def test_some_images_stay_always_the_same_ones_and_each_is_made_smaller() -> None:
    found = reduced(data(), train=4, tune=50, test=50, side=4)
    assert found.sizes == {"train": 4, "tune": 6, "test": 5}
    assert isinstance(found.train, Images)
    assert found.train.images.shape == (4, 1, 4, 4)
    assert found.train.images.dtype is torch.uint8
    shades = found.train.images[:, 0, 0, 0].tolist()
    assert len(set(shades)) == 4
    assert shades != [0, 1, 2, 3]  # sets may be sorted by class
    assert found.train.labels.tolist() == [shade % 3 for shade in shades]
    again = reduced(data(), train=4).train
    assert isinstance(again, Images)
    assert again.labels.tolist() == found.train.labels.tolist()
    assert found.to_json() != data().to_json()


def test_a_split_that_is_not_there_stays_away() -> None:
    assert reduced(dataclasses.replace(data(), test=None), tune=2, test=2).test is None


def test_images_that_are_not_in_memory_are_refused() -> None:
    class Lazy:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int, /) -> tuple[torch.Tensor, int]:
            return torch.zeros(1, 8, 8), 0

    with pytest.raises(DataError, match="not held in memory"):
        reduced(dataclasses.replace(data(), train=subset(Lazy(), [0, 1])))
