"""Read a checkpoint from a file, in all common forms: a module, a state in any wrapping, a program."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.checkpoint import architectures, hugging_face
from compressor.checkpoint.architectures import PICKLE, PROGRAM, Architecture
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.factored_weights import multiplied_out, multiply_masks_
from compressor.checkpoint.fitting import first_layer
from compressor.checkpoint.inputs import Examples, example_inputs, examples_from, examples_of
from compressor.checkpoint.metadata import metadata_of
from compressor.checkpoint.model_inputs import examples_for
from compressor.checkpoint.pickles.unpickle import read_pickle
from compressor.checkpoint.pt2 import read_exported
from compressor.checkpoint.recipes import recipe_from_json
from compressor.checkpoint.states import STATE_KEYS, fitted, found_in, plain, state_of, variants
from compressor.data.preprocessing import Preprocessing
from compressor.errors import CheckpointError
from compressor.files.archives import names_in
from compressor.files.names import check_names_in
from compressor.files.plain_text import plain_text_in
from compressor.files.regular import check_regular
from compressor.files.tensor_files import read_safetensors
from compressor.graph.calling import calling_
from compressor.graph.finite import broken_in
from compressor.graph.input_spec import InputSpec, spec_from_text
from compressor.graph.precision import in_precision, in_precision_, types_in
from compressor.graph.recorded import RecordedProgram
from compressor.surgery.surgery import put_state_

FOREIGN = {
    ".onnx": "an ONNX file",
    ".tflite": "a TensorFlow Lite file",
    ".h5": "a Keras file",
    ".pb": "a TensorFlow graph",
    ".engine": "a TensorRT engine",
}


def load_file(
    path: Path,
    *,
    arch: str | Architecture | None = None,
    arch_arguments: tuple[tuple[str, object], ...] = (),
    inputs: Sequence[str | InputSpec] = (),
    key: str | None = None,
    outputs: Sequence[str] = (),
    trust_pickle: bool = False,
) -> Checkpoint:
    """Return the network in the file `path`: a pickled module, a state in any common wrapping, an exported program.

    The arguments and refusals are those of `checkpoint.loading.load`; a text as `arch` is the user's own, and an
    architecture is one that was checked.
    """
    _refuse_foreign(path)
    named = architectures.architecture_from_user(arch, arch_arguments) if isinstance(arch, str) else arch
    stored: tuple[Tensor, ...] = ()
    if path.suffix.lower() == ".pt2":
        content, stored = read_exported(path, trust_pickle=trust_pickle)
    else:
        content = _read(path, trust_pickle=trust_pickle, key=key, named=named)
    meta = metadata_of(content, path) if isinstance(content, Mapping) else {}
    weights = found_in(content, path=path, key=key)
    if isinstance(weights, nn.Module) and arch is None:
        module = plain(weights)
        multiply_masks_(module)
        architecture = Architecture(ref=PROGRAM) if isinstance(module, RecordedProgram) else _architecture_of(module)
    else:
        architecture, module = _built(state_of(weights, path=path), named, meta, path)
    types = ready_(module, where=path)
    if types:
        stored = tuple(in_precision(t, torch.float32) for t in stored)
    examples = _examples(module, inputs, stored, meta, architecture, types)
    calling_(module, inputs=[spec.name for spec in examples.specs if spec.name is not None], outputs=outputs)
    training = meta.get("training")
    return Checkpoint(
        module=module,
        example_inputs=examples.tensors,
        architecture=architecture,
        preprocessing=_preprocessing(meta, architecture, examples.tensors),
        classes=tuple(map(str, meta["classes"])) if isinstance(meta.get("classes"), (list, tuple)) else None,
        name=Path(path.name.removesuffix(".tar")).stem,  # `net.pth.tar` is a usual name
        path=str(path),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        training=recipe_from_json(dict(training)) if isinstance(training, Mapping) else None,
        input_specs=examples.specs,
        outputs=tuple(outputs),
        types=types,
        key=key,
    )


def with_inputs(checkpoint: Checkpoint, inputs: Sequence[str | InputSpec]) -> Checkpoint:
    """Return an artifact's network with examples for the user's `inputs`; unchanged if there are none."""
    if not inputs:
        return checkpoint
    specs = tuple(spec_from_text(one) if isinstance(one, str) else one for one in inputs)
    names = tuple(spec.name for spec in checkpoint.input_specs if spec.name is not None)
    examples = examples_of(
        checkpoint.module,
        specs,
        hint="it reads another shape, type or range: `compress inspect` shows its inputs",
        names=names,
    )
    preprocessing, first = checkpoint.preprocessing, examples.tensors[0]
    if first.ndim == 4:
        preprocessing = replace(
            preprocessing, size=(int(first.shape[2]), int(first.shape[3])), channels=int(first.shape[1])
        )
    return replace(checkpoint, example_inputs=examples.tensors, input_specs=examples.specs, preprocessing=preprocessing)


def _examples(
    module: nn.Module,
    inputs: Sequence[str | InputSpec],
    stored: tuple[Tensor, ...],
    meta: Mapping[str, Any],
    architecture: Architecture,
    types: Mapping[str, torch.dtype],
) -> Examples:
    """The example inputs: those of the user, of the file, or the ones that fit."""
    if stored and not inputs:
        return examples_from(module, stored)
    shapes = meta.get("input") if isinstance(meta.get("input"), (list, tuple)) else None
    if "side" in meta and isinstance(first_layer(module), nn.Conv2d):
        shapes = [[1, first_layer(module).in_channels, meta["side"], meta["side"]]]
    if hugging_face.is_of_transformers(module) and not shapes:
        hugging_face.without_cache_(module.config)
        return examples_for(module, tuple(spec_from_text(one) if isinstance(one, str) else one for one in inputs))
    try:
        return example_inputs(module, inputs=inputs, stored=shapes, architecture=architecture)
    except CheckpointError as error:
        kinds = sorted({str(dtype).removeprefix("torch.") for dtype in types.values()})
        if not kinds or not any(word in str(error) for word in ("type", "dtype")):
            raise
        raise CheckpointError(
            f"a network in {' and '.join(kinds)} is computed in float32, and this one does not run so: {error}",
            hint="its own code may cast to a fixed type: cast to a weight's type, `x.to(self.layer.weight.dtype)`",
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the weights in a checkpoint file, under the usual keys and prefixes, without unpickling unsafe objects."""
    _refuse_foreign(path)
    return state_of(found_in(_read(path, trust_pickle=False), path=path), path=path)


def _refuse_foreign(path: Path) -> None:
    """Refuse what is not a checkpoint file, by its first bytes and its suffix."""
    if not path.exists():
        raise CheckpointError(f"{path} is not there", hint="check the path; an artifact is a folder `NAME.compressed`")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder", hint="use the checkpoint file inside it")
    check_regular(path, refusal=CheckpointError)
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror or error}", hint="check its permissions, and that it is not in use"
        ) from error
    if not head:
        raise CheckpointError(f"{path} is empty", hint="the copy or download may have failed: fetch it again")
    text = plain_text_in(path)
    if text is not None:
        raise CheckpointError(f"{path} is {text.what}, not a checkpoint", hint=text.hint)
    kind = FOREIGN.get(path.suffix.lower())
    if kind is None and head.startswith(b"\x89HDF"):
        kind = FOREIGN[".h5"]
    listed = names_in(path) if head.startswith(b"PK\x03\x04") and path.suffix.lower() != ".pt2" else []
    if any(name.startswith("code/") or name == "constants.pkl" for name in listed):
        raise CheckpointError(
            f"{path} is a TorchScript program, not a checkpoint",
            hint=f"take its weights, where you trust it: `torch.save(torch.jit.load('{path.name}').state_dict(), "
            "'weights.pt')`, and name the code that it was made from: `--arch net.py:Net`",
        )
    if kind is not None:
        raise CheckpointError(
            f"{path} is {kind}, not a checkpoint", hint="use the training checkpoint that it was made from"
        )


def _read(path: Path, *, trust_pickle: bool, key: str | None = None, named: Architecture | None = None) -> Any:
    """The content of the file."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    only = frozenset(STATE_KEYS if key is None else [key.partition(".")[0]])
    code = None if named is None else lambda: architectures.code_of(named)
    return read_pickle(path, trust_pickle=trust_pickle, only=only, code=code)


def _built(
    state: dict[str, Tensor], named: Architecture | None, meta: Mapping[str, Any], path: Path
) -> tuple[Architecture, nn.Module]:
    """The network of a state, with its weights, and its architecture: the user's, the file's, or the one recognised."""
    if named is None and isinstance(meta.get("architecture"), str):
        named = Architecture(ref=meta["architecture"])
        architectures.check_harmless(named)
    if named is None:
        architecture, fitting = _recognised(state, path)
        module = architectures.build(architecture)
    else:
        architecture, module = architectures.built_for(named, lambda own: fitted(state, own))
        fitting = fitted(state, set(module.state_dict()))
    fill(module, fitting, architecture)
    return architecture, module


def _recognised(state: dict[str, Tensor], path: Path) -> tuple[Architecture, dict[str, Tensor]]:
    """The torchvision network that has this state, and the state under its names."""
    for candidate in map(multiplied_out, variants(state)):
        recognised = architectures.recognise(candidate)
        if recognised is not None:
            return recognised, candidate
    raise CheckpointError(
        f"{path} holds {len(state)} tensors (`{next(iter(state))}` …), but not how the network is built",
        hint="set it: `--arch net.py:Net`, `--arch torchvision:resnet18` or `--arch package.module:make`",
    )


def _architecture_of(module: nn.Module) -> Architecture:
    """The architecture of a module from a file: torchvision's reference if it is exactly that network."""
    recognised = architectures.recognise(module.state_dict())
    if recognised is None:
        return Architecture(ref=PICKLE)
    same = [type(m) for m in architectures.build(recognised).modules()] == [type(m) for m in nn.Module.modules(module)]
    return recognised if same else Architecture(ref=PICKLE)


def fill(module: nn.Module, state: Mapping[str, Tensor], architecture: Architecture) -> None:
    """Load the state strictly; the error names all names and shapes that differ."""
    own = module.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    differing = [
        f"{k} (file {'x'.join(map(str, state[k].shape))}, network {'x'.join(map(str, own[k].shape))})"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    parts = [
        f"{len(names)} {what}: {', '.join(names[:4])}{' …' * (len(names) > 4)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
        if names
    ]
    if parts:
        raise CheckpointError(
            f"the weights are not those of `{architecture.ref}`: {'; '.join(parts)}",
            hint="check `--arch` and its `--arch-arg`s against the training code",
        )
    put_state_(module, {**{k: v for k, v in own.items() if k not in state}, **state})


def ready_(module: nn.Module, *, where: Path) -> dict[str, torch.dtype]:
    """Put a module from `where` in eval mode and in float32, in place; return the types of its tensors of other ones.

    Refused: names that could lead elsewhere, weights without values or with values that are not finite.
    """
    check_names_in(module, where=str(where))
    module.eval()
    _refuse_broken_weights(module)
    types = types_in(module)
    if types:
        in_precision_(module, torch.float32)
    return types


def _refuse_broken_weights(module: nn.Module) -> None:
    """Refuse weights without values, or with values that are not finite."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    name = next((name for name, tensor in tensors if tensor.is_meta), None)
    if name is not None:
        raise CheckpointError(f"`{name}` has a shape and no values", hint="save the network from its own device")
    name = broken_in(module)
    if name is not None:
        raise CheckpointError(
            f"`{name}` holds values that are not finite", hint="use an earlier checkpoint of the training"
        )


def _preprocessing(meta: Mapping[str, Any], architecture: Architecture, inputs: tuple[Tensor, ...]) -> Preprocessing:
    """The recorded preprocessing, or that of ImageNet for torchvision and timm networks."""
    first = inputs[0]
    image = first.ndim == 4
    stored = meta.get("preprocessing")
    recorded: Mapping[str, Any] = stored if isinstance(stored, Mapping) else {}
    imagenet = architecture.ref.startswith(("torchvision:", "timm:")) and image and first.shape[1] == 3
    return Preprocessing(
        mean=tuple(recorded.get("mean", (0.485, 0.456, 0.406) if imagenet else ())),  # of ImageNet, torchvision's own
        std=tuple(recorded.get("std", (0.229, 0.224, 0.225) if imagenet else ())),
        size=(int(first.shape[2]), int(first.shape[3])) if image else None,
        channels=int(first.shape[1]) if image else None,
    )
