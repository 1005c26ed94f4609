"""A trained network with everything needed to run, rebuild and retrain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.inputs import forward_names
from compressor.checkpoint.recipes import Recipe
from compressor.data.preprocessing import Preprocessing
from compressor.graph.input_spec import InputSpec
from compressor.surgery.surgery import Surgery


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A network in eval mode, inputs that it runs on, and how it can be rebuilt.

    `surgery` and `lineage` record what was cut and trained since the dense network; `training` is the dense network's
    own recipe, if known. `input_specs` describe the inputs; `outputs` name the outputs that matter, if not all do. The
    module computes in float32; `types` are the original types of its other tensors, by name, and an artifact stores
    them in these types. `key` is the user's `--key`.
    """

    module: nn.Module
    example_inputs: tuple[Tensor, ...]
    architecture: Architecture
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    name: str
    path: str
    sha256: str
    lineage: tuple[dict[str, object], ...] = ()
    training: Recipe | None = None
    surgery: Surgery | None = None
    input_specs: tuple[InputSpec, ...] = ()
    outputs: tuple[str, ...] = ()
    types: Mapping[str, torch.dtype] = field(default_factory=dict)
    key: str | None = None

    def __post_init__(self) -> None:
        if not self.preprocessing.takes:  # what of an item is read follows from the network's own inputs
            takes = input_names(self.module, self.input_specs, count=len(self.example_inputs))
            object.__setattr__(self, "preprocessing", replace(self.preprocessing, takes=takes))

    @property
    def reads_images(self) -> bool:
        """Whether its only input is a batch of images."""
        return len(self.example_inputs) == 1 and self.example_inputs[0].ndim == 4

    @property
    def source(self) -> dict[str, str]:
        """Return where its file is, what its hash is and which key of it was read, as a recipe records it."""
        read = {} if self.key is None else {"key": self.key}
        return {"path": str(Path(self.path).resolve()), "sha256": self.sha256, **read}


def input_names(module: nn.Module, specs: Sequence[InputSpec], *, count: int) -> tuple[str, ...]:
    """Return the names of the network's `count` inputs: those that are set, else those of `forward`'s first arguments,
    else numbers.
    """
    arguments = forward_names(module)
    own = [*arguments, *(str(i) for i in range(len(arguments), count))]
    return tuple(spec.name or name for spec, name in zip(specs, own, strict=False)) or tuple(own[:count])
