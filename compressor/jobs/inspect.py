"""What can be pruned in a network: its groups, their sizes, the layers left alone, and the effect of a few ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from compressor.channels.groups import ChannelGroup, Traced, trace
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.graph.input_spec import specs_of
from compressor.planning.costs import Cost, CostModel
from compressor.surgery.plan import ChannelBudget, Countable, Scores, Sharing, plan_pruning

RATIOS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A network, its groups, and the result of a uniform ratio: shares of channels, parameters and MACs."""

    checkpoint: Checkpoint
    cost: Cost
    traced: Traced
    sizes: dict[str, tuple[int, int]]  # root → parameters and MACs of the layers that produce or read its channels
    would_leave: tuple[tuple[float, float, float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        names = ("ratio", "channels", "params", "macs")
        return {
            "name": self.checkpoint.name,
            "architecture": self.checkpoint.architecture.ref,
            "input": [list(t.shape) for t in self.checkpoint.example_inputs],
            "inputs": [spec.shown for spec in self.checkpoint.input_specs or specs_of(self.checkpoint.example_inputs)],
            "params": self.cost.params,
            "macs": self.cost.macs,
            "bytes": self.cost.bytes,
            "groups": [
                {
                    "root": g.root,
                    "channels": g.channels,
                    "size": g.size,
                    "heads": g.heads,
                    "layers": list(g.layers),
                    "params": self.sizes[g.root][0],
                    "macs": self.sizes[g.root][1],
                }
                for g in self.traced.groups
            ],
            "left_alone": [{"layer": a.layer, "reason": a.reason} for a in self.traced.left_alone],
            "would_leave": [dict(zip(names, row, strict=True)) for row in self.would_leave],
        }


def inspect(checkpoint: Checkpoint, *, protect: tuple[str, ...] = ()) -> Inspection:
    """Return what can be pruned in the checkpoint's network, and the effect; the network stays unchanged."""
    traced = trace(checkpoint.module, checkpoint.example_inputs, protect=protect)
    model = CostModel(checkpoint.module, traced.groups, checkpoint.example_inputs)
    alike = Scores(by_root={g.root: torch.zeros(g.channels) for g in traced.groups}, comparable=True)
    channels = sum(g.channels for g in traced.groups)
    rows = []
    for ratio in RATIOS:
        plan = plan_pruning(
            traced.groups, alike, budget=ChannelBudget(ratio=ratio), sharing=Sharing(align=None), may_be_empty=True
        )
        stays = model.stays(plan)
        rows.append((ratio, 1 - plan.count / channels, stays[Countable.PARAMS], stays[Countable.MACS]))
    sizes = {g.root: _size(g, model) for g in traced.groups}
    return Inspection(checkpoint=checkpoint, cost=model.dense, traced=traced, sizes=sizes, would_leave=tuple(rows))


def _size(group: ChannelGroup, model: CostModel) -> tuple[int, int]:
    tensors = {m.tensor for m in group.members}
    params = sum(model.sizes.get(name, 0) for name in tensors)
    return params, sum(model.layer_macs.get(name, 0) for name in tensors)
