from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.data.batches import augmentation_named, batches
from compressor.data.classes import with_labels_of
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import UNLABELLED, Images, first, hold_out, subset
from compressor.data.splits import Data, SplitName
from compressor.errors import DataError


def numbered(count: int, *, size: int = 4, channels: int = 1) -> Images:
    """Images whose every pixel is their number, and whose label is it modulo 10."""
    numbers = torch.arange(count)
    pixels = numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, size, size)
    return Images(pixels.clone(), numbers % 10)


class Lazy:
    """The same images, not in memory."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self.images[index]


def numbers_in(images: object) -> list[int]:
    return [int(images[i][0].flatten()[0]) for i in range(len(images))]  # type: ignore[index, arg-type]


class TestSplits:
    @settings(max_examples=60, deadline=None)
    @given(count=st.integers(2, 200), share=st.floats(0, 1), seed=st.integers(0, 2**31), lazy=st.booleans())
    def test_held_out_images_are_disjoint_and_complete(self, count: int, share: float, seed: int, lazy: bool) -> None:
        images = Lazy(numbered(count)) if lazy else numbered(count)
        rest, held = hold_out(images, share=share, seed=seed)
        assert sorted(numbers_in(rest) + numbers_in(held)) == list(range(count))
        assert len(rest) >= 1
        assert len(held) >= 1

    def test_the_seed_alone_decides_what_is_held_out(self) -> None:
        draws = [numbers_in(hold_out(numbered(50), share=0.2, seed=seed)[1]) for seed in (0, 0, 1)]
        assert draws[0] == draws[1] != draws[2]

    def test_never_more_is_held_out_than_allowed(self) -> None:
        assert len(hold_out(numbered(200), share=0.5, at_most=7, seed=0)[1]) == 7

    def test_one_image_cannot_be_split(self) -> None:
        with pytest.raises(DataError, match="1 image cannot be split"):
            hold_out(numbered(1), share=0.5, seed=0)

    def test_the_global_generator_is_left_alone(self) -> None:
        before = torch.random.get_rng_state()
        hold_out(numbered(9), share=0.5, seed=3)
        first(numbered(9), 4, seed=3)
        list(batches(numbered(9), batch_size=2, preprocessing=Preprocessing(), shuffle_seed=1))
        list(batches(Lazy(numbered(9)), batch_size=2, preprocessing=Preprocessing(), shuffle_seed=1))
        assert torch.equal(before, torch.random.get_rng_state())

    def test_first_gives_all_where_there_are_fewer(self) -> None:
        assert sorted(numbers_in(first(numbered(5), 99, seed=0))) == [0, 1, 2, 3, 4]
        assert len(set(numbers_in(first(numbered(50), 8, seed=0)))) == 8

    def test_a_missing_split_says_which_there_are(self) -> None:
        data = Data(name="d", source="s", train=numbered(4), tune=numbered(2), test=None)
        assert data.sizes == {"train": 4, "tune": 2}
        with pytest.raises(DataError, match="d has no test split") as refused:
            data.split(SplitName.TEST)
        assert "train, tune" in str(refused.value.hint)

    def test_no_images_are_no_data(self) -> None:
        with pytest.raises(DataError, match="no images in s"):
            Data(name="d", source="s", train=None, tune=None, test=None)

    @pytest.mark.parametrize("lazy", [False, True])
    def test_the_whole_is_every_split_in_order(self, lazy: bool) -> None:
        parts = [subset(numbered(9), part) for part in ([1, 2], [5], [7, 8])]
        splits = [Lazy(p) if lazy else p for p in parts]  # type: ignore[arg-type]  # in memory
        data = Data(name="d", source="s", train=splits[0], tune=splits[1], test=splits[2])
        assert numbers_in(data.whole) == [1, 2, 5, 7, 8]

    @pytest.mark.parametrize(("labels", "said"), [([0, 3], "label 3 but only 3 classes"), ([0, -2], "label -2")])
    def test_labels_fit_the_classes(self, labels: list[int], said: str) -> None:
        images = Images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor(labels))
        with pytest.raises(DataError, match=said):
            Data(name="d", source="s", train=images, tune=None, test=None, classes=("a", "b", "c"))

    def test_a_record_of_data_is_plain(self) -> None:
        data = Data(
            name="d", source="s", train=numbered(4), tune=numbered(2), test=None, split_seed=3, drawn=(SplitName.TUNE,)
        )
        assert data.to_json() == {"name": "d", "sizes": {"train": 4, "tune": 2}, "split_seed": 3, "drawn": ["tune"]}


class TestImages:
    @pytest.mark.parametrize(
        ("images", "labels", "said"),
        [
            (torch.zeros(0, 1, 2, 2), None, "non-empty"),
            (torch.zeros(4, 2), None, "non-empty"),
            (torch.zeros(4, 1, 2, 2, dtype=torch.int64), None, "uint8 .* or float .*, not int64"),
            (torch.zeros(4, 1, 2, 2), torch.zeros(3), r"4 images have labels of shape \[3\]"),
        ],
    )
    def test_what_is_no_set_of_images_is_refused(self, images: Tensor, labels: Tensor | None, said: str) -> None:
        with pytest.raises(DataError, match=said):
            Images(images, labels)

    def test_grey_images_without_channels_get_one(self) -> None:
        assert Images(torch.zeros(3, 5, 6)).images.shape == (3, 1, 5, 6)

    def test_images_without_labels_are_unlabelled(self) -> None:
        assert Images(torch.zeros(3, 5, 6))[2][1] == UNLABELLED


class TestPreprocessing:
    def test_bytes_become_normalised_floats(self) -> None:
        prepared = Preprocessing(mean=(0.5,), std=(0.25,))(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        assert prepared.tolist() == [[[[-2.0, 2.0]]]]

    def test_floats_are_in_the_unit_interval_already(self) -> None:
        assert Preprocessing()(torch.full((1, 1, 1, 1), 0.75)).item() == 0.75

    @pytest.mark.parametrize(("given", "wanted"), [(1, 3), (3, 1), (3, 3), (1, 1)])
    def test_grey_and_colour_turn_into_each_other(self, given: int, wanted: int) -> None:
        prepared = Preprocessing(channels=wanted)(torch.full((2, given, 4, 4), 100, dtype=torch.uint8))
        assert prepared.shape == (2, wanted, 4, 4)
        assert prepared.mean().item() == pytest.approx(100 / 255, abs=1 / 255)

    @pytest.mark.parametrize("size", [(4, 4), (9, 5)])
    def test_images_take_the_size_of_the_network(self, size: tuple[int, int]) -> None:
        assert Preprocessing(size=size)(numbered(3, size=6).images).shape[-2:] == size

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"mean": (0.1, 0.2), "std": (1.0,)}, "2 means but 1 standard"),
            ({"mean": (0.1,), "std": (0.0,)}, "must be positive"),
            ({"mean": (0.1, 0.2), "std": (1.0, 1.0), "channels": 3}, "2 means for 3 channels"),
            ({"size": (0, 3)}, "0x3 pixels is empty"),
        ],
    )
    def test_contradictions_are_refused(self, fields: dict[str, object], said: str) -> None:
        with pytest.raises(DataError, match=said):
            Preprocessing(**fields)  # type: ignore[arg-type]  # that is the point

    @pytest.mark.parametrize(
        ("preprocessing", "images", "said"),
        [
            (Preprocessing(channels=3), torch.zeros(1, 4, 2, 2), "reads 3 channels, the images have 4"),
            (Preprocessing(mean=(0.5,) * 3, std=(1.0,) * 3), torch.zeros(1, 1, 2, 2), "3 means for images of 1"),
            (Preprocessing(mean=(0.5,), std=(1.0,)), torch.full((1, 1, 2, 2), -0.5), "normalised already"),
        ],
    )
    def test_images_of_another_kind_are_refused(self, preprocessing: Preprocessing, images: Tensor, said: str) -> None:
        with pytest.raises(DataError, match=said):
            preprocessing(images)


class TestBatches:
    @pytest.mark.parametrize("lazy", [False, True])
    def test_the_order_is_the_sets_own_and_the_last_batch_smaller(self, lazy: bool) -> None:
        images = Lazy(numbered(7)) if lazy else numbered(7)
        found = list(batches(images, batch_size=3, preprocessing=Preprocessing()))
        assert [len(labels) for _, labels in found] == [3, 3, 1]
        assert torch.cat([labels for _, labels in found]).tolist() == list(range(7))

    def test_in_memory_and_lazy_sets_give_the_same(self) -> None:
        preprocessing = Preprocessing(mean=(0.4,), std=(0.2,), size=(5, 5), channels=3)
        both = [
            list(batches(images, batch_size=4, preprocessing=preprocessing, shuffle_seed=5))
            for images in (numbered(10), Lazy(numbered(10)))
        ]
        for ((inputs,), labels), ((lazy_inputs,), lazy_labels) in zip(*both, strict=True):
            assert torch.equal(inputs, lazy_inputs)
            assert torch.equal(labels, lazy_labels)

    def test_every_image_comes_once_in_a_drawn_order(self) -> None:
        orders = [
            torch.cat(
                [
                    x[:, 0, 0, 0]
                    for (x,), _ in batches(numbered(20), batch_size=6, preprocessing=Preprocessing(), shuffle_seed=s)
                ]
            )
            for s in (0, 0, 1)
        ]
        assert torch.equal(orders[0], orders[1])
        assert not torch.equal(orders[0], orders[2])
        assert sorted((orders[2] * 255).round().int().tolist()) == list(range(20))

    @pytest.mark.parametrize("lazy", [False, True])
    @pytest.mark.parametrize("size", [(4, 4), (40, 40)])
    def test_augmentation_sees_images_of_the_networks_size(self, lazy: bool, size: tuple[int, int]) -> None:
        images = Lazy(numbered(3, size=14)) if lazy else numbered(3, size=14)
        seen = []

        def spy(image: Tensor) -> Tensor:
            seen.append(tuple(image.shape))
            return image

        list(batches(images, batch_size=2, preprocessing=Preprocessing(size=size, channels=3), augmentation=spy))
        assert seen == [(3, *size)] * 3

    def test_mixed_grey_and_colour_files_form_a_batch(self) -> None:
        class Mixed(Lazy):
            def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
                return torch.zeros(1 + 2 * (index % 2), 4, 4, dtype=torch.uint8), 0

        (((inputs,), _),) = batches(Mixed(numbered(4)), batch_size=4, preprocessing=Preprocessing(channels=3))
        assert inputs.shape == (4, 3, 4, 4)

    def test_images_of_different_sizes_ask_for_the_networks(self) -> None:
        class Growing(Lazy):
            def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
                return torch.zeros(1, 4 + index, 4, dtype=torch.uint8), 0

        with pytest.raises(DataError, match="different sizes") as refused:
            list(batches(Growing(numbered(4)), batch_size=4, preprocessing=Preprocessing()))
        assert "--input" in str(refused.value.hint)

    def test_augmentations_are_known_by_name(self) -> None:
        assert augmentation_named((), size=(4, 4)) is None
        flip_crop = augmentation_named(("flip", "crop", "erase"), size=(28, 28))
        assert flip_crop is not None
        assert flip_crop(torch.zeros(1, 28, 28, dtype=torch.uint8)).shape == (1, 28, 28)
        with pytest.raises(DataError, match="no augmentation called `flop`"):
            augmentation_named(("flop",), size=(4, 4))


class TestLabels:
    def data(self, classes: tuple[str, ...], *, by_name: bool = True, lazy: bool = False) -> Data:
        images = Images(torch.zeros(len(classes), 1, 2, 2, dtype=torch.uint8), torch.arange(len(classes)))
        return Data(
            name="d",
            source="s",
            train=None,
            tune=None,
            test=Lazy(images) if lazy else images,
            classes=classes,
            by_name=by_name,
        )

    def labels(self, data: Data) -> list[int]:
        assert data.test is not None
        return [data.test[i][1] for i in range(len(data.test))]

    @pytest.mark.parametrize("lazy", [False, True])
    def test_sorted_folders_are_mapped_to_the_networks_order(self, lazy: bool) -> None:
        data = with_labels_of(self.data(("cat", "dog", "eel"), lazy=lazy), ("eel", "cat", "dog"))
        assert self.labels(data) == [1, 2, 0]
        assert data.classes == ("eel", "cat", "dog")

    def test_case_and_spaces_do_not_matter(self) -> None:
        assert self.labels(with_labels_of(self.data(("Ankle_boot", "T-SHIRT")), ("t shirt", "ankle boot"))) == [1, 0]

    def test_fewer_classes_than_the_network_has_will_do(self) -> None:
        assert self.labels(with_labels_of(self.data(("eel",)), ("cat", "dog", "eel"))) == [2]

    def test_a_class_that_the_network_lacks_is_refused(self) -> None:
        with pytest.raises(DataError, match="no class called `fox`") as refused:
            with_labels_of(self.data(("cat", "fox")), ("cat", "dog"))
        assert "cat, dog" in str(refused.value.hint)

    def test_folders_that_are_numbers_are_the_networks_indices(self) -> None:
        names = tuple(sorted(str(i) for i in range(12)))  # 0, 1, 10, 11, 2, …
        network = tuple("abcdefghijkl")
        assert self.labels(with_labels_of(self.data(names), network)) == [int(n) for n in names]

    def test_numeric_labels_survive_another_spelling_of_the_classes(self) -> None:
        data = self.data(("T-shirt/top", "Trouser"), by_name=False)
        assert with_labels_of(data, ("t-shirt", "trouser")) is data

    def test_numeric_labels_are_mapped_where_the_names_say_so(self) -> None:
        assert self.labels(with_labels_of(self.data(("a", "b"), by_name=False), ("b", "a"))) == [1, 0]

    def test_nothing_known_changes_nothing(self) -> None:
        data = self.data(("a", "b"))
        assert with_labels_of(data, None) is data

    @pytest.mark.parametrize("lazy", [False, True])
    def test_unlabelled_images_stay_so(self, lazy: bool) -> None:
        images = Images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([1, UNLABELLED]))
        split = Lazy(images) if lazy else images
        data = Data(name="d", source="s", train=None, tune=None, test=split, classes=("a", "b"), by_name=True)
        assert self.labels(with_labels_of(data, ("b", "a"))) == [0, UNLABELLED]
