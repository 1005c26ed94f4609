"""Prove that a small network computes what the dense network computes without the removed channels.

The reference is the dense network with exactly the removed channels silenced where they are *read*: a channel that is
silenced where it is produced becomes non-zero again behind a bias or a norm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from compressor.channels.groups import Traced
from compressor.channels.silenced import silenced_outputs, small_outputs, whole_layers
from compressor.channels.tracing import Trace
from compressor.errors import InternalError, SurgeryError
from compressor.graph.input_spec import random_like
from compressor.graph.outputs import relative_difference
from compressor.graph.precision import TypesSeen, copy_in_precision, in_precision, narrowest
from compressor.results.changes import SurgeryProof
from compressor.surgery.plan import PruningPlan, gone_labels

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
FLOOR = 1e-6  # the effect of rounding to float32 once or twice
TIMES = 10  # each value is rounded separately, and some more than once


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The difference of the small network's outputs from the silenced dense one's: the largest max |a - b| / max |b|.

    `moved`: relative change of the dense network's outputs caused by silencing alone. If it is 0, the comparison proves
    nothing. Both networks run in `dtype`. Where the difference is too large for that type, `narrowest` is the least
    precise type in which their own code computes anyway (a cast, a mask, a norm fixed to float32).
    """

    largest_relative_difference: float
    moved: float
    dtype: torch.dtype
    outputs: int
    inputs: str  # "random", "example" or "example and random"
    narrowest: torch.dtype | None = None
    rounding: float = 0.0  # change of the outputs when weights and inputs change by a last bit of `narrowest`

    @property
    def tolerance(self) -> float:
        """The largest difference that counts as rounding.

        Where a part is computed in a narrower type, it is a multiple of the effect of that type's last bit on these
        outputs: a wrong cut with a small effect must not pass as rounding.
        """
        own = TOLERANCE[self.dtype]
        if self.narrowest is None or self.narrowest is self.dtype:
            return own
        return max(own, min(TOLERANCE.get(self.narrowest, own), max(FLOOR, TIMES * self.rounding)))

    @property
    def holds(self) -> bool:
        """True if the difference is only rounding."""
        return self.largest_relative_difference <= self.tolerance

    @property
    def vacuous(self) -> bool:
        """True if the removed channels do not affect the outputs on the proof's inputs: it then shows nothing."""
        return self.moved <= self.tolerance

    @property
    def result(self) -> SurgeryProof:
        """The `proof` of an artifact's results."""
        return SurgeryProof(
            dtype=_name(self.dtype),
            narrowest=_name(self.narrowest or self.dtype),
            tolerance=self.tolerance,
            largest_relative_difference=self.largest_relative_difference,
            moved=self.moved,
            vacuous=self.vacuous,
            inputs=self.inputs,
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The dense network's side of the proof: its outputs on `inputs` with the removed channels silenced, `silenced`.

    `whole` are the layers that are compared besides the outputs.
    """

    ground: Trace
    dense: nn.Module
    dtype: torch.dtype
    inputs: list[Tensor]
    whole: Mapping[str, Sequence[fx.Node]]
    silenced: list[Tensor]

    @cached_property
    def moved(self) -> float:
        """The relative change of the dense network's outputs caused by silencing."""
        unchanged = silenced_outputs(self.ground, self.dense, set(), self.inputs, self.whole, dtype=self.dtype)
        return max(map(relative_difference, self.silenced, unchanged))


def reference_of(
    dense: nn.Module,
    traced: Traced,
    plan: PruningPlan,
    example_inputs: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float64,
) -> Reference:
    """Return the reference for a small network, in `dtype`, on the example and a random input like it.

    A data-dependent network (a detector) is compared on the example, under the dense network's choices, in its outputs
    and in the tensors that it chooses from. Refused: a network that does not run in `dtype`.
    """
    inputs = [in_precision(t, dtype) for t in _inputs_for(traced, example_inputs)]
    gone = gone_labels(traced.groups, plan)
    whole = whole_layers(traced.ground, gone)
    try:
        silenced = silenced_outputs(traced.ground, dense, gone, inputs, whole, dtype=dtype)
    except Exception as error:  # a program's operators can raise anything
        _check_runs(traced.ground, dense, inputs, whole, dtype)
        raise InternalError(f"the dense network runs, but not with some channels silenced: {error}") from error
    return Reference(ground=traced.ground, dense=dense, dtype=dtype, inputs=inputs, whole=whole, silenced=silenced)


def _check_runs(
    ground: Trace,
    dense: nn.Module,
    inputs: Sequence[Tensor],
    whole: Mapping[str, Sequence[fx.Node]],
    dtype: torch.dtype,
) -> None:
    """Refused: a dense network whose program does not run in `dtype`, with nothing silenced."""
    try:
        silenced_outputs(ground, dense, set(), inputs, whole, dtype=dtype)
    except Exception as error:  # as above
        raise SurgeryError(
            f"the dense network does not compute in {_name(dtype)}", hint="its code fixes the type of some numbers"
        ) from error


def prove(small: nn.Module, reference: Reference) -> Proof:
    """Return the surgery proof of a small network that holds the dense one's own weights.

    Refused: a small network that does not run, or whose outputs have another shape. A difference is not refused here:
    the caller judges it (`Proof.holds`).
    """
    worst, narrow, rounding = difference(small, reference), None, 0.0
    if worst > TOLERANCE[reference.dtype]:
        narrow = narrowest(_types_in(small, reference))
        if narrow is not None and narrow is not reference.dtype:
            rounding = _rounding(reference, torch.finfo(narrow).eps)
    return Proof(
        largest_relative_difference=worst,
        moved=reference.moved,
        dtype=reference.dtype,
        outputs=len(reference.silenced),
        inputs=_kind_of_inputs(reference.ground),
        narrowest=narrow,
        rounding=rounding,
    )


def _rounding(reference: Reference, bit: float) -> float:
    """The change of the dense network's outputs when every weight and every input changes by a relative `bit`, up or
    down.
    """
    generator = torch.Generator().manual_seed(0)

    def nudged(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        return tensor * (1 + bit * (torch.rand(tensor.shape, generator=generator).round() * 2 - 1).to(tensor.device))

    twin = copy_in_precision(reference.dense, reference.dtype)
    with torch.no_grad():
        for parameter in nn.Module.parameters(twin):
            parameter.copy_(nudged(parameter).to(parameter.dtype))
    inputs = [nudged(t).to(t.dtype) for t in reference.inputs]
    outputs = [
        silenced_outputs(reference.ground, network, set(), values, reference.whole, dtype=reference.dtype)
        for network, values in ((reference.dense, reference.inputs), (twin, inputs))
    ]
    return max(map(relative_difference, *outputs))


def _types_in(small: nn.Module, reference: Reference) -> set[torch.dtype]:
    """The number types that both networks compute in; this takes a pass of each."""
    twin = copy_in_precision(reference.dense, reference.dtype)  # the stored type of weights is not a type they run in
    computed = TypesSeen()
    with computed:
        silenced_outputs(reference.ground, twin, set(), reference.inputs, reference.whole, dtype=reference.dtype)
    _answers(small, reference, watched=computed)
    return computed.seen


def _answers(small: nn.Module, reference: Reference, *, watched: TypesSeen | None = None) -> list[Tensor]:
    """The small network's outputs in the reference's type."""
    twin = copy_in_precision(small, reference.dtype).eval()
    with watched or contextlib.nullcontext():
        try:
            return small_outputs(reference.ground, twin, reference.inputs, reference.whole, dtype=reference.dtype)
        except Exception as error:  # a forward pass runs the user's code, which can raise anything
            raise not_running(small) from error


def difference(small: nn.Module, reference: Reference) -> float:
    """Return the largest relative difference between the small network and the reference. Refused: as in `prove`."""
    answers = _answers(small, reference)
    if [t.shape for t in reference.silenced] != [t.shape for t in answers]:
        raise SurgeryError(
            "the small network's outputs have another shape", hint="protect the last layer: `--protect NAME`"
        )
    return max(map(relative_difference, answers, reference.silenced))


def differing(worst: float) -> SurgeryError:
    """Return the error for a small network that differs from the dense one."""
    return SurgeryError(
        f"the small network differs from the silenced dense one by {worst:.2g}",
        hint="`compress inspect` lists the groups; protect some: `--protect NAME`",
    )


def _kind_of_inputs(ground: Trace) -> str:
    """The inputs of the proof, in words."""
    if ground.exported.choices:
        return "example"
    return "example and random" if ground.exported.open else "random"


def not_running(small: nn.Module) -> SurgeryError:
    """Return the error for a small network that fails on its own widths, because some code needs the dense ones."""
    holder = "its program" if isinstance(small, fx.GraphModule) else "its own code"
    return SurgeryError(
        f"the small network does not run: {holder} contains a width of the dense one",
        hint="protect the layer: `--protect NAME`",
    )


def _inputs_for(traced: Traced, example_inputs: Sequence[Tensor]) -> list[Tensor]:
    """The example and random inputs like it, in one batch; with a fixed batch size, random inputs alone."""
    if traced.ground.exported.choices:  # the graph has the choices of the example
        return list(example_inputs)
    first = example_inputs[0]
    if not traced.ground.exported.open:
        return random_like(example_inputs, batch=len(first) if first.ndim else 1)
    drawn = random_like(example_inputs, batch=1)
    return [torch.cat([t[:1], other]) if t.ndim else t for t, other in zip(example_inputs, drawn, strict=True)]
