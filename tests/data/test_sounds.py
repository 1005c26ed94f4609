"""Folders of sounds."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import pytest
import torch

from compressor.data.expected import Expected
from compressor.data.samples import UNLABELLED
from compressor.data.sounds import samples_of
from compressor.data.sources import load_data
from compressor.errors import DataError
from compressor.graph.input_spec import InputSpec


def save(file: Path, frames: bytes, *, width: int = 2, channels: int = 1, rate: int = 8000) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(frames)
    return file


def reading(*shape: int) -> Expected:
    return Expected(specs=(InputSpec(name="x", shape=shape, dtype=torch.float32),))


@pytest.mark.parametrize(
    ("width", "frames"),
    [
        (1, bytes([0, 128, 192])),
        (2, struct.pack("<3h", -(2**15), 0, 2**14)),
        (3, b"\0\0\x80" + b"\0\0\0" + b"\0\0\x40"),
        (4, struct.pack("<3i", -(2**31), 0, 2**30)),
    ],
)
def test_every_width(tmp_path: Path, width: int, frames: bytes) -> None:
    assert samples_of(save(tmp_path / "a.wav", frames, width=width)).tolist() == [[-1.0, 0.0, 0.5]]


def test_class_folders_give_labels(tmp_path: Path) -> None:
    for number in range(12):
        save(tmp_path / ("yes", "no")[number % 2] / f"{number}.wav", struct.pack("<2h", number, 1))
    data = load_data(str(tmp_path))
    assert data.classes == ("no", "yes")
    assert data.by_name
    assert data.sizes == {"train": 10, "tune": 1, "test": 1}
    for sound, label in (data.whole[i] for i in range(12)):
        assert label == 1 - round(float(sound[0]) * 2**15) % 2


def test_own_splits_and_no_labels(tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path / ("train", "test")[number % 2] / f"{number}.wav", struct.pack("<2h", number, 1))
    data = load_data(str(tmp_path))
    assert data.sizes == {"train": 2, "tune": 1, "test": 2}
    assert data.test is not None
    assert [label for _, label in (data.test[0], data.test[1])] == [UNLABELLED] * 2


def test_a_sound_in_two_splits_is_left_out_of_training(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / "train" / f"{number}.wav", struct.pack("<2h", number, 1))
    save(tmp_path / "test" / "again.wav", struct.pack("<2h", 2, 1))
    assert load_data(str(tmp_path)).repeated == 1


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((1, 4), 1, [0.25, 0.5, 0.0, 0.0]),
        ((1, 1), 1, [0.25]),
        ((1, 2), 2, [0.375, 0.0]),
        ((1, 1, 3), 1, [[0.25, 0.5, 0.0]]),
        ((1, 1, 2), 2, [[0.375, 0.0]]),
        ((1, 2, 2), 2, [[0.25, 0.0], [0.5, 0.0]]),
    ],
)
def test_sounds_have_the_networks_form(tmp_path: Path, shape: tuple[int, ...], channels: int, expected: object) -> None:
    save(tmp_path / "a.wav", struct.pack("<2h", 2**13, 2**14), channels=channels)
    data = load_data(str(tmp_path), expected=reading(*shape))
    assert data.test is not None
    assert data.test[0][0].tolist() == expected


def test_wrong_sounds_are_refused(tmp_path: Path) -> None:
    def read(expected: Expected) -> None:
        data = load_data(str(tmp_path), expected=expected)
        assert data.test is not None
        assert len(data.test[0]) == 2

    def refused(said: str, expected: Expected, hint: str) -> None:
        with pytest.raises(DataError, match=said) as raised:
            read(expected)
        assert hint in str(raised.value.hint)

    file = save(tmp_path / "a.wav", struct.pack("<2h", 1, 2))
    other = save(tmp_path / "b.wav", struct.pack("<2h", 3, 4), rate=16000)
    refused("a.wav has 8000 samples a second, .*b.wav has 16000", Expected(), "bring them to the rate")
    other.unlink()
    refused("holds sounds, and the network reads x=1x1x64x64", reading(1, 1, 64, 64), "file.py:function")
    refused("has 1 channels, and the network reads 80", reading(1, 80, 100), "file.py:function")
    whole = file.read_bytes()
    for broken in (b"", b"RIFF", whole[:30], whole[:20] + b"\x03\0" + whole[22:]):  # the last: floats
        file.write_bytes(broken)
        refused("cannot read the sound", Expected(), "plain PCM")
    save(file, b"")
    refused("no whole samples", Expected(), "plain PCM")
