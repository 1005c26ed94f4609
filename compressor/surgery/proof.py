"""The proof that a small network is the right one.

It is compared with the dense network in which exactly the removed channels are silenced where they are *read*: a
channel silenced where it is made can speak again behind a bias or a norm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.channels.groups import Traced
from compressor.channels.silenced import silenced_outputs, small_outputs, whole_layers
from compressor.channels.tracing import Trace
from compressor.errors import InternalError, SurgeryError
from compressor.graph.input_spec import random_like
from compressor.graph.outputs import relative_difference
from compressor.graph.precision import TypesSeen, copy_in_precision, in_precision, narrowest
from compressor.surgery.plan import PruningPlan, gone_labels

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
FLOOR = 1e-6  # what rounding to float32 once or twice amounts to
TIMES = 10  # each value is rounded on its own way, and some more than once


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """How far the small network's outputs lie from the silenced dense one's: the worst of max |a - b| / max |b|.

    `moved` is how far the silence itself moves the dense network's: where nothing moves, the proof has seen nothing.
    Both networks run in `dtype`. Where a difference is too large for that type, `narrowest` is the least precise type
    that their own code computed in all the same (a cast, a mask, a norm that insists on float32).
    """

    largest_relative_difference: float
    moved: float
    dtype: torch.dtype
    outputs: int
    inputs: str  # "random", "example" or "example and random"
    narrowest: torch.dtype | None = None
    rounding: float = 0.0  # how far the outputs move where weights and inputs move by a last bit of `narrowest`

    @property
    def tolerance(self) -> float:
        """The largest difference that is rounding.

        Where a part is computed in a narrower type, it is what the last bit of that type does to these outputs, some
        times over: a cut that is wrong and hardly shows must not pass for rounding.
        """
        own = TOLERANCE[self.dtype]
        if self.narrowest is None or self.narrowest is self.dtype:
            return own
        return max(own, min(TOLERANCE.get(self.narrowest, own), max(FLOOR, TIMES * self.rounding)))

    @property
    def holds(self) -> bool:
        """Whether the difference is one of rounding."""
        return self.largest_relative_difference <= self.tolerance

    @property
    def vacuous(self) -> bool:
        """Whether the removed channels say nothing on the inputs of the proof: then it has seen nothing."""
        return self.moved <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """The `proof` of an artifact's results."""
        return {
            "dtype": _name(self.dtype),
            "narrowest": _name(self.narrowest or self.dtype),
            "tolerance": self.tolerance,
            "largest_relative_difference": self.largest_relative_difference,
            "moved": self.moved,
            "vacuous": self.vacuous,
            "inputs": self.inputs,
        }


def in_words(proof: Mapping[str, Any]) -> str:
    """What `Proof.to_json` gave, as one line: the difference, and what it is judged by."""
    types = f"in {proof['dtype']}"
    narrow = proof.get("narrowest", proof["dtype"])
    if narrow != proof["dtype"]:
        types += f", of which the network computes a part in {narrow}"
    tolerance = f" (at most {proof['tolerance']:.0e} is rounding)" if "tolerance" in proof else ""
    return f"{proof['largest_relative_difference']:.1e} relative, {types}{tolerance}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
        speaking = silenced_outputs(self.ground, self.dense, set(), self.inputs, self.whole, dtype=self.dtype)
        return max(map(relative_difference, self.silenced, speaking))


def reference_of(
    dense: nn.Module,
    traced: Traced,
    plan: PruningPlan,
    example_inputs: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float64,
) -> Reference:
    """What a small network is compared with, in `dtype`, on the example and a random input like it.

    A network that chooses by values what it gives (a detector) is compared on the example with the dense one's choices,
    in what it gives and in what it chooses from. Refused: a network that does not run in `dtype`.
    """
    given = [in_precision(t, dtype) for t in _inputs_for(traced, example_inputs)]
    gone = gone_labels(traced.groups, plan)
    whole = whole_layers(traced.ground, gone)
    try:
        silenced = silenced_outputs(traced.ground, dense, gone, given, whole, dtype=dtype)
    except Exception as error:  # a program raises whatever its operators do
        _check_runs(traced.ground, dense, given, whole, dtype)
        raise InternalError(f"the dense network runs, and does not without some channels: {error}") from error
    return Reference(ground=traced.ground, dense=dense, dtype=dtype, inputs=given, whole=whole, silenced=silenced)


def _check_runs(
    ground: Trace, dense: nn.Module, given: Sequence[Tensor], whole: Mapping[str, Sequence[fx.Node]], dtype: torch.dtype
) -> None:
    """Refused: a dense network whose program does not run in `dtype`, whatever is silent."""
    try:
        silenced_outputs(ground, dense, set(), given, whole, dtype=dtype)
    except Exception as error:  # as above
        raise SurgeryError(
            f"the dense network does not compute in {_name(dtype)}", hint="numbers in its code have a type of their own"
        ) from error


def prove(small: nn.Module, reference: Reference) -> Proof:
    """The surgery proof of a small network that holds the dense one's own weights at what the plan leaves.

    Refused: a small network that does not run, or whose outputs have another shape. A difference is for the caller to
    judge (`Proof.holds`), who knows what to do about it.
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
    """How far the dense network's outputs move where every weight and every input moves by `bit`, up or down."""
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
    said_of = [
        silenced_outputs(reference.ground, network, set(), given, reference.whole, dtype=reference.dtype)
        for network, given in ((reference.dense, reference.inputs), (twin, inputs))
    ]
    return max(map(relative_difference, *said_of))


def _types_in(small: nn.Module, reference: Reference) -> set[torch.dtype]:
    """The types of numbers that both networks compute in, which costs a pass of each."""
    twin = copy_in_precision(reference.dense, reference.dtype)  # the type that weights are kept in is none they run in
    computed = TypesSeen()
    with computed:
        silenced_outputs(reference.ground, twin, set(), reference.inputs, reference.whole, dtype=reference.dtype)
    _answers(small, reference, watched=computed)
    return computed.seen


def _answers(small: nn.Module, reference: Reference, *, watched: TypesSeen | None = None) -> list[Tensor]:
    twin = copy_in_precision(small, reference.dtype).eval()
    with watched or contextlib.nullcontext():
        try:
            return small_outputs(reference.ground, twin, reference.inputs, reference.whole, dtype=reference.dtype)
        except Exception as error:  # a forward pass raises whatever its code raises
            raise not_running(small) from error


def difference(small: nn.Module, reference: Reference) -> float:
    """How far the small network lies from the reference; refused as by `prove`."""
    answers = _answers(small, reference)
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


def _kind_of_inputs(ground: Trace) -> str:
    if ground.exported.choices:
        return "example"
    return "example and random" if ground.exported.open else "random"


def not_running(small: nn.Module) -> SurgeryError:
    """The refusal of a small network that breaks on its own widths: some code counts on the dense ones."""
    holder = "its program" if isinstance(small, fx.GraphModule) else "its own code"
    return SurgeryError(
        f"the small network does not run: {holder} counts on a width of the dense one",
        hint="protect the layer: `--protect NAME`",
    )


def _inputs_for(traced: Traced, example_inputs: Sequence[Tensor]) -> list[Tensor]:
    """The example and random inputs like it, in one batch; of a network with a fixed batch, random ones alone."""
    if traced.ground.exported.choices:  # its graph is that of these
        return list(example_inputs)
    first = example_inputs[0]
    if not traced.ground.exported.open:
        return random_like(example_inputs, batch=len(first) if first.ndim else 1)
    drawn = random_like(example_inputs, batch=1)
    return [torch.cat([t[:1], other]) if t.ndim else t for t, other in zip(example_inputs, drawn, strict=True)]
