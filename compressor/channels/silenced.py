"""Run the dense network with the removed channels silenced: the reference of the surgery proof.

The exported program runs operator by operator, with the dense network's own weights. Where an operator sums over
channels, removed ones are set to zero. Where it looks at channels together (a norm, a mean, a softmax), it sees only
the survivors. Everything else runs unchanged.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from compressor.channels.labels import Bools, Dim, Labels
from compressor.channels.tracing import Together, Trace
from compressor.graph.choices import choosing
from compressor.graph.outputs import outputs_and_layers, outputs_of
from compressor.graph.precision import InPrecision, in_precision, same_precision


def silenced_outputs(
    trace: Trace,
    dense: nn.Module,
    gone: set[int],
    inputs: Sequence[Tensor],
    whole: Mapping[str, Sequence[fx.Node]],
    *,
    dtype: torch.dtype,
    note: Callable[[fx.Node, Any], None] | None = None,
) -> list[Tensor]:
    """Outputs of `dense` on `inputs` (in `dtype`) with all positions labelled in `gone` zeroed where they are read,
    followed by the outputs of the layers in `whole`.

    `small_outputs` returns what to compare with. `note` is called with each operator's result.
    """
    graph = trace.exported
    tensors = dict(dense.named_parameters(remove_duplicate=False)) | dict(dense.named_buffers(remove_duplicate=False))
    remaining = iter(inputs)
    env: dict[fx.Node, Any] = {}
    silence = _Silence(trace, trace.labels.marked(gone), dtype)
    kept = {*graph.outputs, *(one for calls in whole.values() for one in calls)}
    leaving = graph.last_uses()
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                if node.name in graph.tensors:
                    env[node] = _to_read(node, tensors[graph.tensors[node.name][0]].detach(), dtype)
                elif node.name in graph.constants:
                    env[node] = _to_read(node, graph.constants[node.name], dtype)
                else:
                    env[node] = next(remaining)
            elif node.op == "call_function":
                env[node] = silence.run(node, env)
                if note is not None:
                    note(node, env[node])
            for done in leaving.get(node, ()):
                if done not in kept:
                    env.pop(done, None)
    outputs = [t for out in graph.outputs for t in pytree.tree_leaves(env[out]) if isinstance(t, Tensor)]
    return outputs + [env[one] for calls in whole.values() for one in calls]


def _to_read(placeholder: fx.Node, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`; a copy where an operator writes into it, because it belongs to the network."""
    converted = in_precision(tensor, dtype)
    return converted.clone() if converted is tensor and any(map(_writes, placeholder.users)) else converted


def _writes(node: fx.Node) -> bool:
    """True if the operator writes into an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def small_outputs(
    trace: Trace,
    small: nn.Module,
    inputs: Sequence[Tensor],
    whole: Mapping[str, Sequence[fx.Node]],
    *,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The small network's outputs where `silenced_outputs` has the reference, under the dense network's choices."""
    with InPrecision(dtype):
        if not trace.exported.choices:
            return outputs_of(small, inputs)
        outputs_of(small, inputs)  # a network may prepare itself in its first pass
    with choosing(trace.exported.choices):
        outputs, by_layer = outputs_and_layers(small, inputs, whole)
    return outputs + [t for layer in whole for t in by_layer[layer]]


def whole_layers(trace: Trace, gone: set[int]) -> dict[str, list[fx.Node]]:
    """Return what is compared besides the outputs of a data-dependent network; empty for other networks.

    These are the layers that produce channels and lose none, with their operators in order.
    """
    if not trace.exported.choices:
        return {}
    tensors = trace.exported.tensors
    leaving = trace.labels.marked(gone)
    layers: dict[str, list[fx.Node]] = {}
    for node in trace.exported.graph.nodes:
        for argument in node.all_input_nodes:
            name = tensors[argument.name][0] if argument.name in tensors else ""
            if name not in trace.layers or not isinstance(trace.values.get(node), tuple):
                continue
            if all(survivors_of(trace.labels, dim, leaving) is None for dim in trace.values[node]):
                layers.setdefault(name.rpartition(".")[0], []).append(node)
    return layers


class _Silence:
    """Runs single operators with the removed channels silenced."""

    def __init__(self, trace: Trace, gone: Bools, dtype: torch.dtype) -> None:
        self.trace, self.gone, self.dtype = trace, gone, dtype

    def run(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        """Return the operator's result, with zeros or without removed channels as it needs."""
        args = list(fx.map_arg(node.args, lambda n: env[n]))
        kwargs = {k: self._same(v) for k, v in fx.map_arg(dict(node.kwargs), lambda n: env[n]).items()}
        args = [self._same(a) for a in args]
        if node.target is operator.getitem:
            return operator.getitem(args[0], args[1])
        if str(node.target).startswith("aten._assert"):  # a check of the number type, for example
            return None
        for reading in self.trace.readings.get(node, ()):
            mask = survivors_of(self.trace.labels, reading.labels, self.gone)
            if mask is not None:
                self._silence(args, reading.argument, reading.dim, mask)
        back: list[tuple[int, Tensor, int]] = []
        for look in self.trace.together.get(node, ()):
            mask = survivors_of(self.trace.labels, look.labels, self.gone)
            if mask is not None:
                self._restrict(args, kwargs, node, look, mask)
                if look.result is not None:
                    back.append((look.result, mask.nonzero().flatten(), len(mask)))
        result = node.target(*args, **kwargs)  # type: ignore[operator]  # a `call_function` node's is one
        for dim, survivors, length in back:
            first, *beside = (
                result if isinstance(result, (tuple, list)) else [result]
            )  # a norm may also return its statistics
            shape = list(first.shape)
            shape[dim] = length
            first = first.new_zeros(shape).index_copy(dim, survivors, first)
            result = (first, *beside) if beside else first
        return result

    def _same(self, value: Any) -> Any:
        """A precision named in the program means the precision that it runs in."""
        return same_precision(value, self.dtype)

    def _silence(self, args: list[Any], argument: tuple[int, ...], dim: int, mask: Tensor) -> None:
        """Set the removed positions of an argument to zero."""
        holder, place = args, argument[0]
        if len(argument) > 1:
            args[place] = holder = list(args[place])
            place = argument[1]
        x = holder[place]
        mask = _stretched(mask, x.shape[dim])
        holder[place] = x * mask.to(x.dtype).view([-1 if d == dim else 1 for d in range(x.ndim)])

    def _restrict(self, args: list[Any], kwargs: dict[str, Any], node: fx.Node, look: Together, mask: Tensor) -> None:
        """Cut the removed positions out of the arguments of an operator that looks at positions together."""
        survivors = mask.nonzero().flatten()
        names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]  # an operator has one
        for number, dim in look.arguments:
            if number < len(args):
                args[number] = args[number].index_select(dim, survivors)
            else:
                kwargs[names[number]] = kwargs[names[number]].index_select(dim, survivors)
        if "normalized_shape" in names:
            at = names.index("normalized_shape")
            args[at] = list(args[0].shape[-len(args[at]) :])
        if "HxW" in names:  # a group norm that reads its sizes as numbers
            args[names.index("C")] = args[0].shape[1]


def _stretched(mask: Tensor, length: int) -> Tensor:
    """A mask of channels that share a dimension with the batch, for another batch size than the traced one.

    The operator itself refuses a mask that does not repeat regularly.
    """
    if len(mask) == length:
        return mask
    channels = math.gcd(len(mask), length)
    if torch.equal(mask[:channels].repeat(len(mask) // channels), mask):  # image by image
        return mask[:channels].repeat(length // channels)
    return mask.view(channels, -1)[:, 0].repeat_interleave(length // channels)  # channel by channel


def survivors_of(labels: Labels, dim: Dim, gone: Bools) -> Tensor | None:
    """Return a mask of the positions that stay when the labels `gone` (from `Labels.marked`) are removed: bool
    `[positions]`.

    `None` where all stay.
    """
    if not dim:
        return None
    leaves = np.zeros(len(dim[0]), dtype=np.bool_)
    for ids in labels.resolve(dim):
        leaves |= gone[ids]
    return torch.from_numpy(~leaves) if leaves.any() else None
