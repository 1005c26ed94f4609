"""Arrays by the names of a network's inputs, in `.npz` and `.safetensors` files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from compressor.data.batches import first_batch, is_labelled
from compressor.data.expected import Expected
from compressor.data.own_sets import Columns
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.sources import load_data
from compressor.data.splits import SplitName
from compressor.errors import DataError
from compressor.graph.input_spec import InputSpec

DENSE = InputSpec(name="dense", shape=(1, 3), dtype=torch.float32)
IDS = InputSpec(name="ids", shape=(1, 2), dtype=torch.int64, below=50)
TWO = Expected(specs=(DENSE, IDS))


def as_npz(path: Path, arrays: dict[str, Any]) -> str:
    np.savez(path / "rows.npz", **arrays)
    return str(path / "rows.npz")


def as_safetensors(path: Path, arrays: dict[str, Any]) -> str:
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path / "rows.safetensors")
    return str(path / "rows.safetensors")


def rows(count: int, **other: Any) -> dict[str, Any]:
    return {
        "dense": np.arange(3 * count, dtype=np.float64).reshape(count, 3),
        "ids": np.arange(2 * count, dtype=np.int32).reshape(count, 2),
        "label": np.arange(count) % 2,
        **other,
    }


@pytest.mark.parametrize("save", [as_npz, as_safetensors])
class TestBoth:
    def test_columns_of_one_length_are_items(self, tmp_path: Path, save: Callable[..., str]) -> None:
        source = save(tmp_path, rows(20))
        data = load_data(source, expected=TWO)
        assert data.name == "rows"
        assert data.sizes == {"train": 16, "tune": 2, "test": 2}
        batch = first_batch(data.split(SplitName.TRAIN), size=16, preprocessing=Preprocessing(takes=TWO.takes))
        assert [(part.dtype, tuple(part.shape)) for part in batch.inputs] == [
            (torch.float32, (16, 3)),
            (torch.int64, (16, 2)),
        ]
        assert batch.inputs[1].tolist() == (2 * batch.inputs[0] / 3)[:, :1].round().add(torch.tensor([0, 1])).tolist()
        assert batch.target.tolist() == (batch.inputs[1][:, 0] // 2 % 2).tolist()
        assert load_data(source).sizes == data.sizes  # a target's name alone shows columns

    @pytest.mark.parametrize("form", ["{}_", "_{}"])
    def test_names_may_hold_a_split(self, tmp_path: Path, save: Callable[..., str], form: str) -> None:
        arrays = {
            (form.format(split) + name if form.endswith("_") else name + form.format(split)): array
            for split, count in (("train", 6), ("val", 3), ("test", 2))
            for name, array in rows(count).items()
        }
        data = load_data(save(tmp_path, arrays), expected=TWO)
        assert data.sizes == {"train": 6, "tune": 3, "test": 2}
        assert data.drawn == ()

    def test_without_a_target_they_are_unlabelled(self, tmp_path: Path, save: Callable[..., str]) -> None:
        arrays = rows(9)
        del arrays["label"]
        data = load_data(save(tmp_path, arrays), expected=TWO)
        assert data.train is not None
        assert not is_labelled(data.train, preprocessing=Preprocessing(takes=TWO.takes))

    def test_pictures_with_maps(self, tmp_path: Path, save: Callable[..., str]) -> None:
        pictures, masks = np.zeros((9, 4, 6, 3), np.uint8), np.ones((9, 4, 6), np.uint8)
        data = load_data(save(tmp_path, {"images": pictures, "masks": masks}))
        assert data.train is not None
        item = data.train[0]
        assert item["images"].shape == (3, 4, 6)
        assert item["images"].dtype is torch.uint8
        assert item["masks"].dtype is torch.int64

    def test_images_stay_images(self, tmp_path: Path, save: Callable[..., str]) -> None:
        arrays = {"x": np.arange(9 * 16, dtype=np.uint8).reshape(9, 4, 4), "y": np.arange(9), "target": np.ones(9)}
        one = Expected(specs=(InputSpec(name="x", shape=(1, 1, 4, 4), dtype=torch.float32),))
        for expected in (Expected(), one):
            data = load_data(save(tmp_path, arrays), expected=expected)
            assert isinstance(data.train, Images)
            assert int(data.train.images[0, 0, 0, 0]) // 16 == int(data.train.labels[0])

    @pytest.mark.parametrize(
        ("other", "said"),
        [
            ({"ids": np.zeros((8, 2), np.int64)}, "have different lengths: dense 9, ids 8, label 9"),
            ({"ids": np.full((9, 2), 50)}, "holds 50, and the network reads numbers from 0 to below 50"),
            ({"ids": np.full((9, 2), -1)}, "holds -1, and the network reads numbers from 0 to below 50"),
            ({"ids": np.full((9, 2), 0.5)}, "holds fractions, and the network reads whole numbers"),
            ({"dense": np.zeros((9, 3, 1))}, r"of shape \[9, 3, 1\], and the network reads 1 sizes a row"),
            ({"dense": np.full((9, 3), np.nan)}, "`dense` in .* holds values that are not finite"),
            ({"label": np.full(9, np.inf)}, "`label` in .* holds values that are not finite"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, tmp_path: Path, save: Callable[..., str], other: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(DataError, match=said) as raised:
            load_data(save(tmp_path, rows(9, **other)), expected=TWO)
        assert raised.value.hint

    def test_a_missing_input_is_named(self, tmp_path: Path, save: Callable[..., str]) -> None:
        arrays = rows(9)
        arrays["id"] = arrays.pop("ids")
        with pytest.raises(DataError, match="no array called `ids` but: ") as raised:
            load_data(save(tmp_path, arrays), expected=TWO)
        assert "dense, ids" in str(raised.value.hint)


def test_names_of_classes_become_their_positions(tmp_path: Path) -> None:
    data = load_data(as_npz(tmp_path, rows(9, label=np.array(["b", "c", "a"] * 3))), expected=TWO)
    assert data.classes == ("a", "b", "c")
    assert data.by_name
    items = [data.whole[i] for i in range(9)]
    found = {int(item["ids"][0]) // 2: int(item["label"]) for item in items}
    assert found == {i: (1, 2, 0)[i % 3] for i in range(9)}


def test_numbers_in_half_precision_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file as save_tensors

    save_tensors({"x": torch.ones(4, 3, dtype=torch.bfloat16), "y": torch.arange(4)}, tmp_path / "d.safetensors")
    data = load_data(str(tmp_path / "d.safetensors"))
    assert isinstance(data.train, torch.utils.data.Subset)
    assert isinstance(data.train.dataset, (Columns, torch.utils.data.Subset))
    assert data.train[0]["x"].dtype is torch.float32


def test_a_file_for_each_split(tmp_path: Path) -> None:
    for name, count in (("train", 5), ("test", 2)):
        np.savez(tmp_path / f"{name}.npz", **rows(count))
    assert load_data(str(tmp_path), expected=TWO).sizes == {"train": 4, "tune": 1, "test": 2}


def test_a_broken_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.safetensors").write_bytes(b"\x20" + b"\0" * 7 + b"{" * 40)
    with pytest.raises(DataError, match="not a complete safetensors file") as raised:
        load_data(str(tmp_path / "d.safetensors"))
    assert raised.value.hint


def test_python_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Python objects, which could run code"):
        load_data(as_npz(tmp_path, rows(9, ids=np.array([object()] * 9))), expected=TWO)
