"""From a trained checkpoint to a smaller network that is really faster.

    Checkpoint ─trace→ ChannelGroup* ─score→ Scores ─plan→ PruningPlan ─shrink→ Checkpoint ─retrain→ Checkpoint
                            ↑ Calibration                 ↑ Cost                                  │
                                    report ←─ Accuracy, Cost, Speedup ←─ bench ←─ Artifact ←─export┘

    from compressor import ChannelBudget, Request, load, prune

    small = prune(load("model.pt"), Request(budget=ChannelBudget(ratio=0.5))).checkpoint.module

Everything below is imported when it is first asked for: `import compressor` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Checkpoint": "checkpoint",
    "load": "checkpoint",
    "load_data": "sources",
    "trace": "groups",
    "Request": "request",
    "prune": "pipeline",
    "ChannelBudget": "plan",
    "CostBudget": "plan",
    "shrink": "shrink",
    "prove": "shrink",
    "retrain": "retrain",
    "evaluate": "evaluate",
    "export_onnx": "export",
    "bench": "bench",
    "write_artifact": "artifact",
    "CompressError": "errors",
}
__all__ = tuple(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `compressor` has no attribute `{name}`")
    return getattr(importlib.import_module(f"compressor.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
