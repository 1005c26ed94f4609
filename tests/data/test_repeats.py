"""No picture lies in two splits: by its bytes, whatever the form of the data."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compressor.cli.loading import say_repeated
from compressor.data.sources import load_data
from compressor.data.splits import Data, SplitName
from compressor.errors import DataError


def images_in(folder: Path, count: int, *, first: int = 0) -> None:
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def pictures(data: Data, name: SplitName) -> set[bytes]:
    images = getattr(data, str(name))
    return set() if images is None else {images[i][0].numpy().tobytes() for i in range(len(images))}


def seen(source: str) -> int:
    """How many images of all splits can be read."""
    images = load_data(source).whole
    return len([images[i] for i in range(len(images))])


def check_apart(data: Data) -> None:
    train, tune, test = (pictures(data, name) for name in SplitName)
    assert not train & tune
    assert not train & test
    assert not tune & test


def test_a_loop_of_links_counts_every_image_once(workdir: Path) -> None:
    images_in(workdir / "d" / "cat", 12)
    images_in(workdir / "d" / "dog", 12, first=50)
    (workdir / "d" / "cat" / "again").symlink_to(workdir / "d")
    (workdir / "d" / "more").symlink_to(workdir / "d")
    data = load_data("d")
    assert sum(data.sizes.values()) == 24
    check_apart(data)


def test_a_folder_that_a_link_leads_to_is_read(workdir: Path) -> None:
    images_in(workdir / "elsewhere", 5)
    (workdir / "d").mkdir()
    (workdir / "d" / "cat").symlink_to(workdir / "elsewhere")
    images_in(workdir / "d" / "dog", 5, first=50)
    assert sum(load_data("d").sizes.values()) == 10


def test_a_file_that_lies_in_two_splits_stays_where_it_is_measured(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, first in (("train", 0), ("val", 100), ("test", 200)):
        images_in(workdir / "d" / split / "cat", 6, first=first)
    shutil.copy(workdir / "d/test/cat/200.png", workdir / "d/train/cat/x.png")
    shutil.copy(workdir / "d/test/cat/201.png", workdir / "d/val/cat/y.png")
    os.link(workdir / "d/val/cat/100.png", workdir / "d/train/cat/z.png")
    (workdir / "d/train/cat/w.png").symlink_to(workdir / "d/val/cat/101.png")
    data = load_data("d")
    check_apart(data)
    assert data.sizes == {"train": 6, "tune": 6, "test": 6}
    assert data.repeated == 4
    assert data.to_json()["repeated"] == 4
    say_repeated(data)
    assert "caveat: 4 images of d lie in two splits" in capsys.readouterr().err


def test_drawn_splits_share_no_image_either(workdir: Path) -> None:
    images_in(workdir / "d" / "cat", 30)
    for number in range(30):
        shutil.copy(workdir / f"d/cat/{number}.png", workdir / f"d/cat/copy{number}.png")
    data = load_data("d")
    check_apart(data)
    assert data.repeated > 0


def test_an_array_with_the_same_images_twice_is_refused_and_a_part_left_out(workdir: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 6)).astype(np.uint8)
    labels = np.arange(40) % 2
    np.savez(workdir / "same.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    with pytest.raises(DataError, match=r"every train image of same\.npz lies in another split too") as told:
        load_data("same.npz")
    assert told.value.hint
    np.savez(
        workdir / "part.npz", train_images=images, train_labels=labels, test_images=images[:4], test_labels=labels[:4]
    )
    data = load_data("part.npz")
    check_apart(data)
    assert data.repeated == 4
    assert data.sizes["test"] == 4


def test_data_without_repeats_is_as_it_was(workdir: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 6)).astype(np.uint8)
    np.savez(workdir / "d.npz", images=images, labels=np.arange(40) % 2)
    data = load_data("d.npz")
    assert (sum(data.sizes.values()), data.repeated) == (40, 0)
    assert "repeated" not in data.to_json()


def test_a_function_that_returns_one_data_set_twice_is_refused(workdir: Path) -> None:
    code = """
import torch

def data():
    images = [(torch.rand(1, 4, 4), 0) for _ in range(9)]
    return {"train": images, "test": images}
"""
    (workdir / "mine.py").write_text(code, encoding="utf-8")
    with pytest.raises(DataError, match="the same data as"):
        load_data("mine.py:data")


@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "device"])
def test_an_image_that_is_no_file_is_refused_and_not_waited_for(workdir: Path, kind: str) -> None:
    images_in(workdir / "d" / "cat", 3)
    odd = workdir / "d" / "cat" / "9.png"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("/dev/zero" if kind == "device" else "gone")
    with pytest.raises(DataError, match=r"9\.png is not") as told:
        seen("d")
    assert told.value.hint


@pytest.mark.parametrize("name", ["d.npz", "d/train-images-idx3-ubyte", "d/train-images-idx3-ubyte.gz"])
def test_arrays_in_a_pipe_are_refused_and_not_waited_for(workdir: Path, name: str) -> None:
    (workdir / name).parent.mkdir(exist_ok=True)
    os.mkfifo(workdir / name)
    with pytest.raises(DataError, match="not a regular file"):
        load_data(name if name.endswith("npz") else "d")
