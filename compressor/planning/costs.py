"""Count what a network costs, without timing: parameters, multiply-accumulates, bytes."""

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
    """Return the cost of `module`; MACs are half of the floating-point operations that torch's own counter counts."""
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
    """The cost of one multiplying weight: its layer, the operation, its widths and its MACs at batch size 1."""

    layer: str
    weight: str
    kind: str
    inputs: int
    outputs: int
    macs: int


def layer_costs(module: nn.Module, example_inputs: Sequence[Tensor]) -> tuple[LayerCost, ...]:
    """Return the cost of every weight that the forward pass convolves or multiplies with, in execution order.

    The counts are torch's own (`torch.utils.flop_counter`), product by product.
    """
    products = _products(module, example_inputs)
    parameters = dict(module.named_parameters())
    costs = []
    for name, (operation, groups, macs) in products.by_weight.items():
        weight = parameters[name]
        swapped = operation.startswith("ConvTranspose")
        ends = [weight.shape[0], weight.shape[1] * groups]
        inputs, outputs = ends if swapped else reversed(ends)
        layer = name.rpartition(".")[0]
        costs.append(LayerCost(layer=layer, weight=name, kind=operation, inputs=inputs, outputs=outputs, macs=macs))
    return tuple(costs)


def _products(module: nn.Module, example_inputs: Sequence[Tensor]) -> _Products:
    """The products of a forward pass: by shapes alone where the network runs so, else with the inputs' values.

    Recurrent layers run with values: without, torch decomposes them step by step, which is slow.
    """
    inputs = [t[:1] for t in example_inputs]
    recurs = any(isinstance(layer, nn.RNNBase) for layer in nn.Module.modules(module))
    with plain_attention(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # a fused attention hides its products
        if not recurs:
            with contextlib.suppress(Exception), warnings.catch_warnings():  # the network may need values
                warnings.simplefilter("ignore")  # for example that a kernel has no such variant
                return _passed(without_values(module), [t.to("meta") for t in inputs])
        with evaluating(module):
            return _passed(module, inputs)


def _passed(module: nn.Module, inputs: Sequence[Tensor]) -> _Products:
    """The products of one pass."""
    products = _Products(module)
    with products:
        module(*inputs)
    return products


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts all products, and those of each parameter, identified by its storage: name → operation, groups, MACs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {_storage(parameter): name for name, parameter in module.named_parameters()}
        self.by_weight: dict[str, tuple[str, int, int]] = {}
        self.macs = 0  # of all products, parameters or not

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        _check_alike(args, kwargs)
        if func is torch.ops.aten.mkldnn_rnn_layer.default:  # missing in torch's counter
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
        """Add the MACs of one product, to a parameter's if it has one."""
        self.macs += macs
        if owner is not None:
            self.by_weight[owner] = (operation, groups, self.by_weight.get(owner, ("", 1, 0))[2] + macs)

    def _owner(self, argument: Any) -> str | None:
        """The name of the parameter whose storage the argument shares."""
        if not isinstance(argument, Tensor) or argument.ndim < 2:
            return None
        return self.names.get(_storage(argument))


def _check_alike(args: Any, kwargs: Any) -> None:
    """Refuse tensors with values mixed with tensors without: some of torch's operators then return anything."""
    kinds = {v.is_meta for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v.ndim}
    if len(kinds) > 1:
        raise ValuesNeeded


def _storage(tensor: Tensor) -> int:
    """The identity of a tensor's storage; a tensor without values has no address."""
    return int(tensor.untyped_storage()._cdata)


class CostModel:
    """Predicts the cost of a plan from the dense network, without building the small one.

    A layer's MACs are proportional to the size of its weight; MACs without a weight (attention's own products) are
    assumed to shrink like the parameters.
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
        """Return the share of the dense network's MACs and parameters that stays under the plan."""
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
    """Return the MACs of kernels that would skip every removed weight; `count` has those of a dense run."""
    removed = {name: 1 - float(kept.double().mean()) for name, kept in mask.kept.items()}
    skipped = sum(c.macs * removed.get(c.weight, 0.0) for c in layer_costs(module, example_inputs))
    return round(count(module, example_inputs).macs - skipped)
