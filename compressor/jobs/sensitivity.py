"""What `compress sensitivity` does: for every channel group, the output's error against the group's width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compressor.channels.groups import Traced, trace
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.splits import Data
from compressor.environment import environment
from compressor.planning.sensitivity import Curve
from compressor.progress import Say, quiet
from compressor.pruning.probing import measured_curves, probing_of
from compressor.pruning.request import Request
from compressor.pruning.scoring import calibration_images, score


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivities:
    """A network's curves, and the data behind them."""

    checkpoint: Checkpoint
    request: Request
    traced: Traced
    curves: tuple[Curve, ...]
    data: str
    fitted: int  # images that readers were fitted on
    probed: int  # other images, that the error was measured on

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        seen = {curve.root for curve in self.curves}
        return {
            "name": self.checkpoint.name,
            "criterion": self.request.criterion,
            "align": self.request.alignment,
            "seed": self.request.seed,
            "data": {"name": self.data, "fitted": self.fitted, "probed": self.probed},
            "error": "squared error of the output over its variance, one group narrowed and repaired at a time",
            "groups": [{"root": c.root, "widths": list(c.widths), "errors": list(c.measured)} for c in self.curves],
            "not_seen": [g.root for g in self.traced.groups if g.root not in seen],
            "left_alone": [{"layer": a.layer, "reason": a.reason} for a in self.traced.left_alone],
            "environment": environment(),
        }


def measure_curves(checkpoint: Checkpoint, request: Request, data: Data, *, say: Say = quiet) -> Sensitivities:
    """Return the curves of every group that can be pruned and whose readers have a reading; the network stays
    unchanged.

    Refused: nothing prunable, a network that cannot be followed, no images.
    """
    say("tracing the channel groups")
    request = request.resolved(has_data=True)
    traced = trace(checkpoint.module, checkpoint.example_inputs, protect=request.protect, heads=request.heads)
    say(f"scoring by {request.criterion}")
    images = calibration_images(checkpoint, request, data, say=say)
    scores, calibration = score(
        checkpoint.module, traced.groups, request, data=data, images=images, checkpoint=checkpoint
    )
    probing = probing_of(checkpoint.module, traced.groups, scores, calibration, images)
    return Sensitivities(
        checkpoint=checkpoint,
        request=request,
        traced=traced,
        curves=measured_curves(probing, request, say=say),
        data=data.name,
        fitted=sum(len(b[0]) for b in probing.fitted),
        probed=sum(len(b[0]) for b in probing.probed),
    )
