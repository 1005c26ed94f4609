"""What a network that chooses by values, as detectors do, chooses from: its *head tensors*.

They are outputs of layers that no other layer reads before the first choice is made. Where two networks cannot be made
to choose alike (`graph.choices`), as a network and its ONNX file, these are what can be compared.
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
    """Notes whether an operator has run whose result's order or length hangs on values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.chose = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.chose = self.chose or func.name().split(".")[0] in CHOOSING
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCall:
    """One call of a layer that holds parameters; `early` says that the network had chosen nothing by then."""

    layer: str
    early: bool
    made_by: Any  # autograd's name for its output


def layer_calls(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[list[LayerCall], bool]:
    """Every call of a layer with parameters of its own, in the order of a forward pass; and whether it chose anything.

    The module stays as it was.
    """
    twin = copy_of(module).eval().requires_grad_(True)
    calls: list[LayerCall] = []
    choice = _UntilItChooses()

    def note(name: str, output: Any) -> None:
        made_by = output.grad_fn if isinstance(output, Tensor) else None
        calls.append(LayerCall(layer=name, early=not choice.chose, made_by=made_by))

    for name, layer in with_parameters(twin):
        layer.register_forward_hook(lambda _, __, output, name=name: note(name, output))
    with torch.enable_grad(), warnings.catch_warnings(), choice:
        warnings.simplefilter("ignore")  # a decision by a value that has a gradient
        twin(*inputs)
    return calls, choice.chose


def with_parameters(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers inside that hold parameters of their own, by name."""
    return [(n, layer) for n, layer in module.named_modules() if n and any(True for _ in layer.parameters(False))]


def _unread(calls: Sequence[LayerCall]) -> list[LayerCall]:
    """The calls whose output none of the others reads."""
    read: set[Any] = set()
    behind = [f for call in calls if call.made_by is not None for f, _ in call.made_by.next_functions]
    while behind:
        function = behind.pop()
        if function is not None and function not in read:
            read.add(function)
            behind += [f for f, _ in function.next_functions]
    return [call for call in calls if call.made_by is not None and call.made_by not in read]


def head_layers(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    """The layers of head tensors, and how many each gives, in order; none where the network makes no choice."""
    calls, chooses = layer_calls(module, inputs)
    heads: dict[str, int] = {}
    for call in _unread([c for c in calls if c.early]) if chooses else ():
        heads[call.layer] = heads.get(call.layer, 0) + 1
    return heads


class WithHeads(nn.Module):
    """A network that gives its outputs, and then its head tensors."""

    def __init__(self, module: nn.Module, heads: dict[str, int]) -> None:
        super().__init__()
        self.module, self.heads = module, heads

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Every tensor of the output, then every head tensor, in the order of `heads`."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.heads}
        hooks = [
            self.module.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: found[name].append(output.clone())
            )
            for name in self.heads
        ]
        try:
            outputs = list(tensors_in(self.module(*inputs)))
        finally:
            for hook in hooks:
                hook.remove()
        return outputs + [t for name, count in self.heads.items() for t in found[name][:count]]
