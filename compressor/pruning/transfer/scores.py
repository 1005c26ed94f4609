"""Score channels by their effect on two domains (Yu et al. 2019, Transfer Channel Pruning, arXiv:1904.02654, sec. 3).

For each domain, the score of a channel is |mean over images and positions of activation x gradient|: the first-order
change of the loss when the channel becomes zero (Molchanov et al. 2017, arXiv:1611.06440), divided by the L2 norm of
the scores of its group. The loss is the joint one: cross entropy of the source plus the weighted discrepancy of both
domains. The source's score uses its gradient through the pass of the source's images, the target's score that through
the pass of the target's images. A channel's score is the sum of both. The network is in eval mode, as in use: with
batch statistics, a batch norm would cancel the scale of the channel before it, and the mean would vanish.

The mean is over *all* batches, and the sum over both domains, as in the paper; the released code uses the last batch
alone and takes the smaller of the two. Activations are the inputs of the channel's consumers, behind norm and
activation function. For convolutions and linear layers, the sum of activation x gradient over images and positions is
exactly the sum of weight x gradient over the consumer's weights for that channel: Σ x ∂L/∂x = Σ w ∂L/∂w, since both are
Σ (w * x) ∂L/∂y. Each of several consumers has its own sum. The features that the discrepancy compares have a second
reader without weights: a gate of ones in front of the layer has a gradient that is the same sum over both readers. A
group that no weight reads, such as queries and keys, is scored by the weights and biases of its own layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup, Member, Role
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.batches import batches
from compressor.data.domains import TargetDomain
from compressor.data.samples import first
from compressor.data.splits import Data, SplitName
from compressor.errors import CalibrationError, GroupError
from compressor.graph.copies import copy_of
from compressor.graph.gradients import right_gradients
from compressor.graph.outputs import class_scores
from compressor.planning.calibration import over_channels, rows
from compressor.surgery.plan import Scores
from compressor.tasks.classes import classification_loss
from compressor.training.domains.adaptation import Alignment
from compressor.training.domains.features import features_in, layer_named, reading
from compressor.training.domains.mmd import mmd
from compressor.training.retraining import device_named

CRITERION = "transfer"  # its name in records
Pair = tuple[Tensor, Tensor, Tensor | None]  # source inputs and labels, target inputs


def pairs_of(
    checkpoint: Checkpoint, source: Data, target: TargetDomain | None, *, images: int, batch_size: int, seed: int
) -> list[Pair]:
    """Return full batches of up to `images` training images of each domain, drawn by `seed`."""
    chosen = first(source.split(SplitName.TRAIN), images, seed=seed)
    size = min(batch_size, len(chosen))
    stream = batches(chosen, batch_size=size, preprocessing=checkpoint.preprocessing)
    return [
        (inputs, labels, None if target is None else _beside(target, number, size, checkpoint, seed))
        for number, ((inputs,), labels) in enumerate(stream)
        if len(inputs) == size
    ]


def _beside(target: TargetDomain, number: int, size: int, checkpoint: Checkpoint, seed: int) -> Tensor:
    """Return the target's batch for batch `number` of the source."""
    return target.batch(number, size=size, preprocessing=checkpoint.preprocessing, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """One domain's part of the joint loss's gradient, as the mean over all batches; float64, on the CPU.

    `parameters` holds gradients by parameter name. `gate` `[features]` is the gradient of the gate before the compared
    layer: the sum over images and positions of activation x gradient.
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
    """Return every group's scores, comparable across groups; the module is not modified.

    For pairs without target images, the score is the source's for the cross entropy alone. The discrepancy has its full
    weight. Refused: no pairs, gradients that are not finite, what the loss refuses, a compared layer that is neither
    linear nor an ungrouped convolution.
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
    """Return the joint loss's gradients through the source's pass and, with a target, through the target's.

    Each domain has its own copy of the network, so that the two gradients are separate.
    """
    place = next(module.parameters()).device if device is None else device_named(device)
    copies = [copy_of(module).eval().requires_grad_(True).to(place) for _ in range(2)]
    parameters = [dict(net.named_parameters(remove_duplicate=False)) for net in copies]
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
            wanted = [[*parameters[part].values(), gates[part]] for part in parts]
            gradients = torch.autograd.grad(loss, [t for of_part in wanted for t in of_part], allow_unused=True)
        sums = sums or [[torch.zeros_like(t, dtype=torch.float64) for t in of_part] for of_part in wanted]
        names = [name for part in parts for name in (*parameters[part], alignment.layer)]
        for name, total, gradient in zip(names, itertools.chain.from_iterable(sums), gradients, strict=True):
            if gradient is not None:
                if not bool(gradient.isfinite().all()):
                    raise CalibrationError(f"the gradient of `{name}` is not finite", hint="check the data's values")
                total += gradient
        count += 1
    if not count:
        raise CalibrationError("there is no batch to score channels on", hint="give more images")
    means = [[(total / count).cpu() for total in of_part] for of_part in sums]
    return tuple(
        Gradients(parameters=dict(zip(parameters[0], mean[:-1], strict=True)), gate=mean[-1]) for mean in means
    )


def _gated(module: nn.Module, inputs: Tensor, layer: str) -> tuple[object, Tensor, Tensor]:
    """Return the network's output, the layer's gated inputs `[batch, features]`, and the gate of ones."""
    compared = layer_named(module, layer)
    gate = _gate_of(compared, layer)

    def through(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shape = (-1, *[1] * (0 if isinstance(compared, nn.Linear) else inputs[0].ndim - 2))
        return (inputs[0] * gate.view(shape), *inputs[1:])

    hook = compared.register_forward_pre_hook(through)
    try:
        with reading(module, layer) as read:  # hooks run in the order of their registration
            output = module(inputs)
    finally:
        hook.remove()
    return output, features_in(read, layer), gate


def check_comparable(module: nn.Module, layer: str) -> None:
    """Raise for a layer that is neither linear nor an ungrouped convolution: its inputs cannot score channels."""
    _gate_of(layer_named(module, layer), layer)


def _gate_of(compared: nn.Module, layer: str) -> Tensor:
    """Return a gate of ones `[in]` for the layer's inputs; refused: other layers than `check_comparable` accepts."""
    convolves = isinstance(compared, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and compared.groups == 1
    if not (convolves or isinstance(compared, nn.Linear)):
        raise GroupError(
            f"`{layer}` is neither a linear layer nor an ungrouped convolution: its inputs cannot score channels",
            hint="choose a layer of these kinds: `--layer NAME`",
        )
    weight: Tensor = compared.weight  # type: ignore[assignment]  # of a linear layer or a convolution
    return weight.new_ones(weight.shape[1], requires_grad=True)


def _silenced(group: ChannelGroup, weights: Mapping[str, Tensor], gradients: Gradients, *, layer: str) -> Tensor:
    """Return the first-order change of the loss when a channel is zero for all its consumers: float64 `[channels]`."""
    trained = [m for m in group.members if m.tensor in gradients.parameters]
    members = [m for m in trained if m.role is Role.CONSUMES] or trained

    def change(member: Member) -> Tensor:
        if member.role is Role.CONSUMES and member.tensor == f"{layer}.weight":
            return gradients.gate[member.positions]
        return (rows(member, weights) * rows(member, gradients.parameters)).sum(dim=1)

    return over_channels(group, members, change).abs()


def _normalised(scores: Tensor) -> Tensor:
    """Return the scores divided by their L2 norm; zeros stay zero."""
    norm: Tensor = scores.norm()
    return scores / norm.clamp(min=torch.finfo(scores.dtype).tiny)
