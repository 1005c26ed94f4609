"""The *head tensors* of a data-dependent network such as a detector: the outputs of layers that its choices are based
on.

No other layer reads them before the first choice. Where two networks cannot replay the same choices (`graph.choices`),
for example a network and its ONNX file, these tensors are compared instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.graph.copies import copy_of
from compressor.graph.outputs import tensors_in

CHOOSING = {"aten::topk", "aten::sort", "aten::nonzero", "aten::masked_select", "aten::_unique2", "torchvision::nms"}


class _UntilItChooses(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Notes whether an operator has run that orders by values or has an output of data-dependent length."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.chose = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.chose = self.chose or func.name().split(".")[0] in CHOOSING
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCall:
    """One call of a layer with parameters; `early`: the network had chosen nothing before it."""

    layer: str
    early: bool
    grad_fn: Any  # the autograd function of its output


def layer_calls(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[list[LayerCall], bool]:
    """Return every call of a layer with parameters of its own, in execution order, and whether the network chose
    anything.

    The module stays unchanged.
    """
    twin = copy_of(module).eval().requires_grad_(True)
    calls: list[LayerCall] = []
    choice = _UntilItChooses()

    def note(name: str, output: Any) -> None:
        grad_fn = output.grad_fn if isinstance(output, Tensor) else None
        calls.append(LayerCall(layer=name, early=not choice.chose, grad_fn=grad_fn))

    for name, layer in with_parameters(twin):
        layer.register_forward_hook(lambda _, __, output, name=name: note(name, output))
    with torch.enable_grad(), warnings.catch_warnings(), choice:
        warnings.simplefilter("ignore")  # code that branches on a value with a gradient warns
        twin(*inputs)
    return calls, choice.chose


def with_parameters(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the submodules that have parameters of their own, by name."""
    return [(n, layer) for n, layer in module.named_modules() if n and any(True for _ in layer.parameters(False))]


def _unread(calls: Sequence[LayerCall]) -> list[LayerCall]:
    """Return the calls whose output no other call reads."""
    read: set[Any] = set()
    behind = [f for call in calls if call.grad_fn is not None for f, _ in call.grad_fn.next_functions]
    while behind:
        function = behind.pop()
        if function is not None and function not in read:
            read.add(function)
            behind += [f for f, _ in function.next_functions]
    return [call for call in calls if call.grad_fn is not None and call.grad_fn not in read]


def head_layers(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Return the layers of head tensors and how many each outputs, in order; empty if the network chooses nothing."""
    calls, chooses = layer_calls(module, inputs)
    heads: dict[str, int] = {}
    for call in _unread([c for c in calls if c.early]) if chooses else ():
        heads[call.layer] = heads.get(call.layer, 0) + 1
    return heads


class WithHeads(nn.Module):
    """A network that returns its outputs, followed by its head tensors."""

    def __init__(self, module: nn.Module, heads: dict[str, int]) -> None:
        super().__init__()
        self.module, self.heads = module, heads

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Return every tensor of the output, then every head tensor, in the order of `heads`."""
        captured: dict[str, list[Tensor]] = {name: [] for name in self.heads}
        hooks = [
            self.module.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: captured[name].append(output.clone())
            )
            for name in self.heads
        ]
        try:
            outputs = list(tensors_in(self.module(*inputs)))
        finally:
            for hook in hooks:
                hook.remove()
        return outputs + [t for name, count in self.heads.items() for t in captured[name][:count]]
