"""Folders of pictures with masks or boxes, in the forms in which people have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.data.batches import batches
from compressor.data.classes import with_labels_of
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import UNLABELLED, Samples
from compressor.data.sources import load_data
from compressor.data.splits import SplitName
from compressor.errors import DataError

WIDTH, HEIGHT = 8, 4


def picture(file: Path, value: int = 0, *, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(file)


def mask(file: Path, value: int = 1, *, mode: str = "L", size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """A mask whose right half has this class."""
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.zeros((size[1], size[0]), np.uint8)
    numbers[:, size[0] // 2 :] = value
    image = Image.fromarray(numbers)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    elif mode != "L":
        image = image.point(lambda v: 255 * bool(v)).convert(mode)
    image.save(file)


def targets(samples: Samples | None) -> list[Any]:
    assert samples is not None
    return [samples[i][1] for i in range(len(samples))]


class TestMasks:
    @pytest.mark.parametrize("name", ["masks", "labels", "annotations", "Masks"])
    @pytest.mark.parametrize("mode", ["L", "P", "1"])
    def test_each_picture_has_the_mask_of_its_name(self, tmp_path: Path, name: str, mode: str) -> None:
        for number in range(20):
            picture(tmp_path / "images" / f"{number:02}.bmp", number)
            mask(tmp_path / name / f"{number:02}.png", mode=mode)
        data = load_data(str(tmp_path))
        assert data.sizes == {"train": 16, "tune": 2, "test": 2}
        assert data.classes is None
        assert data.labelled
        for one in targets(data.train):
            assert one.dtype is torch.int64
            assert one.tolist() == [[0] * 4 + [1] * 4] * HEIGHT

    @pytest.mark.parametrize("form", ["{split}/images {split}/masks", "images/{split} masks/{split}"])
    def test_own_splits_are_taken_as_they_are(self, tmp_path: Path, form: str) -> None:
        for value, (split, count) in enumerate((("train", 5), ("val", 3), ("test", 2))):
            images, masks = form.format(split=split).split()
            for number in range(count):
                picture(tmp_path / images / f"{number}.png", 10 * value + number)
                mask(tmp_path / masks / f"{number}.png", value)
        data = load_data(str(tmp_path))
        assert data.sizes == {"train": 5, "tune": 3, "test": 2}
        assert data.drawn == ()
        assert [int(one.max()) for one in targets(data.tune)] == [1, 1, 1]
        assert [int(one.max()) for one in targets(data.test)] == [2, 2]

    def test_a_split_without_masks_is_unlabelled(self, tmp_path: Path) -> None:
        for number in range(4):
            picture(tmp_path / "train" / "images" / f"{number}.png", number)
            mask(tmp_path / "train" / "masks" / f"{number}.png")
            picture(tmp_path / "test" / "images" / f"{number}.png", 9 + number)
        assert targets(load_data(str(tmp_path)).test) == [UNLABELLED] * 4

    def test_a_picture_in_two_splits_is_left_out_of_training(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            for number in range(4 if split == "train" else 2):
                picture(tmp_path / split / "images" / f"{number}.png", number)
                mask(tmp_path / split / "masks" / f"{number}.png")
        data = load_data(str(tmp_path))
        assert data.repeated == 2
        assert data.sizes == {"train": 1, "tune": 1, "test": 2}

    def test_picture_and_mask_are_resized_and_flipped_together(self, tmp_path: Path) -> None:
        for number in range(3):
            picture(tmp_path / "images" / f"{number}.png", number)
            mask(tmp_path / "masks" / f"{number}.png", 2)
        data = load_data(str(tmp_path))
        seen = Preprocessing(size=(8, 16), channels=3)
        (batch,) = batches(data.whole, batch_size=3, preprocessing=seen, augmentation=Flip())
        assert batch.inputs[0].shape == (3, 3, 8, 16)
        assert batch.target.tolist() == [[[2] * 8 + [0] * 8] * 8] * 3

    def test_wrong_masks_are_refused(self, tmp_path: Path) -> None:
        def refused(said: str, hint: str) -> None:
            with pytest.raises(DataError, match=said) as raised:
                targets(load_data(str(tmp_path)).test)
            assert hint in str(raised.value.hint)

        for number in range(2):
            picture(tmp_path / "images" / f"{number}.png", number)
            mask(tmp_path / "masks" / f"{number}.png")
        file = tmp_path / "masks" / "1.png"
        mask(file, size=(4, 4))
        refused("1.png is of 4x4 pixels, its picture of 8x4", "resize")
        picture(file)
        refused(r"1.png is in colours \(RGB\)", "palette or grey PNG")
        mask(file)
        file.write_bytes(file.read_bytes()[:50])
        refused("cannot read the mask", "repair")
        file.unlink()
        refused("1 of 2 pictures have no mask, the first", "of the same name")
        mask(tmp_path / "masks" / "1.jpg")
        refused("is a JPEG, which changes class numbers", "PNG")
        (tmp_path / "masks" / "1.jpg").unlink()
        mask(file, 255)
        mask(tmp_path / "masks" / "0.png", 255)
        refused("black and white, 0 and 255", "save 1 in place of 255")
        mask(tmp_path / "masks" / "1.bmp", 1)
        refused("belong to one picture", "one file for each")

    def test_annotations_in_xml_are_called_that(self, tmp_path: Path) -> None:
        picture(tmp_path / "images" / "1.png")
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations" / "1.xml").write_text("<annotation/>")
        with pytest.raises(DataError, match="annotations in XML"):
            load_data(str(tmp_path))


class Flip:
    """torchvision's own flip, always."""

    def __call__(self, *parts: Any) -> Any:
        from torchvision.transforms import v2

        return v2.RandomHorizontalFlip(p=1.0)(*parts)


def test_class_folders_that_end_like_splits_stay_classes(tmp_path: Path) -> None:
    for number, name in enumerate(("test1", "test2", "other")):
        picture(tmp_path / name / "0.png", number)
    assert load_data(str(tmp_path)).classes == ("other", "test1", "test2")


def test_folders_of_pictures_that_are_not_all_splits_are_one_set(tmp_path: Path) -> None:
    for number, name in enumerate(("test1", "test2", "walk")):
        picture(tmp_path / "images" / name / "0.png", number)
        mask(tmp_path / "masks" / name / "0.png")
    assert load_data(str(tmp_path)).sizes == {"train": 1, "tune": 1, "test": 1}


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for number, name in enumerate(("val", "valid")):
        picture(tmp_path / name / "images" / "0.png", number)
        mask(tmp_path / name / "masks" / "0.png")
    with pytest.raises(DataError, match="are both for tune"):
        load_data(str(tmp_path))


@pytest.mark.parametrize("under", ["images", "train/images"])
def test_pictures_alone_are_unlabelled(tmp_path: Path, under: str) -> None:
    for number in range(4):
        picture(tmp_path / under / f"{number}.png", number)
    data = load_data(str(tmp_path))
    assert data.classes is None
    assert targets(data.train) == [UNLABELLED] * len(targets(data.train))


class TestYolo:
    def folder(self, path: Path, text: str, *, names: str | None = "names: [cat, dog]") -> str:
        for number in range(2):
            picture(path / "images" / f"{number}.png", number)
        (path / "labels").mkdir(exist_ok=True)
        (path / "labels" / "0.txt").write_text(text)
        if names is not None:
            (path / "data.yaml").write_text(names)
        return str(path)

    def test_shares_become_pixels_and_no_file_no_boxes(self, tmp_path: Path) -> None:
        source = self.folder(tmp_path, "1 0.5 0.5 0.25 0.5\n0 0.25 0.5 0.5 1\n\n")
        for named in (source, f"{source}/data.yaml"):
            data = load_data(named)
            first, second = targets(data.test)
            assert first["boxes"].tolist() == [[3, 1, 5, 3], [0, 0, 4, 4]]
            assert first["labels"].tolist() == [1, 0]
            assert second["boxes"].shape == (0, 4)
            assert data.classes == ("cat", "dog")
            assert data.by_name

    def test_a_polygon_has_the_box_around_it(self, tmp_path: Path) -> None:
        source = self.folder(tmp_path, "0 0 0 0.5 0.25 0.25 1", names=None)
        data = load_data(source)
        assert targets(data.test)[0]["boxes"].tolist() == [[0, 0, 4, 4]]
        assert data.classes is None

    @pytest.mark.parametrize("form", ["images/{split}2017 labels/{split}2017", "{split}/images {split}/labels"])
    def test_own_splits(self, tmp_path: Path, form: str) -> None:
        for value, split in enumerate(("train", "val")):
            images, labels = form.format(split=split).split()
            for number in range(2):
                picture(tmp_path / images / f"{number}.jpg", 9 * value + number)
            (tmp_path / labels).mkdir(parents=True)
            (tmp_path / labels / "0.txt").write_text(f"{value} 0.5 0.5 1 1")
        data = load_data(str(tmp_path))
        assert data.sizes == {"train": 2, "tune": 2}
        assert [one["labels"].tolist() for one in targets(data.tune)] == [[1], []]

    def test_classes_are_matched_by_name(self, tmp_path: Path) -> None:
        data = load_data(self.folder(tmp_path, "1 0.5 0.5 0.25 0.5"))
        moved = with_labels_of(data, ("person", "Dog", "cat"))
        assert [one["labels"].tolist() for one in targets(moved.test)] == [[1], []]
        with pytest.raises(DataError, match="no class called `cat`"):
            with_labels_of(data, ("person", "dog"))

    @pytest.mark.parametrize(
        ("text", "names", "said"),
        [
            ("0 0.5 0.5 0.25", None, "line 1: `0 0.5 0.5 0.25` is no box"),
            ("0 0.5 0.5 1 1\n0 300 200 50 50", None, "line 2: `0 300 200 50 50` lies outside"),
            ("0 0.5 nan 0.1 0.1", None, "lies outside of the picture"),
            ("cat 0.5 0.5 0.1 0.1", None, "is no box"),
            ("2 0.5 0.5 0.1 0.1", "names: {0: a, 1: b}", "class 2, but `names` lists 2"),
            ("0 0.5 0.5 0.1 0.1", "names: cat", "no list of classes"),
            ("0 0.5 0.5 0.1 0.1", "names: [cat", "cannot read"),
            ("0 0.5 0.5 0.1 0.1", "names: !!python/object/apply:os.system ['touch ran']", "cannot read"),
            ("0 0.5 0.5 0.1 0.1", "names: " + "[" * 20000, "cannot read"),
        ],
    )
    def test_wrong_labels_are_refused(
        self, tmp_path: Path, text: str, names: str | None, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=said) as raised:
            targets(load_data(self.folder(tmp_path, text, names=names)).test)
        assert raised.value.hint
        assert not (tmp_path / "ran").exists()

    def test_labels_of_other_pictures_are_refused(self, tmp_path: Path) -> None:
        source = self.folder(tmp_path, "")
        (tmp_path / "labels" / "0.txt").rename(tmp_path / "labels" / "zero.txt")
        with pytest.raises(DataError, match=r"no text file in .* has the name of a picture"):
            load_data(source)


class TestCoco:
    def table(self, **other: Any) -> dict[str, Any]:
        return {
            "images": [
                {"id": 7, "file_name": "0.png", "width": WIDTH, "height": HEIGHT},
                {"id": 3, "file_name": "1.png"},
            ],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 18, "bbox": [1, 1, 2, 3]},
                {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0.5, 0, 4, 4]},
                {"id": 3, "image_id": 3, "category_id": 4, "bbox": [0, 0, 4, 4], "iscrowd": 1},
            ],
            "categories": [{"id": 18, "name": "dog"}, {"id": 4, "name": "cat"}],
            **other,
        }

    def folder(self, path: Path, table: Any, *, images: str = "images", file: str = "boxes.json") -> str:
        for number in range(2):
            picture(path / images / f"{number}.png", number)
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_text(table if isinstance(table, str) else json.dumps(table))
        return str(path)

    @pytest.mark.parametrize(
        ("images", "file", "split"),
        [
            ("images", "boxes.json", SplitName.TEST),
            ("", "boxes.json", SplitName.TEST),
            ("train2017", "annotations/instances_train2017.json", SplitName.TRAIN),
            ("images/val", "annotations/val.json", SplitName.TUNE),
            ("valid", "valid/_annotations.coco.json", SplitName.TUNE),
        ],
    )
    def test_every_usual_place(self, tmp_path: Path, images: str, file: str, split: SplitName) -> None:
        data = load_data(self.folder(tmp_path, self.table(), images=images, file=file))
        assert data.classes == ("cat", "dog")
        parts = [data.train, data.tune] if split is SplitName.TRAIN else [data.split(split)]
        found = [one for part in parts for one in targets(part)]
        first, second = sorted(found, key=lambda one: -len(one["labels"]))
        assert first["boxes"].tolist() == [[1, 1, 3, 4], [0.5, 0, 4.5, 4]]
        assert first["labels"].tolist() == [1, 0]
        assert second["boxes"].shape == (0, 4)

    def test_captions_of_the_same_pictures_are_left_alone(self, tmp_path: Path) -> None:
        source = self.folder(tmp_path, self.table(), images="val2017", file="annotations/instances_val2017.json")
        (tmp_path / "annotations" / "person_keypoints_val2017.json").write_text(json.dumps(self.table()))
        assert load_data(source).sizes == {"tune": 2}

    def test_other_json_beside_pictures_is_no_coco(self, tmp_path: Path) -> None:
        data = load_data(self.folder(tmp_path, {"camera": "x"}, images="pictures"))
        assert targets(data.test) == [0, 0]

    @pytest.mark.parametrize(
        ("other", "said"),
        [
            ({"images": [{"id": 7, "file_name": "../secret.png"}]}, "which may lie elsewhere"),
            ({"images": [{"id": 7, "file_name": "/etc/hosts"}]}, "which may lie elsewhere"),
            ({"images": [{"id": 7, "file_name": "gone.png"}], "annotations": []}, "`gone.png` .* is not there"),
            ({"images": [{"id": 3, "file_name": "1.png"}]}, "of which one is not listed"),
            ({"categories": []}, "of which one is not listed"),
            ({"annotations": [{"image_id": {}, "category_id": 4, "bbox": [1, 2, 3, 4]}]}, "one is not listed"),
            ({"categories": [{"id": 4}]}, "no `id` and `name`"),
            ({"images": {"id": 3}}, "no list of objects"),
            ({"annotations": [{"image_id": 3, "category_id": 4, "bbox": [1, 2]}]}, "no `bbox` of four numbers"),
            ({"annotations": [{"image_id": 3, "category_id": 4, "bbox": [1, 2, -3, 4]}]}, "no `bbox` of four"),
            (
                {"images": [{"id": i, "file_name": f"{i}.png", "width": 80, "height": 40} for i in (0, 1)],
                 "annotations": []},
                "its table says 80x40",
            ),
        ],
    )  # fmt: skip
    def test_wrong_tables_are_refused(self, tmp_path: Path, other: dict[str, Any], said: str) -> None:
        if "elsewhere" in said:
            other |= {"annotations": []}
        with pytest.raises(DataError, match=said) as raised:
            targets(load_data(self.folder(tmp_path, self.table(**other))).test)
        assert raised.value.hint

    def test_a_broken_table_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot read"):
            load_data(self.folder(tmp_path, json.dumps(self.table())[:-20] + '"categories"'))

    def test_two_tables_for_one_split_are_refused(self, tmp_path: Path) -> None:
        source = self.folder(tmp_path, self.table())
        with pytest.raises(DataError, match="are for one split"):
            load_data(self.folder(Path(source), self.table(), file="more.json"))
