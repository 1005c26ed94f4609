"""The networks that studies start from: fresh weights drawn by a seed, or a state that another cell has kept."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.checkpoint.architectures import Architecture, build
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import Recipe
from compressor.data.splits import Data, Images, Preprocessing, SplitName
from compressor.errors import StudyError
from compressor.measuring.accuracy import evaluate

SEEN = 10_000  # images that the mean and the deviation are taken of


def subject(
    ref: str,
    *,
    data: Data,
    seed: int = 0,
    state: Mapping[str, Tensor] | None = None,
    training: Recipe | None = None,
    arguments: tuple[tuple[str, object], ...] = (),
) -> Checkpoint:
    """The network of the architecture `ref`, such as `sample_models.networks:resnet8`, as a checkpoint in eval mode.

    Its weights are fresh ones drawn by `seed`, or `state`; inputs have the training images' shape and are normalised by
    their mean and deviation. `training` is the recipe that made the state. Refused: what `build` refuses, data that is
    not held in memory.
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
    """The mean and the deviation of the training images, channel by channel."""
    images = data.split(SplitName.TRAIN)
    if not isinstance(images, Images):
        raise StudyError("a study takes images that fit in memory", hint="an `.npz` file or a folder of IDX files")
    mean, std = _statistics(images)
    return Preprocessing(mean=mean, std=std)


def percent_correct(network: Checkpoint, data: Data, split: SplitName) -> float:
    """How many of a hundred images of a split the network classifies as labelled."""
    images = data.split(split)
    return 100 * evaluate(network.module, images, split=str(split), preprocessing=network.preprocessing).share
