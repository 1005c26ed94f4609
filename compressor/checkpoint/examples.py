"""Example inputs from the user's data, so that the network is traced and proved on the kind of input it is for."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.fitting import FORWARD_ERRORS
from compressor.data.batches import batches
from compressor.data.splits import Data
from compressor.graph.input_spec import InputSpec
from compressor.graph.lent import state_kept
from compressor.graph.outputs import outputs_of

LOOKED_AT = 16  # images; their range is that of further inputs


def with_examples_of(checkpoint: Checkpoint, data: Data | None) -> Checkpoint:
    """Return the checkpoint with the first image of the data as its example, preprocessed for the network.

    The checkpoint stays unchanged if no data may be used for decisions, if the network reads more than one image, or
    images of another shape, and if its outputs on the image are not finite.
    """
    first = _first_batch(checkpoint, data)
    if first is None or len(checkpoint.example_inputs) != 1:
        return checkpoint
    (old,), image = checkpoint.example_inputs, first[:1]
    if old.shape != image.shape or old.dtype is not image.dtype or not _answers(checkpoint, image):
        return checkpoint
    low, below = float(first.min()), math.nextafter(float(first.max()), math.inf)
    named = checkpoint.input_specs[0].name if checkpoint.input_specs else None
    spec = InputSpec(name=named, shape=tuple(image.shape), dtype=image.dtype, low=low, below=below)
    if low == float(first.max()):  # constant images define no range
        spec = dataclasses.replace(spec, low=None, below=None)
    return dataclasses.replace(checkpoint, example_inputs=(image,), input_specs=(spec,))


def _first_batch(checkpoint: Checkpoint, data: Data | None) -> Tensor | None:
    """The first images of the split for decisions; never of the test split."""
    split = None if data is None else data.train if data.train is not None else data.tune
    if split is None or not len(split):
        return None
    inputs, _ = next(batches(split, batch_size=LOOKED_AT, preprocessing=checkpoint.preprocessing))
    return inputs


def _answers(checkpoint: Checkpoint, image: Tensor) -> bool:
    """True if the network runs on the image with finite outputs."""
    try:
        with state_kept(checkpoint.module):
            outputs = outputs_of(checkpoint.module, [image])
    except FORWARD_ERRORS:
        return False
    return all(bool(torch.isfinite(t).all()) for t in outputs if t.is_floating_point() or t.is_complex())
