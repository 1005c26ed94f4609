"""A network and its ONNX file with the same maxima: of two that agree up to rounding, each may take another position.

Pooling that keeps where its maxima were chooses by values, and unpooling puts whole activations where it was told to.
Where two maxima are as large as each other but for a last bit, the file may choose the other one; that is no error of
the file. So the network is run with the positions that the file chose, each of which must hold a maximum.
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
    """Make the positions of every maximum that the graph keeps outputs of it, behind the others; how many there are."""
    import onnx

    pools = [node for node in proto.graph.node if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]]
    # the exporter finds the offsets of images and channels by pooling once more, one by one
    pools = [
        node for node in pools if any(size != 1 for a in node.attribute if a.name == "kernel_shape" for size in a.ints)
    ]
    known = {output.name for output in proto.graph.output}
    for node in pools:
        if node.output[1] not in known:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(node.output[1], onnx.TensorProto.INT64, None))
    return len(pools)


def outputs_with(module: nn.Module, inputs: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor] | None:
    """The network's outputs with the `positions` of its maxima, counted within each plane, in the order of its calls.

    `None` where it keeps more or fewer, or where one of them holds no maximum.
    """
    mode = _Placed(list(positions))
    try:
        with mode:
            outputs = outputs_of(module, inputs)
    except IndexError:
        return None
    return outputs if mode.right and not mode.left else None


class _Placed(TorchFunctionMode):
    def __init__(self, left: list[Tensor]) -> None:
        super().__init__()
        self.left, self.right = left, True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") not in POOLING:
            return result
        maxima, chosen = result
        x = args[0] if args else (kwargs or {})["input"]
        dims = int(func.__name__.removeprefix("max_pool")[0])
        plane, given = x.shape[-dims:].numel(), self.left.pop(0)
        if given.numel() != chosen.numel():
            raise IndexError("the file's maxima are those of another call")
        places = given.reshape(chosen.shape) % plane
        values = x.flatten(-dims).gather(-1, places.flatten(-dims)).view_as(maxima)
        self.right = self.right and torch.allclose(values, maxima, rtol=1e-4, atol=1e-5 * float(maxima.abs().max()))
        return values, places
