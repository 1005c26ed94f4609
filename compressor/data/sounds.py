"""Sounds in `.wav` files: mono or several channels, 8 to 32 bits a sample, with class folders or without."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compressor.data.content import Content
from compressor.data.expected import Expected
from compressor.data.image_files import read_class_folders
from compressor.errors import DataError
from compressor.files.regular import check_regular

SUFFIX = ".wav"
CONVERT = "write them as plain PCM: `sox in.wav -r 16000 -b 16 out.wav`"
SPECTROGRAM = "for a spectrogram give a function of your own: `--data file.py:function`"


class Sounds:
    """Sound files that are read on access: float32 in [-1, 1], `[samples]` or `[channels, samples]`, with a label.

    `channels` is `None` for a network that reads samples alone; with a `length` sounds are cut or padded with silence.
    """

    def __init__(
        self, files: Sequence[Path], labels: Sequence[int], *, channels: int | None, length: int | None
    ) -> None:
        self.files, self.labels, self.channels, self.length = files, labels, channels, length

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        file = self.files[index]
        sound = _with_channels(samples_of(file), self.channels, file=file)
        if self.length is not None:
            sound = sound[..., : self.length]
            sound = torch.nn.functional.pad(sound, (0, self.length - sound.shape[-1]))
        return sound, self.labels[index]


def read_sounds(folder: Path, *, expected: Expected) -> Content | None:
    """Return the sounds below `folder`, with the names of class folders as classes; `None` where there are none.

    Refused: sounds of different rates, a network that reads no samples.
    """
    read = read_class_folders(folder, (SUFFIX,))
    if not read.splits:
        return None
    _check_rates([file for files, _ in read.splits.values() for file in files])
    channels, length = _form(expected, folder)
    splits = {
        split: Sounds(files, labels, channels=channels, length=length) for split, (files, labels) in read.splits.items()
    }
    return Content(splits={**splits}, classes=read.classes, by_name=read.classes is not None)


def _form(expected: Expected, folder: Path) -> tuple[int | None, int | None]:
    """The channels and the length that the network reads; where it is unknown, mono of any length."""
    if not expected.specs:
        return None, None
    shape = expected.specs[0].shape
    if len(expected.specs) > 1 or len(shape) not in (2, 3):
        raise DataError(
            f"{folder} holds sounds, and the network reads {', '.join(spec.shown for spec in expected.specs)}",
            hint=SPECTROGRAM,
        )
    return (None if len(shape) == 2 else shape[1]), shape[-1]


def _check_rates(files: Sequence[Path]) -> None:
    """Refuse sounds of different rates: they are not resampled."""
    first: dict[int, Path] = {}
    for file in files:
        with _opened(file) as sound:
            first.setdefault(sound.getframerate(), file)
    if len(first) > 1:
        (one, a), (other, b), *_ = first.items()
        raise DataError(
            f"{a} has {one} samples a second, {b} has {other}",
            hint="bring them to the rate that the network was trained on: `sox in.wav -r 16000 out.wav`",
        )


def _opened(file: Path) -> wave.Wave_read:
    """The file with its header read. Refused: what is no plain PCM."""
    check_regular(file, refusal=DataError)
    try:
        return wave.open(str(file), "rb")
    except (wave.Error, EOFError, RuntimeError, ValueError, OverflowError) as error:
        raise DataError(f"cannot read the sound {file}: {error or 'it ends too early'}", hint=CONVERT) from error


def samples_of(file: Path) -> Tensor:
    """Return the samples in a file: float32 `[channels, samples]` in [-1, 1]. Refused: no samples, a part of one."""
    with _opened(file) as sound:
        width, channels, count = sound.getsampwidth(), sound.getnchannels(), sound.getnframes()
        try:
            raw = sound.readframes(count)
        except (EOFError, RuntimeError, ValueError, MemoryError, OverflowError) as error:
            raise DataError(f"cannot read the sound {file}: {error}", hint=CONVERT) from error
    if width not in (1, 2, 3, 4) or not raw or len(raw) % (width * channels):
        raise DataError(f"the sound {file} has no whole samples of 8 to 32 bits", hint=CONVERT)
    numbers = _whole_numbers(raw, width).astype(np.float64) / 2 ** (8 * width - 1)
    return torch.from_numpy(np.ascontiguousarray(numbers.reshape(-1, channels).T.astype(np.float32)))


def _whole_numbers(raw: bytes, width: int) -> np.ndarray[tuple[int], np.dtype[np.signedinteger]]:
    """Little-endian numbers with a sign; those of 8 bits are stored without one."""
    if width == 1:
        return np.frombuffer(raw, np.uint8).astype(np.int16) - np.int16(128)
    if width == 3:
        parts = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(parts), 4), np.uint8)
        wide[:, 1:] = parts  # in the upper bytes, so that the sign is where it belongs
        return wide.view("<i4")[:, 0] >> 8
    return np.frombuffer(raw, f"<i{width}")


def _with_channels(sound: Tensor, channels: int | None, *, file: Path) -> Tensor:
    """The sound as the network reads it: the mean of its channels where the network reads one."""
    if channels is None:
        return sound.mean(dim=0)
    if channels == 1:
        return sound.mean(dim=0, keepdim=True)
    if len(sound) != channels:
        raise DataError(f"{file} has {len(sound)} channels, and the network reads {channels}", hint=SPECTROGRAM)
    return sound
