"""What several commands read before they begin: a network, an artifact, images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compressor.cli.groups import changed
from compressor.cli.options import DataOptions, NetworkOptions, NormalisationOptions, refuse_silent, talk
from compressor.files.model_folders import is_artifact_folder, is_model_folder

if TYPE_CHECKING:
    from compressor.checkpoint.artifacts import Artifact
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.data.splits import Data

AS_IT_SAYS = NormalisationOptions()


def load_model(
    model: Path, network: NetworkOptions, normalisation: NormalisationOptions = AS_IT_SAYS, *, opened: bool = False
) -> Checkpoint:
    """The checkpoint or artifact at `model`; `normalisation` overrides what its recipe says.

    The caveats of an artifact are printed, unless `opened` says that this was done.
    """
    from dataclasses import replace

    from compressor.checkpoint.architectures import architecture_arguments
    from compressor.checkpoint.artifacts import open_artifact
    from compressor.checkpoint.loading import load
    from compressor.data.preprocessing import with_normalisation

    arguments = {"--arch-arg": bool(network.arch_arg)}
    if network.arch is None:
        refuse_silent(arguments, because="without `--arch`", hint="name what takes the argument: `--arch net.py:Net`")
    if is_model_folder(model):
        refuse_silent(
            arguments | {"--arch": network.arch is not None, "--key": network.key is not None},
            because="on a folder whose config.json says how the network is built",
            hint=f"leave it out, or name the weights alone: `{model}/model.safetensors`",
        )
    if is_artifact_folder(model):
        refuse_silent(
            arguments | {"--key": network.key is not None},
            because="on an artifact, whose recipe says how the network is built",
            hint="leave it out",
        )
    checkpoint = load(
        model,
        arch=network.arch,
        arch_arguments=architecture_arguments(network.arch_arg or ()),
        inputs=tuple(network.input_shape or ()),
        key=network.key,
        outputs=tuple(name for text in network.outputs or () for name in text.split(",")),
        trust_pickle=network.trust_pickle,
    )
    if is_artifact_folder(model) and not opened:
        say_caveats(open_artifact(model))
    preprocessing = with_normalisation(checkpoint.preprocessing, normalisation.mean, normalisation.std)
    return replace(checkpoint, preprocessing=preprocessing)


def checkpoint_in(artifact: Artifact, network: NetworkOptions) -> Checkpoint:
    """The network of an artifact that is open; its `--arch` says that the user trusts the code that builds it."""
    return load_model(artifact.folder, network, opened=True)


def open_default(path: Path | None) -> Artifact:
    """The artifact at `path`, or the newest one in the working folder, with a line that names it."""
    from compressor.checkpoint.artifacts import open_artifact

    artifact = open_artifact(path)
    if artifact.taken_by_default:
        talk().print(f"taking the newest artifact here: {artifact.folder}", style="dim")
    say_caveats(artifact)
    return artifact


def say_caveats(artifact: Artifact) -> None:
    """Print what is less certain of this artifact than of others."""
    for caveat in artifact.caveats:
        talk().print(f"caveat: {caveat}", soft_wrap=True)


def load_data(images: DataOptions, *, seed: int, checkpoint: Checkpoint) -> Data | None:
    """The data that `--data` names, or the sample of a sample model; `None` where there is neither."""
    from compressor.data.sources import data_for
    from compressor.errors import DataError

    if images.data is None:
        refuse_silent(changed(images), because="without `--data`", hint="name the data set: `--data MNIST`")
    try:
        data = data_for(
            checkpoint, images.data, root=images.data_root, download=images.download, seed=seed, task=images.task
        )
    except DataError:
        if images.data is not None:
            raise
        return None
    if images.data is None:
        talk().print(f"data: {data.name}, the sample that ships with the sample models", style="dim")
    say_repeated(data)
    return data


def needed_data(images: DataOptions, *, seed: int, checkpoint: Checkpoint, why: str, hint: str) -> Data:
    """The data, which the command cannot do without."""
    from compressor.errors import DataError

    data = load_data(images, seed=seed, checkpoint=checkpoint)
    if data is None:
        raise DataError(why, hint=hint)
    return data


def say_repeated(data: Data) -> None:
    """Print how many images one split left out because another split holds them too, and the data's caveats."""
    for caveat in data.caveats:
        talk().print(f"caveat: {caveat}", markup=False, soft_wrap=True)
    if data.repeated:
        talk().print(
            f"caveat: {data.repeated:,} images of {data.name} lie in two splits; training and choosing skip them",
            soft_wrap=True,
        )


def use_threads(threads: int | None) -> None:
    """Let torch compute with so many threads; `None` leaves it as it is."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
