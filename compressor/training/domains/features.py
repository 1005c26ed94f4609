"""The inputs of a layer: the features by which two domains are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from compressor.errors import GroupError, unknown
from compressor.graph.lent import last_to_run
from compressor.graph.recorded import check_has_layers


@contextlib.contextmanager
def reading(module: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Yield a list to which every call of the layer appends its input `[batch, ...]`, with its gradient graph."""
    read: list[Tensor] = []
    hook = layer_named(module, layer).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        yield read
    finally:
        hook.remove()


def features_in(read: Sequence[Tensor], layer: str) -> Tensor:
    """Return the inputs of one forward pass, `[batch, features]`; refused: a layer that did not run exactly once."""
    if len(read) != 1:
        raise GroupError(
            f"the layer `{layer}` ran {len(read)} times in one pass",
            hint="choose a layer that runs once: `--layer NAME`",
        )
    return read[0].flatten(1)


def layer_named(module: nn.Module, layer: str) -> nn.Module:
    """Return the layer called `layer`; refused: no such layer."""
    check_has_layers(module)
    layers: dict[str, nn.Module] = dict(module.named_modules())
    if not layer or layer not in layers:
        raise GroupError(f"there is no layer called `{layer}`", hint=unknown("layers", layer, [n for n in layers if n]))
    return layers[layer]


def last_linear(module: nn.Module, example_inputs: Sequence[Tensor]) -> str:
    """Return the name of the linear layer that runs last; refused: a network without one."""
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    last = last_to_run(module, linear, example_inputs)
    if last is None:
        raise GroupError(
            "no linear layer runs in this network", hint="name the layer whose inputs are compared: `--layer NAME`"
        )
    return last
