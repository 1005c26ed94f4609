"""Networks that choose by values what they give, as detectors do: the choices they make, and what they choose from.

A detector sorts, thresholds and suppresses. Two that agree up to rounding may still give their detections in another
order, or one more at a threshold. So two of them are compared with the same choices made beforehand (`choices_of`,
`choosing`), which also gives a graph that hangs on no values (`forced`); and where that cannot be, in an ONNX file, by
what they choose from: the *head tensors*, outputs of layers that no other layer reads before the first choice.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
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
    twin = copy.deepcopy(module).eval().requires_grad_(True)
    calls: list[LayerCall] = []
    choice = _UntilItChooses()

    def note(name: str, output: Any) -> None:
        made_by = output.grad_fn if isinstance(output, Tensor) else None
        calls.append(LayerCall(layer=name, early=not choice.chose, made_by=made_by))

    for name, layer in _with_parameters(twin):
        layer.register_forward_hook(lambda _, __, output, name=name: note(name, output))
    with torch.enable_grad(), warnings.catch_warnings(), choice:
        warnings.simplefilter("ignore")  # a decision by a value that has a gradient
        twin(*inputs)
    return calls, choice.chose


def _with_parameters(module: nn.Module) -> list[tuple[str, nn.Module]]:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one call chose: positions (int64 tensors, as the call nests them), or plain values that code branches on.

    `late` says that no layer runs after it.
    """

    call: str
    made: Any
    late: bool = False

    @property
    def decides(self) -> bool:
        """Whether it may decide which layers run: code has seen the value, and layers are still to come."""
        return self.call in VALUES and not self.late


def choices_of(module: nn.Module, inputs: Sequence[Tensor]) -> list[Choice]:
    """Every choice by values in a forward pass, in order: of the second one, for in the first a network may prepare."""
    mode, chosen_before = _Choices(None), 0

    def note(*_: Any) -> None:
        nonlocal chosen_before
        chosen_before = len(mode.choices)

    with torch.no_grad():
        module(*inputs)
        hooks = [layer.register_forward_hook(note) for _, layer in _with_parameters(module)]
        try:
            with mode:
                module(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
    return [dataclasses.replace(choice, late=i >= chosen_before) for i, choice in enumerate(mode.choices)]


def choosing(choices: Sequence[Choice]) -> _Choices:
    """While it lasts, every choice by values is the one in `choices`; an `IndexError` where there is none."""
    return _Choices(choices)


ORDERING = {"topk", "sort"}
POSITIONS = {"argsort", "nonzero", "argwhere", "nms", "unique", "_unique2", "unique_consecutive", "_return_output"}
VALUES = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__"}
INDEXING = {"__getitem__", "__setitem__", "masked_select"}


class _Choices(TorchFunctionMode):
    """Notes choices, or makes those that are given."""

    def __init__(self, given: Sequence[Choice] | None) -> None:
        super().__init__()
        self.given, self.choices = given, list[Choice]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in INDEXING and any(_hangs_on_values(index) for index in _indices(args)):
            chosen = self._next(name, lambda: tuple(_positions(index) for index in _indices(args)))
            index = tuple(
                slice(*given) if isinstance(before, slice) else one
                for before, given in zip(_indices(args), chosen, strict=True)
                for one in (given if isinstance(given, tuple) and not isinstance(before, slice) else (given,))
            )
            if name == "__setitem__":
                return func(args[0], index, args[2])
            return args[0][index]
        if name in VALUES:
            return self._next(name, lambda: func(*args, **kwargs))
        if name in ORDERING:
            order = self._next(name, lambda: func(*args, **kwargs)[1])
            values = args[0] if args else kwargs["input"]
            at = kwargs.get("dim", (args[2:3] if name == "topk" else args[1:2] or (-1,)) or (-1,))
            dim = at if isinstance(at, int) else at[0]
            return getattr(torch.return_types, name)((values.gather(dim, order), order))
        if name in POSITIONS or (name == "where" and len(args) == 1 and not kwargs):
            return self._next(name, lambda: func(*args, **kwargs))
        return func(*args, **kwargs)

    def _next(self, name: str, make: Callable[[], Any]) -> Any:
        number = len(self.choices)
        choice = Choice(call=name, made=make()) if self.given is None else self.given[number]
        if choice.call != name:
            raise IndexError(f"it calls `{name}` where `{choice.call}` was called")
        self.choices.append(choice)
        return choice.made


def _indices(args: Sequence[Any]) -> tuple[Any, ...]:
    return args[1] if isinstance(args[1], tuple) else (args[1],)


def _hangs_on_values(index: Any) -> bool:
    """Whether an index is a mask, or has numbers that were computed."""
    if isinstance(index, slice):
        return any(isinstance(bound, Tensor) for bound in (index.start, index.stop, index.step))
    return isinstance(index, Tensor) and (index.dtype in (torch.bool, torch.uint8) or index.ndim == 0)


def _positions(index: Any) -> Any:
    """An index that hangs on values as the positions that it names: of a slice its bounds; any other as it is."""
    if isinstance(index, slice):
        bounds = (index.start, index.stop, index.step)
        return tuple(int(bound) if isinstance(bound, Tensor) else bound for bound in bounds)
    if not _hangs_on_values(index):
        return index
    return index.nonzero(as_tuple=True) if index.dtype in (torch.bool, torch.uint8) else int(index)


class _Forced(nn.Module):
    """A network that makes the given choices, whose tensors it holds as buffers, as an exporter needs them."""

    def __init__(self, module: nn.Module, choices: Sequence[Choice]) -> None:
        super().__init__()
        self.module = module
        self.plan: list[tuple[str, Any]] = []
        for number, choice in enumerate(choices):
            leaves, spec = pytree.tree_flatten(choice.made)
            for k, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor):
                    self.register_buffer(f"choice_{number}_{k}", leaf)
                    leaves[k] = None
            self.plan.append((choice.call, (leaves, spec)))

    def forward(self, *inputs: Tensor) -> Any:
        """What the network gives."""
        choices = []
        for number, (call, (leaves, spec)) in enumerate(self.plan):
            there = [getattr(self, f"choice_{number}_{k}", leaf) for k, leaf in enumerate(leaves)]
            choices.append(Choice(call=call, made=pytree.tree_unflatten(there, spec)))
        with choosing(choices), _own_builtins():
            return self.module(*inputs)


MAX, MIN = max, min


@contextlib.contextmanager
def _own_builtins() -> Iterator[None]:
    """Python's `max` and `min`, which an exporter replaces: of two tensors they choose by value, and it does not."""
    replaced = builtins.max, builtins.min
    builtins.max, builtins.min = MAX, MIN
    try:
        yield
    finally:
        builtins.max, builtins.min = replaced


def forced(module: nn.Module, choices: Sequence[Choice]) -> nn.Module:
    """The network as `module`, with every choice made beforehand: its graph hangs on no values."""
    return _Forced(module, choices)
