"""The recipe of an artifact, `recipe.json`: a checkpoint without its tensors as plain values, and back; its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.checkpoint.architectures import Architecture
    from compressor.checkpoint.checkpoint import Checkpoint
    from compressor.data.preprocessing import Preprocessing
    from compressor.graph.input_spec import InputSpec

SCHEMA = 2  # schema 1 hashed only the files, not the program and the numbers in the recipe itself


def recipe_of(checkpoint: Checkpoint, *, source: Mapping[str, str]) -> dict[str, Any]:
    """Return the recipe that rebuilds the small network, as plain values."""
    from compressor.graph.input_spec import specs_of
    from compressor.surgery.surgery import Surgery

    architecture, preprocessing = checkpoint.architecture, checkpoint.preprocessing
    return {
        "schema": SCHEMA,
        "name": checkpoint.name,
        "architecture": {
            "ref": architecture.ref,
            "arguments": [list(pair) for pair in architecture.arguments],
            "sha256": architecture.sha256,
        },
        "source": dict(source),
        "input": [list(t.shape) for t in checkpoint.example_inputs],
        "dtypes": [str(t.dtype).removeprefix("torch.") for t in checkpoint.example_inputs],
        "inputs": [spec.to_json() for spec in checkpoint.input_specs or specs_of(checkpoint.example_inputs)],
        **({"outputs": list(checkpoint.outputs)} if checkpoint.outputs else {}),
        "types": {name: str(dtype).removeprefix("torch.") for name, dtype in checkpoint.types.items()},
        "preprocessing": {
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "size": list(preprocessing.size) if preprocessing.size else None,
            "channels": preprocessing.channels,
        },
        "classes": list(checkpoint.classes) if checkpoint.classes else None,
        "training": checkpoint.training.to_json() if checkpoint.training else None,
        "surgery": (checkpoint.surgery or Surgery()).to_json(),
        "lineage": list(checkpoint.lineage),
    }


def sealed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe with the hash of everything that it computes with: all its fields, except the dense network's
    path.
    """
    covered = {key: value for key, value in recipe.items() if key != "sha256"}
    covered["source"] = {key: value for key, value in recipe["source"].items() if key != "path"}
    content = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return {**recipe, "sha256": hashlib.sha256(content.encode()).hexdigest()}


def recipe_sha256(recipe: Mapping[str, Any]) -> str:
    """Return the hash of the whole artifact; with schema 1, of its files alone."""
    if recipe["schema"] >= 2:
        return str(recipe["sha256"])
    return hashlib.sha256(json.dumps(recipe["files"], sort_keys=True).encode()).hexdigest()


def preprocessing_in(recipe: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing in the recipe."""
    from compressor.data.preprocessing import Preprocessing

    plain = recipe["preprocessing"]
    return Preprocessing(
        mean=tuple(plain["mean"]),
        std=tuple(plain["std"]),
        size=tuple(plain["size"]) if plain["size"] else None,
        channels=plain["channels"],
    )


def architecture_in(plain: Mapping[str, Any]) -> Architecture:
    """The architecture in the recipe."""
    from compressor.checkpoint.architectures import Architecture

    arguments = tuple((k, v) for k, v in plain["arguments"])
    return Architecture(ref=plain["ref"], arguments=arguments, sha256=plain["sha256"])


def specs_in(recipe: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    """The network's inputs; recipes of earlier versions have only shapes and types, and their integers are zeros."""
    from compressor.graph.input_spec import TYPES, InputSpec, spec_from_json

    if "inputs" in recipe:
        return tuple(map(spec_from_json, recipe["inputs"]))
    return tuple(
        InputSpec(shape=tuple(shape), dtype=TYPES[kind], low=low, below=below)
        for shape, kind in zip(recipe["input"], recipe["dtypes"], strict=True)
        for low, below in [(None, None) if TYPES[kind].is_floating_point else (0, 1)]
    )
