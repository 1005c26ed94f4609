"""What `compress sensitivity` does: for every channel group, the output's error against the group's width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compressor.calibration import calibration_batches, calibration_split
from compressor.checkpoint import Checkpoint
from compressor.data import Data
from compressor.environment import environment
from compressor.groups import Traced, trace
from compressor.pipeline import score
from compressor.probing import Probing, fitted_and_probed, measured_curves
from compressor.request import Request
from compressor.sensitivity import Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivities:
    """A network's curves, and what they were measured on."""

    checkpoint: Checkpoint
    request: Request
    traced: Traced
    curves: tuple[Curve, ...]
    data: str
    fitted: int  # images that readers were fitted on
    probed: int  # other images, that the error was measured on

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        seen = {curve.root for curve in self.curves}
        return {
            "name": self.checkpoint.name,
            "criterion": self.request.criterion,
            "align": self.request.multiple,
            "seed": self.request.seed,
            "data": {"name": self.data, "fitted": self.fitted, "probed": self.probed},
            "error": "squared error of the output over its variance, one group narrowed and repaired at a time",
            "groups": [{"root": c.root, "widths": list(c.widths), "errors": list(c.measured)} for c in self.curves],
            "not_seen": [g.root for g in self.traced.groups if g.root not in seen],
            "left_alone": [{"layer": a.layer, "reason": a.reason} for a in self.traced.left_alone],
            "environment": environment(),
        }


def measure_curves(
    checkpoint: Checkpoint, request: Request, data: Data, *, say: Callable[[str], None] | None = None
) -> Sensitivities:
    """The curves of every group that can be pruned and whose readers can be seen; the network stays as it was.

    Refused: nothing prunable, a network that cannot be followed, no images.
    """
    say = say or (lambda _: None)
    say("tracing the channel groups")
    traced = trace(checkpoint.module, checkpoint.example_inputs, protect=request.protect)
    say(f"scoring by {request.criterion}")
    scores, calibration = score(checkpoint.module, traced.groups, request, data=data, checkpoint=checkpoint)
    images = calibration_batches(
        calibration_split(data), request.images, preprocessing=checkpoint.preprocessing, seed=request.seed
    )
    fitted, probed = fitted_and_probed(images)
    probing = Probing(
        module=checkpoint.module,
        groups=traced.groups,
        scores=scores,
        readings=calibration.readings,
        fitted=fitted,
        probed=probed,
    )
    return Sensitivities(
        checkpoint=checkpoint,
        request=request,
        traced=traced,
        curves=measured_curves(probing, request, say=say),
        data=data.name,
        fitted=sum(len(b[0]) for b in fitted),
        probed=sum(len(b[0]) for b in probed),
    )
