"""The proof that a small network is the right one.

It is compared with the dense network in which exactly the removed channels are silenced where they are *read*: a
channel silenced where it is made can speak again behind a bias or a norm.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from compressor.errors import SurgeryError
from compressor.groups import Traced
from compressor.outputs import relative_difference
from compressor.plan import PruningPlan, gone_labels
from compressor.silence import said, silenced_outputs, whole_layers
from compressor.tracing import Trace

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """How far the small network's outputs lie from the silenced dense one's: the worst of max |a - b| / max |b|.

    `moved` is how far the silence itself moves the dense network's: where nothing moves, the proof has seen nothing.
    """

    largest_relative_difference: float
    moved: float
    dtype: torch.dtype
    outputs: int
    inputs: str  # "random" or "example"

    @property
    def holds(self) -> bool:
        """Whether the difference is one of rounding."""
        return self.largest_relative_difference <= TOLERANCE[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The dense network's side of the proof: what it says on `inputs` with the removed channels `silenced`.

    `whole` are the layers that are compared beside the outputs.
    """

    ground: Trace
    dense: nn.Module
    dtype: torch.dtype
    inputs: list[Tensor]
    whole: Mapping[str, Sequence[fx.Node]]
    silenced: list[Tensor]

    @cached_property
    def moved(self) -> float:
        """How far the silence moves what the dense network says."""
        speaking = silenced_outputs(self.ground, self.dense, set(), self.inputs, self.whole)
        return max(map(relative_difference, self.silenced, speaking))


def reference_of(
    dense: nn.Module,
    traced: Traced,
    plan: PruningPlan,
    example_inputs: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float64,
) -> Reference:
    """What a small network is compared with, in `dtype`, on two normal random inputs shaped like the example.

    A network that chooses by values what it gives (a detector) is compared on the example with the dense one's choices,
    in what it gives and in what it chooses from. Refused: a network that does not run in `dtype`.
    """
    given = [t.to(dtype) if t.is_floating_point() else t for t in _inputs_for(traced, example_inputs)]
    gone = gone_labels(traced.groups, plan)
    whole = whole_layers(traced.ground, gone)
    with _running("dense", dtype):
        silenced = silenced_outputs(traced.ground, dense, gone, given, whole)
    return Reference(ground=traced.ground, dense=dense, dtype=dtype, inputs=given, whole=whole, silenced=silenced)


def prove(small: nn.Module, reference: Reference) -> Proof:
    """The surgery proof of a small network that holds the dense one's own weights at what the plan leaves.

    Refused: a small network that does not run, or whose outputs have another shape. A difference is for the caller to
    judge (`Proof.holds`), who knows what to do about it.
    """
    return Proof(
        largest_relative_difference=difference(small, reference),
        moved=reference.moved,
        dtype=reference.dtype,
        outputs=len(reference.silenced),
        inputs="example" if reference.ground.exported.choices else "random",
    )


def difference(small: nn.Module, reference: Reference) -> float:
    """How far the small network lies from the reference; refused as by `prove`."""
    twin = copy.deepcopy(small).to(reference.dtype).eval()
    with _running("small", reference.dtype):
        answers = said(reference.ground, twin, reference.inputs, reference.whole)
    if [t.shape for t in reference.silenced] != [t.shape for t in answers]:
        raise SurgeryError(
            "the small network's outputs have another shape", hint="protect the last layer: `--protect NAME`"
        )
    return max(map(relative_difference, answers, reference.silenced))


def differing(worst: float) -> SurgeryError:
    """The refusal of a small network that is another one."""
    return SurgeryError(
        f"the small network differs from the silenced dense one by {worst:.2g}",
        hint="`compress inspect` lists the groups; protect some: `--protect NAME`",
    )


def _inputs_for(traced: Traced, example_inputs: Sequence[Tensor]) -> list[Tensor]:
    if traced.ground.exported.choices:  # its graph is that of these
        return list(example_inputs)
    batch = 2 if traced.ground.exported.open else len(example_inputs[0])
    return random_like(example_inputs, batch=batch)


@contextlib.contextmanager
def _running(which: str, dtype: torch.dtype) -> Iterator[None]:
    """A forward pass raises whatever its code raises."""
    try:
        yield
    except (RuntimeError, IndexError, ValueError, AssertionError) as error:
        raise SurgeryError(f"the {which} network does not run in {dtype}: {error}") from error


def random_like(example_inputs: Sequence[Tensor], *, batch: int = 2, seed: int = 0) -> list[Tensor]:
    """Normal random tensors of the examples' shapes with another batch size; integer inputs are repeated."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, *t.shape[1:], generator=generator) if t.is_floating_point() else torch.cat([t[:1]] * batch)
        for t in example_inputs
    ]
