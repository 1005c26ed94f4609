"""Which channels matter to two domains at once (Yu et al. 2019, Transfer Channel Pruning, arXiv:1904.02654, sec. 3).

For each domain the score of a channel is |mean over images and positions of activation x gradient|, the first-order
change of the loss when the channel goes silent (Molchanov et al. 2017, arXiv:1611.06440), divided by the L2 norm of the
scores of its group. The loss is the joint one, cross entropy of the source plus the weighted discrepancy of both
domains; the source's score follows its gradient through the pass of the source's images, the target's through that of
the target's. What a channel scores is the sum of both. Everything is in eval mode, as the network will be used: with a
batch's own statistics a batch norm hides the scale of the channel before it, and the mean would vanish.

The mean is over *all* batches, and the sum over both domains, as in the paper; the released code keeps the last batch
alone and takes the smaller of the two. Activations are those that the channel's consumers read, behind norm and
activation function. There the sum of activation x gradient over images and positions is, for convolutions and linear
layers, exactly the sum of weight x gradient over the consumer's weights for that channel: Σ x ∂L/∂x = Σ w ∂L/∂w, since
both are Σ (w * x) ∂L/∂y; several consumers are told apart from one another, as silencing them at each asks for. Only
what the discrepancy is taken of has a second reader that holds no weights: there a gate of ones stands before the
layer, and the gradient of the gate is the same sum over both. A group that no weight reads, as queries and keys, is
judged by what its own layers' weights and biases do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup, Member, Role
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.domains import Target
from compressor.data.splits import Data, SplitName, batches, first
from compressor.errors import CalibrationError, GroupError
from compressor.graph.copies import copy_of
from compressor.graph.gradients import right_gradients
from compressor.graph.outputs import class_scores
from compressor.planning.calibration import over_channels, rows
from compressor.surgery.plan import Scores
from compressor.training.domains.adaptation import Alignment
from compressor.training.domains.features import features_in, layer_named, reading
from compressor.training.domains.mmd import mmd
from compressor.training.loop import classification_loss
from compressor.training.retraining import device_named

CRITERION = "transfer"  # its name in records
Pair = tuple[Tensor, Tensor, Tensor | None]  # source inputs and labels, target inputs


def pairs_of(
    checkpoint: Checkpoint, source: Data, target: Target | None, *, images: int, batch_size: int, seed: int
) -> list[Pair]:
    """Whole batches of up to `images` training images of each domain, drawn by `seed`."""
    chosen = first(source.split(SplitName.TRAIN), images, seed=seed)
    size = min(batch_size, len(chosen))
    stream = batches(chosen, batch_size=size, preprocessing=checkpoint.preprocessing)
    return [
        (inputs, labels, None if target is None else _beside(target, number, size, checkpoint, seed))
        for number, (inputs, labels) in enumerate(stream)
        if len(inputs) == size
    ]


def _beside(target: Target, number: int, size: int, checkpoint: Checkpoint, seed: int) -> Tensor:
    return target.batch(number, size=size, preprocessing=checkpoint.preprocessing, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """One domain's part of the joint loss's gradient, in the mean of all batches; float64, on the CPU.

    `parameters` by their names; `gate` `[features]` of the gate before the compared layer: the sum over images and
    positions of activation x gradient.
    """

    parameters: Mapping[str, Tensor]
    gate: Tensor


def transfer_scores(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    pairs: Iterable[Pair],
    *,
    alignment: Alignment,
    device: str | None = None,
) -> Scores:
    """Every group's scores, comparable across groups; the module stays as it was.

    Pairs without target images give the source's score for the cross entropy alone. The discrepancy has its whole
    weight. Refused: no pairs, gradients that are not finite, what the loss refuses, a layer to compare by that is
    neither linear nor an ungrouped convolution.
    """
    domains = joint_gradients(module, pairs, alignment=alignment, device=device)
    weights = {name: p.detach().cpu() for name, p in module.named_parameters(remove_duplicate=False)}
    by_root = {}
    for group in groups:
        parts = [_silenced(group, weights, gradients, layer=alignment.layer) for gradients in domains]
        by_root[group.root] = torch.stack([_normalised(part) for part in parts]).sum(dim=0)
    return Scores(by_root=by_root, comparable=True)


def joint_gradients(
    module: nn.Module, pairs: Iterable[Pair], *, alignment: Alignment, device: str | None = None
) -> tuple[Gradients, ...]:
    """The joint loss's gradient through the source's pass and through the target's; one where there is no target.

    Each domain has a copy of the network of its own, so that what flows through one is told from the other.
    """
    place = next(module.parameters()).device if device is None else device_named(device)
    copies = [copy_of(module).eval().requires_grad_(True).to(place) for _ in range(2)]
    held = [dict(net.named_parameters(remove_duplicate=False)) for net in copies]
    sums: list[list[Tensor]] = []
    count = 0
    for inputs, labels, others in pairs:
        parts = range(1 if others is None else 2)
        with torch.enable_grad(), right_gradients():
            scores, features, gate = _gated(copies[0], inputs.to(place), alignment.layer)
            loss, gates = classification_loss(class_scores(scores), labels.to(place)), [gate]
            if others is not None:
                _, features_too, gate = _gated(copies[1], others.to(place), alignment.layer)
                gates.append(gate)
                loss = loss + alignment.weight * mmd(features, features_too, kernels=alignment.kernels)
            wanted = [[*held[part].values(), gates[part]] for part in parts]
            found = torch.autograd.grad(loss, [t for of_part in wanted for t in of_part], allow_unused=True)
        sums = sums or [[torch.zeros_like(t, dtype=torch.float64) for t in of_part] for of_part in wanted]
        names = [name for part in parts for name in (*held[part], alignment.layer)]
        for name, total, gradient in zip(names, itertools.chain.from_iterable(sums), found, strict=True):
            if gradient is not None:
                if not bool(gradient.isfinite().all()):
                    raise CalibrationError(f"the gradient of `{name}` is not finite", hint="check the data's values")
                total += gradient
        count += 1
    if not count:
        raise CalibrationError("there is no batch to score channels on", hint="give more images")
    means = [[(total / count).cpu() for total in of_part] for of_part in sums]
    return tuple(Gradients(parameters=dict(zip(held[0], mean[:-1], strict=True)), gate=mean[-1]) for mean in means)


def _gated(module: nn.Module, inputs: Tensor, layer: str) -> tuple[object, Tensor, Tensor]:
    """The network's output, what the layer reads `[batch, features]`, and the gate of ones that it went through."""
    found = layer_named(module, layer)
    gate = _gate_of(found, layer)

    def through(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shape = (-1, *[1] * (0 if isinstance(found, nn.Linear) else given[0].ndim - 2))
        return (given[0] * gate.view(shape), *given[1:])

    hook = found.register_forward_pre_hook(through)
    try:
        with reading(module, layer) as read:  # hooks run in the order of their registration
            output = module(inputs)
    finally:
        hook.remove()
    return output, features_in(read, layer), gate


def check_comparable(module: nn.Module, layer: str) -> None:
    """Refuses a layer whose inputs' channels are not told apart by its weight: channels are scored on others only."""
    _gate_of(layer_named(module, layer), layer)


def _gate_of(found: nn.Module, layer: str) -> Tensor:
    convolves = isinstance(found, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and found.groups == 1
    if not (convolves or isinstance(found, nn.Linear)):
        raise GroupError(
            f"`{layer}` is neither a linear layer nor an ungrouped convolution: what it reads scores no channel",
            hint="compare by one that is: `--layer NAME`",
        )
    weight: Tensor = found.weight  # type: ignore[assignment]  # of a linear layer or a convolution
    return weight.new_ones(weight.shape[1], requires_grad=True)


def _silenced(group: ChannelGroup, weights: Mapping[str, Tensor], gradients: Gradients, *, layer: str) -> Tensor:
    """What the loss changes by, to first order, when a channel is silent to all that read it: float64 `[channels]`."""
    known = [m for m in group.members if m.tensor in gradients.parameters]
    members = [m for m in known if m.role is Role.CONSUMES] or known

    def change(member: Member) -> Tensor:
        if member.role is Role.CONSUMES and member.tensor == f"{layer}.weight":
            return gradients.gate[member.positions]
        return (rows(member, weights) * rows(member, gradients.parameters)).sum(dim=1)

    return over_channels(group, members, change).abs()


def _normalised(scores: Tensor) -> Tensor:
    """The scores divided by their L2 norm; zeros stay."""
    norm: Tensor = scores.norm()
    return scores / norm.clamp(min=torch.finfo(scores.dtype).tiny)
