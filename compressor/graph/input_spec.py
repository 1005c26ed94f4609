"""The description of one input of a network: its name, shape, type and range; and random tensors that fit it.

As text, in the form that `--input` reads: `1x3x224x224`, `ids=1x12`, `ids=1x12:int64<30522`,
`pixel_values=1x3x32x32:float32<1`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.errors import CheckpointError

TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
LARGEST = 2**30  # numbers in one input: four gigabytes in float32
EXAMPLE = "write it as `--input 1x3x224x224`, or with name, type and range: `--input 'ids=1x12:int64<30522'`"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input. `dtype`, `low` and `below` are `None` where the network itself decides what it reads.

    Its numbers lie in [`low`, `below`); those of a real input without a range are normal.
    """

    shape: tuple[int, ...]
    name: str | None = None
    dtype: torch.dtype | None = None
    low: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.shape) or math.prod(self.shape) > LARGEST:
            shown = "x".join(map(str, self.shape))
            raise CheckpointError(
                f"an input of {shown} holds {float(math.prod(self.shape)):.2g} numbers",
                hint=f"at least one and at most {LARGEST:,} can be computed with",
            )
        bounds = [bound for bound in (self.low, self.below) if bound is not None]
        if not all(map(math.isfinite, bounds)):
            raise CheckpointError("the range of an input is not finite", hint="for example `--input '1x12:int64<50'`")
        low, high = _limits(self.dtype)
        if any(not low <= bound <= high for bound in bounds):
            raise CheckpointError(
                f"{_name(self.dtype)} holds only numbers from {low:g} to {high:g}"
                if self.dtype
                else "the range of an input is too large",
                hint="give a smaller bound: `<50`",
            )
        low, below = self.low or 0, self.below
        if below is not None and (below <= low or (_is_whole(self.dtype) and math.ceil(below) <= math.ceil(low))):
            raise CheckpointError(f"no number lies from {low:g} to below {below:g}", hint="give a larger bound: `<50`")

    @property
    def shown(self) -> str:
        """The spec in the form that `--input` reads."""
        name = "" if self.name is None else f"{self.name}="
        dtype = "" if self.dtype is None else f":{_name(self.dtype)}"
        below = "" if self.below is None or self.dtype is torch.bool else f"<{self.below:.9g}"
        return f"{name}{'x'.join(map(str, self.shape))}{dtype}{below}"

    def drawn(self, generator: torch.Generator) -> Tensor:
        """Return a random tensor of this kind; real and normal where neither type nor range is set."""
        dtype = self.dtype or torch.float32
        if dtype.is_floating_point or dtype.is_complex:
            if self.below is None:
                return torch.randn(self.shape, generator=generator, dtype=_drawable(dtype)).to(dtype)
            low = self.low or 0.0
            return (low + (self.below - low) * torch.rand(self.shape, generator=generator)).to(dtype)
        low, below = (1, 2) if self.below is None else (math.ceil(self.low or 0), math.ceil(self.below))
        return torch.randint(low, below, self.shape, generator=generator).to(dtype)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `spec_from_json` reads them back."""
        return {
            "name": self.name, "shape": list(self.shape), "dtype": None if self.dtype is None else _name(self.dtype),
            "low": self.low, "below": self.below,
        }  # fmt: skip


def spec_from_json(plain: Mapping[str, Any]) -> InputSpec:
    """Return the spec that `InputSpec.to_json` wrote. Refused: anything else."""
    try:
        kind = plain["dtype"]
        return InputSpec(
            name=plain["name"],
            shape=tuple(int(size) for size in plain["shape"]),
            dtype=None if kind is None else TYPES[kind],
            low=plain["low"],
            below=plain["below"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"not a record of an input: {str(plain)[:80]}") from error


def spec_from_text(text: str) -> InputSpec:
    """Return the spec of an `--input` text: `[NAME=]SHAPE[:TYPE][<BOUND]`. Refused: anything else, with the reason."""
    rest, bounded, bound = text.replace("×", "x").partition("<")
    rest, typed, kind = rest.partition(":")
    before, named, shape = rest.rpartition("=")
    name, kind = before.strip() if named else None, kind.strip()
    if name is not None and not name.isidentifier():
        raise CheckpointError(f"`--input {text}` names no input: `{before}` is no name", hint=EXAMPLE)
    sizes = shape.strip().lower().split("x")
    if not all(re.fullmatch(r"[0-9]{1,18}", size) and int(size) > 0 for size in sizes):
        raise CheckpointError(f"`--input {text}`: `{shape}` is not a shape", hint=EXAMPLE)
    if typed and kind not in TYPES:
        raise CheckpointError(f"`--input {text}`: there is no type `{kind}`", hint=f"there are {', '.join(TYPES)}")
    dtype = TYPES[kind] if typed else None
    return InputSpec(
        name=name, shape=tuple(map(int, sizes)), dtype=dtype, below=_bound(text, bound, dtype) if bounded else None
    )


def _bound(text: str, bound: str, dtype: torch.dtype | None) -> float:
    """The upper bound in the text. Refused: a bound that is not a positive number of the type."""
    try:
        value = float(bound)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0) or (_is_whole(dtype) and not value.is_integer()) or dtype is torch.bool:
        kind = "" if dtype is None else f" of {_name(dtype)}"
        raise CheckpointError(
            f"`--input {text}`: `{bound}` is no upper bound{kind}",
            hint="numbers lie from 0 to below the bound: `--input 'ids=1x12:int64<30522'`",
        )
    return int(value) if value.is_integer() else value


def specs_of(example_inputs: Sequence[Tensor]) -> tuple[InputSpec, ...]:
    """Return the specs of the examples: their shapes and types, and the ranges of integers."""
    return tuple(map(_spec_of, example_inputs))


def _spec_of(example: Tensor) -> InputSpec:
    shape = tuple(example.shape)
    if not _is_whole(example.dtype) or not example.numel():
        return InputSpec(shape=shape, dtype=example.dtype)
    least, most = _limits(example.dtype)
    low, below = max(int(least), int(example.min())), min(int(most), int(example.max()) + 1)
    return InputSpec(shape=shape, dtype=example.dtype, low=min(low, below - 1), below=below)


def drawn_from(specs: Sequence[InputSpec], *, seed: int = 0) -> tuple[Tensor, ...]:
    """Return a random tensor for each spec."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(spec.drawn(generator) for spec in specs)


def random_like(example_inputs: Sequence[Tensor], *, batch: int = 2, seed: int = 0) -> list[Tensor]:
    """Return random tensors with the examples' shapes and types but another batch size, each within the example's
    range.

    A real number lies between two of the example's; an integer between its least and its largest. So tokens stay below
    the vocabulary's size, images stay in their range, and a mask of ones stays one of ones. A real example that is all
    zeros has no range: its numbers become normal.
    """
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.stack([_like(t, t.shape[1:], generator) for _ in range(batch)]).to(t.device)
        if t.ndim
        else _like(t, (), generator).to(t.device)
        for t in example_inputs
    ]


def _like(example: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A random tensor of this shape, within the range of the example."""
    values = example.detach().cpu().flatten()
    if not values.numel():
        return torch.empty(tuple(shape), dtype=example.dtype)
    if not (example.is_floating_point() or example.is_complex()):
        low, high = int(values.min()), int(values.max())
        return torch.randint(low, min(high + 1, 2**63 - 1), tuple(shape), generator=generator).to(example.dtype)
    if not values.any():
        return torch.randn(tuple(shape), generator=generator, dtype=_drawable(example.dtype)).to(example.dtype)
    if len(values) == 1:
        values = torch.cat([values, torch.zeros_like(values)])
    first, second = (values[torch.randint(len(values), tuple(shape), generator=generator)] for _ in range(2))
    if not torch.isfinite(values).all():  # for example a mask of zeros and minus infinities
        return first
    share = torch.rand(tuple(shape), generator=generator)
    return (share * first + (1 - share) * second).to(example.dtype)


def _is_whole(dtype: torch.dtype | None) -> bool:
    return dtype is not None and not (dtype.is_floating_point or dtype.is_complex)


def _limits(dtype: torch.dtype | None) -> tuple[float, float]:
    """The least and the largest bound of a range in this type; the upper bound is one above the largest value."""
    if dtype is torch.bool:
        return 0, 2
    if dtype is None or dtype in (torch.int64, torch.float64, torch.complex128):
        return -(2**53), 2**53
    if _is_whole(dtype):
        return torch.iinfo(dtype).min, torch.iinfo(dtype).max + 1
    return max(-(2.0**53), torch.finfo(dtype).min), min(2.0**53, torch.finfo(dtype).max)


def _drawable(dtype: torch.dtype) -> torch.dtype:
    """The type in which normal numbers are drawn: not every type has a generator."""
    return torch.complex64 if dtype.is_complex else torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
