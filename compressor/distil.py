"""Label-free distillation: the small network follows what the dense one says and holds inside, on unlabelled images.

The loss of a batch is the distance between outputs plus the mean distance between the two networks' *block outputs*,
the sums at the end of residual branches (where there are none, what the layers give):

    KL(softmax(z_dense / τ) ‖ softmax(z_small / τ)) τ² + Σ ‖h_dense − h_small‖² / Var h_dense / blocks

(Hinton et al. 2015, arXiv:1503.02531, for the first term; Romero et al. 2015, arXiv:1412.6550, for the second; another
output than class scores takes the squared error over its variance). Batch norms keep their statistics: their scale and
shift are trained like the weights. Images are flipped and shifted at random where they are images. A part of them is
held out; what did best there is returned, the start included: it is never worse than what it started from.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from compressor.outputs import tensors_in
from compressor.program import Program, Walk, aten, in_step, operator, program_of, readers
from compressor.sensitivity import rise
from compressor.surgery import Surgery

Say = Callable[[str], None]
TEMPERATURE = 4.0  # as in `train`
RATE = 1e-3
PATIENCE = 4  # epochs without a better held-out error


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """The small network that followed best, and its held-out error (`compressor.sensitivity.rise`) by epoch.

    `errors[0]` is the start's; `epoch` is the one returned, 0 where nothing did better than the start.
    """

    module: nn.Module
    errors: tuple[float, ...]
    epoch: int


def distil(
    dense: nn.Module,
    small: nn.Module,
    surgery: Surgery,
    batches: Sequence[Sequence[Tensor]],
    held_out: Sequence[Sequence[Tensor]],
    *,
    epochs: int,
    rate: float = RATE,
    augment: bool = True,
    seed: int = 0,
    say: Say | None = None,
) -> Distilled:
    """A copy of `small`, trained to follow `dense` on `batches` of inputs, judged on `held_out` ones.

    Every batch has the same number of images. Refused: networks that cannot be followed (`compressor.program`).
    """
    say = say or (lambda _: None)
    size = len(batches[0][0])
    student = copy.deepcopy(small)
    programs = [program_of(m, batches[0], batch=size) for m in (dense, small)]
    in_step(*programs)
    points = _points(*programs, surgery)
    trained = {
        name: p.detach().clone().requires_grad_(True)
        for name, p in student.named_parameters()
        if p.is_floating_point()
    }
    optimiser = torch.optim.Adam(trained.values(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    reference = _outputs(programs[0], held_out, {})
    errors = [rise(reference, _outputs(programs[1], held_out, trained))]
    best, best_epoch = {n: p.detach().clone() for n, p in trained.items()}, 0
    steps, done = epochs * len(batches), 0
    for epoch in range(1, epochs + 1):
        order = torch.randperm(size * len(batches), generator=generator)
        for step in range(len(batches)):
            chosen = order[step * size : (step + 1) * size]
            inputs = [torch.cat([b[i] for b in batches])[chosen] for i in range(len(batches[0]))]
            if augment:
                inputs = [_moved(t, generator) if t.ndim == 4 else t for t in inputs]
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (done + 1) / len(batches)) * 0.5 * (1 + math.cos(math.pi * done / steps))
            loss = _loss(programs, points, inputs, trained)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            done += 1
            say(f"distilling, epoch {epoch} of {epochs}, step {step + 1} of {len(batches)}")
        errors.append(rise(reference, _outputs(programs[1], held_out, trained)))
        if errors[-1] < errors[best_epoch]:
            best, best_epoch = {n: p.detach().clone() for n, p in trained.items()}, epoch
        elif epoch - best_epoch >= PATIENCE:
            break
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name in best:
                parameter.copy_(best[name])
    return Distilled(module=student, errors=tuple(errors), epoch=best_epoch)


def _points(dense: Program, small: Program, surgery: Surgery) -> list[tuple[int, Tensor | None]]:
    """Where the two are compared inside: an operator's index, and the dense channels that are left there."""
    kept_of: dict[int, Tensor | None] = {}
    sums: dict[int, Tensor | None] = {}
    for i, node in readers(small):
        name = small.tensor_name(node.args[1])
        assert name is not None
        kept = surgery.slices.get(name, {}).get(0)
        at: fx.Node = node
        while True:
            users = list(at.users)
            if len(users) != 1:
                break
            at = users[0]
            others = [a for a in at.all_input_nodes if a not in small.constants]
            if operator(at) is aten.add.Tensor and len(others) == 2:
                sums[small.index[at]] = kept
                break
            if operator(at) not in (aten.batch_norm.default, aten.dropout.default):
                break
        kept_of[i] = kept
    chosen = sums or kept_of
    return sorted(chosen.items())


def _loss(
    programs: Sequence[Program], points: Sequence[tuple[int, Tensor | None]], inputs: Sequence[Tensor], trained: dict[str, Tensor]
) -> Tensor:
    with torch.no_grad():
        inside, output = _through(programs[0], points, inputs, {})
    followed, said = _through(programs[1], points, inputs, trained)
    distance = _distance(output, said)
    for (_, kept), target, found in zip(points, inside, followed, strict=True):
        if target.shape != found.shape:
            dims = [d for d, (a, b) in enumerate(zip(target.shape, found.shape, strict=True)) if a != b]
            if kept is None or len(dims) != 1 or len(kept) != found.shape[dims[0]]:
                continue
            target = target.index_select(dims[0], kept)
        distance = distance + (target - found).square().mean() / target.var().clamp(min=1e-12) / len(points)
    return distance


def _through(
    program: Program, points: Sequence[tuple[int, Tensor | None]], inputs: Sequence[Tensor], weights: dict[str, Tensor]
) -> tuple[list[Tensor], Tensor]:
    """The values at the points, and the network's first output."""
    walk = Walk(program, [[t] for t in inputs], weights=weights)
    wanted = {i for i, _ in points}
    inside = []
    while walk.at < len(program.nodes):
        node = program.nodes[walk.at]
        walk.step()
        if walk.at - 1 in wanted:
            inside.append(walk.values[node][0])
    return inside, next(iter(tensors_in(walk.finish()[0][0])))


def _distance(dense: Tensor, small: Tensor) -> Tensor:
    if dense.ndim == 2 and dense.shape[1] > 1:
        target = functional.log_softmax(dense / TEMPERATURE, dim=1)
        found = functional.log_softmax(small / TEMPERATURE, dim=1)
        return functional.kl_div(found, target, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return (small - dense).square().mean() / dense.var().clamp(min=1e-12)


def _outputs(program: Program, batches: Sequence[Sequence[Tensor]], weights: dict[str, Tensor]) -> Tensor:
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
