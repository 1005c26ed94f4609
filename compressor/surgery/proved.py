"""Turn a plan into a small network that is proved, or find the groups that prevent it."""

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

FLOAT64_FIRST = 100_000_000  # parameters; above it float64 needs much time and memory, and is the last resort


def shrink_proved(
    module: nn.Module, traced: Traced, plan: PruningPlan, example_inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, Surgery, Proof]:
    """Return the first form of the small network that is proved, its surgery and the proof. Refused: none is proved."""
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
    """The proof in the first of `dtypes` in which it holds. Refused: it holds in none.

    A proof in float64 that does not hold is final, except for a detector: it creates anchors in the type of its input,
    but its graph has them in float32, and they differ by rounding.
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
    """Return the groups whose removal breaks the network or fails the proof, with the reason: root → reason.

    It searches by halving.
    """

    def failing(roots: list[str]) -> dict[str, str]:
        alone = PruningPlan(removed={root: plan.removed[root] for root in roots})
        try:
            shrink_proved(module, traced, alone, inputs)
        except SurgeryError as error:
            middle = len(roots) // 2
            parts = [failing(part) for part in (roots[:middle], roots[middle:]) if middle]
            reason = f"removing its channels cannot be proved safe: {error}"
            return {root: why for part in parts for root, why in part.items()} or dict.fromkeys(roots, reason)
        return {}

    removing = [group.root for group in traced.groups if plan.removed.get(group.root)]
    return failing(removing) if removing else {}
