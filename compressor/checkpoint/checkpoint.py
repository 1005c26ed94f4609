"""A trained network with what is needed to run, rebuild and retrain it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.recipes import Recipe
from compressor.data.splits import Preprocessing
from compressor.graph.input_spec import InputSpec
from compressor.surgery.surgery import Surgery


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A network in eval mode, inputs that it runs on, and how it can be rebuilt.

    `surgery` and `lineage` say what was cut and trained since the dense network; `training` is the dense network's own
    recipe, where it is known. `input_specs` say what inputs look like. The module computes in float32; `types` are
    those that its tensors came in where they were others, by name, and in which an artifact keeps them.
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
    types: Mapping[str, torch.dtype] = field(default_factory=dict)
