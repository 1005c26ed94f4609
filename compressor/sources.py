"""Data in all the forms that people have: a torchvision data set, a folder, an `.npz`, IDX files, a Python function."""

from __future__ import annotations

import gzip
import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.data import TUNE_AT_MOST, TUNE_SHARE, Data, Images, ImageSet, SplitName, hold_out
from compressor.errors import DataError, unknown

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
SPLIT_FOLDERS = {
    SplitName.TRAIN: ("train", "training"),
    SplitName.TUNE: ("tune", "val", "valid", "validation"),
    SplitName.TEST: ("test",),
}


def load_data(source: str, *, root: Path | None = None, download: bool = False, seed: int = 0) -> Data:
    """The data set that `source` names, in disjoint splits drawn by `seed` where it has none of its own.

    A path (folder, `.npz`, `file.py:function`) or the name of a torchvision data set below `root`, which is downloaded
    only when asked. Refused: what is not there, what holds no images, what cannot be read.
    """
    file, _, function = source.rpartition(":")
    if file.endswith(".py"):
        return _from_function(Path(file), function, seed=seed)
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _from_idx(path, seed=seed) if any(path.glob("*-ubyte*")) else _from_folder(path, seed=seed)
        if path.suffix == ".npz":
            return _from_npz(path, seed=seed)
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}") from error
    if path.exists() or "/" in source or "." in source:
        what = "is not data that can be read" if path.exists() else "is not there"
        raise DataError(
            f"{source} {what}", hint="give an image folder, an .npz, file.py:function or a torchvision data set's name"
        )
    return _from_torchvision(source, root=root, download=download, seed=seed)


def assembled(
    *,
    name: str,
    source: str,
    train: ImageSet | None,
    tune: ImageSet | None,
    test: ImageSet | None,
    classes: tuple[str, ...] | None,
    seed: int,
) -> Data:
    """The data with a tune split held out of train where there is none of its own."""
    if tune is None and train is not None and len(train) > 1:
        train, tune = hold_out(train, share=TUNE_SHARE, at_most=TUNE_AT_MOST, seed=seed)
    return Data(name=name, source=source, train=train, tune=tune, test=test, classes=classes, split_seed=seed)


def _from_npz(path: Path, *, seed: int) -> Data:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {key.lower(): arrays[key] for key in arrays.files}
    except (ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path} is not an .npz of plain arrays: {error}") from error
    except FileNotFoundError:
        raise DataError(f"{path} is not there") from None
    splits: dict[SplitName, ImageSet | None] = {}
    aliases = {SplitName.TUNE: ("tune", "val")}
    for split in SplitName:
        keys = [k for s in aliases.get(split, (str(split),)) for k in (f"{s}_images", f"x_{s}", f"{s}_x")]
        images = next((found[k] for k in keys if k in found), None)
        keys = [k for s in aliases.get(split, (str(split),)) for k in (f"{s}_labels", f"y_{s}", f"{s}_y")]
        labels = next((found[k] for k in keys if k in found), None)
        splits[split] = None if images is None else _images_from_arrays(images, labels)
    if not any(splits.values()):
        if "images" not in found:
            raise DataError(f"{path} has no images: {', '.join(found)}", hint="name them `train_images`, `train_labels` …")
        whole = _images_from_arrays(found["images"], found.get("labels"))
        return _split_whole(whole, name=path.stem, source=str(path), classes=None, seed=seed)
    classes = tuple(str(c) for c in found["classes"]) if "classes" in found else None
    return assembled(
        name=path.stem,
        source=str(path),
        train=splits[SplitName.TRAIN],
        tune=splits[SplitName.TUNE],
        test=splits[SplitName.TEST],
        classes=classes,
        seed=seed,
    )


def _images_from_arrays(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any] | None) -> Images:
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    if tensor.ndim == 4 and tensor.shape[-1] in (1, 3) and tensor.shape[1] not in (1, 3):
        tensor = tensor.permute(0, 3, 1, 2).contiguous()
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise DataError("the images hold values that are not finite")
    return Images(tensor, None if labels is None else torch.from_numpy(np.ascontiguousarray(labels)).flatten())


def _from_idx(folder: Path, *, seed: int) -> Data:
    def one(stem: str) -> Tensor | None:
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.exists():
                opener = gzip.open if path.suffix == ".gz" else open
                with opener(path, "rb") as stream:
                    raw = stream.read()
                dims = int(raw[3]) if len(raw) > 4 else 0
                header = 4 + 4 * dims
                shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
                if not dims or raw[:3] != b"\0\0\x08" or len(raw) != header + int(np.prod(shape)):
                    raise DataError(f"{path} is not a complete IDX file of bytes")
                return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header).view(shape)
        return None

    def images(prefix: str) -> Images | None:
        pixels = one(f"{prefix}-images-idx3-ubyte")
        return None if pixels is None else Images(pixels, one(f"{prefix}-labels-idx1-ubyte"))

    return assembled(
        name=folder.name,
        source=str(folder),
        train=images("train"),
        tune=None,
        test=images("t10k"),
        classes=None,
        seed=seed,
    )


class ImageFiles:
    """Image files read as they are asked for: uint8 `[channels, height, width]`, RGB unless grey."""

    def __init__(self, files: list[Path], labels: list[int]) -> None:
        self.files, self.labels = files, labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        from PIL import Image, UnidentifiedImageError
        from torchvision.transforms.v2.functional import pil_to_tensor

        try:
            with Image.open(self.files[index]) as image:
                mode = "L" if image.mode in ("1", "L", "I", "I;16", "LA") else "RGB"
                return pil_to_tensor(image.convert(mode)), self.labels[index]
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"cannot read the image {self.files[index]}", hint="remove or repair it") from error


def _from_folder(folder: Path, *, seed: int) -> Data:
    splits: dict[SplitName, tuple[list[Path], list[str]] | None] = {}
    for split, names in SPLIT_FOLDERS.items():
        below = next((folder / n for n in names if (folder / n).is_dir()), None)
        splits[split] = None if below is None else _files_below(below)
    whole = None if any(splits.values()) else _files_below(folder)
    named = {c for found in [*splits.values(), whole] if found is not None for c in found[1] if c}
    classes = tuple(sorted(named)) or None

    def images(found: tuple[list[Path], list[str]] | None) -> ImageSet | None:
        if found is None:
            return None
        index = {name: i for i, name in enumerate(classes or ())}
        return ImageFiles(found[0], [index.get(c, -1) for c in found[1]])

    if whole is not None:
        every = images(whole)
        if every is None or not len(every):
            raise DataError(f"no images in {folder}", hint=f"looked for {' '.join(IMAGE_SUFFIXES)}")
        return _split_whole(every, name=folder.name, source=str(folder), classes=classes, seed=seed)
    return assembled(
        name=folder.name,
        source=str(folder),
        train=images(splits[SplitName.TRAIN]),
        tune=images(splits[SplitName.TUNE]),
        test=images(splits[SplitName.TEST]),
        classes=classes,
        seed=seed,
    )


def _files_below(folder: Path) -> tuple[list[Path], list[str]]:
    """Image files with the name of their class folder, or an empty one for images that lie in none."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    return files, [p.relative_to(folder).parts[0] if p.parent != folder else "" for p in files]


def _split_whole(
    images: ImageSet, *, name: str, source: str, classes: tuple[str, ...] | None, seed: int
) -> Data:
    """Train, tune and test (8 : 1 : 1) out of one set without splits; a single image serves as test alone."""
    if len(images) < 10:
        return Data(name=name, source=source, train=None, tune=images, test=images, classes=classes, split_seed=seed)
    rest, test = hold_out(images, share=0.1, seed=seed)
    train, tune = hold_out(rest, share=1 / 9, seed=seed + 1)
    return Data(name=name, source=source, train=train, tune=tune, test=test, classes=classes, split_seed=seed)


class FromTorchvision:
    """A torchvision data set's items as uint8 tensors."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        from torchvision.transforms.v2.functional import pil_to_tensor

        image, label = self.dataset[index]
        return (image if isinstance(image, Tensor) else pil_to_tensor(image)), int(label)


def _from_torchvision(name: str, *, root: Path | None, download: bool, seed: int) -> Data:
    from torchvision import datasets

    known = {n.lower(): n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))}
    plain = name.lower().replace("-", "").replace("_", "")
    if plain not in known:
        raise DataError(f"there is no data called `{name}`", hint=unknown("torchvision data sets", plain, known))
    kind = getattr(datasets, known[plain])
    parameters = inspect.signature(kind).parameters
    if root is None:
        raise DataError(f"where is {known[plain]}?", hint="give its folder: `--data-root DIR`, and `--download` to fetch it")

    def split(train: bool) -> ImageSet:
        options: dict[str, Any] = {"download": download} if "download" in parameters else {}
        options |= {"train": train} if "train" in parameters else {"split": "train" if train else "test"}
        try:
            return FromTorchvision(kind(str(root), **options))
        except (RuntimeError, FileNotFoundError, TypeError) as error:
            hint = "add `--download`" if not download else "check the connection, or fetch it by hand"
            raise DataError(f"{known[plain]} is not in {root}: {error}", hint=hint) from error

    train, test = split(True), split(False)
    classes = tuple(getattr(train.dataset, "classes", ()) or ())  # type: ignore[attr-defined]
    return assembled(
        name=known[plain], source=f"{known[plain]} in {root}", train=train, tune=None, test=test,
        classes=classes or None, seed=seed,
    )  # fmt: skip


def _from_function(file: Path, function: str, *, seed: int) -> Data:
    """What `function()` in `file` returns: a `Data`, or a dict or tuple of data sets (train, tune, test)."""
    if not file.is_file():
        raise DataError(f"{file} is not there")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        known = [n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))]
        raise DataError(f"{file} has no `{function}`", hint=unknown("functions", function, known))
    made = getattr(module, function)()
    if isinstance(made, Data):
        return made
    if isinstance(made, (tuple, list)):
        names = (SplitName.TRAIN, SplitName.TEST) if len(made) == 2 else tuple(SplitName)
        made = dict(zip(map(str, names), made, strict=False))
    if not isinstance(made, dict):
        raise DataError(f"`{function}` returned a `{type(made).__name__}`", hint="return a dict of train, tune, test")
    parts = {str(s): made.get(str(s)) for s in SplitName}
    wrapped = {k: None if v is None else v if isinstance(v, (Images, ImageFiles)) else FromTorchvision(v) for k, v in parts.items()}
    return assembled(name=function, source=f"{file}:{function}", classes=None, seed=seed, **wrapped)
