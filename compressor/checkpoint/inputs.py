"""A network's inputs: those of the user, of its file or its architecture, or the ones that fit.

Example inputs are random: token numbers below the size of their lookup table, masks of ones, otherwise normal numbers,
or numbers in [0, 1] if the network's outputs on normal ones are not finite.
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
from compressor.graph.calling import calling_
from compressor.graph.input_spec import InputSpec, drawn_from, spec_from_text, specs_of
from compressor.graph.lent import state_kept
from compressor.graph.lookups import Lookup, Lookups
from compressor.graph.outputs import outputs_of

SET_IT = "set its input: `--input 1x3x224x224`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Inputs that a network runs on, and their specs."""

    tensors: tuple[Tensor, ...]
    specs: tuple[InputSpec, ...]


def example_inputs(
    module: nn.Module,
    *,
    inputs: Sequence[str | InputSpec],
    stored: Sequence[Sequence[int]] | None,
    architecture: Architecture,
) -> Examples:
    """Return inputs that the module runs on: those of the user, those recorded in its file, or the single shape that
    fits.

    Refused: a shape of the user that does not run, names that the module's forward lacks, a network that runs on
    several sizes without a recorded one.
    """
    if inputs:
        specs = tuple(spec_from_text(one) if isinstance(one, str) else one for one in inputs)
        _skip_(module, specs)
        return examples_of(module, specs, hint="it reads another shape, type or range: `--input 'ids=1x12:int64<50'`")
    if stored:
        return examples_of(module, [InputSpec(shape=tuple(shape)) for shape in stored], hint=SET_IT)
    source, _, name = architecture.ref.partition(":")
    if source in ("torchvision", "timm") or type(module).__module__.split(".")[0] in ("torchvision", "timm"):
        size = 299 if name.startswith("inception") else int(getattr(module, "image_size", 0)) or 224
        shape = (getattr(first_layer(module), "in_channels", 3), size, size)
        from_timm = (getattr(module, "default_cfg", None) or {}).get("input_size")
        return examples_of(module, [InputSpec(shape=(1, *(from_timm or shape)))], hint=SET_IT)
    return examples_of(module, [InputSpec(shape=fitting(module))], hint=SET_IT)


def _skip_(module: nn.Module, specs: Sequence[InputSpec]) -> None:
    """Let the module itself take the named inputs alone, if those that it takes before them need not be set."""
    named = {spec.name for spec in specs if spec.name is not None}
    parameters = _positional(module)
    needed = {p.name for p in parameters if p.default is p.empty}
    if len(named) == len(specs) and needed <= named:
        calling_(module, inputs=[p.name for p in parameters if p.name in named])


def examples_of(module: nn.Module, specs: Sequence[InputSpec], *, hint: str, names: Sequence[str] = ()) -> Examples:
    """Return random inputs for `specs`, in the order of the module's forward; running the module decides what specs
    leave open.

    `names` are the inputs' names, if the forward does not have them: a program's forward has only numbers. Refused:
    inputs that the module does not run on with any type and range; outputs that are not finite.
    """
    specs = _in_order(names or forward_names(module), specs)
    first: Exception | None = None
    infinite = False
    for guess in _guesses(specs):
        settled, outcome = _settled(module, guess)
        if isinstance(outcome, Exception):
            first = first or outcome
            continue
        if not outcome.outputs:
            raise CheckpointError(
                "the network's output holds no tensor", hint="compress needs a network that returns tensors"
            )
        if all(bool(torch.isfinite(t).all()) for t in outcome.outputs if t.is_floating_point() or t.is_complex()):
            return Examples(tensors=outcome.inputs, specs=settled)
        infinite = True
    if infinite:
        raise CheckpointError(
            "the network's outputs are not finite, neither on normal numbers nor on numbers in [0, 1]",
            hint="the weights or statistics are broken, or it reads another range: `--input '1x3x32x32:float32<0.1'`",
        )
    assert first is not None
    lines = str(first).strip().splitlines()
    shapes = ", ".join("x".join(map(str, spec.shape)) for spec in specs)
    raise CheckpointError(f"the network does not run on {shapes}: {lines[0] if lines else first}", hint=hint) from first


def examples_from(module: nn.Module, stored: Sequence[Tensor]) -> Examples:
    """Return the inputs in a file, with new token numbers: an exporter accepts zeros."""
    specs = tuple(InputSpec(shape=tuple(t.shape), dtype=t.dtype) for t in stored)
    if all(t.is_floating_point() or t.is_complex() for t in stored):
        return Examples(tensors=tuple(stored), specs=specs)
    settled, outcome = _settled(module, specs)
    if isinstance(outcome, Exception):
        return Examples(tensors=tuple(stored), specs=specs_of(stored))
    specs = tuple(
        spec if spec.below is not None or _is_real(spec) else own
        for spec, own in zip(settled, specs_of(stored), strict=True)
    )
    tensors = (
        t if _is_real(k) or k.below is None else new for t, k, new in zip(stored, settled, outcome.inputs, strict=True)
    )
    return Examples(tensors=tuple(tensors), specs=specs)


def _is_real(spec: InputSpec) -> bool:
    """True if the spec's type is real or complex."""
    return spec.dtype is not None and (spec.dtype.is_floating_point or spec.dtype.is_complex)


def forward_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the forward's positional arguments; none for `*inputs`."""
    return tuple(p.name for p in _positional(module))


def _positional(module: nn.Module) -> list[inspect.Parameter]:
    """The forward's positional arguments."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _in_order(names: Sequence[str], specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The specs in the forward's order, each with its name; those without a name come first, in their order."""
    accepted = ", ".join(f"`{name}`" for name in names) or "inputs without names"
    by_name: dict[str, InputSpec] = {}
    free = iter(spec for spec in specs if spec.name is None)
    named = {spec.name: spec for spec in specs if spec.name is not None}
    if len(named) < sum(spec.name is not None for spec in specs):
        raise CheckpointError("an input is set twice", hint=f"the network takes {accepted}, each once")
    for name in named:
        if name not in names:
            raise CheckpointError(f"the network takes no input `{name}`", hint=f"it takes {accepted}")
    if not named:
        return tuple(
            dataclasses.replace(spec, name=names[i] if i < len(names) else None) for i, spec in enumerate(specs)
        )
    for name in names:
        if len(by_name) == len(specs):
            break
        spec = named.get(name) or next(free, None)
        if spec is None:
            last = next(reversed(named))
            raise CheckpointError(
                f"the network takes `{name}` before `{last}`, and it is not set",
                hint=f"set it too: `--input '{name}=1x12:int64'`; the network takes {accepted}",
            )
        by_name[name] = dataclasses.replace(spec, name=name)
    if len(by_name) < len(specs):
        raise CheckpointError(f"{len(specs)} inputs are set, and the network takes {accepted}")
    return tuple(by_name.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """The inputs and outputs of a pass."""

    inputs: tuple[Tensor, ...]
    outputs: list[Tensor]


def _settled(module: nn.Module, specs: tuple[InputSpec, ...]) -> tuple[tuple[InputSpec, ...], _Ran | Exception]:
    """The specs completed by the module's lookups (types and ranges), and the outcome of running them."""
    while True:
        inputs = drawn_from(specs)
        seen = Lookups(inputs)
        outcome: _Ran | Exception
        try:
            with seen, state_kept(module):
                outcome = _Ran(inputs=inputs, outputs=outputs_of(module, inputs))
        except FORWARD_ERRORS as error:
            outcome = error
        completed = tuple(
            _read(spec, [lookup for lookup in seen.lookups if lookup.input == number])
            for number, spec in enumerate(specs)
        )
        if completed == specs:
            few = tuple(_fewer(spec, seen.lookups, number) for number, spec in enumerate(specs))
            if not isinstance(outcome, IndexError) or few == specs:
                return completed, outcome
            completed = few  # the network shifts the numbers before it looks them up
        specs = completed  # each round sets a type, or narrows a range


def _fewer(spec: InputSpec, lookups: Sequence[Lookup], number: int) -> InputSpec:
    """The spec with half as many token numbers, if a lookup table set their number."""
    if spec.below is None or spec.below <= 1 or number not in [lookup.input for lookup in lookups]:
        return spec
    return dataclasses.replace(spec, low=0, below=max(1, int(spec.below) // 2))


def _read(spec: InputSpec, lookups: Sequence[Lookup]) -> InputSpec:
    """The spec of an input that indexes lookup tables: token numbers, without padding where possible."""
    if not lookups or (spec.dtype is not None and (spec.dtype.is_floating_point or spec.dtype is torch.bool)):
        return spec
    rows = min(lookup.rows for lookup in lookups)
    low = 1 if rows > 1 and any(lookup.padding == 0 for lookup in lookups) else 0
    below = rows - 1 if rows > 1 and any(lookup.padding == rows - 1 for lookup in lookups) else rows
    if spec.below is not None and spec.below <= below:
        return dataclasses.replace(spec, dtype=spec.dtype or torch.int64)
    return dataclasses.replace(spec, dtype=spec.dtype or torch.int64, low=low, below=below)


def _guesses(specs: Sequence[InputSpec]) -> Iterator[tuple[InputSpec, ...]]:
    """Possible specs where the user has not set them, the likeliest first.

    Masks are ones (integers or booleans), zeros, or any numbers; other inputs are normal or in [0, 1].
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
    """True if the input's name or type is that of a mask."""
    named = spec.name is not None and "mask" in spec.name.lower()
    return spec.below is None and not _is_real(spec) and (spec.dtype is torch.bool or named)


def _constant(spec: InputSpec, dtype: torch.dtype, value: int) -> InputSpec:
    """The spec of an input with a single value."""
    return dataclasses.replace(spec, dtype=spec.dtype or dtype, low=value, below=value + 1)


def _unit(spec: InputSpec) -> InputSpec:
    """The spec with numbers in [0, 1), if its range is open."""
    real = spec.dtype is None or spec.dtype.is_floating_point
    return dataclasses.replace(spec, low=0.0, below=1.0) if real and spec.below is None else spec
