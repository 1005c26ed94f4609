"""Images and labels from files of plain arrays: an `.npz`, a `.safetensors`, or IDX files (MNIST's)."""

from __future__ import annotations

import gzip
import lzma
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.data.content import Content
from compressor.data.samples import Images
from compressor.data.splits import SplitName
from compressor.errors import CheckpointError, DataError
from compressor.files.tensor_files import read_safetensors

Array = np.ndarray[Any, Any]
Splits = dict[SplitName, Images | None]

SPELLINGS = {
    SplitName.TRAIN: ("train", "training"),
    SplitName.TUNE: ("tune", "val", "valid", "validation"),
    SplitName.TEST: ("test",),
}
KEYS = "`train_images`, `train_labels`, `tune_…`, `test_…`, or `images` and `labels`"


def images_in(path: Path, arrays: Mapping[str, Array]) -> Content:
    """Return the images in the arrays of a file, by split or as one set, with the classes if it names them.

    Images are `[n, h, w]`, `[n, c, h, w]` or `[n, h, w, c]`, bytes or floats in [0, 1]; labels are `[n]`, `[n, 1]`,
    one-hot `[n, classes]`, or strings. Refused: pickled objects, other names, values out of range or not finite.
    """
    arrays = {name.lower(): array for name, array in arrays.items()}
    pairs: dict[SplitName, tuple[Array, Array | None]] = {}
    for split, names in SPELLINGS.items():
        images = _of(arrays, names, ("{}_images", "x_{}", "{}_x"))
        if images is not None:
            pairs[split] = (images, _of(arrays, names, ("{}_labels", "y_{}", "{}_y")))
    whole = None
    if not pairs:
        images = _of(arrays, ("images", "x", "arr_0"), ("{}",))
        if images is None:
            names_there = ", ".join(arrays) or "nothing"
            raise DataError(f"{path} has no images but: {names_there}", hint=f"name the arrays {KEYS}")
        whole = (images, _of(arrays, ("labels", "y", "arr_1"), ("{}",)))
    every = [labels for _, labels in [*pairs.values(), *([whole] if whole else [])] if labels is not None]
    classes = tuple(str(c) for c in arrays["classes"].flatten()) if "classes" in arrays else None
    named = any(labels.dtype.kind in "SU" for labels in every)
    if named:
        classes = classes or tuple(sorted({text for labels in every for text in labels.astype(str).flatten()}))
    one: dict[SplitName | None, Images] = {} if whole is None else {None: _images(path, *whole, classes)}
    return Content(
        splits=one | {split: _images(path, *pair, classes) for split, pair in pairs.items()},
        classes=classes,
        by_name=named,
    )


def arrays_in(path: Path) -> dict[str, Array]:
    """Return the arrays in an `.npz` or `.safetensors` file by name. Refused: other content, Python objects."""
    if path.suffix.lower() == ".safetensors":
        return _tensors_in(path)
    if not path.exists():
        raise DataError(f"{path} is not there", hint="check the path")
    if not path.is_file():  # a pipe would block whoever opens it
        raise DataError(f"{path} is not a regular file", hint="copy its content to a file, and use that file")
    try:
        with path.open("rb") as stream:
            if not stream.read(4).startswith(b"PK"):
                raise DataError(f"{path} holds one array without a name", hint=f"save with `numpy.savez` as {KEYS}")
        with zipfile.ZipFile(path) as archive:
            if len(set(archive.namelist())) != len(archive.namelist()):
                raise ValueError("an array in it stands twice")
            return {m.filename.removesuffix(".npy"): _array(archive, m) for m in archive.infolist()}
    except BROKEN as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not an .npz of plain arrays: {why}", hint=f"save {KEYS} in one .npz") from error


def _tensors_in(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file."""
    try:
        tensors = read_safetensors(path)
    except CheckpointError as error:
        raise DataError(str(error), hint=error.hint) from error
    plain = {
        name: t.float() if t.is_floating_point() and t.dtype != torch.float64 else t for name, t in tensors.items()
    }
    try:
        return {name: tensor.numpy() for name, tensor in plain.items()}
    except TypeError as error:
        raise DataError(
            f"{path} holds numbers of a type that is not read: {error}", hint="save them as float32"
        ) from error


# the errors of zipfile and numpy on broken files; numpy parses a header as Python
BROKEN = (
    ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
    SyntaxError, NotImplementedError, OverflowError, RuntimeError, MemoryError, lzma.LZMAError,
)  # fmt: skip


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """One array of the archive. Refused: a wrong size in its header, Python objects."""
    with archive.open(member) as stream, warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy warns when it guesses at a header
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"`{member.filename[:40]}` is of an array format that is not read here")
        shape, in_columns, dtype = read(stream)
        if dtype.hasobject:
            raise ValueError(f"`{member.filename[:40]}` holds Python objects, which could run code")
        if math.prod(shape) * dtype.itemsize != member.file_size - stream.tell():
            raise ValueError(f"`{member.filename[:40]}` is not as long as it says")
        content = bytearray(stream.read())
        flat = np.frombuffer(content, dtype=dtype) if content else np.zeros(0, dtype=dtype)
        return flat.reshape(shape[::-1]).T if in_columns else flat.reshape(shape)


def _of(arrays: Mapping[str, Array], names: tuple[str, ...], forms: tuple[str, ...]) -> Array | None:
    """The first array with one of these names, in one of these spellings."""
    return next((arrays[key] for name in names for form in forms if (key := form.format(name)) in arrays), None)


def _images(path: Path, images: Array, labels: Array | None, classes: tuple[str, ...] | None) -> Images:
    """The images with their labels."""
    try:
        return Images(pixels_in(images), None if labels is None else _indices(labels, len(images), classes))
    except DataError as error:
        raise DataError(f"{path}: {error}", hint=error.hint) from error


def pixels_in(images: Array) -> Tensor:
    """Bytes as uint8, everything else as float32 in [0, 1]; `[n, channels, h, w]`."""
    if images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype == bool:
        images = images.astype(np.uint8) * 255
    if images.dtype.kind not in "uif":
        raise DataError(f"the images are of type {images.dtype}", hint="give bytes, or floats in [0, 1]")
    if not images.size:
        raise DataError("there are no images in it", hint="save at least one image")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DataError(
            "the images hold values that are not finite",
            hint="remove those images, or repair the program that wrote them",
        )
    low, high = float(images.min()), float(images.max())
    if images.dtype != np.uint8:
        whole = images.dtype.kind != "f" or (high > 1 and bool((images == np.round(images)).all()))
        if whole and (low < 0 or high > 255):
            raise DataError(f"the pixels lie in [{low:g}, {high:g}]", hint="give bytes, or floats in [0, 1]")
        images = images.astype(np.uint8 if whole else np.float32)
    return torch.from_numpy(np.ascontiguousarray(images))


def _indices(labels: Array, images: int, classes: tuple[str, ...] | None) -> Tensor:
    """Labels as int64 `[n]`, from numbers, one-hot rows or names."""
    if labels.dtype.kind in "SU":
        index = {name: i for i, name in enumerate(classes or ())}
        texts = labels.astype(str).flatten()
        strangers = sorted({t for t in texts if t not in index})
        if strangers:
            raise DataError(
                f"the label `{strangers[0]}` is not among its classes", hint="name every label in `classes`"
            )
        return torch.tensor([index[t] for t in texts])
    if labels.dtype.kind not in "buif":
        raise DataError(f"the labels are of type {labels.dtype}", hint="give whole numbers from 0, or names")
    if labels.ndim == 2 and labels.shape[1] > 1 and len(labels) == images:
        if not ((labels != 0).sum(axis=1) == 1).all():
            raise DataError(
                f"labels of shape {list(labels.shape)} that are not one-hot", hint="give one label an image"
            )
        labels = labels.argmax(axis=1)
    if labels.dtype.kind == "f" and not (labels == np.round(labels)).all():
        raise DataError("labels that are not whole numbers", hint="number the classes from 0")
    return torch.from_numpy(np.ascontiguousarray(labels.astype(np.int64))).flatten()


def splits_from_idx(folder: Path) -> Splits:
    """Return train and test from MNIST's four files, gzipped or not; labels may be missing."""

    def one(stem: str) -> Tensor | None:
        for path in (folder / stem, folder / f"{stem}.gz", folder / stem.replace("-idx", ".idx")):
            if path.exists():
                return _idx(path)
        return None

    def images(prefix: str) -> Images | None:
        pixels, labels = one(f"{prefix}-images-idx3-ubyte"), one(f"{prefix}-labels-idx1-ubyte")
        if pixels is None and labels is not None:
            raise DataError(
                f"{folder} has {prefix} labels but no {prefix} images", hint="put the images' file beside the labels'"
            )
        return None if pixels is None else Images(pixels, labels)

    return {SplitName.TRAIN: images("train"), SplitName.TEST: images("t10k")}


def _idx(path: Path) -> Tensor:
    """A tensor of bytes from one IDX file."""
    if not path.is_file():
        raise DataError(f"{path} is not a regular file", hint="copy its content to a file, and use that file")
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            raw = stream.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a broken gzip file: {error}", hint="fetch it again") from error
    dims = int(raw[3]) if len(raw) > 4 else 0
    header = 4 + 4 * dims
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    if not dims or raw[:3] != b"\0\0\x08" or len(raw) != header + math.prod(shape) or 0 in shape:
        raise DataError(f"{path} is not a complete IDX file of bytes", hint="fetch it again")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header).view(shape)
