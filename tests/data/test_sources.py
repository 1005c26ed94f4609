from __future__ import annotations

import gzip
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compressor.data.image_files import pixels_of
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Samples
from compressor.data.sources import data_for, default_data, load_data
from compressor.data.splits import Data, SplitName
from compressor.errors import DataError
from compressor.graph.input_spec import InputSpec


def save_image(path: Path, value: int, *, mode: str = "L", size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(path)


def values_in(images: Samples | None) -> list[int]:
    assert images is not None
    return [int(images[i][0].flatten()[0]) for i in range(len(images))]


def labels_in(images: Samples | None) -> list[int]:
    assert images is not None
    return [images[i][1] for i in range(len(images))]


def every_value(data: Data) -> list[int]:
    return [v for split in (data.train, data.tune, data.test) if split is not None for v in values_in(split)]


class TestFolder:
    def test_class_folders_give_labels_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        for index, name in enumerate(("cat", "ant", "dog")):
            for number in range(10):
                save_image(tmp_path / name / f"{number}.png", 10 * index + number)
        data = load_data(str(tmp_path), seed=1)
        assert data.classes == ("ant", "cat", "dog")
        assert data.by_name
        assert data.labelled
        assert data.sizes == {"train": 24, "tune": 3, "test": 3}
        assert data.drawn == (SplitName.TEST, SplitName.TUNE)
        assert sorted(every_value(data)) == list(range(30))
        for split in (data.train, data.tune, data.test):
            assert labels_in(split) == [(1, 0, 2)[v // 10] for v in values_in(split)]

    def test_the_seed_alone_draws_the_splits(self, tmp_path: Path) -> None:
        for number in range(40):
            save_image(tmp_path / "ab"[number % 2] / f"{number}.png", number)
        draws = [every_value(load_data(str(tmp_path), seed=seed)) for seed in (0, 0, 1)]
        assert draws[0] == draws[1] != draws[2]

    def test_an_empty_class_folder_keeps_its_index(self, tmp_path: Path) -> None:
        for name in ("a", "c"):
            save_image(tmp_path / "test" / name / "1.png", 1)
        (tmp_path / "test" / "b").mkdir()
        data = load_data(str(tmp_path))
        assert data.classes == ("a", "b", "c")
        assert labels_in(data.test) == [0, 2]

    @pytest.mark.parametrize("tune", ["val", "Valid", "validation", "tune"])
    def test_split_folders_are_taken_as_they_are(self, tmp_path: Path, tune: str) -> None:
        for value, split in enumerate(("Train", tune, "TEST")):
            for number in range(4):
                save_image(tmp_path / split / "ab"[number % 2] / f"{number}.png", 10 * value + number)
        data = load_data(str(tmp_path))
        assert [values_in(s) for s in (data.train, data.tune, data.test)] == [
            [0, 2, 1, 3],
            [10, 12, 11, 13],
            [20, 22, 21, 23],
        ]
        assert data.drawn == ()

    def test_a_tune_split_is_held_out_where_there_is_none(self, tmp_path: Path) -> None:
        for number in range(20):
            save_image(tmp_path / "train" / "a" / f"{number}.png", number)
        save_image(tmp_path / "test" / "b" / "x.png", 99)
        data = load_data(str(tmp_path))
        assert data.sizes == {"train": 18, "tune": 2, "test": 1}
        assert data.drawn == (SplitName.TUNE,)
        assert sorted(every_value(data)) == [*range(20), 99]
        assert labels_in(data.test) == [1]  # classes are those of all splits together

    def test_images_without_class_folders_are_unlabelled(self, tmp_path: Path) -> None:
        for number in range(20):
            save_image(tmp_path / f"{number:02}.png", number)
        data = load_data(str(tmp_path))
        assert not data.labelled
        assert data.classes is None
        assert sorted(every_value(data)) == list(range(20))

    def test_an_unlabelled_test_split_goes_with_a_labelled_train_split(self, tmp_path: Path) -> None:
        for number in range(6):
            save_image(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", number)
            save_image(tmp_path / "test" / f"{number}.png", 50 + number)
        data = load_data(str(tmp_path))
        assert labels_in(data.test) == [-1] * 6
        assert set(labels_in(data.train)) <= {0, 1}

    @pytest.mark.parametrize(
        ("count", "sizes"), [(1, {"test": 1}), (2, {"test": 2}), (3, {"train": 1, "tune": 1, "test": 1})]
    )
    def test_few_images_still_give_disjoint_splits(self, tmp_path: Path, count: int, sizes: dict[str, int]) -> None:
        for number in range(count):
            save_image(tmp_path / f"{number}.png", number)
        data = load_data(str(tmp_path))
        assert data.sizes == sizes
        assert sorted(every_value(data)) == list(range(count))

    def test_loose_images_beside_class_folders_are_refused(self, tmp_path: Path) -> None:
        save_image(tmp_path / "a" / "1.png", 1)
        save_image(tmp_path / "stray.png", 1)
        with pytest.raises(DataError, match=r"stray\.png lies beside class folders"):
            load_data(str(tmp_path))

    def test_hidden_files_are_left_out(self, tmp_path: Path) -> None:
        names = ("a/1.png", "a/._1.png", ".cache/2.png", "__MACOSX/3.png", "b/4.PNG", "a/notes.txt")
        for number, name in enumerate(names):
            save_image(tmp_path / (name if name.lower().endswith("png") else "a/5.png"), number)
        data = load_data(str(tmp_path))
        assert data.classes == ("a", "b")
        assert sum(data.sizes.values()) == 3

    def test_linked_class_folders_are_followed(self, tmp_path: Path) -> None:
        save_image(tmp_path / "far" / "1.png", 7)
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "a").symlink_to(tmp_path / "far", target_is_directory=True)
        assert every_value(load_data(str(tmp_path / "here"))) == [7]

    def test_no_images_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "train" / "a").mkdir(parents=True)
        with pytest.raises(DataError, match="no images in") as refused:
            load_data(str(tmp_path))
        assert "*.png" in str(refused.value.hint)

    def test_the_folder_one_stands_in_has_a_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_image(tmp_path / "pets" / "1.png", 1)
        monkeypatch.chdir(tmp_path / "pets")
        assert load_data(".").name == "pets"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_an_unreadable_folder_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "locked").mkdir(mode=0)
        with pytest.raises(DataError, match="cannot read"):
            load_data(str(tmp_path / "locked"))


class TestImageFile:
    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
    def test_a_truncated_image_is_named(self, tmp_path: Path, suffix: str) -> None:
        file = tmp_path / f"half.{suffix}"
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(DataError, match=rf"cannot read the image .*half\.{suffix}"):
            pixels_of(file)

    @pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\nbroken chunks follow here"])
    def test_what_is_no_image_is_named(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "x.png"
        file.write_bytes(content)
        with pytest.raises(DataError, match="cannot read the image"):
            pixels_of(file)

    @pytest.mark.parametrize(
        ("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("LA", 1), ("CMYK", 3)]
    )
    def test_every_mode_becomes_grey_or_rgb(self, tmp_path: Path, mode: str, channels: int) -> None:
        file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
        Image.new("RGB", (6, 5), (200, 200, 200)).convert(mode).save(file)
        pixels = pixels_of(file)
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (channels, 5, 6)

    def test_sixteen_bits_are_scaled_and_not_clipped(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
        assert pixels_of(tmp_path / "deep.png").tolist() == [[[0, 127, 255]]]

    def test_a_palette_with_transparency_is_read_without_a_warning(self, tmp_path: Path) -> None:
        image = Image.new("P", (4, 4), 1)
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.save(tmp_path / "p.png", transparency=b"\x00\xff")
        assert pixels_of(tmp_path / "p.png")[:, 0, 0].tolist() == [10, 20, 30]


def bytes_images(count: int, *shape: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8).reshape(-1, *[1] * len(shape)) * np.ones((1, *shape), np.uint8)


class TestNpz:
    def save(self, path: Path, **arrays: object) -> str:
        np.savez(path / "d.npz", **arrays)  # type: ignore[arg-type]  # of any kind, on purpose
        return str(path / "d.npz")

    @pytest.mark.parametrize("form", ["{}_images {}_labels", "x_{} y_{}", "{}_x {}_y", "X_{} Y_{}"])
    def test_splits_by_any_usual_name(self, tmp_path: Path, form: str) -> None:
        arrays: dict[str, object] = {}
        for split, count, first in (("train", 8, 0), ("val", 4, 50), ("test", 3, 90)):
            images, labels = form.format(split, split).split()
            arrays |= {images: bytes_images(count, 4, 4) + np.uint8(first), labels: np.arange(count) % 3}
        data = load_data(self.save(tmp_path, **arrays))
        assert data.sizes == {"train": 8, "tune": 4, "test": 3}
        assert data.drawn == ()
        assert data.name == "d"
        assert labels_in(data.test) == [0, 1, 2]

    def test_without_a_tune_split_one_is_held_out(self, tmp_path: Path) -> None:
        file = self.save(tmp_path, train_images=bytes_images(20, 4, 4), test_images=bytes_images(2, 4, 4) + 50)
        data = load_data(file)
        assert data.sizes == {"train": 18, "tune": 2, "test": 2}
        assert sorted(every_value(data)) == [*range(20), 50, 51]
        assert not data.labelled

    @pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("X", "Y")])
    def test_one_set_is_split_eight_to_one_to_one(self, tmp_path: Path, names: tuple[str, str]) -> None:
        data = load_data(self.save(tmp_path, **{names[0]: bytes_images(100, 4, 4), names[1]: np.arange(100) % 5}))
        assert data.sizes == {"train": 80, "tune": 10, "test": 10}
        assert sorted(every_value(data)) == list(range(100))

    def test_classes_are_read_with_or_without_splits(self, tmp_path: Path) -> None:
        both = [
            self.save(tmp_path / name, classes=np.array(["a", "b"]), **arrays)
            for name, arrays in {
                "one": {"images": bytes_images(4, 4, 4), "labels": np.arange(4) % 2},
                "two": {"test_images": bytes_images(4, 4, 4), "test_labels": np.arange(4) % 2},
            }.items()
            if (tmp_path / name).mkdir() is None
        ]
        assert [load_data(f).classes for f in both] == [("a", "b")] * 2
        assert not load_data(both[0]).by_name

    @pytest.mark.parametrize(
        ("images", "shape"),
        [
            (np.zeros((4, 6, 5), np.uint8), (1, 6, 5)),
            (np.zeros((4, 6, 5, 3), np.uint8), (3, 6, 5)),
            (np.zeros((4, 6, 5, 1), np.float64), (1, 6, 5)),
            (np.zeros((4, 3, 6, 5), np.float32), (3, 6, 5)),
            (np.zeros((4, 6, 5), ">f4"), (1, 6, 5)),
            (np.zeros((4, 6, 5), np.int64), (1, 6, 5)),
            (np.zeros((4, 6, 5), bool), (1, 6, 5)),
        ],
    )
    def test_images_of_any_layout_and_type(self, tmp_path: Path, images: np.ndarray, shape: tuple[int, ...]) -> None:
        data = load_data(self.save(tmp_path, test_images=images))
        assert data.test is not None
        assert data.test[0][0].shape == shape

    @pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float32])
    def test_whole_numbers_up_to_255_are_bytes_in_any_type(self, tmp_path: Path, dtype: type) -> None:
        data = load_data(self.save(tmp_path, test_images=bytes_images(4, 2, 2).astype(dtype) * 60))
        assert data.test is not None
        assert data.test[3][0].dtype == torch.uint8
        assert values_in(data.test) == [0, 60, 120, 180]

    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            (np.array([[2], [0], [1]]), [2, 0, 1]),
            (np.array([2.0, 0.0, 1.0]), [2, 0, 1]),
            (np.eye(3)[[2, 0, 1]], [2, 0, 1]),
            (np.array(["c", "a", "b"]), [2, 0, 1]),
            (np.array([2, 0, 1], np.uint8), [2, 0, 1]),
        ],
    )
    def test_labels_of_any_form(self, tmp_path: Path, labels: np.ndarray, expected: list[int]) -> None:
        assert (
            labels_in(load_data(self.save(tmp_path, test_images=bytes_images(3, 4, 4), test_labels=labels)).test)
            == expected
        )

    def test_labels_that_are_names_mean_the_name(self, tmp_path: Path) -> None:
        file = self.save(
            tmp_path, train_images=bytes_images(9, 4, 4), train_labels=np.array(["ox", "ant", "cat"] * 3),
            test_images=bytes_images(2, 4, 4), test_labels=np.array(["ox", "cat"]),
        )  # fmt: skip
        data = load_data(file)
        assert data.classes == ("ant", "cat", "ox")
        assert data.by_name
        assert labels_in(data.test) == [2, 1]

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"pixels": np.zeros((2, 4, 4))}, "no images but: pixels"),
            ({}, "no images but: nothing"),
            ({"images": np.zeros((0, 4, 4))}, "no images in it"),
            ({"images": np.full((3, 4, 4), np.nan)}, "not finite"),
            ({"images": np.full((3, 4, 4), 300)}, r"lie in \[300, 300\]"),
            ({"images": np.full((3, 4, 4), -1)}, r"lie in \[-1, -1\]"),
            ({"images": np.zeros((3, 4, 4), complex)}, "complex"),
            ({"images": np.zeros((3, 4))}, r"not \[3, 4\]"),
            ({"images": np.zeros((3, 4, 4)), "labels": np.zeros(2, int)}, "3 images have labels of shape"),
            ({"images": np.zeros((3, 4, 4)), "labels": np.array([0.5, 0, 0])}, "not whole numbers"),
            ({"images": np.zeros((3, 4, 4)), "labels": np.ones((3, 2))}, "not one-hot"),
            ({"images": np.array([None, 1])}, "not an .npz of plain arrays"),
            ({"images": np.eye(3)[:, None], "labels": np.array([0, 1, 2]), "classes": ["a"]}, "only 1 classes"),
            ({"images": np.zeros((3, 4, 4)), "labels": np.array(["a", "b", "x"]), "classes": ["a", "b"]}, "label `x`"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, tmp_path: Path, arrays: dict[str, object], said: str) -> None:
        with pytest.raises(DataError, match=said):
            load_data(self.save(tmp_path, **arrays))

    @pytest.mark.parametrize("damage", ["empty", "truncated", "text", "flipped", "npy"])
    def test_a_broken_file_is_refused(self, tmp_path: Path, damage: str) -> None:
        file = Path(self.save(tmp_path, images=bytes_images(200, 8, 8)))
        np.savez_compressed(file, images=bytes_images(200, 8, 8))
        raw = file.read_bytes()
        if damage == "npy":
            np.save(tmp_path / "one.npy", np.zeros(3))
            raw = (tmp_path / "one.npy").read_bytes()
        flipped = bytearray(raw)
        flipped[len(raw) // 3] ^= 0xFF
        file.write_bytes(
            {"empty": b"", "truncated": raw[:-90], "text": b"hello", "flipped": bytes(flipped), "npy": raw}[damage]
        )
        with pytest.raises(DataError):
            load_data(str(file))

    def test_a_missing_file_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"d\.npz is not there"):
            load_data(str(tmp_path / "d.npz"))


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


class TestIdx:
    def write(self, folder: Path, *, zipped: bool = False, labels: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for prefix, count, first in (("train", 30, 0), ("t10k", 6, 50)):
            files = {f"{prefix}-images-idx3-ubyte": idx(bytes_images(count, 4, 4) + np.uint8(first))}
            if labels:
                files[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(count) % 10)
            for name, content in files.items():
                (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)

    @pytest.mark.parametrize("zipped", [False, True])
    def test_the_four_files_give_three_splits(self, tmp_path: Path, zipped: bool) -> None:
        self.write(tmp_path / "digits", zipped=zipped)
        data = load_data(str(tmp_path / "digits"))
        assert data.name == "digits"
        assert data.sizes == {"train": 27, "tune": 3, "test": 6}
        assert labels_in(data.test) == list(range(6))
        assert sorted(values_in(data.train) + values_in(data.tune)) == list(range(30))

    def test_labels_may_be_missing(self, tmp_path: Path) -> None:
        self.write(tmp_path, labels=False)
        assert not load_data(str(tmp_path)).labelled

    def test_labels_without_images_are_refused(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        (tmp_path / "train-images-idx3-ubyte").unlink()
        with pytest.raises(DataError, match="train labels but no train images"):
            load_data(str(tmp_path))

    @pytest.mark.parametrize("zipped", [False, True])
    @pytest.mark.parametrize("content", ["empty", "truncated", "text"])
    def test_a_broken_file_is_refused(self, tmp_path: Path, zipped: bool, content: str) -> None:
        self.write(tmp_path, zipped=zipped)
        file = tmp_path / ("train-images-idx3-ubyte" + ".gz" * zipped)
        file.write_bytes({"empty": b"", "truncated": file.read_bytes()[:-9], "text": b"hello world"}[content])
        with pytest.raises(DataError):
            load_data(str(tmp_path))

    def test_torchvision_reads_the_same_files(self, tmp_path: Path) -> None:
        self.write(tmp_path / "MNIST" / "raw")
        for spelling in ("MNIST", "mnist"):
            data = load_data(spelling, root=tmp_path)
            assert data.name == "MNIST"
            assert data.sizes == {"train": 27, "tune": 3, "test": 6}
            assert data.classes is not None
            assert not data.by_name
            assert every_value(data) == every_value(load_data(str(tmp_path / "MNIST" / "raw")))


class TestTorchvision:
    @pytest.mark.parametrize(
        ("name", "root", "said", "hint"),
        [
            ("MNIST", None, "where is MNIST?", "--data-root"),
            ("MNIST", "nowhere", "MNIST is not in", "--download"),
            ("SVHN", "nowhere", "SVHN is not in", "--download"),
            ("FahsionMNIST", "nowhere", "no data called `FahsionMNIST`", "fashionmnist"),
            ("CocoCaptions", "nowhere", "takes more than a folder: annFile", "file.py:function"),
            ("FakeData", "nowhere", "takes more than a folder: no root", "file.py:function"),
        ],
    )
    def test_what_cannot_be_had_says_what_to_do(
        self, tmp_path: Path, name: str, root: str | None, said: str, hint: str
    ) -> None:
        with pytest.raises(DataError, match=said) as refused:
            load_data(name, root=None if root is None else tmp_path / root)
        assert hint in str(refused.value.hint)


class TestFunction:
    def write(self, tmp_path: Path, body: str) -> str:
        (tmp_path / "mine.py").write_text(
            "from __future__ import annotations\nimport torch\nfrom compressor.data.splits import Data, Images\n"
            "def images(n, start=0):\n"
            "    return [(torch.full((1, 4, 4), (start + i) / 255), i % 3) for i in range(n)]\n" + body
        )
        return f"{tmp_path / 'mine.py'}:make"

    @pytest.mark.parametrize(
        ("returned", "sizes"),
        [
            ("images(30)", {"train": 24, "tune": 3, "test": 3}),
            ("[Images(torch.rand(20, 4, 4)), Images(torch.rand(5, 4, 4))]", {"train": 18, "tune": 2, "test": 5}),
            ("(images(20), images(5))", {"train": 18, "tune": 2, "test": 5}),
            ("(images(20), images(4), images(5))", {"train": 20, "tune": 4, "test": 5}),
            ("{'train': images(20), 'val': images(4)}", {"train": 20, "tune": 4}),
            ("{'test': images(7), 'train': None}", {"test": 7}),
            ("{'test': Images(torch.zeros(3, 4, 4))}", {"test": 3}),
            ("Data(name='d', source='s', train=None, tune=None, test=images(2))", {"test": 2}),
        ],
    )
    def test_data_sets_in_any_container(self, tmp_path: Path, returned: str, sizes: dict[str, int]) -> None:
        assert load_data(self.write(tmp_path, f"def make():\n    return {returned}\n")).sizes == sizes

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("def makes(): return images(3)", "has no function `make`"),
            ("def make(): return {'training_set': images(3)}", "split called `training_set`"),
            ("def make(): return 3", "returns a `int`"),
            ("def make(): return (images(2),) * 4", "returned 4 values"),
            ("def make(): return {}", "no images in"),
            ("def make(): return {'test': []}", "no images in"),
            ("def make(): return 1 / 0", r"mine\.py, line 6: ZeroDivisionError: division by zero"),
            ("import not_there", r"mine\.py, line 6: ModuleNotFoundError"),
            ("def make(:", "SyntaxError"),
            ("def make(more): return images(3)", "TypeError"),
        ],
    )
    def test_what_goes_wrong_is_said(self, tmp_path: Path, body: str, said: str) -> None:
        with pytest.raises(DataError, match=said):
            load_data(self.write(tmp_path, body + "\n"))

    def test_items_of_too_many_parts_are_refused_when_read(self, tmp_path: Path) -> None:
        data = load_data(self.write(tmp_path, "def make(): return {'test': [(torch.zeros(1, 4, 4), 1, 2)]}\n"))
        with pytest.raises(DataError, match="an item of 3 parts, but the network reads 1"):
            data.labelled  # noqa: B018 - reading is what fails

    def test_an_item_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        body = (
            "class Broken:\n    def __len__(self): return 3\n    def __getitem__(self, i): raise KeyError('gone')\n"
            "def make(): return {'test': Broken()}\n"
        )
        with pytest.raises(DataError, match="item 0 of `make` cannot be read: KeyError: 'gone'"):
            load_data(self.write(tmp_path, body)).labelled  # noqa: B018 - reading is what fails

    def test_a_function_needs_a_name(self, tmp_path: Path) -> None:
        source = self.write(tmp_path, "def make(): return images(3)\n").removesuffix(":make")
        with pytest.raises(DataError, match="names no function") as refused:
            load_data(source)
        assert ":function" in str(refused.value.hint)

    def test_neighbouring_files_and_dataclasses_work(self, tmp_path: Path) -> None:
        (tmp_path / "beside.py").write_text("COUNT = 5\n")
        body = (
            "from dataclasses import dataclass\nfrom beside import COUNT\n"
            "@dataclass\nclass Mine:\n    count: int\n    classes = ('x', 'y', 'z')\n"
            "    def __len__(self): return self.count\n"
            "    def __getitem__(self, i): return images(self.count)[i]\n"
            "def make(): return {'test': Mine(COUNT)}\n"
        )
        data = load_data(self.write(tmp_path, body))
        assert data.sizes == {"test": 5}
        assert data.classes == ("x", "y", "z")

    def test_a_missing_file_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"gone\.py is not there"):
            load_data(f"{tmp_path}/gone.py:make")


@pytest.mark.parametrize("source", ["nowhere/at/all", "data.csv", "./x"])
def test_what_is_not_there_lists_the_forms_of_data(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is not there") as refused:
        load_data(source)
    assert ".npz" in str(refused.value.hint)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.rar").write_text("1,2,3\n")
    with pytest.raises(DataError, match="is not data that can be read"):
        load_data(str(tmp_path / "data.rar"))


@dataclass
class Known:
    """As much of a checkpoint as finding its data takes."""

    ref: str
    classes: tuple[str, ...] | None = None
    name: str = "net"
    path: str = "net.pt"
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    example_inputs: tuple[Tensor, ...] = (torch.zeros(1, 1, 5, 6),)
    input_specs: tuple[InputSpec, ...] = ()

    @property
    def architecture(self) -> SimpleNamespace:
        return SimpleNamespace(ref=self.ref)


class TestDataFor:
    def test_a_sample_model_brings_its_own(self) -> None:
        data = default_data(Known("sample_models.networks:resnet20"))
        assert data.sizes == {"train": 10_000, "tune": 2_000, "test": 10_000}
        assert data.labelled

    def test_any_other_network_must_be_given_some(self) -> None:
        with pytest.raises(DataError, match="net comes without data") as refused:
            data_for(Known("torchvision:resnet18"))
        assert "--data" in str(refused.value.hint)

    def test_labels_follow_the_checkpoints_classes(self, tmp_path: Path) -> None:
        for name in ("ant", "bee"):
            save_image(tmp_path / "test" / name / "1.png", 1)
        known = Known("x:y", classes=("bee", "ant"))
        assert labels_in(data_for(known, str(tmp_path)).test) == [1, 0]
