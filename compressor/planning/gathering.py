"""Gather what a criterion needs: statistics of one pass over calibration data.

A pass runs in eval mode (a batch norm uses its running statistics, dropout is off) and leaves the module unchanged.

Activations. For every channel of a group: the mean of |x| and the share of x = 0 over what the group's *consumers*
read, that is behind the norm and the activation. Every consumer counts alike, and so does every image and position
within one. A group whose consumers cannot be observed uses the outputs of its producers, before any activation.

Gradients. The mean over images of ∂loss/∂parameter, where the loss of an image is

    with labels                     cross entropy
    no labels, `[batch, classes]`   cross entropy against the network's own top class (against its whole distribution
                                    the gradient is zero by definition)
    any other output                ½ Σ output² (a squared error needs targets; this measures what carries the energy)

Second moments. Those of what every consumer of a group reads, window by window (`planning.elimination`). Only batches
of the first one's size count, so a smaller last one does not.

Squared gradients. The mean over images of (∂loss/∂parameter)², image by image: with labels, the diagonal of the
empirical Fisher matrix. Without labels the target is drawn from the network's own distribution, so that the mean is the
Gauss-Newton diagonal in expectation (Kunstner et al. 2019, arXiv:1905.12558, sec. 2): a drawn class or, for any other
output, unit noise around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.channels.groups import ChannelGroup, Role
from compressor.data.samples import UNLABELLED
from compressor.errors import CalibrationError
from compressor.graph.finite import broken_in
from compressor.graph.gradients import right_gradients
from compressor.graph.lent import evaluating
from compressor.planning.calibration import Batches, Calibration, Inputs, Needs, required
from compressor.planning.elimination import ReaderMoments, readings_of
from compressor.planning.walk import Program, Walk, calls, program_of
from compressor.progress import Say, quiet


def gather(
    module: nn.Module, groups: Sequence[ChannelGroup], *, needs: Needs, batches: Batches | None, seed: int,
    memory_bytes: int | None = None, say: Say = quiet,
) -> Calibration:  # fmt: skip
    """Return the calibration of `module` for a criterion with these `needs`.

    `batches` are (inputs, labels); without labels, these are `None` or -1. Second moments stay within `memory_bytes`;
    `say` reports the layers that have only variances for that reason. Refused: no data where data is needed, weights or
    gradients that are not finite, labels beyond the output's classes, a group whose channels cannot be observed.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {n: t.detach().cpu() for n, t in module.state_dict().items() if t.is_floating_point()}
    broken = broken_in(module)
    if broken is not None:
        raise CalibrationError(
            f"`{broken}` holds values that are not finite", hint="the network cannot be scored: repair its checkpoint"
        )
    if needs is Needs.NOTHING:
        return Calibration(module=module, weights=weights, generator=generator)
    data = required(batches, needs)
    if needs is Needs.SECOND_MOMENTS:
        readings, images = _second_moments(module, groups, data, seed=seed, memory_bytes=memory_bytes, say=say)
        return Calibration(module=module, weights=weights, generator=generator, readings=readings, images=images)
    with _prepared(module, seed=seed, gradients=needs is not Needs.ACTIVATIONS):
        if needs is Needs.ACTIVATIONS:
            mean_absolute, zero_share, images = _activations(module, groups, data)
            return Calibration(
                module=module,
                weights=weights,
                generator=generator,
                mean_absolute=mean_absolute,
                zero_share=zero_share,
                images=images,
            )
        squared = needs is Needs.SQUARED_GRADIENTS
        gradients, images, labelled = _gradients(module, data, squared=squared, generator=generator)
    return Calibration(
        module=module,
        weights=weights,
        generator=generator,
        gradients=None if squared else gradients,
        squared_gradients=gradients if squared else None,
        images=images,
        labelled=labelled,
    )


@contextmanager
def _prepared(module: nn.Module, *, seed: int, gradients: bool) -> Iterator[None]:
    """Set eval mode, gradients on or off, and the random seed; restore all of it at the end."""
    before = [(p, p.requires_grad) for p in module.parameters()]
    devices = sorted({p.device.index for p, _ in before if p.device.type == "cuda"})
    try:
        for parameter, _ in before:
            parameter.requires_grad_(gradients and parameter.is_floating_point())
        chance = torch.random.fork_rng(devices=devices)
        with evaluating(module), chance, torch.inference_mode(False), torch.set_grad_enabled(gradients):
            torch.manual_seed(seed)
            yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """An input on the parameter's device, in its type where both are floats."""
    return tensor.to(parameter.device, parameter.dtype) if tensor.is_floating_point() else tensor.to(parameter.device)


def _forward(module: nn.Module, inputs: Inputs) -> tuple[Tensor, int]:
    """The first tensor of the network's output, and the number of images."""
    first = next(module.parameters())
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    tensors = [_like(t, first) for t in tensors]
    try:
        output: Any = module(*tensors)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shapes = ", ".join(str(list(t.shape)) for t in tensors)
        raise CalibrationError(
            f"the network fails on the calibration data, inputs {shapes}: {str(error).splitlines()[0]}",
            hint="check that the data has the network's channels and size",
        ) from error
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output, len(tensors[0])


class _Tally:
    """Running sums over every axis except the channels'."""

    def __init__(self) -> None:
        self.absolute: Tensor | float = 0.0
        self.zeros: Tensor | float = 0.0
        self.elements = 0

    def add(self, values: Tensor, axis: int) -> None:
        """Add values whose channels lie along `axis`."""
        by_channel = values.detach().movedim(axis, 0).flatten(1)  # [channels, elements]
        self.absolute = self.absolute + by_channel.abs().sum(dim=1, dtype=torch.float64)
        self.zeros = self.zeros + (by_channel == 0).sum(dim=1, dtype=torch.float64)
        self.elements += by_channel.shape[1]

    def means(self) -> Tensor:
        """Return `[2, channels]`: mean |x| and share of zeros."""
        return torch.stack([torch.as_tensor(self.absolute), torch.as_tensor(self.zeros)]).cpu() / self.elements


def _activations(
    module: nn.Module, groups: Sequence[ChannelGroup], batches: Batches
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Mean |x| and share of zeros by root, and the number of images."""
    wanted: set[tuple[str, Role]] = {(m.tensor, m.role) for g in groups for m in g.members}
    tallies: dict[tuple[str, Role], _Tally] = {}
    programs: dict[int, Program] = {}
    first, images = next(module.parameters()), 0
    for inputs, _ in batches:
        tensors = [_like(t, first) for t in ([inputs] if isinstance(inputs, Tensor) else inputs)]
        size = len(tensors[0])
        if size not in programs:
            _forward(module, tensors)  # unsuitable data is refused before anything is exported
            programs[size] = program_of(module, tensors, batch=size)
        _tally(programs[size], tensors, wanted, tallies)
        images += size
    _refuse_none(images)
    statistics = {g.root: _statistics(module, g, tallies) for g in groups}
    return {root: s[0] for root, s in statistics.items()}, {root: s[1] for root, s in statistics.items()}, images


def _tally(
    program: Program,
    inputs: Sequence[Tensor],
    wanted: set[tuple[str, Role]],
    tallies: dict[tuple[str, Role], _Tally],
) -> None:
    """Add what the layers with the wanted weights read and write on one batch."""
    layers = dict(calls(program))
    walk = Walk(program, [[t] for t in inputs])
    while walk.at < len(program.nodes):
        i, node = walk.at, program.nodes[walk.at]
        source = walk.argument(node.args[0], 0) if i in layers else None  # type: ignore[arg-type]  # a node
        walk.step()
        if source is None:
            continue
        name = program.tensor_name(node.args[1])
        assert name is not None
        spatial = walk.constant(node.args[1]).ndim - 2  # type: ignore[arg-type]  # a reader's weight is a node
        for role, value in ((Role.CONSUMES, source), (Role.PRODUCES, walk.values[node][0])):
            if (name, role) in wanted:
                tallies.setdefault((name, role), _Tally()).add(value, value.ndim - 1 - spatial)


def _statistics(module: nn.Module, group: ChannelGroup, tallies: Mapping[tuple[str, Role], _Tally]) -> Tensor:
    """`[2, channels]`: the average over the consumers' inputs, or over the producers' outputs where no consumer is
    observed.
    """
    shapes = {name: parameter.shape for name, parameter in module.named_parameters(remove_duplicate=False)}
    for role in (Role.CONSUMES, Role.PRODUCES):
        total = torch.zeros(2, group.channels, dtype=torch.float64)
        seen = torch.zeros(group.channels, dtype=torch.int64)
        for member in group.members:
            tally = tallies.get((member.tensor, role))
            if member.role is not role or tally is None or not tally.elements:
                continue
            means, each = tally.means(), shapes[member.tensor][member.dim]
            blocks = (
                torch.arange(means.shape[1] // each) * each
            )  # a grouped convolution repeats the positions in every group
            positions = (blocks.unsqueeze(1) + member.positions).flatten()
            channels = member.channels.repeat(len(blocks))
            sums = torch.zeros(2, group.channels, dtype=torch.float64).index_add_(1, channels, means[:, positions])
            counts = channels.bincount(minlength=group.channels)
            total += sums / counts.clamp(min=1)
            seen += counts > 0
        if bool(seen.all()):
            return total / seen
    raise CalibrationError(
        f"the activations of the group of `{group.root}` cannot be observed at any layer",
        hint=f"use a criterion on weights or gradients, or `--protect {group.members[0].layer}`",
    )


def _gradients(
    module: nn.Module, batches: Batches, *, squared: bool, generator: torch.Generator
) -> tuple[dict[str, Tensor], int, bool]:
    """Mean (squared) gradients by parameter name, the number of images, and whether all of them had labels."""
    named = [(n, p) for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad]
    parameters = list({id(p): p for _, p in named}.values())
    sums = [torch.zeros_like(p) for p in parameters]
    images, labelled = 0, True
    for inputs, labels in _single(batches) if squared else batches:
        with right_gradients():
            output, size = _forward(module, inputs)
        has_labels = _is_classes(labels) and _is_scores(output)
        loss = _loss(output, labels if has_labels else None, drawn=squared, generator=generator)
        for total, gradient in zip(sums, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if gradient is not None:
                total += gradient.square() if squared else gradient
        images, labelled = images + size, labelled and has_labels
    _refuse_none(images)
    mean = {id(p): (total / images).cpu() for p, total in zip(parameters, sums, strict=True)}
    gradients = {name: mean[id(p)] for name, p in named}
    broken = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
    if broken:
        raise CalibrationError(f"the gradient of `{broken[0]}` is not finite", hint="check the data's normalisation")
    return gradients, images, labelled


def _second_moments(
    module: nn.Module, groups: Sequence[ChannelGroup], batches: Batches, *, seed: int,
    memory_bytes: int | None, say: Say,
) -> tuple[dict[str, ReaderMoments], int]:  # fmt: skip
    """The readings of the groups' consumers, by their weights' names, and the number of images."""
    first = next(module.parameters())
    passes = [[_like(t, first) for t in ([inputs] if isinstance(inputs, Tensor) else inputs)] for inputs, _ in batches]
    whole = [tensors for tensors in passes if len(tensors[0]) == len(passes[0][0])]
    _refuse_none(len(whole))
    names = {m.tensor for g in groups for m in g.members if m.role is Role.CONSUMES}
    program = program_of(module, whole[0], batch=len(whole[0][0]))
    readings = readings_of(program, whole, names, seed=seed, memory_bytes=memory_bytes, say=say)
    return readings, sum(len(tensors[0]) for tensors in whole)


def _single(batches: Batches) -> Iterator[tuple[Inputs, Tensor | None]]:
    """The same data, one image at a time."""
    for inputs, labels in batches:
        tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        for i in range(len(tensors[0])):
            yield [t[i : i + 1] for t in tensors], labels[i : i + 1] if _is_classes(labels) else None


def _is_classes(labels: Any) -> TypeGuard[Tensor]:
    """True for a class number for every sample."""
    whole = isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()
    return whole and not bool((labels == UNLABELLED).any())


def _is_scores(output: Tensor) -> bool:
    """True for class scores: `[images, classes]` with several classes."""
    return output.ndim == 2 and output.shape[1] > 1


def _loss(output: Tensor, labels: Tensor | None, *, drawn: bool, generator: torch.Generator) -> Tensor:
    """The sum over images of the loss in the module's docstring; with `drawn`, unlabelled targets are drawn."""
    output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
    if not _is_scores(output):
        if not drawn:
            return 0.5 * output.square().sum()
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
        return (signs * output).sum()
    if labels is None:
        scores = output.detach()
        if drawn:
            labels = torch.multinomial(scores.softmax(dim=1).cpu(), 1, generator=generator).flatten()
        else:
            labels = scores.argmax(dim=1)
    elif int(labels.max()) >= output.shape[1] or int(labels.min()) < 0:
        raise CalibrationError(
            f"the data has a label {int(labels.max())}, the network {output.shape[1]} classes",
            hint="use data with the network's classes, or images without labels",
        )
    return functional.cross_entropy(output, labels.to(output.device), reduction="sum")


def _refuse_none(images: int) -> None:
    """Refuse data without images."""
    if not images:
        raise CalibrationError("the calibration data holds no images", hint="use `--data` with at least one image")
