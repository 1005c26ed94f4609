"""Networks that choose by values what they give, as detectors do: what they choose from.

A detector ends in sorting, thresholds and non-maximum suppression. Two that agree up to rounding may still give their
detections in another order, or one more at a threshold; what can be compared is what they choose from, the *head
tensors*: outputs of layers that no other layer reads before the first choice is made.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.outputs import tensors_in

CHOOSING = {"aten::topk", "aten::sort", "aten::nonzero", "aten::masked_select", "aten::_unique2", "torchvision::nms"}


class _UntilItChooses(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Notes whether an operator has run whose result's order or length hangs on values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.chose = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.chose = self.chose or func.name().split(".")[0] in CHOOSING
        return func(*args, **(kwargs or {}))


def head_layers(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    """The layers whose outputs nothing but a choice reads, and how often each is called before it; in order.

    Empty where the network makes no choice. The module stays as it was.
    """
    twin = copy.deepcopy(module).eval().requires_grad_(True)
    calls: list[tuple[str, Any]] = []
    choice = _UntilItChooses()

    def note(name: str, output: Any) -> None:
        if not choice.chose and isinstance(output, Tensor) and output.grad_fn is not None:
            calls.append((name, output.grad_fn))

    for name, layer in twin.named_modules():
        if any(True for _ in layer.parameters(recurse=False)):
            layer.register_forward_hook(lambda _, __, output, name=name: note(name, output))
    with torch.enable_grad(), warnings.catch_warnings(), choice:
        warnings.simplefilter("ignore")  # a decision by a value that has a gradient
        twin(*inputs)
    if not choice.chose:
        return {}
    read: set[Any] = set()
    behind = [f for _, made_by in calls for f, _ in made_by.next_functions]
    while behind:
        function = behind.pop()
        if function is not None and function not in read:
            read.add(function)
            behind += [f for f, _ in function.next_functions]
    heads: dict[str, int] = {}
    for name, made_by in calls:
        if made_by not in read:
            heads[name] = heads.get(name, 0) + 1
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
