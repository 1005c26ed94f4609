"""Label-free distillation: the small network follows what the dense one says and holds inside, on unlabelled images.

The loss of a batch is the squared error of the outputs plus its mean over the *block outputs* h, the sums at the end of
residual branches (where there are none, what the layers give), each over its variance:

    ‖z_dense − z_small‖² / Var z_dense + mean over blocks of ‖h_dense − h_small‖² / Var h_dense

(Ba & Caruana 2014, arXiv:1312.6184, for the scores before the softmax, centred image by image; Romero et al. 2015,
arXiv:1412.6550, for the inside). Batch norms use the batch's statistics and take new running ones, as in any training:
with the dense network's kept fixed the same steps made small ResNets worse. Images are flipped and shifted at random
where they are images. A part of them is held out; what did best there is returned, the start included: it is never
worse than what it started from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.graph.copies import copy_of
from compressor.graph.gradients import right_gradients
from compressor.graph.outputs import tensors_in
from compressor.planning.branches import residual_sum
from compressor.planning.sensitivity import rise
from compressor.planning.walk import (
    TRANSPOSING,
    Program,
    Walk,
    operator,
    readers,
    side_by_side,
)
from compressor.progress import Say, quiet
from compressor.surgery.masks import WeightMask
from compressor.surgery.surgery import Surgery

STEPS, JUDGED_EVERY, PATIENCE = 900, 50, 8  # steps; between judgements; judgements in a row that found none better
RATE, WARMUP = 1e-3, 20  # Adam's; 1e-4 to 3e-4 were too slow, 3e-3 undid the start


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """The small network that followed best, and its held-out error (`planning.sensitivity.rise`) as it went.

    `errors[0]` is the start's, then one every `JUDGED_EVERY` steps; `best` is the position of the one returned.
    """

    module: nn.Module
    errors: tuple[float, ...]
    best: int


def distil(
    dense: nn.Module,
    small: nn.Module,
    surgery: Surgery,
    batches: Sequence[Sequence[Tensor]],
    held_out: Sequence[Sequence[Tensor]],
    *,
    steps: int = STEPS,
    rate: float = RATE,
    augment: bool = True,
    frozen: frozenset[str] = frozenset(),
    mask: WeightMask | None = None,
    seed: int = 0,
    say: Say = quiet,
) -> Distilled:
    """A copy of `small`, trained to follow `dense` on `batches` of inputs, judged on `held_out` ones.

    Every batch has the same number of images. The parameters named in `frozen` stay, and the weights
    that `mask` removed stay zero. Refused: networks that cannot be
    followed (`planning.walk`).
    """
    size = len(batches[0][0])
    student = copy_of(small)
    programs = side_by_side(dense, small, batches[0], batch=size)
    points = _points(programs[1], surgery)
    held = {n: _layout(t.detach().clone()) for n, t in (*student.named_parameters(), *student.named_buffers())}
    learning = {n: held[n] for n, p in student.named_parameters() if p.is_floating_point() and n not in frozen}
    for tensor in learning.values():
        tensor.requires_grad_(True)
    removed = {} if mask is None else {n: ~kept.to(held[n].device) for n, kept in mask.kept.items()}
    optimiser = torch.optim.Adam(learning.values(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    given = [_layout(torch.cat([batch[i] for batch in batches])) for i in range(len(batches[0]))]
    reference = _outputs(programs[0], held_out, {})
    errors = [rise(reference, _outputs(programs[1], held_out, held))]
    best, kept = 0, {n: t.detach().clone() for n, t in held.items()}
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < size:
            order = torch.randperm(len(given[0]), generator=generator)
        chosen, order = order[:size], order[size:]
        inputs = [t[chosen] for t in given]
        if augment:
            inputs = [_layout(_moved(t, generator)) if t.ndim == 4 else t for t in inputs]
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        with right_gradients():
            loss = _loss(programs, points, inputs, held)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
        with torch.no_grad():
            for name, gone in removed.items():
                held[name].masked_fill_(gone, 0)
        say(f"distilling, step {step + 1} of {steps}, held-out error {errors[-1]:.3g} (start {errors[0]:.3g})")
        if (step + 1) % JUDGED_EVERY and step + 1 < steps:
            continue
        errors.append(rise(reference, _outputs(programs[1], held_out, held)))
        if errors[-1] < errors[best]:
            best, kept = len(errors) - 1, {n: t.detach().clone() for n, t in held.items()}
        elif len(errors) - 1 - best >= PATIENCE:
            break
    with torch.no_grad():
        for name, tensor in (*student.named_parameters(), *student.named_buffers()):
            tensor.copy_(kept[name])
    return Distilled(module=student, errors=tuple(errors), best=best)


def _layout(tensor: Tensor) -> Tensor:
    """The tensor with channels last where it is four-dimensional: convolutions train faster on a CPU."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _points(small: Program, surgery: Surgery) -> list[tuple[int, Tensor | None]]:
    """Where the two are compared inside: an operator's index, and the dense channels that are left there.

    The sums that end residual branches; where there are none, what the layers give.
    """
    layers: dict[int, Tensor | None] = {}
    sums: dict[int, Tensor | None] = {}
    for i, node in readers(small):
        name = small.tensor_name(node.args[1])
        assert name is not None
        layers[i] = surgery.slices.get(name, {}).get(1 if operator(node) in TRANSPOSING else 0)
        branch = residual_sum(small, node)
        if branch is not None:
            sums[branch.total] = layers[i]
    return sorted((sums or layers).items())


def _loss(
    programs: Sequence[Program],
    points: Sequence[tuple[int, Tensor | None]],
    inputs: Sequence[Tensor],
    held: Mapping[str, Tensor],
) -> Tensor:
    with torch.no_grad():
        inside, output = _through(programs[0], points, inputs, {}, training=False)
    followed, said = _through(programs[1], points, inputs, held, training=True)
    distance = _distance(_centred(output), _centred(said))
    for (_, kept), target, found in zip(points, inside, followed, strict=True):
        if target.shape != found.shape:
            dims = [d for d, (a, b) in enumerate(zip(target.shape, found.shape, strict=True)) if a != b]
            if kept is None or len(dims) != 1 or len(kept) != found.shape[dims[0]]:
                continue
            target = target.index_select(dims[0], kept)
        distance = distance + _distance(target, found) / len(points)
    return distance


def _through(
    program: Program,
    points: Sequence[tuple[int, Tensor | None]],
    inputs: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    *,
    training: bool,
) -> tuple[list[Tensor], Tensor]:
    """The values at the points, and the network's first output."""
    walk = Walk(program, [[t] for t in inputs], weights=weights, training=training)
    wanted = {i for i, _ in points}
    inside = []
    while walk.at < len(program.nodes):
        node = program.nodes[walk.at]
        walk.step()
        if walk.at - 1 in wanted:
            inside.append(walk.values[node][0])
    return inside, next(iter(tensors_in(walk.finish()[0][0])))


def _centred(output: Tensor) -> Tensor:
    return output - output.mean(dim=1, keepdim=True) if output.ndim == 2 and output.shape[1] > 1 else output


def _distance(dense: Tensor, small: Tensor) -> Tensor:
    return (small - dense).square().mean() / dense.var().clamp(min=1e-12)


def _outputs(program: Program, batches: Sequence[Sequence[Tensor]], weights: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found = [Walk(program, [[t] for t in batch], weights=weights).finish()[0][0] for batch in batches]
    return torch.cat([next(iter(tensors_in(value))) for value in found])


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images flipped at random, and shifted together by up to an eighth; what comes in at the rim repeats the edge."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flipped.view(-1, 1, 1, 1).to(images.device), images.flip(3), images)
    reach = max(1, images.shape[-1] // 8)
    down, right = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    padded = functional.pad(images, [reach] * 4, mode="replicate")
    height, width = images.shape[-2:]
    return padded[..., reach + down : reach + down + height, reach + right : reach + right + width]
