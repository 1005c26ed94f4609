"""Label-free distillation: train the small network to match the dense one's outputs and inner values, without labels.

The loss of a batch is the squared error of the outputs plus the mean squared error of the *block outputs* h, each
divided by its variance; of several outputs it is the mean. Block outputs are the sums at the end of residual branches;
without any, the layers' outputs:

    ‖z_dense − z_small‖² / Var z_dense + mean over blocks of ‖h_dense − h_small‖² / Var h_dense

(Ba & Caruana 2014, arXiv:1312.6184, for the scores before the softmax, centred for each image; Romero et al. 2015,
arXiv:1412.6550, for the inner values). Batch norms use the batch's statistics and update the running ones, as in any
training: with the dense network's statistics kept fixed, the same steps made small ResNets worse. Inputs of the shape
of images are flipped and shifted at random. The network with the lowest error on held-out inputs is returned; the start
is a candidate too, so the result is never worse than it.
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
from compressor.planning.branches import residual_sum
from compressor.planning.sensitivity import real_outputs, rises
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

STEPS, JUDGED_EVERY, PATIENCE = 900, 50, 8  # all steps; steps between evaluations; evaluations without progress to stop
RATE, WARMUP = 1e-3, 20  # of Adam; 1e-4 to 3e-4 were too slow, 3e-3 made the start worse


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """The small network with the lowest held-out error, and all held-out errors (`planning.sensitivity.rise`).

    `errors[0]` is the error at the start, followed by one per `JUDGED_EVERY` steps; `best` is the index of the returned
    network's error.
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
    """Train a copy of `small` to match `dense` on `batches` of inputs, and return the best one on `held_out` inputs.

    Every batch has the same number of images. Parameters named in `frozen` are not trained; weights that `mask` removed
    stay zero. Refused: networks that cannot be followed (`planning.walk`).
    """
    size = len(batches[0][0])
    student = copy_of(small)
    programs = side_by_side(dense, small, batches[0], batch=size)
    points = _points(programs[1], surgery)
    tensors = {n: _layout(t.detach().clone()) for n, t in (*student.named_parameters(), *student.named_buffers())}
    learning = {n: tensors[n] for n, p in student.named_parameters() if p.is_floating_point() and n not in frozen}
    for tensor in learning.values():
        tensor.requires_grad_(True)
    removed = {} if mask is None else {n: ~kept.to(tensors[n].device) for n, kept in mask.kept.items()}
    optimiser = torch.optim.Adam(learning.values(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    all_inputs = [_layout(torch.cat([batch[i] for batch in batches])) for i in range(len(batches[0]))]
    reference = _outputs(programs[0], held_out, {})
    errors = [rises(reference, _outputs(programs[1], held_out, tensors))]
    best, kept = 0, {n: t.detach().clone() for n, t in tensors.items()}
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < size:
            order = torch.randperm(len(all_inputs[0]), generator=generator)
        chosen, order = order[:size], order[size:]
        inputs = [t[chosen] for t in all_inputs]
        if augment:
            inputs = [_layout(_moved(t, generator)) if t.ndim == 4 else t for t in inputs]
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        with right_gradients():
            loss = _loss(programs, points, inputs, tensors)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
        with torch.no_grad():
            for name, gone in removed.items():
                tensors[name].masked_fill_(gone, 0)
        say(f"distilling, step {step + 1} of {steps}, held-out error {errors[-1]:.3g} (start {errors[0]:.3g})")
        if (step + 1) % JUDGED_EVERY and step + 1 < steps:
            continue
        errors.append(rises(reference, _outputs(programs[1], held_out, tensors)))
        if errors[-1] < errors[best]:
            best, kept = len(errors) - 1, {n: t.detach().clone() for n, t in tensors.items()}
        elif len(errors) - 1 - best >= PATIENCE:
            break
    with torch.no_grad():
        for name, tensor in (*student.named_parameters(), *student.named_buffers()):
            tensor.copy_(kept[name])
    return Distilled(module=student, errors=tuple(errors), best=best)


def _layout(tensor: Tensor) -> Tensor:
    """Return a four-dimensional tensor in channels-last format, in which convolutions train faster on a CPU."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _points(small: Program, surgery: Surgery) -> list[tuple[int, Tensor | None]]:
    """Return where inner values are compared: an operator's index, and the dense channels that stay there.

    These are the sums that end residual branches; without any, the layers' outputs.
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
    weights: Mapping[str, Tensor],
) -> Tensor:
    """Return the loss of a batch (the module's docstring has the formula)."""
    with torch.no_grad():
        inside, outputs = _through(programs[0], points, inputs, {}, training=False)
    small_inside, small_outputs = _through(programs[1], points, inputs, weights, training=True)
    pairs = list(zip(outputs, small_outputs, strict=True))
    distance = torch.stack([_distance(_centred(a), _centred(b)) for a, b in pairs]).mean()
    for (_, kept), target, value in zip(points, inside, small_inside, strict=True):
        if target.shape != value.shape:
            dims = [d for d, (a, b) in enumerate(zip(target.shape, value.shape, strict=True)) if a != b]
            if kept is None or len(dims) != 1 or len(kept) != value.shape[dims[0]]:
                continue
            target = target.index_select(dims[0], kept)
        distance = distance + _distance(target, value) / len(points)
    return distance


def _through(
    program: Program,
    points: Sequence[tuple[int, Tensor | None]],
    inputs: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    *,
    training: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the values at the points, and the network's outputs of real numbers."""
    walk = Walk(program, [[t] for t in inputs], weights=weights, training=training)
    wanted = {i for i, _ in points}
    inside = []
    while walk.at < len(program.nodes):
        node = program.nodes[walk.at]
        walk.step()
        if walk.at - 1 in wanted:
            inside.append(walk.values[node][0])
    return inside, real_outputs(walk.finish())


def _centred(output: Tensor) -> Tensor:
    return output - output.mean(dim=1, keepdim=True) if output.ndim == 2 and output.shape[1] > 1 else output


def _distance(dense: Tensor, small: Tensor) -> Tensor:
    return (small - dense).square().mean() / dense.var().clamp(min=1e-12)


def _outputs(program: Program, batches: Sequence[Sequence[Tensor]], weights: Mapping[str, Tensor]) -> list[Tensor]:
    """The program's outputs of real numbers, over all batches."""
    with torch.no_grad():
        each = [Walk(program, [[t] for t in batch], weights=weights).finish() for batch in batches]
    return real_outputs([[value for one in column for value in one] for column in zip(*each, strict=True)])


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each image at random, and shift all of them by up to an eighth; new pixels repeat the edge."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flipped.view(-1, 1, 1, 1).to(images.device), images.flip(3), images)
    reach = max(1, images.shape[-1] // 8)
    down, right = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    padded = functional.pad(images, [reach] * 4, mode="replicate")
    height, width = images.shape[-2:]
    return padded[..., reach + down : reach + down + height, reach + right : reach + right + width]
