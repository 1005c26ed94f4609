"""Load a folder as Hugging Face's libraries write it: `config.json` with the weights beside it, for transformers or
timm.

Weights are read from safetensors, or from `.bin` files by the restricted unpickler, in one file or in several that an
index lists.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor, nn

from compressor.checkpoint import architectures, hugging_face
from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.inputs import Examples, examples_of
from compressor.checkpoint.model_inputs import examples_for
from compressor.checkpoint.pickles.unpickle import read_pickle
from compressor.checkpoint.reading import fill, ready_
from compressor.data.preprocessing import Preprocessing
from compressor.errors import CheckpointError
from compressor.files.json_files import read_json
from compressor.files.model_folders import CONFIG
from compressor.files.regular import check_regular
from compressor.files.tensor_files import read_safetensors
from compressor.graph.calling import calling_
from compressor.graph.input_spec import InputSpec, spec_from_text

PROCESSOR = "preprocessor_config.json"
FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SHARD = re.compile(r"[\w-][\w.-]{0,200}\.(safetensors|bin)", re.ASCII)
EDIT = "fetch the folder again, or save it again with `save_pretrained`"


def load_folder(
    path: Path,
    *,
    inputs: Sequence[str | InputSpec] = (),
    complete: bool = False,
    outputs: Sequence[str] = (),
    trust_pickle: bool = False,
) -> Checkpoint:
    """Return the network in a folder; without others if its `inputs` are `complete`.

    Refused: a folder without weights, weights that do not fit, a config that asks for code.
    """
    config = read_json(path / CONFIG, refusal=CheckpointError, hint=EDIT)
    files = weight_files(path)
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(_tensors(file, trust_pickle=trust_pickle))
    architecture = _architecture(config)
    module = _module(architecture, state, path)
    types = ready_(module, where=path)
    specs = tuple(spec_from_text(one) if isinstance(one, str) else one for one in inputs)
    examples = _examples(module, specs, config, complete=complete)
    calling_(module, inputs=[spec.name for spec in examples.specs if spec.name is not None], outputs=outputs)
    return Checkpoint(
        module=module,
        example_inputs=examples.tensors,
        architecture=architecture,
        preprocessing=_preprocessing(path, config, examples),
        classes=_classes(config),
        name=path.resolve().name,
        path=str(path),
        sha256=sha256_of_folder(path, files),
        input_specs=examples.specs,
        outputs=tuple(outputs),
        types=types,
    )


def weight_files(path: Path) -> list[Path]:
    """Return the files of the weights in a folder: those that an index lists, or the single one.

    Refused: a folder without weights, an index that names a file elsewhere.
    """
    for pair in zip(INDICES, FILES, strict=False):
        index, single = (path / name for name in pair)
        if index.is_file():
            return _shards(index)
        if single.is_file():
            return [single]
    if (path / FILES[-1]).is_file():
        return [path / FILES[-1]]
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(f"{path} holds an adapter alone", hint="merge it: `merge_and_unload()`, and save that")
    raise CheckpointError(f"{path} holds a config and no weights", hint=f"beside it belongs {' or '.join(FILES[:2])}")


def _shards(index: Path) -> list[Path]:
    """The files that an index lists, in the folder of the index."""
    table = read_json(index, refusal=CheckpointError, hint=EDIT).get("weight_map")
    names = sorted(set(table.values())) if isinstance(table, Mapping) and _are_texts(table.values()) else []
    if not names or not all(SHARD.fullmatch(name) for name in names):
        raise CheckpointError(f"{index} lists no files of weights in its own folder", hint=EDIT)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index.parent} lacks {missing[0]}, which its index lists", hint=EDIT)
    return [index.parent / name for name in names]


def _are_texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _tensors(file: Path, *, trust_pickle: bool) -> dict[str, Tensor]:
    """The weights in one file."""
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    check_regular(file, refusal=CheckpointError)
    content = read_pickle(file, trust_pickle=trust_pickle)
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{file} holds more than tensors by name", hint="save it again as safetensors")
    return dict(content)


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """The network that a config describes, by its name in transformers' or timm's registry."""
    name = config.get("architecture")
    if isinstance(name, str) and "model_type" not in config:
        own = config.get("model_args")
        arguments = dict(own) if isinstance(own, Mapping) else {}
        classes = config.get("num_classes")
        architecture = Architecture(ref=f"timm:{name}", arguments=tuple({**arguments, "num_classes": classes}.items()))
        architectures.check_harmless(architecture)
        return architecture
    ref = hugging_face.reference(config)
    return Architecture(ref=ref, arguments=tuple(hugging_face.values_of(config).items()))


def _module(architecture: Architecture, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The network with its weights."""
    source, _, name = architecture.ref.partition(":")
    if source == hugging_face.REGISTRY:
        return hugging_face.filled(name, dict(architecture.arguments), state, where=str(path))
    module = architectures.build(architecture)
    fill(module, state, architecture)
    return module


def _examples(module: nn.Module, specs: Sequence[InputSpec], config: Mapping[str, Any], *, complete: bool) -> Examples:
    """The example inputs: those of the user, and what the config says of the others."""
    if hugging_face.is_of_transformers(module):
        return examples_for(module, specs, complete=complete)
    size = _pretrained(config).get("input_size")
    shape = tuple(size) if isinstance(size, list) and len(size) == 3 else (3, 224, 224)
    return examples_of(module, specs or [InputSpec(shape=(1, *shape))], hint="set its input: `--input 1x3x224x224`")


def _pretrained(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What timm wrote of the images that the network was trained on."""
    own = config.get("pretrained_cfg")
    return own if isinstance(own, Mapping) else {}


def _preprocessing(path: Path, config: Mapping[str, Any], examples: Examples) -> Preprocessing:
    """How images become inputs: timm's own record, or that of the folder's image processor."""
    first = examples.tensors[0]
    if first.ndim != 4:
        return Preprocessing()
    own, beside = _pretrained(config), path / PROCESSOR
    mean, std = own.get("mean"), own.get("std")
    if beside.is_file():
        processor = read_json(beside, refusal=CheckpointError, hint=EDIT)
        mean, std = processor.get("image_mean"), processor.get("image_std")
    known = _are_numbers(mean) and _are_numbers(std)
    return Preprocessing(
        mean=tuple(map(float, mean)) if known and mean else (),
        std=tuple(map(float, std)) if known and std else (),
        size=(int(first.shape[2]), int(first.shape[3])),
        channels=int(first.shape[1]),
    )


def _are_numbers(values: object) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def _classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes; `None` where they are numbers alone."""
    labels = config.get("id2label", config.get("label_names"))
    if isinstance(labels, Mapping):
        if not all(str(key).isdecimal() for key in labels):
            return None
        labels = [labels[key] for key in sorted(labels, key=int)]
    if not isinstance(labels, list) or not labels or not _are_texts(labels):
        return None
    return None if all(label == f"LABEL_{i}" for i, label in enumerate(labels)) else tuple(labels)


def sha256_of_folder(path: Path, files: Sequence[Path]) -> str:
    """Return the hash of a folder's network: that of its config and weights."""
    parts = []
    for file in (path / CONFIG, *files):
        with file.open("rb") as stream:
            parts.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
