"""Example inputs from the user's data, so that the network is traced and proved on the kind of input it is for."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.fitting import FORWARD_ERRORS
from compressor.data.batches import first_batch
from compressor.data.splits import Data
from compressor.graph.input_spec import InputSpec
from compressor.graph.lent import state_kept
from compressor.graph.outputs import outputs_of

LOOKED_AT = 16  # samples; their range is that of further inputs


def with_examples_of(checkpoint: Checkpoint, data: Data | None) -> Checkpoint:
    """Return the checkpoint with the first sample of the data as its example, preprocessed for the network.

    The checkpoint stays unchanged if no data may be used for decisions, if the samples have other shapes or types than
    its inputs, and if its outputs on the sample are not finite.
    """
    several = _first_samples(checkpoint, data)
    olds, one = checkpoint.example_inputs, tuple(part[:1] for part in several)
    if [(t.shape, t.dtype) for t in olds] != [(t.shape, t.dtype) for t in one] or not _answers(checkpoint, one):
        return checkpoint
    named = checkpoint.input_specs or tuple(InputSpec(shape=tuple(t.shape)) for t in one)
    specs = tuple(_spec(old, part) for old, part in zip(named, several, strict=True))
    return dataclasses.replace(checkpoint, example_inputs=one, input_specs=specs)


def _spec(old: InputSpec, several: Tensor) -> InputSpec:
    """The description of an input of which these are examples. A constant input has no range; whole numbers have the
    user's, or the network's, as few examples do not show how far they go.
    """
    low, high = float(several.amin()), float(several.amax())
    spec = dataclasses.replace(old, shape=(1, *several.shape[1:]), dtype=several.dtype)
    if not several.is_floating_point():
        return spec
    below = math.nextafter(high, math.inf)
    return dataclasses.replace(spec, low=None if low == high else low, below=None if low == high else below)


def _first_samples(checkpoint: Checkpoint, data: Data | None) -> tuple[Tensor, ...]:
    """The first samples of the split for decisions; never of the test split."""
    split = None if data is None else data.train if data.train is not None else data.tune
    if split is None or not len(split):
        return ()
    return first_batch(split, size=LOOKED_AT, preprocessing=checkpoint.preprocessing).inputs


def _answers(checkpoint: Checkpoint, inputs: tuple[Tensor, ...]) -> bool:
    """True if the network runs on the inputs with finite outputs."""
    try:
        with state_kept(checkpoint.module):
            outputs = outputs_of(checkpoint.module, inputs)
    except FORWARD_ERRORS:
        return False
    return all(bool(torch.isfinite(t).all()) for t in outputs if t.is_floating_point() or t.is_complex())
