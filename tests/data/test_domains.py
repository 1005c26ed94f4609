from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.data.domains import Shift, TargetDomain, parted, shifted, shifted_data, target_of, without_labels
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import UNLABELLED, Images
from compressor.data.splits import Data, SplitName
from compressor.errors import DataError

PLAIN = Preprocessing()


def numbered(count: int) -> Images:
    """Image i is i/255 everywhere and labelled i % 3."""
    values = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Images(values.expand(count, 1, 3, 3).clone(), torch.arange(count) % 3)


class Loaded:
    """A set that is read image by image, as a folder of files is."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index]


class TestTarget:
    @pytest.mark.parametrize("kind", [numbered, lambda n: Loaded(numbered(n))])
    def test_no_label_is_left_in_it(self, kind: object) -> None:
        target = TargetDomain(kind(7), name="t")  # type: ignore[operator]
        assert {target.images[i][1] for i in range(7)} == {UNLABELLED}
        assert [int(target.images[i][0][0, 0, 0]) for i in range(7)] == list(range(7))
        if isinstance(target.images, Images):
            assert set(target.images.labels.tolist()) == {UNLABELLED}

    def test_the_images_that_it_was_made_of_keep_theirs(self) -> None:
        images = numbered(7)
        without_labels(images)
        assert images.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]

    def test_it_reads_the_training_split_and_no_other(self) -> None:
        class Forbidden:
            def __len__(self) -> int:
                return 4

            def __getitem__(self, index: int) -> tuple[Tensor, int]:
                raise AssertionError(f"image {index} was read")

        data = Data(name="d", source="s", train=numbered(5), tune=Forbidden(), test=Forbidden())
        target = target_of(data)
        assert len(target) == 5
        target.batch(0, size=5, preprocessing=PLAIN)

    def test_data_without_a_training_split_are_refused(self) -> None:
        with pytest.raises(DataError, match="no train split"):
            target_of(Data(name="d", source="s", train=None, tune=None, test=numbered(4)))


class TestStream:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 5))
    def test_every_image_has_its_turn_before_any_has_another(self, count: int, size: int, seed: int) -> None:
        target = TargetDomain(numbered(count), name="t")
        stream = [target.batch(i, size=size, preprocessing=PLAIN, seed=seed) for i in range(3 * count)]
        assert {len(batch) for batch in stream} == {size}
        seen = (255 * torch.cat(stream)[:, 0, 0, 0]).round().int().tolist()
        for begin in range(0, len(seen) - count + 1, count):
            assert sorted(seen[begin : begin + count]) == list(range(count))

    def test_rounds_have_orders_of_their_own_and_the_seed_decides_them(self) -> None:
        target = TargetDomain(numbered(50), name="t")
        rounds = [target.batch(i, size=50, preprocessing=PLAIN, seed=1) for i in (0, 1)]
        assert not torch.equal(*rounds)
        assert not torch.equal(rounds[0], target.batch(0, size=50, preprocessing=PLAIN, seed=2))

    def test_any_batch_can_be_asked_for_by_itself(self) -> None:
        target = TargetDomain(numbered(7), name="t")
        whole = [target.batch(i, size=4, preprocessing=PLAIN, seed=1) for i in range(6)]
        torch.manual_seed(99)
        assert torch.equal(target.batch(4, size=4, preprocessing=PLAIN, seed=1), whole[4])

    def test_files_that_are_read_one_by_one_give_the_same_batches(self) -> None:
        one, other = (TargetDomain(images, name="t") for images in (numbered(9), Loaded(numbered(9))))
        for i in range(4):
            assert torch.equal(*(t.batch(i, size=4, preprocessing=PLAIN, seed=1) for t in (one, other)))


class TestShift:
    def test_inverted_greys_are_white_minus_black(self) -> None:
        found = shifted(numbered(9), Shift(inverted=True), seed=0)
        assert found.images[:, 0, 0, 0].tolist() == [255 - i for i in range(9)]
        assert found.images.dtype is torch.uint8

    def test_a_quarter_turn_is_torchs_own(self) -> None:
        images = Images(torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8), torch.arange(4))
        found = shifted(images, Shift(degrees=90), seed=0)
        assert torch.equal(found.images, torch.rot90(images.images, 1, (2, 3)))

    def test_what_comes_in_from_outside_is_background_before_and_after_inverting(self) -> None:
        black = Images(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1))
        assert int(shifted(black, Shift(degrees=45), seed=0).images.max()) == 0
        assert int(shifted(black, Shift(degrees=45, inverted=True), seed=0).images.min()) == 255

    def test_noise_has_the_deviation_that_is_asked_for_and_its_seed_decides_it(self) -> None:
        grey = Images(torch.full((20, 1, 16, 16), 128, dtype=torch.uint8))
        one, again, other = (shifted(grey, Shift(noise=0.1), seed=s).images for s in (0, 0, 1))
        assert float((one.float() / 255).std()) == pytest.approx(0.1, rel=0.05)
        assert torch.equal(one, again)
        assert not torch.equal(one, other)

    def test_labels_stay_and_the_images_that_it_was_made_of_too(self) -> None:
        images = numbered(9)
        found = shifted(images, Shift(degrees=10, inverted=True, noise=0.1), seed=0)
        assert torch.equal(found.labels, images.labels)
        assert images.images[:, 0, 0, 0].tolist() == list(range(9))

    def test_every_split_is_shifted_with_noise_of_its_own_and_the_name_says_how(self) -> None:
        grey = Images(torch.full((4, 1, 8, 8), 128, dtype=torch.uint8), torch.arange(4))
        data = Data(name="grey", source="made", train=grey, tune=grey, test=None)
        found = shifted_data(data, Shift(degrees=15, inverted=True, noise=0.1), seed=1)
        assert found.name == "grey, turned by 15 degrees, inverted, noise of 0.1"
        train, tune = found.split(SplitName.TRAIN), found.split(SplitName.TUNE)
        assert isinstance(train, Images)
        assert isinstance(tune, Images)
        assert not torch.equal(train.images, tune.images)
        assert found.test is None

    @pytest.mark.parametrize("wrong", [{}, {"noise": -0.1}])
    def test_one_that_changes_nothing_or_makes_no_sense_is_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(DataError):
            Shift(**wrong)  # type: ignore[arg-type]

    def test_images_that_are_not_in_memory_are_refused(self) -> None:
        with pytest.raises(DataError, match="fit in memory"):
            shifted(Loaded(numbered(3)), Shift(inverted=True), seed=0)


class TestParted:
    def test_the_domains_share_no_training_image_and_the_seed_draws_them(self) -> None:
        data = Data(name="d", source="s", train=numbered(21), tune=numbered(3), test=numbered(4))
        source, target = parted(data, Shift(inverted=True), images=10, seed=0)
        mine, theirs = source.split(SplitName.TRAIN), target.split(SplitName.TRAIN)
        assert isinstance(mine, Images)
        assert isinstance(theirs, Images)
        values = [int(v) for v in mine.images[:, 0, 0, 0]], [255 - int(v) for v in theirs.images[:, 0, 0, 0]]
        assert len(set(values[0]) | set(values[1])) == 20
        assert [v % 3 for v in values[1]] == theirs.labels.tolist()
        other = parted(data, Shift(inverted=True), images=10, seed=1)[0].split(SplitName.TRAIN)
        assert isinstance(other, Images)
        assert not torch.equal(other.images, mine.images)

    def test_where_there_are_fewer_each_has_half(self) -> None:
        data = Data(name="d", source="s", train=numbered(9), tune=None, test=numbered(4))
        assert [p.sizes["train"] for p in parted(data, Shift(noise=0.1), images=100, seed=0)] == [4, 4]

    def test_one_image_makes_no_two_domains(self) -> None:
        with pytest.raises(DataError, match="no two domains"):
            parted(
                Data(name="d", source="s", train=numbered(1), tune=None, test=None), Shift(noise=0.1), images=5, seed=0
            )
