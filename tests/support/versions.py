"""Versions of torch that are still allowed and do less: a test names the version here, and expects the refusal."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import pytest
import torch

from compressor.errors import GroupError

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))

KEPT_FEATURES_ARE_REFUSED = TORCH < (2, 10)  # its exporter raises where `forward` keeps a tensor beside the buffers
COLLECTED_INPUTS_FIX_THE_BATCH = TORCH < (2, 10)  # its exporter mistakes the names of what `*inputs` collects
WIDTHS_ARE_IN_THE_GRAPH = TORCH < (2, 11)  # its ONNX files hold some widths in other places than the shapes


def refusal_of_kept_features() -> AbstractContextManager[object]:
    """Expects the refusal where this torch does not export them, and nothing elsewhere."""
    if KEPT_FEATURES_ARE_REFUSED:
        return pytest.raises(GroupError, match="beside its buffers while it runs, which this torch does not export")
    return contextlib.nullcontext()
