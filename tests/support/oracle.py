"""Whether a small network is the right one, judged without a word from what made it.

Which positions of each tensor stayed is found by value: every number of a tensor is unlike all others in it, so that a
small network's numbers say where they stood. The dense network runs on these alone (`tests.support.survivors`); outputs
must agree, and so must the gradients of the inputs and of everything that stayed, at two batch sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.support.survivors import Present, Unjudged, on_survivors, recorded

Inputs = Callable[[int], Sequence[Tensor]]  # of a batch size
BATCHES = (2, 3)
EXACT, ROUNDED, SINGLE = 1e-9, 1e-6, 1e-4  # in float64; with numbers that were rounded once; with steps in float32
RAISED = (RuntimeError, TypeError, ValueError, IndexError)  # what torch raises for types and shapes that do not meet


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the oracle found: how far the outputs and gradients lie apart, or why they cannot be compared."""

    outputs: float = 0.0
    gradients: float = 0.0
    allowed: float = 0.0
    why: str | None = None  # what is wrong where that is no number
    unjudged: str | None = None

    @property
    def right(self) -> bool:
        """Whether all differences are of rounding."""
        return self.why is None and max(self.outputs, self.gradients) <= self.allowed


def distinct_(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """Every number of every parameter and statistic unlike the others of its tensor, and no branch dead; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    stats = [b for m in nn.Module.modules(module) if isinstance(m, norms) for b in m.buffers() if b.is_floating_point()]
    with torch.no_grad():
        for parameter in nn.Module.parameters(module):
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.copy_(_spread(parameter.shape, generator))
        for buffer in stats:
            buffer.copy_(_spread(buffer.shape, generator).exp())
    return module.eval()


def _spread(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Numbers as of a normal distribution with a deviation of 0.3, no two of them alike and none zero.

    A bias of zero over inputs that cancel is the bend of a ReLU, where the last bit decides the gradient.
    """
    count = max(1, shape.numel())
    at = (torch.randperm(count, generator=generator).double() + 0.7) / (count + 0.4)
    at = torch.where(at == 0.5, at + 0.1 / (count + 0.4), at)
    return (0.3 * torch.special.ndtri(at)).view(shape).float()


def judged(dense: nn.Module, small: nn.Module, inputs: Inputs, *, rounded: bool = False) -> Verdict:
    """The verdict on `small`; the dense network must have come through `distinct_`, and both stay in float32.

    A `rounded` one is a program that holds in float32 what the dense network computes anew from nothing.
    """
    places = _places(dense, small)
    if isinstance(places, str):
        return Verdict(why=places)
    verdicts = []
    for batch in BATCHES:
        try:
            verdicts.append(_verdict(dense, small, inputs(batch), places, rounded=rounded))
        except Unjudged as error:
            return Verdict(unjudged=str(error))
        finally:
            _cast(dense, torch.float32)
            _cast(small, torch.float32)
    return max(verdicts, key=lambda v: (v.why is not None, not v.right, v.outputs, v.gradients))


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """All floating weights in place; a module that keeps functions of itself stays one with them."""
    for tensor in [*nn.Module.parameters(module), *nn.Module.buffers(module)]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
        elif tensor.is_complex():
            tensor.data = tensor.data.to(torch.complex128 if dtype is torch.float64 else torch.complex64)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def _places(dense: nn.Module, small: nn.Module) -> dict[str, Tensor] | str:
    """Where the numbers of each smaller tensor stood in the dense one's, int64 `[numbers]`; or what is wrong."""
    ours, places = _tensors(small), {}
    for name, tensor in _tensors(dense).items():
        mine = ours.get(name)
        if mine is None:
            if isinstance(tensor, nn.Parameter):
                return f"`{name}` is gone"
            continue
        if isinstance(tensor, nn.Parameter) and mine.data_ptr() == tensor.data_ptr():
            return f"`{name}` is the dense network's own"
        if mine.shape == tensor.shape:
            if not torch.equal(mine, tensor):
                return f"`{name}` has other values"
            continue
        found = _found(tensor.detach(), mine.detach())
        if found is not None:
            if not bool((found >= 0).all()):
                return f"`{name}` holds numbers that the dense one's does not"
            places[name] = found
        elif isinstance(tensor, nn.Parameter):
            return f"`{name}` holds a number twice: `distinct_` first"
    return places


def _found(dense: Tensor, small: Tensor) -> Tensor | None:
    """Where the small tensor's numbers stand in the dense one, -1 for none; `None` where one stands there twice."""
    if dense.is_complex():
        dense, small = dense.real, small.real
    values, order = dense.flatten().sort()
    if len(values) > 1 and bool((values[1:] == values[:-1]).any()):
        return None
    at = torch.searchsorted(values, small.flatten().contiguous()).clamp(max=len(values) - 1)
    return torch.where(values[at] == small.flatten(), order[at], -1)


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What a network gives and what comes back through it: its outputs, their structure, and gradients by name."""

    outputs: Sequence[Tensor]
    built: Any
    gradients: dict[str, Tensor | None]
    single: bool = False  # whether its code makes float32 of something


def _verdict(
    dense: nn.Module, small: nn.Module, inputs: Sequence[Tensor], places: dict[str, Tensor], *, rounded: bool
) -> Verdict:
    """In float64; in float32 where the small network holds to that, and then up to the dense one's own rounding."""
    try:
        wanted = _by_survivors(dense, inputs, places, torch.float64)
    except RAISED:  # a float32 inside the network's own code meets its float64 weights
        wanted = None
    if wanted is not None:
        loose = SINGLE if wanted.single else ROUNDED if rounded else EXACT
        try:
            return _apart(_answered(small, inputs, torch.float64), wanted, allowed=loose)
        except RAISED:
            pass
    single = _by_survivors(dense, inputs, places, torch.float32)
    allowed = SINGLE
    if wanted is not None:
        noise = _apart(single, wanted, allowed=0.0)
        allowed = max(SINGLE, 20 * noise.outputs, 20 * noise.gradients)
    try:
        return _apart(_answered(small, inputs, torch.float32), single, allowed=allowed)
    except RAISED as error:
        return Verdict(why=f"the small network raises on a batch of {len(inputs[0])}: {error}")


def _by_survivors(dense: nn.Module, inputs: Sequence[Tensor], places: dict[str, Tensor], dtype: torch.dtype) -> _Said:
    """What the dense network says on what stayed; gradients where it stayed, in the small network's shapes."""
    _cast(dense, dtype)
    given = _given(inputs, dtype)
    recording = recorded(dense, given)
    outputs, present = on_survivors(recording, given, _presence(dense, places))
    if any(p is not None for p in present):
        return _Said(outputs=(), built="positions of an output are gone", gradients={})
    gradients = _gradients(dense, given, outputs)
    kept = {n: g if g is None or n not in places else g.flatten()[places[n]] for n, g in gradients.items()}
    single = any(step.kwargs.get("dtype") is torch.float32 for step in recording.steps)
    return _Said(outputs=outputs, built=recording.built, gradients=kept, single=single)


def _answered(small: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype) -> _Said:
    _cast(small, dtype)
    given = _given(inputs, dtype)
    leaves, built = pytree.tree_flatten(small(*given))
    outputs = [t for t in leaves if isinstance(t, Tensor)]
    return _Said(outputs=outputs, built=built, gradients=_gradients(small, given, outputs))


def _given(inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t.to(dtype).requires_grad_(True) if t.is_floating_point() else t for t in (t.clone() for t in inputs)]


def _presence(dense: nn.Module, places: dict[str, Tensor]) -> Callable[[Tensor], Present]:
    """Which of a tensor's positions stayed, by the memory that it lies in."""
    held = {}
    for name, tensor in _tensors(dense).items():
        if name in places:
            present = torch.zeros(tensor.numel(), dtype=torch.bool)
            present[places[name]] = True
            held[tensor.data_ptr(), tensor.shape] = present.view(tensor.shape)
    return lambda tensor: held.get((tensor.data_ptr(), tensor.shape))


def _gradients(module: nn.Module, given: Sequence[Tensor], outputs: Sequence[Tensor]) -> dict[str, Tensor | None]:
    """Of the inputs, by number, and of all parameters, of a loss that weighs each output by a number of its own."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for parameter in parameters.values():
        parameter.grad = None
    generator = torch.Generator().manual_seed(0)
    weighed = [
        (t * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)).sum()
        for t in outputs
        if t.is_floating_point()
    ]
    loss = torch.stack([w.double() for w in weighed]).sum()
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    found = {str(i): t.grad for i, t in enumerate(given) if t.is_floating_point()}
    return found | {name: p.grad for name, p in parameters.items()}


def _apart(found: _Said, wanted: _Said, *, allowed: float) -> Verdict:
    """How far what the small network says lies from what it has to."""
    if found.built != wanted.built:
        return Verdict(why=f"the output is a {found.built} and not a {wanted.built}")
    shapes = [[list(t.shape) for t in said.outputs] for said in (found, wanted)]
    if shapes[0] != shapes[1]:
        return Verdict(why=f"outputs of {shapes[0]} for {shapes[1]}")
    scale = max((float(g.abs().max()) for g in wanted.gradients.values() if g is not None and g.numel()), default=0.0)
    if wanted.gradients and not scale:
        raise Unjudged("no gradient reaches anything")
    return Verdict(
        outputs=max(_difference(a, b) for a, b in zip(found.outputs, wanted.outputs, strict=True)),
        gradients=max(_difference(found.gradients.get(n), g, scale=scale) for n, g in wanted.gradients.items()),
        allowed=allowed,
    )


def _difference(found: Tensor | None, wanted: Tensor | None, *, scale: float = 0.0) -> float:
    """Max |a - b| over max |b|, of `scale` where that is larger by far; no gradient is one of zeros."""
    if found is None or wanted is None:
        found, wanted = (t if t is not None else torch.zeros(1) for t in (found, wanted))
    if not found.numel() and not wanted.numel():
        return 0.0
    found, wanted = found.detach().flatten(), wanted.detach().flatten()
    apart = float((found.to(wanted.dtype) - wanted).abs().max())
    return apart / max(float(wanted.abs().max()), 1e-3 * scale, 1e-30) if apart else 0.0
