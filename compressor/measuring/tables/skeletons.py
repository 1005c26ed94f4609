"""A network's ONNX graph with shapes in place of weights, at any widths of its channel groups.

A runtime's latency depends on the shapes of the weights, not on their values. So each weight becomes a constant that
the runtime fills when it loads the file: about ten kilobytes instead of hundreds of megabytes, read in milliseconds,
and fused and laid out like the real file. Narrower widths are other shapes in the same file, without a new export. Such
a file is only for timing.

Where the graph contains a width outside of the weights' shapes (in a transformer's views, for example), its narrow
versions do not run, and the caller must export each of them (`measuring.tables.measured`).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from compressor.export.onnx import proto_of
from compressor.export.parity import BatchIsFixedError
from compressor.graph.copies import copy_of

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SUFFIXES = ("_kernel_time", "_nchwc")
VALUE = 0.01
FEW = 16  # numbers
SHAPE = "/shape"

Length = Callable[[str, int], int]  # tensor, dimension → its length
Follows = tuple[tuple[str, int], ...]  # for each dimension of an initialiser: a tensor, and its dimension


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A multiplying weight in the graph, with the operators between its result and the next weight.

    `key` describes the operator without its widths: kind, window, stride, positions, and the operators behind it.
    """

    tensor: str
    key: str
    swapped: bool  # a transposed convolution's weight is `[in, out, ...]`


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """The graph, the tensors that its shapes follow, and the weight that each node's and value's time counts with."""

    proto: bytes
    follows: Mapping[str, Follows]
    owners: Mapping[str, str]
    operators: tuple[Operator, ...]

    def owner(self, name: str) -> str | None:
        """Return the weight that a profiled node's time counts with; `None` if its name is unknown."""
        return owner_of(name, self.owners)


def owner_of(name: str, owners: Mapping[str, str]) -> str | None:
    """Return the same from a skeleton's `owners`: onnxruntime names fused operators after one of their parts."""
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    name = name.removeprefix("fused ")
    return owners.get(name) or owners.get(name.partition("/")[0])


def skeleton_of(module: nn.Module, example_inputs: Sequence[Tensor], *, batch: int = 1) -> Skeleton:
    """Return the skeleton of a module in eval mode; keys count positions at batch size `batch`. Refused: no ONNX
    export.
    """
    module = copy_of(module).cpu().eval()
    inputs = [t.cpu() for t in example_inputs]
    try:
        proto = proto_of(module, inputs, opset=None, dynamic=True)
    except BatchIsFixedError:
        proto = proto_of(module, inputs, opset=None, dynamic=False)
    follows = _follows(proto, module)
    weights = _weights(proto, follows)
    owners = _owners(proto, weights)
    _empty_(proto, follows)
    return Skeleton(
        proto=proto.SerializeToString(),
        follows=follows,
        owners=owners,
        operators=_operators(proto, weights, owners, inputs, batch),
    )


def narrowed(skeleton: Skeleton, length: Length) -> bytes:
    """Return the skeleton with other lengths; a layer without input channels outputs a constant."""
    import onnx

    proto = onnx.ModelProto.FromString(skeleton.proto)
    shapes: dict[str, list[int]] = {}
    dense: dict[str, list[int]] = {}
    for one in proto.graph.initializer:
        name = one.name.removesuffix(SHAPE)
        if name == one.name or name not in skeleton.follows:
            continue
        before = onnx.numpy_helper.to_array(one).tolist()
        now = [length(*source) for source in skeleton.follows[name]]
        dense[name], shapes[name] = before, now
        one.CopyFrom(onnx.numpy_helper.from_array(np.array(now, dtype=np.int64), one.name))
    silent: list[Any] = []
    for node in proto.graph.node:
        weight = next((i for i in node.input if i in shapes and len(shapes[i]) > 1), None)
        if node.op_type in WEIGHTED and weight is not None:
            _regroup_(node, dense[weight], shapes[weight])
            if 0 in shapes[weight]:
                silent.append((node, shapes[weight]))
    for node, shape in silent:
        fixed = max(shape[0], 1), *[1] * (len(shape) - 2)
        name = f"{node.output[0]}{SHAPE}"
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array((1, *fixed), dtype=np.int64), name))
        del node.input[:]
        node.input.append(name)
        node.op_type = "ConstantOfShape"
        del node.attribute[:]
    if silent:
        _drop_unused_(proto)
    return bytes(proto.SerializeToString())


def _follows(proto: Any, module: nn.Module) -> dict[str, Follows]:
    """The tensor that each initialiser comes from: by name, by its values (transposed too), or as a weight's bias."""
    from onnx import numpy_helper

    state = {n: t for n, t in module.state_dict().items() if t.ndim}
    follows: dict[str, Follows] = {}
    by_value: dict[str, Follows] = {}
    for name, tensor in state.items():
        array = np.ascontiguousarray(tensor.detach().numpy())
        dims = tuple((name, d) for d in range(tensor.ndim))
        by_value.setdefault(_digest(array), dims)
        if tensor.ndim == 2:
            by_value.setdefault(_digest(np.ascontiguousarray(array.T)), dims[::-1])
    for one in proto.graph.initializer:
        if one.data_type != 1 or not one.dims:
            continue
        same = one.name in state and tuple(one.dims) == tuple(state[one.name].shape)
        if same:
            follows[one.name] = tuple((one.name, d) for d in range(len(one.dims)))
        elif (dims_of := by_value.get(_digest(numpy_helper.to_array(one)))) is not None:
            follows[one.name] = dims_of
    for node in proto.graph.node:  # a folded norm creates a bias that is no tensor of the module
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 2 and node.input[2] not in follows:
            weight = follows.get(node.input[1])
            if weight is not None:
                follows[node.input[2]] = (weight[1 if node.op_type == "ConvTranspose" else 0],)
    return follows


def _digest(array: Any) -> str:
    """A key that is equal for equal arrays."""
    return f"{array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


def _weights(proto: Any, follows: Mapping[str, Follows]) -> dict[str, str]:
    """The weight of each node that multiplies with one, by the node's first output."""
    tensors = {}
    for node in proto.graph.node:
        weight = next((follows[i] for i in node.input if len(follows.get(i, ())) > 1), None)
        if node.op_type in WEIGHTED and weight is not None:
            tensors[node.output[0]] = weight[0][0]
    return tensors


def _owners(proto: Any, weights: Mapping[str, str]) -> dict[str, str]:
    """For every node and value, the last weight before it."""
    owner: dict[str, tuple[int, str]] = {}
    for number, node in enumerate(proto.graph.node):
        mine = (number, weights[node.output[0]]) if node.output[0] in weights else None
        last = mine or max((owner[i] for i in node.input if i in owner), default=None)
        if last is not None:
            for name in (node.name, *node.output):
                owner[name] = last
    return {name: tensor for name, (_, tensor) in owner.items() if name}


def _empty_(proto: Any, follows: Mapping[str, Follows]) -> None:
    """Replace every weight by its shape, and remove the exporter's notes.

    Small tensors that come from no weight stay as they are: an operator reads how much it enlarges, or where it clips.
    """
    from onnx import helper, numpy_helper

    kept, nodes = [], []
    for one in proto.graph.initializer:
        if one.data_type != 1 or not one.dims or (one.name not in follows and math.prod(one.dims) <= FEW):
            kept.append(one)
            continue
        shape = np.array(list(one.dims), dtype=np.int64)
        kept.append(numpy_helper.from_array(shape, one.name + SHAPE))
        value = helper.make_tensor("value", 1, [1], [VALUE])
        nodes.append(helper.make_node("ConstantOfShape", [one.name + SHAPE], [one.name], value=value))
    constants = {one.name: numpy_helper.to_array(one) for one in kept}
    flat = numpy_helper.from_array(np.array([0, -1], dtype=np.int64), "flat" + SHAPE)
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        into = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if into is not None and into.shape == (2,):
            node.input[1] = flat.name  # flattens each sample, whatever its length
            del node.attribute[:]  # a zero here means the batch's length
    nodes += list(proto.graph.node)
    del proto.graph.initializer[:], proto.graph.node[:], proto.graph.value_info[:]
    proto.graph.initializer.extend([*kept, flat])
    proto.graph.node.extend(nodes)


def _operators(
    proto: Any, weights: Mapping[str, str], owners: Mapping[str, str], inputs: Sequence[Tensor], batch: int
) -> tuple[Operator, ...]:
    positions = _positions(proto, inputs, batch)
    first: dict[str, Any] = {}
    behind: dict[str, list[str]] = {}
    for node in proto.graph.node:
        owner = owners.get(node.output[0])
        if owner is None:
            continue
        if weights.get(node.output[0]) == owner:
            if owner not in first:
                first[owner] = node
                continue
            behind.setdefault(owner, []).append(f"again {node.op_type}")
        else:
            behind.setdefault(owner, []).append(node.op_type)
    return tuple(
        Operator(
            tensor=tensor,
            key=f"{_kind_of(node)} on {positions.get(node.input[0], '?')}; {' '.join(sorted(behind.get(tensor, ())))}",
            swapped=node.op_type == "ConvTranspose",
        )
        for tensor, node in first.items()
    )


def _positions(proto: Any, inputs: Sequence[Tensor], batch: int) -> dict[str, str]:
    """The positions of every value behind its channels, `56x56`; for a sequence its length."""
    import onnx

    fixed = copy.deepcopy(proto)
    for one, tensor in zip(fixed.graph.input, inputs, strict=False):
        for dim, size in zip(one.type.tensor_type.shape.dim, (batch, *tensor.shape[1:]), strict=False):
            dim.dim_value = size
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    by_name = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input):
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        spatial = sizes[2:] if len(sizes) != 3 else sizes[1:2]
        by_name[value.name] = "x".join(map(str, spatial)) or "1"
    return by_name


def _kind_of(node: Any) -> str:
    """A node's kind and attributes, and whether it has groups."""
    from onnx import helper

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    named = [name for name in ("kernel_shape", "strides", "dilations") if name in attributes]
    words = [f"{name.split('_')[0]} {'x'.join(map(str, attributes[name]))}" for name in named]
    if attributes.get("group", 1) > 1:
        words.append("grouped")
    return " ".join((node.op_type, *words))


def _regroup_(node: Any, dense: Sequence[int], now: Sequence[int]) -> None:
    """Reduce the groups of a grouped convolution in proportion to its weight's length."""
    for attribute in node.attribute:
        if attribute.name == "group" and attribute.i > 1 and now[1] == dense[1]:
            attribute.i = max(1, attribute.i * now[0] // dense[0])


def _drop_unused_(proto: Any) -> None:
    """Remove nodes and initialisers that no output needs."""
    needed = {value.name for value in proto.graph.output}
    kept = []
    for node in reversed(proto.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(kept))
    initialisers = [one for one in proto.graph.initializer if one.name in needed]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(initialisers)
