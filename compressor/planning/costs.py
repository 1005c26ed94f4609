"""What a network costs, counted and never timed: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from compressor.channels.groups import ChannelGroup
from compressor.channels.tracing import ValuesNeeded
from compressor.graph.lent import evaluating, plain_attention, without_values
from compressor.surgery.masks import WeightMask
from compressor.surgery.plan import Countable, PruningPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Parameters, MACs of one forward pass at batch size 1, and bytes of parameters and buffers."""

    params: int
    macs: int
    bytes: int


def count(module: nn.Module, example_inputs: Sequence[Tensor]) -> Cost:
    """The cost of `module`: MACs are half of what torch's own counter calls floating-point operations."""
    tensors = [*module.parameters(), *module.buffers()]
    return Cost(
        params=sum(p.numel() for p in module.parameters()),
        macs=_macs(module, example_inputs),
        bytes=sum(t.numel() * t.element_size() for t in tensors),
    )


def _macs(module: nn.Module, example_inputs: Sequence[Tensor]) -> int:
    return _products(module, example_inputs).macs


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One weight that multiplies: its layer, what that does, its widths and its MACs at batch size 1."""

    layer: str
    weight: str
    kind: str
    inputs: int
    outputs: int
    macs: int


def layer_costs(module: nn.Module, example_inputs: Sequence[Tensor]) -> tuple[LayerCost, ...]:
    """The cost of every weight that the forward pass convolves or multiplies with, in its order.

    The counts are torch's own (`torch.utils.flop_counter`), product by product.
    """
    products = _products(module, example_inputs)
    held = dict(module.named_parameters())
    found = []
    for name, (operation, groups, macs) in products.found.items():
        weight = held[name]
        swapped = operation.startswith("ConvTranspose")
        ends = [weight.shape[0], weight.shape[1] * groups]
        inputs, outputs = ends if swapped else reversed(ends)
        layer = name.rpartition(".")[0]
        found.append(LayerCost(layer=layer, weight=name, kind=operation, inputs=inputs, outputs=outputs, macs=macs))
    return tuple(found)


def _products(module: nn.Module, example_inputs: Sequence[Tensor]) -> _Products:
    """What a forward pass multiplies: of shapes alone where the network can be run so, else of the inputs' values.

    Recurrent layers run with values: without, torch takes them apart step by step, which is slow.
    """
    inputs = [t[:1] for t in example_inputs]
    recurs = any(isinstance(layer, nn.RNNBase) for layer in nn.Module.modules(module))
    with plain_attention(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # a fused one hides its products
        if not recurs:
            with contextlib.suppress(Exception), warnings.catch_warnings():  # whatever a network wants values for
                warnings.simplefilter("ignore")  # that a kernel has no such variant, say
                return _passed(without_values(module), [t.to("meta") for t in inputs])
        with evaluating(module):
            return _passed(module, inputs)


def _passed(module: nn.Module, inputs: Sequence[Tensor]) -> _Products:
    products = _Products(module)
    with products:
        module(*inputs)
    return products


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts products, and those with each parameter, known by its storage: name → operation, groups, MACs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {_storage(parameter): name for name, parameter in module.named_parameters()}
        self.found: dict[str, tuple[str, int, int]] = {}
        self.macs = 0  # of all products, parameters or not

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        _check_alike(args, kwargs)
        if func is torch.ops.aten.mkldnn_rnn_layer.default:  # torch's counter does not know it
            steps = args[0].shape[0] * args[0].shape[1]
            for weight in args[1:3]:
                self._add(self._owner(weight), "Linear", 1, steps * weight.numel())
            return func(*args, **kwargs)
        counter = flop_registry.get(func._overloadpacket)
        if counter is None:
            inner = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if inner is NotImplemented else inner
        out = func(*args, **kwargs)
        macs = int(counter(*args, **kwargs, out_val=out)) // 2
        owner = next((n for n in map(self._owner, args) if n is not None), None)
        convolves = func._overloadpacket is torch.ops.aten.convolution
        dims = args[1].ndim - 2 if convolves else 0
        operation = ("ConvTranspose" if args[6] else "Conv") + f"{dims}d" if convolves else "Linear"
        self._add(owner, operation, args[8] if convolves else 1, macs)
        return out

    def _add(self, owner: str | None, operation: str, groups: int, macs: int) -> None:
        self.macs += macs
        if owner is not None:
            self.found[owner] = (operation, groups, self.found.get(owner, ("", 1, 0))[2] + macs)

    def _owner(self, argument: Any) -> str | None:
        if not isinstance(argument, Tensor) or argument.ndim < 2:
            return None
        return self.names.get(_storage(argument))


def _check_alike(args: Any, kwargs: Any) -> None:
    """Refused: tensors with values beside tensors without, for which some operators of torch give anything at all."""
    kinds = {v.is_meta for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v.ndim}
    if len(kinds) > 1:
        raise ValuesNeeded


def _storage(tensor: Tensor) -> int:
    """Which storage a tensor looks at; one without values has no address."""
    return int(tensor.untyped_storage()._cdata)


class CostModel:
    """The cost of what a plan leaves, predicted from the dense network without building the small one.

    A layer's MACs are proportional to the size of its weight; what no weight accounts for (attention's own products)
    is taken to shrink like the parameters.
    """

    def __init__(self, module: nn.Module, groups: Sequence[ChannelGroup], example_inputs: Sequence[Tensor]) -> None:
        self.groups = groups
        self.sizes = {name: p.numel() for name, p in module.named_parameters()}
        self.shapes = {name: p.shape for name, p in module.named_parameters()}
        self.dense = count(module, example_inputs)
        self.layer_macs: dict[str, int] = {}
        for layer in layer_costs(module, example_inputs):
            self.layer_macs[layer.weight] = layer.macs
        self.other_macs = max(0, self.dense.macs - sum(self.layer_macs.values()))

    def stays(self, plan: PruningPlan) -> dict[Countable, float]:
        """The share of the dense network's MACs and parameters that the plan leaves."""
        share = dict.fromkeys(self.sizes, 1.0)
        gone: dict[tuple[str, int], int] = {}
        for group in self.groups:
            mask = torch.zeros(group.channels, dtype=torch.bool)
            mask[list(plan.removed.get(group.root, ()))] = True
            for member in group.members:
                key = (member.tensor, member.dim)
                gone[key] = gone.get(key, 0) + int(mask[member.channels].sum())
        for (tensor, dim), count_gone in gone.items():
            if tensor in share:
                share[tensor] *= 1 - count_gone / self.shapes[tensor][dim]
        params = sum(self.sizes[name] * s for name, s in share.items()) / self.dense.params
        macs = sum(m * share[name] for name, m in self.layer_macs.items()) + self.other_macs * params
        return {Countable.PARAMS: params, Countable.MACS: macs / self.dense.macs}


def masked_macs(module: nn.Module, mask: WeightMask, example_inputs: Sequence[Tensor]) -> int:
    """The MACs that kernels which skip every removed weight would take; those of a dense run are `count`'s."""
    removed = {name: 1 - float(kept.double().mean()) for name, kept in mask.kept.items()}
    skipped = sum(c.macs * removed.get(c.weight, 0.0) for c in layer_costs(module, example_inputs))
    return round(count(module, example_inputs).macs - skipped)
