"""Run a network at the positions of its ONNX file's maxima, where rounding makes the two choose different ones.

Max pooling with indices chooses positions by value, and unpooling puts whole activations at these positions. If two
values are equal except for the last bit, the file may choose the other position; this is no error of the file. The
network then runs with the file's positions, and each of them must hold a maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressor.graph.outputs import outputs_of

POOLING = {f"max_pool{dims}d_with_indices" for dims in (1, 2, 3)}


def with_positions(proto: Any) -> int:
    """Append the positions of every max pooling with indices to the graph's outputs; return their number."""
    import onnx

    pools = [node for node in proto.graph.node if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]]
    # the exporter computes the offsets of images and channels by another pooling, with a kernel of one
    pools = [
        node for node in pools if any(size != 1 for a in node.attribute if a.name == "kernel_shape" for size in a.ints)
    ]
    names = {output.name for output in proto.graph.output}
    for node in pools:
        if node.output[1] not in names:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(node.output[1], onnx.TensorProto.INT64, None))
    return len(pools)


def outputs_with(module: nn.Module, inputs: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor] | None:
    """Return the network's outputs with these `positions` of its maxima, counted within each plane, in call order.

    `None` if the network has another number of positions, or if one of them holds no maximum.
    """
    mode = _Placed(list(positions))
    try:
        with mode:
            outputs = outputs_of(module, inputs)
    except IndexError:
        return None
    return outputs if mode.right and not mode.remaining else None


class _Placed(TorchFunctionMode):
    """Replaces the positions of each max pooling by the next of `remaining`; `right`: all hold a maximum so far."""

    def __init__(self, remaining: list[Tensor]) -> None:
        super().__init__()
        self.remaining, self.right = remaining, True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") not in POOLING:
            return result
        maxima, chosen = result
        x = args[0] if args else (kwargs or {})["input"]
        dims = int(func.__name__.removeprefix("max_pool")[0])
        plane, positions = x.shape[-dims:].numel(), self.remaining.pop(0)
        if positions.numel() != chosen.numel():
            raise IndexError("the file's maxima belong to another call")
        places = positions.reshape(chosen.shape) % plane
        values = x.flatten(-dims).gather(-1, places.flatten(-dims)).view_as(maxima)
        self.right = self.right and torch.allclose(values, maxima, rtol=1e-4, atol=1e-5 * float(maxima.abs().max()))
        return values, places
