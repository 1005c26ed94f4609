"""What a network reads: the inputs that the user gave, that its file or its architecture knows, or that fit.

Example inputs are random: token numbers below the size of the table that they are looked up in, masks of ones, normal
numbers otherwise, or numbers in [0, 1] where the network answers normal ones with what is not finite.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.fitting import FORWARD_ERRORS, first_layer, fitting
from compressor.errors import CheckpointError
from compressor.graph.input_spec import InputSpec, drawn_from, spec_from_text, specs_of
from compressor.graph.lent import state_kept
from compressor.graph.lookups import Lookup, Lookups
from compressor.graph.outputs import outputs_of

SAY_IT = "say what it reads: `--input 1x3x224x224`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Inputs that a network runs on, and what they look like."""

    tensors: tuple[Tensor, ...]
    specs: tuple[InputSpec, ...]


def example_inputs(
    module: nn.Module,
    *,
    given: Sequence[str | InputSpec],
    stored: Sequence[Sequence[int]] | None,
    architecture: Architecture,
) -> Examples:
    """Inputs that the module runs on: what the user gave, what its file says, or the one shape that fits.

    Refused: a given shape that does not run, names that the module's forward does not have, a network that runs on
    several sizes and says nothing about them.
    """
    if given:
        specs = tuple(spec_from_text(one) if isinstance(one, str) else one for one in given)
        return examples_of(module, specs, hint="it reads another shape, type or range: `--input 'ids=1x12:int64<50'`")
    if stored:
        return examples_of(module, [InputSpec(shape=tuple(shape)) for shape in stored], hint=SAY_IT)
    source, _, name = architecture.ref.partition(":")
    if source in ("torchvision", "timm") or type(module).__module__.split(".")[0] in ("torchvision", "timm"):
        size = 299 if name.startswith("inception") else int(getattr(module, "image_size", 0)) or 224
        shape = (getattr(first_layer(module), "in_channels", 3), size, size)
        told = (getattr(module, "default_cfg", None) or {}).get("input_size")  # by timm
        return examples_of(module, [InputSpec(shape=(1, *(told or shape)))], hint=SAY_IT)
    return examples_of(module, [InputSpec(shape=fitting(module))], hint=SAY_IT)


def examples_of(module: nn.Module, specs: Sequence[InputSpec], *, hint: str, names: Sequence[str] = ()) -> Examples:
    """Random inputs as `specs` say, in the order of the module's forward; what they leave open is found by running it.

    `names` are what its inputs are called, where its forward does not say so: a program's has numbers alone. Refused:
    inputs that the module does not run on, whatever their types and ranges; outputs that are not finite.
    """
    specs = _in_order(names or forward_names(module), specs)
    first: Exception | None = None
    infinite = False
    for guess in _guesses(specs):
        known, outcome = _settled(module, guess)
        if isinstance(outcome, Exception):
            first = first or outcome
            continue
        if not outcome.outputs:
            raise CheckpointError(
                "the network's output holds no tensor", hint="compress needs a network that returns tensors"
            )
        if all(bool(torch.isfinite(t).all()) for t in outcome.outputs if t.is_floating_point() or t.is_complex()):
            return Examples(tensors=outcome.inputs, specs=known)
        infinite = True
    if infinite:
        raise CheckpointError(
            "the network's outputs are not finite, neither on normal numbers nor on numbers in [0, 1]",
            hint="the weights or statistics are broken, or it reads another range: `--input '1x3x32x32:float32<0.1'`",
        )
    assert first is not None
    said = str(first).strip().splitlines()
    shapes = ", ".join("x".join(map(str, spec.shape)) for spec in specs)
    raise CheckpointError(f"the network does not run on {shapes}: {said[0] if said else first}", hint=hint) from first


def examples_from(module: nn.Module, stored: Sequence[Tensor]) -> Examples:
    """Inputs that a file brings with it, of which token numbers are drawn anew: an exporter is content with zeros."""
    specs = tuple(InputSpec(shape=tuple(t.shape), dtype=t.dtype) for t in stored)
    if all(t.is_floating_point() or t.is_complex() for t in stored):
        return Examples(tensors=tuple(stored), specs=specs)
    known, outcome = _settled(module, specs)
    if isinstance(outcome, Exception):
        return Examples(tensors=tuple(stored), specs=specs_of(stored))
    specs = tuple(
        spec if spec.below is not None or _is_real(spec) else own
        for spec, own in zip(known, specs_of(stored), strict=True)
    )
    tensors = (
        t if _is_real(k) or k.below is None else new for t, k, new in zip(stored, known, outcome.inputs, strict=True)
    )
    return Examples(tensors=tuple(tensors), specs=specs)


def _is_real(spec: InputSpec) -> bool:
    return spec.dtype is not None and (spec.dtype.is_floating_point or spec.dtype.is_complex)


def forward_names(module: nn.Module) -> tuple[str, ...]:
    """The names of what the module's forward takes, as far as they can be given by position; none of `*inputs`."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _in_order(names: Sequence[str], specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The specs as the forward takes them: those without a name first, in their order; each with its name."""
    taken = ", ".join(f"`{name}`" for name in names) or "inputs without names"
    found: dict[str, InputSpec] = {}
    free = iter(spec for spec in specs if spec.name is None)
    named = {spec.name: spec for spec in specs if spec.name is not None}
    if len(named) < sum(spec.name is not None for spec in specs):
        raise CheckpointError("an input is given twice", hint=f"the network takes {taken}, each once")
    for name in named:
        if name not in names:
            raise CheckpointError(f"the network takes no input `{name}`", hint=f"it takes {taken}")
    if not named:
        return tuple(
            dataclasses.replace(spec, name=names[i] if i < len(names) else None) for i, spec in enumerate(specs)
        )
    for name in names:
        if len(found) == len(specs):
            break
        spec = named.get(name) or next(free, None)
        if spec is None:
            last = next(reversed(named))
            raise CheckpointError(
                f"the network takes `{name}` before `{last}`, and it is not given",
                hint=f"give it too: `--input '{name}=1x12:int64'`; the network takes {taken}",
            )
        found[name] = dataclasses.replace(spec, name=name)
    if len(found) < len(specs):
        raise CheckpointError(f"{len(specs)} inputs are given, and the network takes {taken}")
    return tuple(found.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    inputs: tuple[Tensor, ...]
    outputs: list[Tensor]


def _settled(module: nn.Module, specs: tuple[InputSpec, ...]) -> tuple[tuple[InputSpec, ...], _Ran | Exception]:
    """The specs with what the module's look-ups say of their types and ranges, and what came of running them."""
    while True:
        inputs = drawn_from(specs)
        seen = Lookups(inputs)
        outcome: _Ran | Exception
        try:
            with seen, state_kept(module):
                outcome = _Ran(inputs=inputs, outputs=outputs_of(module, inputs))
        except FORWARD_ERRORS as error:
            outcome = error
        known = tuple(
            _read(spec, [lookup for lookup in seen.lookups if lookup.input == number])
            for number, spec in enumerate(specs)
        )
        if known == specs:
            few = tuple(_fewer(spec, seen.lookups, number) for number, spec in enumerate(specs))
            if not isinstance(outcome, IndexError) or few == specs:
                return known, outcome
            known = few  # numbers that are shifted before they are looked up
        specs = known  # each turn makes a type known, or a range narrower


def _fewer(spec: InputSpec, lookups: Sequence[Lookup], number: int) -> InputSpec:
    """Half as many token numbers, where the table said how many."""
    if spec.below is None or spec.below <= 1 or number not in [lookup.input for lookup in lookups]:
        return spec
    return dataclasses.replace(spec, low=0, below=max(1, int(spec.below) // 2))


def _read(spec: InputSpec, lookups: Sequence[Lookup]) -> InputSpec:
    """The spec of an input that is looked up in tables: token numbers, none of which is padding where that can be."""
    if not lookups or (spec.dtype is not None and (spec.dtype.is_floating_point or spec.dtype is torch.bool)):
        return spec
    rows = min(lookup.rows for lookup in lookups)
    low = 1 if rows > 1 and any(lookup.padding == 0 for lookup in lookups) else 0
    below = rows - 1 if rows > 1 and any(lookup.padding == rows - 1 for lookup in lookups) else rows
    if spec.below is not None and spec.below <= below:
        return dataclasses.replace(spec, dtype=spec.dtype or torch.int64)
    return dataclasses.replace(spec, dtype=spec.dtype or torch.int64, low=low, below=below)


def _guesses(specs: Sequence[InputSpec]) -> Iterator[tuple[InputSpec, ...]]:
    """What inputs may be where the user did not say it: the likeliest first.

    Masks of ones, as integers and as booleans, or of what is to be left out, or of any number; the rest normal or in
    [0, 1].
    """
    masks = [_is_mask(spec) for spec in specs]
    guesses = []
    for dtype, value in ((torch.int64, 1), (torch.bool, 1), (torch.int64, 0), (torch.bool, 0)):
        guesses.append(
            tuple(_constant(spec, dtype, value) if mask else spec for spec, mask in zip(specs, masks, strict=True))
        )
    guesses.append(tuple(specs))
    for guess in dict.fromkeys(guesses):
        yield guess
        if any(unit is not spec for unit, spec in zip(map(_unit, guess), guess, strict=True)):
            yield tuple(map(_unit, guess))


def _is_mask(spec: InputSpec) -> bool:
    named = spec.name is not None and "mask" in spec.name.lower()
    return spec.below is None and not _is_real(spec) and (spec.dtype is torch.bool or named)


def _constant(spec: InputSpec, dtype: torch.dtype, value: int) -> InputSpec:
    return dataclasses.replace(spec, dtype=spec.dtype or dtype, low=value, below=value + 1)


def _unit(spec: InputSpec) -> InputSpec:
    """The same, of numbers in [0, 1) where it may have any."""
    real = spec.dtype is None or spec.dtype.is_floating_point
    return dataclasses.replace(spec, low=0.0, below=1.0) if real and spec.below is None else spec
