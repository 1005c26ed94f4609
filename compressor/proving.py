"""From a plan to a small network that is proved, and the groups at fault where there is none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.errors import SurgeryError
from compressor.groups import Traced
from compressor.plan import PruningPlan
from compressor.shrink import Proof, fits_float64, prove, shrink
from compressor.surgery import Surgery


def shrink_proved(
    module: nn.Module, traced: Traced, plan: PruningPlan, example_inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, Surgery, Proof]:
    """The small network, its surgery and the proof; refused where there is none."""
    small, surgery = shrink(module, traced, plan, example_inputs)
    return small, surgery, proved(module, small, traced, plan, example_inputs)


def proved(
    module: nn.Module, small: nn.Module, traced: Traced, plan: PruningPlan, example_inputs: tuple[Tensor, ...]
) -> Proof:
    """The surgery proof, in float64 where the network is small enough; refused where it does not hold."""
    dtypes = [torch.float64, torch.float32] if fits_float64(module) else [torch.float32]
    proof: Proof | None = None
    for dtype in dtypes:
        try:
            proof = prove(module, small, traced, plan, example_inputs, dtype=dtype)
            # a detector makes anchors in the type of its input, which its graph has in float32: they differ by rounding
            if proof.holds or not traced.ground.exported.choices:
                break
        except SurgeryError:
            if dtype is dtypes[-1]:
                raise
    assert proof is not None
    if not proof.holds:
        raise SurgeryError(
            f"the small network differs from the silenced dense one by {proof.largest_relative_difference:.2g}",
            hint="`compress inspect` lists the groups; protect some: `--protect NAME`",
        )
    return proof


def unprovable(module: nn.Module, traced: Traced, plan: PruningPlan, inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """The groups whose removal breaks the network or fails the proof: root → reason. Found by halves."""

    def found_in(roots: list[str]) -> dict[str, str]:
        alone = PruningPlan(removed={root: plan.removed[root] for root in roots})
        try:
            shrink_proved(module, traced, alone, inputs)
        except SurgeryError as error:
            middle = len(roots) // 2
            parts = [found_in(part) for part in (roots[:middle], roots[middle:]) if middle]
            reason = f"removing its channels cannot be proved safe: {error}"
            return {root: why for part in parts for root, why in part.items()} or dict.fromkeys(roots, reason)
        return {}

    removing = [group.root for group in traced.groups if plan.removed.get(group.root)]
    return found_in(removing) if removing else {}
