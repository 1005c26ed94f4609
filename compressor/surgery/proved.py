"""From a plan to a small network that is proved, and the groups at fault where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from compressor.channels.groups import Traced
from compressor.errors import SurgeryError
from compressor.surgery.plan import PruningPlan
from compressor.surgery.proof import Proof, Reference, differing, prove, reference_of
from compressor.surgery.shrinking import shrink
from compressor.surgery.surgery import Surgery

FLOAT64_FIRST = 100_000_000  # parameters; above it float64 takes much time and memory, and is for the last resort


def shrink_proved(
    module: nn.Module, traced: Traced, plan: PruningPlan, example_inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, Surgery, Proof]:
    """The small network in the first form that is proved, its surgery and the proof; refused where there is none."""
    references = cache(lambda dtype: reference_of(module, traced, plan, example_inputs, dtype=dtype))
    dtypes = [torch.float64, torch.float32]
    if sum(p.numel() for p in module.parameters()) > FLOAT64_FIRST:
        dtypes.reverse()
    proofs: list[Proof] = []

    def judge(form: nn.Module) -> None:
        proofs.append(_proved(form, references, dtypes))

    small, surgery = shrink(module, traced, plan, example_inputs, judge=judge)
    return small, surgery, proofs[-1]


def _proved(small: nn.Module, references: Callable[[torch.dtype], Reference], dtypes: Sequence[torch.dtype]) -> Proof:
    """The proof in the first of `dtypes` in which it holds; refused where it does not.

    One in float64 that does not hold is final, but for a detector: it makes anchors in the type of its input, which its
    graph has in float32, and they differ by rounding.
    """
    proof: Proof | None = None
    for dtype in dtypes:
        try:
            reference = references(dtype)
            proof = prove(small, reference)
            if proof.holds or (dtype is torch.float64 and not reference.ground.exported.choices):
                break
        except SurgeryError:
            if dtype is dtypes[-1]:
                raise
    assert proof is not None
    if not proof.holds:
        raise differing(proof.largest_relative_difference)
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
