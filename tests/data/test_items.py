"""Items of any structure: which parts a network reads, and which are its target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from compressor.data.batches import batches, first_batch, is_labelled
from compressor.data.items import sample_of
from compressor.data.own_sets import Items, splits_of
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import UNLABELLED
from compressor.data.splits import SplitName
from compressor.errors import DataError

A, B, C = torch.arange(3.0), torch.arange(4), torch.arange(5.0)
ONE, TWO = ("x",), ("dense", "ids")


@dataclass
class Record:
    """An item as a data class."""

    dense: Tensor
    ids: Tensor
    label: int


class TestSampleOf:
    @pytest.mark.parametrize(
        ("item", "takes", "inputs", "target"),
        [
            (A, (), [A], UNLABELLED),
            (A, ONE, [A], UNLABELLED),
            ((A,), ONE, [A], UNLABELLED),
            ((A, 3), ONE, [A], 3),
            ([A, 3], ONE, [A], 3),
            ((A, None), ONE, [A], UNLABELLED),
            ((A, np.int64(3)), ONE, [A], 3),
            ((A, torch.tensor(3)), ONE, [A], 3),
            ({"x": A}, ONE, [A], UNLABELLED),
            ({"x": A, "y": 2}, ONE, [A], 2),
            ({"image": A, "label": 2, "id": "seven"}, ONE, [A], 2),
            ((A, B), TWO, [A, B], UNLABELLED),
            ((A, B, 1.5), TWO, [A, B], 1.5),
            (((A, B), 1.5), TWO, [A, B], 1.5),
            (({"ids": B, "dense": A}, 1), TWO, [A, B], 1),
            ({"ids": B, "dense": A, "label": 1}, TWO, [A, B], 1),
            ({"ids": B, "dense": A, "weight": 0.5}, TWO, [A, B], UNLABELLED),
            (Record(dense=A, ids=B, label=4), TWO, [A, B], 4),
            (A.numpy(), (), [A], UNLABELLED),
            (A.double().numpy(), (), [A], UNLABELLED),  # numpy's own type becomes torch's
            ([0.0, 1.0, 2.0], ("x", "y", "z"), [torch.tensor(0.0), torch.tensor(1.0), torch.tensor(2.0)], UNLABELLED),
        ],
    )
    def test_what_is_read_and_what_is_the_target(
        self, item: Any, takes: tuple[str, ...], inputs: list[Tensor], target: object
    ) -> None:
        sample = sample_of(item, takes)
        assert [(t.tolist(), t.dtype) for t in sample.inputs] == [(t.tolist(), t.dtype) for t in inputs]
        assert sample.target == target

    def test_a_picture_and_its_map(self) -> None:
        picture, mask = Image.new("RGB", (6, 4), (255, 0, 0)), Image.new("L", (6, 4), 2)
        sample = sample_of((picture, mask), ONE)
        assert sample.inputs[0].shape == (3, 4, 6)
        assert sample.target.dtype is torch.int64
        assert sample.target.tolist() == [[2] * 6] * 4

    def test_boxes_are_one_target(self) -> None:
        item = {"image": A, "boxes": [[0, 0, 2, 2]], "labels": [1], "file": "a.png"}
        target = sample_of(item, ONE).target
        assert {name: part.tolist() for name, part in target.items()} == {"boxes": [[0, 0, 2, 2]], "labels": [1]}

    @pytest.mark.parametrize(
        ("item", "takes", "said"),
        [
            ((A, 1, 2), ONE, "3 parts, but the network reads 1"),
            (A, TWO, "1 parts, but the network reads 2"),
            ({"first": A}, ONE, "an item with first for a network that reads x"),
            ({"dense": A}, TWO, "an item with dense for a network that reads dense, ids"),
            ({}, ONE, "nothing in it"),
            (({"dense": A}, 1), TWO, "reads dense, ids"),
            ((object(), 1), ONE, "a `object`, which is no tensor"),
        ],
    )
    def test_what_does_not_fit_is_said(self, item: Any, takes: tuple[str, ...], said: str) -> None:
        with pytest.raises(DataError, match=said):
            sample_of(item, takes)


class Stream(IterableDataset[tuple[Tensor, int]]):
    """Numbered items without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((torch.full((2,), float(i)), i) for i in range(30))


class Texts(Dataset[Tensor]):
    """Lines of different lengths."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Tensor:
        return torch.arange(index + 1)


def padded(items: list[Tensor]) -> dict[str, Tensor]:
    """Lines of one length, with the places that count."""
    length = max(map(len, items))
    ids = torch.stack([torch.nn.functional.pad(i, (0, length - len(i))) for i in items])
    return {"ids": ids, "mask": torch.stack([torch.arange(length) < len(i) for i in items]).long()}


class TestOwnSets:
    @pytest.mark.parametrize(
        ("result", "splits"),
        [
            (torch.zeros(9, 2), {None: 9}),
            (np.zeros((9, 2), dtype=np.float32), {None: 9}),
            ([torch.zeros(2)] * 9, {None: 9}),
            ([{"x": torch.zeros(2)}] * 9, {None: 9}),
            ({"dense": torch.zeros(9, 2), "ids": torch.zeros(9, 3)}, {None: 9}),
            (TensorDataset(torch.zeros(9, 2), torch.zeros(9)), {None: 9}),
            (DataLoader(TensorDataset(torch.zeros(9, 2)), batch_size=4), {None: 9}),
            (Stream(), {None: 30}),
            ((torch.zeros(9, 2), torch.zeros(4, 2)), {SplitName.TRAIN: 9, SplitName.TEST: 4}),
            ({"train": Stream(), "val": [torch.zeros(2)] * 3}, {SplitName.TRAIN: 30, SplitName.TUNE: 3}),
        ],
    )
    def test_every_form_is_read(self, result: Any, splits: dict[SplitName | None, int]) -> None:
        assert {name: len(one) for name, one in splits_of(result, name="`make`").items()} == splits

    def test_two_arrays_of_one_length_are_ambiguous(self) -> None:
        with pytest.raises(DataError, match="two splits, or inputs and targets"):
            splits_of((torch.zeros(9, 2), torch.zeros(9)), name="`make`")

    def test_a_loader_of_the_users_makes_the_batches(self) -> None:
        loader = DataLoader(Texts(), batch_size=2, collate_fn=padded)
        seen = Preprocessing(takes=("ids", "mask"))
        (ids, mask), _ = first_batch(Items(loader, name="texts"), size=3, preprocessing=seen)
        assert ids.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 2]]
        assert mask.sum(1).tolist() == [1, 2, 3]
        assert not is_labelled(Items(loader, name="texts"), preprocessing=seen)

    def test_items_of_different_lengths_need_such_a_loader(self) -> None:
        with pytest.raises(DataError, match="different sizes"):
            first_batch(Items(Texts(), name="texts"), size=3, preprocessing=Preprocessing())


class TestBatches:
    def test_several_inputs_and_a_target_of_any_kind(self) -> None:
        items = [(torch.full((2,), float(i)), torch.tensor([i, i]), i / 2) for i in range(5)]
        found = list(batches(items, batch_size=2, preprocessing=Preprocessing(takes=TWO)))
        assert [tuple(part.shape for part in batch.inputs) for batch in found] == [((2, 2), (2, 2))] * 2 + [
            ((1, 2),) * 2
        ]
        assert torch.cat([batch.target for batch in found]).tolist() == [0, 0.5, 1, 1.5, 2]
        assert found[0].labelled

    def test_a_map_follows_its_image(self) -> None:
        image = torch.arange(16, dtype=torch.uint8).view(1, 4, 4) * 16
        mask = (torch.arange(4) >= 2).long().expand(4, 4)
        seen = Preprocessing(size=(8, 8), channels=1)
        batch = first_batch([(image, mask)], preprocessing=seen)
        assert batch.inputs[0].shape == (1, 1, 8, 8)
        assert batch.target.tolist() == [[[0] * 4 + [1] * 4] * 8]
        flipped = next(iter(batches([(image, mask)], batch_size=1, preprocessing=seen, augmentation=_Flip())))
        assert flipped.target.tolist() == [[[1] * 4 + [0] * 4] * 8]
        assert torch.equal(flipped.inputs[0], batch.inputs[0].flip(-1))

    def test_boxes_follow_their_image(self) -> None:
        image, target = torch.zeros(3, 10, 20), {"boxes": torch.tensor([[2.0, 1, 6, 5]]), "labels": torch.tensor([4])}
        seen = Preprocessing(size=(20, 20), channels=3)
        one = first_batch([(image, target)], preprocessing=seen)
        assert one.target[0]["boxes"].tolist() == [[2, 2, 6, 10]]
        flipped = next(iter(batches([(image, target)], batch_size=1, preprocessing=seen, augmentation=_Flip())))
        assert flipped.target[0]["boxes"].tolist() == [[14, 2, 18, 10]]
        assert flipped.target[0]["labels"].tolist() == [4]


class _Flip:
    """torchvision's own flip, always."""

    def __call__(self, *parts: Any) -> Any:
        from torchvision.transforms import v2

        return v2.RandomHorizontalFlip(p=1.0)(*parts)


def test_the_order_is_drawn_alike_for_any_structure() -> None:
    items = [{"x": torch.tensor([float(i)]), "y": i} for i in range(20)]
    orders = [
        torch.cat([b.target for b in batches(items, batch_size=6, preprocessing=Preprocessing(), shuffle_seed=s)])
        for s in (0, 0, 1)
    ]
    assert orders[0].tolist() == orders[1].tolist() != orders[2].tolist()
    assert sorted(orders[2].tolist()) == list(range(20))
