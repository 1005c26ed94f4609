"""Graphs with shapes in the place of weights: against the narrow networks themselves, exported."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compressor.channels.groups import trace
from compressor.export.onnx import proto_of
from compressor.measuring.runtimes import load
from compressor.measuring.tables.networks import networks_of
from compressor.measuring.tables.skeletons import SHAPE, narrowed, owner_of, skeleton_of
from compressor.planning.widths import Sizes
from compressor.surgery.plan import PruningPlan
from compressor.surgery.shrinking import shrink
from tests.support.topologies import (
    INPUT,
    Concatenated,
    Residual,
    alive,
    depthwise,
    flattened,
    grouped,
    plain,
    transposed,
)
from tests.support.versions import WIDTHS_ARE_IN_THE_GRAPH

EXAMPLE = (torch.zeros(INPUT),)
NETWORKS = [plain, Residual, Concatenated, depthwise, flattened, grouped, transposed]


def _is_quick(net: nn.Module) -> bool:
    with networks_of(net, trace(net, EXAMPLE), EXAMPLE, load("onnxruntime-cpu"), batch=1) as networks:
        return networks.quick


def shapes_in(content: bytes) -> Counter[tuple[int, ...]]:
    proto = onnx.ModelProto.FromString(content)
    held = [i for i in proto.graph.initializer if i.name.endswith(SHAPE) and not i.name.startswith("flat")]
    return Counter(tuple(onnx.numpy_helper.to_array(i).tolist()) for i in held)


def run(content: bytes, folder: Path) -> Any:
    file = folder / "skeleton.onnx"
    file.write_bytes(content)
    with load("onnxruntime-cpu").prepare(file, EXAMPLE, threads=1) as prepared:
        return prepared.run()


@pytest.mark.parametrize("make", NETWORKS)
def test_a_narrowed_graph_is_the_narrow_network_exported(make: type[nn.Module], tmp_path: Path) -> None:
    net = alive(make())
    traced = trace(net, EXAMPLE)
    sizes, skeleton = Sizes(net, traced.groups), skeleton_of(net, EXAMPLE)
    if WIDTHS_ARE_IN_THE_GRAPH and not _is_quick(net):
        pytest.skip("this torch writes widths into the graph: such networks are exported one by one")
    widths = {g.root: max(1, g.channels // 2) for g in traced.groups}
    row = sizes.row(widths)[None]
    narrow = narrowed(skeleton, lambda tensor, dim: round(float(sizes.at(tensor, dim, row)[0])))
    plan = PruningPlan(removed={g.root: tuple(range(widths[g.root], g.channels)) for g in traced.groups})
    small = shrink(net, traced, plan, EXAMPLE)[0].eval()
    expected = proto_of(small, list(EXAMPLE), opset=None, dynamic=True)
    assert shapes_in(narrow) == Counter(
        tuple(i.dims) for i in expected.graph.initializer if i.data_type == 1 and i.dims
    )
    with torch.no_grad():
        assert run(narrow, tmp_path)[0].shape == tuple(small(*EXAMPLE).shape)


def test_it_is_small_and_holds_no_weight() -> None:
    net = nn.Sequential(nn.Conv2d(3, 512, 3), nn.ReLU(), nn.Conv2d(512, 512, 3)).eval()
    skeleton = skeleton_of(net, EXAMPLE)
    assert len(skeleton.proto) < 5_000
    proto = onnx.ModelProto.FromString(skeleton.proto)
    assert all(i.data_type == onnx.TensorProto.INT64 for i in proto.graph.initializer)


def test_every_node_counts_with_the_weight_that_came_last() -> None:
    skeleton = skeleton_of(alive(Residual()), EXAMPLE)
    proto = onnx.ModelProto.FromString(skeleton.proto)
    weights = {o.tensor for o in skeleton.operators}
    assert {skeleton.owners[n.output[0]] for n in proto.graph.node if n.op_type == "Conv"} <= weights
    last: dict[str, str] = {}
    for node in proto.graph.node:
        if node.op_type == "Relu":
            last[node.name] = skeleton.owners[node.name]
            assert skeleton.owners[node.name] == skeleton.owners[node.input[0]]
    assert last


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("relu_1_nchwc_kernel_time", "a.weight"),
        ("node_Gemm_16_kernel_time", "b.weight"),
        ("fused node_Gemm_16_kernel_time", "b.weight"),
        ("node_silu/QuickGeluFusion/_kernel_time", "c.weight"),
        ("ReorderOutput_token_3_kernel_time", None),
    ],
)
def test_names_that_onnxruntime_gives_what_it_fused(name: str, owner: str | None) -> None:
    owners = {"relu_1": "a.weight", "node_Gemm_16": "b.weight", "node_silu": "c.weight"}
    assert owner_of(name, owners) == owner


def test_onnxruntime_profiles_every_layer_under_a_name_that_is_known(tmp_path: Path) -> None:
    skeleton = skeleton_of(alive(Residual()), EXAMPLE)
    file = tmp_path / "a.onnx"
    file.write_bytes(skeleton.proto)
    profile = load("onnxruntime-cpu").profile
    assert profile is not None
    times = profile(file, EXAMPLE, threads=1, warmup=1, calls=3)
    assert all(len(t.samples_ns) == 3 for t in times)
    assert {skeleton.owner(t.name) for t in times} >= {o.tensor for o in skeleton.operators}


class Resized(nn.Module):
    """Its exported graph holds numbers that are no weights: how many times larger a map becomes, and a clip's ends."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = nn.functional.max_pool2d(nn.functional.relu6(self.a(x)), 2)
        return self.b(torch.cat([nn.functional.interpolate(small, scale_factor=2.0)], dim=1))


def test_numbers_that_are_no_weights_stay(tmp_path: Path) -> None:
    net = alive(Resized())
    with torch.no_grad():
        expected = net(*EXAMPLE).shape
    (output,) = run(skeleton_of(net, EXAMPLE).proto, tmp_path)
    assert output.shape == expected


def test_an_emptied_branch_gives_a_constant_and_its_layers_are_gone(tmp_path: Path) -> None:
    net = alive(Residual())
    traced = trace(net, EXAMPLE)
    sizes, skeleton = Sizes(net, traced.groups), skeleton_of(net, EXAMPLE)
    inner = next(g for g in traced.groups if len({m.layer for m in g.members if m.role == "produces"}) == 1)
    row = sizes.row({inner.root: 0})[None]
    content = narrowed(skeleton, lambda tensor, dim: round(float(sizes.at(tensor, dim, row)[0])))
    before = Counter(n.op_type for n in onnx.ModelProto.FromString(skeleton.proto).graph.node)
    after = Counter(n.op_type for n in onnx.ModelProto.FromString(content).graph.node)
    assert after["Conv"] < before["Conv"]
    assert np.isfinite(run(content, tmp_path)[0]).all()
