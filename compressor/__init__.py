"""From a trained checkpoint to a smaller network that is really faster.

    Checkpoint ─trace→ ChannelGroup* ─score→ Scores ─plan→ PruningPlan ─shrink→ module ─repair→ ─retrain→ Checkpoint
                            ↑ Calibration        ↑ Cost, Curve*                                              │
                                     report ←─ Accuracy, Cost, Speedup ←─ bench ←─ Artifact ←─export─────────┘

    from compressor import ChannelBudget, Request, load, prune

    small = prune(load("model.pt"), Request(budget=ChannelBudget(ratio=0.5))).checkpoint.module

Everything below is imported when it is first asked for: `import compressor` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compressor.channels.groups import trace as trace
    from compressor.checkpoint.artifact_writing import write_artifact as write_artifact
    from compressor.checkpoint.checkpoint import Checkpoint as Checkpoint
    from compressor.checkpoint.loading import load as load
    from compressor.data.sources import load_data as load_data
    from compressor.errors import CompressError as CompressError
    from compressor.export.onnx import export_onnx as export_onnx
    from compressor.measuring.benchmark import bench as bench
    from compressor.measuring.quality import evaluate as evaluate
    from compressor.pruning.pipeline import prune as prune
    from compressor.pruning.repair.repairing import Repair as Repair
    from compressor.pruning.request import Request as Request
    from compressor.pruning.speed.planner import Goal as Goal
    from compressor.pruning.speed.search import prune_to_speed as prune_to_speed
    from compressor.results.artifact import Results as Results
    from compressor.surgery.plan import ChannelBudget as ChannelBudget
    from compressor.surgery.plan import CostBudget as CostBudget
    from compressor.surgery.plan import LatencyBudget as LatencyBudget
    from compressor.surgery.plan import Scope as Scope
    from compressor.surgery.proof import prove as prove
    from compressor.surgery.proof import reference_of as reference_of
    from compressor.surgery.shrinking import shrink as shrink
    from compressor.tasks.task import Task as Task
    from compressor.training.retraining import retrain as retrain

_HOMES = {
    "Checkpoint": "checkpoint.checkpoint",
    "load": "checkpoint.loading",
    "load_data": "data.sources",
    "Task": "tasks.task",
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
    "evaluate": "measuring.quality",
    "Results": "results.artifact",
    "export_onnx": "export.onnx",
    "bench": "measuring.benchmark",
    "prune_to_speed": "pruning.speed.search",
    "Goal": "pruning.speed.planner",
    "write_artifact": "checkpoint.artifact_writing",
    "CompressError": "errors",
}
__all__ = tuple(_HOMES)

if not TYPE_CHECKING:  # with it every misspelt name would have a type

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module `compressor` has no attribute `{name}`")
        return getattr(importlib.import_module(f"compressor.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
