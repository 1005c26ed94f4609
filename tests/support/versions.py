"""Versions of torch that are still allowed and do less: a test names the version here, and expects the refusal."""

from __future__ import annotations

import torch

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))

KEPT_FEATURES_ARE_REFUSED = TORCH < (2, 10)  # its exporter raises where `forward` keeps a tensor beside the buffers
COLLECTED_INPUTS_FIX_THE_BATCH = TORCH < (2, 10)  # its exporter mistakes the names of what `*inputs` collects
WIDTHS_ARE_IN_THE_GRAPH = TORCH < (2, 11)  # its ONNX files hold some widths in other places than the shapes
