"""From a trained checkpoint to a smaller network that is really faster.

    Checkpoint ─trace→ ChannelGroup* ─score→ Scores ─plan→ PruningPlan ─shrink→ module ─repair→ ─retrain→ Checkpoint
                            ↑ Calibration        ↑ Cost, Curve*                                              │
                                     report ←─ Accuracy, Cost, Speedup ←─ bench ←─ Artifact ←─export─────────┘

    from compressor import ChannelBudget, Request, load, prune

    small = prune(load("model.pt"), Request(budget=ChannelBudget(ratio=0.5))).checkpoint.module

Everything below is imported when it is first asked for: `import compressor` costs nothing. Where a module and its
function share a name (`retrain`, say), the package's attribute is the function; `from compressor.training.retraining import ...`
reads the module.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_HOMES = {
    "Checkpoint": "checkpoint.loading",
    "load": "checkpoint.loading",
    "load_data": "data.sources",
    "trace": "channels.groups",
    "Request": "pruning.request",
    "prune": "pruning.pipeline",
    "ChannelBudget": "surgery.plan",
    "CostBudget": "surgery.plan",
    "LatencyBudget": "surgery.plan",
    "Scope": "surgery.plan",
    "Repair": "pruning.repair.repairing",
    "shrink": "surgery.shrinking",
    "reference_of": "surgery.proof",
    "prove": "surgery.proof",
    "retrain": "training.retraining",
    "evaluate": "measuring.accuracy",
    "export_onnx": "export.onnx",
    "bench": "measuring.benchmark",
    "prune_to_speed": "pruning.speed.search",
    "Goal": "pruning.speed.planner",
    "write_artifact": "checkpoint.artifacts",
    "CompressError": "errors",
}
__all__ = tuple(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `compressor` has no attribute `{name}`")
    return getattr(importlib.import_module(f"compressor.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """The package itself: importing a module must not hide the function of the same name behind it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
