"""The networks that studies start from: with fresh weights drawn by a seed, or with the state of another cell."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.checkpoint.architectures import Architecture, build
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import Recipe
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import Images
from compressor.data.splits import Data, SplitName
from compressor.errors import StudyError
from compressor.measuring.quality import evaluate

SEEN = 10_000  # images for the mean and the deviation


def subject(
    ref: str,
    *,
    data: Data,
    seed: int = 0,
    state: Mapping[str, Tensor] | None = None,
    training: Recipe | None = None,
    arguments: tuple[tuple[str, object], ...] = (),
) -> Checkpoint:
    """Return a checkpoint of the architecture `ref`, such as `sample_models.networks:resnet8`, in eval mode.

    Its weights are drawn by `seed`, or are those of `state`. Inputs have the training images' shape and are normalised
    by their mean and deviation. `training` is the recipe that led to the state. Refused: what `build` refuses, data
    that is not in memory.
    """
    architecture = Architecture(ref=ref, arguments=arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(architecture).eval()
    if state is not None:
        module.load_state_dict(dict(state))
    seen = normalisation(data)
    channels, height, width = data.split(SplitName.TRAIN)[0][0].shape
    return Checkpoint(
        module=module,
        example_inputs=(torch.zeros(1, channels, height, width),),
        architecture=architecture,
        preprocessing=seen,
        classes=data.classes,
        name=ref.rpartition(":")[2],
        path=ref,
        sha256="",
        training=training,
    )


@functools.lru_cache(maxsize=4)
def _statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    seen = Preprocessing()(images.images[:SEEN])  # [n, channels, h, w]
    return tuple(seen.mean((0, 2, 3)).tolist()), tuple(seen.std((0, 2, 3)).tolist())


def normalisation(data: Data) -> Preprocessing:
    """Return the preprocessing with the mean and the deviation of the training images, per channel."""
    images = data.split(SplitName.TRAIN)
    if not isinstance(images, Images):
        raise StudyError("a study needs images in memory", hint="give an `.npz` file or a folder of IDX files")
    mean, std = _statistics(images)
    return Preprocessing(mean=mean, std=std)


def percent_correct(network: Checkpoint, data: Data, split: SplitName) -> float:
    """Return the network's accuracy on a split, in per cent."""
    images = data.split(split)
    return 100 * evaluate(network.module, images, split=str(split), preprocessing=network.preprocessing).value
