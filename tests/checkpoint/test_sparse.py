"""Sparse storage: bit for bit back, never larger than it must be, and the same outputs from onnxruntime."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compressor.checkpoint.sparse import FILE_NAME, Encoding, onnx_sparse, read_sparse, write_sparse
from compressor.errors import ArtifactError, ExportError
from compressor.surgery.masks import WeightMask, apply_mask_, magnitude

INTEGERS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(INTEGERS[tensor.dtype]) if tensor.is_floating_point() else tensor


def masked(*shape: int, density: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A tensor and its mask; some kept values are zeros of either sign."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < density
    values = torch.randn(shape, generator=generator)
    values[torch.rand(shape, generator=generator) < 0.1] = -0.0
    values[torch.rand(shape, generator=generator) < 0.1] = 0.0
    return values.to(dtype).masked_fill(~kept, 0), kept


# Properties


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    dtype=st.sampled_from(list(INTEGERS)),
    wide=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_what_is_written_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    shape: list[int],
    density: float,
    dtype: torch.dtype,
    wide: bool,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("sparse")
    tensor, kept = masked(*shape, *([300] if wide else []), density=density, dtype=dtype, seed=seed)
    state = {"a.weight": tensor, "a.bias": torch.tensor([-0.0, 1.5, float("inf")]), "count": torch.tensor(7)}
    mask = WeightMask(kept={"a.weight": kept})
    table = write_sparse(folder, state, mask)
    back = read_sparse(folder)
    assert back.state.keys() == state.keys()
    for name, expected in state.items():
        assert back.state[name].dtype == expected.dtype
        assert back.state[name].shape == expected.shape
        assert torch.equal(bits(back.state[name]), bits(expected))
    assert back.mask.nested_in(mask)
    assert mask.nested_in(back.mask)
    assert table.file_bytes == (folder / FILE_NAME).stat().st_size
    assert [p.name for p in folder.iterdir()] == [FILE_NAME]
    row = table.rows[0]
    assert row.stored_bytes <= row.kept * tensor.element_size() + -(-tensor.numel() // 8)


@pytest.mark.parametrize(
    ("density", "encoding", "share"),
    [(0.5, Encoding.BITMASK, 0.54), (0.1, Encoding.BITMASK, 0.135), (0.01, Encoding.CSR, 0.02)],
)
def test_the_smaller_encoding_is_taken(tmp_path: Path, density: float, encoding: Encoding, share: float) -> None:
    tensor, kept = masked(64, 32, 3, 3, density=density)
    (row,) = write_sparse(tmp_path, {"w": tensor}, WeightMask(kept={"w": kept})).rows
    assert row.encoding == encoding
    assert (row.elements, row.kept, row.dense_bytes) == (18432, int(kept.sum()), 73728)
    assert row.stored_bytes < share * row.dense_bytes


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    tensor, kept = masked(8, 8, density=0.3)
    state = {f"layer{i}.weight": tensor for i in range(9)}
    mask = WeightMask(kept=dict.fromkeys(state, kept))
    for run in ("one", "two"):
        write_sparse(tmp_path / run, state, mask)
    assert (tmp_path / "one" / FILE_NAME).read_bytes() == (tmp_path / "two" / FILE_NAME).read_bytes()


def test_a_pruned_network_comes_back(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(64, 10))
    mask = magnitude(net, sparsity=0.9)
    apply_mask_(net, mask)
    table = write_sparse(tmp_path / "new" / "sparse", net.state_dict(), mask)
    back = read_sparse(tmp_path / "new" / "sparse")
    assert all(torch.equal(back.state[n], t) for n, t in net.state_dict().items())
    assert back.mask.sparsity == mask.sparsity
    assert table.stored_bytes < 0.25 * table.dense_bytes
    assert "not time" in str(table.to_json()["statement"])


# Hand-made cases


@pytest.mark.parametrize("value", [1.0, -0.0])
def test_a_removed_weight_that_is_not_zero_is_refused(tmp_path: Path, value: float) -> None:
    mask = WeightMask(kept={"w": torch.tensor([[True, False]])})
    with pytest.raises(ArtifactError, match=r"`w` is not \+0.0 everywhere") as caught:
        write_sparse(tmp_path, {"w": torch.tensor([[2.0, value]])}, mask)
    assert "apply_mask_" in str(caught.value.hint)


def test_nan_strangers_and_other_shapes_are_refused(tmp_path: Path) -> None:
    kept = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ArtifactError, match="holds NaN"):
        write_sparse(tmp_path, {"w": torch.full((2, 2), float("nan"))}, WeightMask(kept={"w": kept}))
    with pytest.raises(ArtifactError, match="which the state lacks"):
        write_sparse(tmp_path, {"v": torch.ones(2, 2)}, WeightMask(kept={"w": kept}))
    with pytest.raises(ArtifactError, match=r"is \[2, 2\], the tensor \[4\]"):
        write_sparse(tmp_path, {"w": torch.ones(4)}, WeightMask(kept={"w": kept}))
    assert not list(tmp_path.iterdir())


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no `sparse"):
        read_sparse(tmp_path)
    tensor, kept = masked(64, 64, density=0.01)
    write_sparse(tmp_path, {"w": tensor}, WeightMask(kept={"w": kept}))
    whole = (tmp_path / FILE_NAME).read_bytes()
    for broken in (b"", whole[:40], whole[:-8], whole.replace(b"csr", b"rle"), whole.replace(b"64, 64", b"63, 64")):
        (tmp_path / FILE_NAME).write_bytes(broken)
        with pytest.raises(ArtifactError, match="not a whole sparse file"):
            read_sparse(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    tensor, kept = masked(4, 4, density=0.5)
    with pytest.raises(ArtifactError, match="cannot write"):
        write_sparse(tmp_path / "taken", {"w": tensor}, WeightMask(kept={"w": kept}))
    assert (tmp_path / "taken").read_text() == "a file"


# ONNX


def onnx_net(file: Path, *, density: float, weight_is_input: bool = False) -> Path:
    """A convolution, a ReLU, a mean and a matrix product; batch size free."""
    conv, _ = masked(8, 4, 3, 3, density=density)
    product, _ = masked(8, 10, density=density, seed=1)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 6, 6])]
    if weight_is_input:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 4, 3, 3]))
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "m"], ["s"]),
            helper.make_node("Add", ["s", "zeros"], ["y"]),
        ],
        "net",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        initializer=[
            numpy_helper.from_array(conv.numpy(), "w"),
            numpy_helper.from_array(numpy.ones(8, "float32"), "b"),
            numpy_helper.from_array(product.numpy(), "m"),
            numpy_helper.from_array(numpy.zeros(10, "float32"), "zeros"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


def test_mostly_zero_weights_become_sparse_initialisers_with_equal_outputs(tmp_path: Path) -> None:
    dense = onnx_net(tmp_path / "dense.onnx", density=0.1)
    table = onnx_sparse(dense, tmp_path / "sparse.onnx")
    model = onnx.load(tmp_path / "sparse.onnx")
    assert {s.values.name for s in model.graph.sparse_initializer} == {"w", "m"}
    assert {t.name for t in model.graph.initializer} == {"b", "zeros"}
    assert {r.name: r.encoding for r in table.rows}["w"] == Encoding.COORDINATES
    assert table.file_bytes == (tmp_path / "sparse.onnx").stat().st_size < dense.stat().st_size
    assert table.stored_bytes < table.dense_bytes


def test_negative_zeros_are_values(tmp_path: Path) -> None:
    onnx_sparse(onnx_net(tmp_path / "dense.onnx", density=0.2), tmp_path / "sparse.onnx")
    dense = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "dense.onnx").graph.initializer}
    for sparse in onnx.load(tmp_path / "sparse.onnx").graph.sparse_initializer:
        again = numpy.zeros(list(sparse.dims), "float32")
        again.ravel()[numpy_helper.to_array(sparse.indices)] = numpy_helper.to_array(sparse.values)
        assert again.tobytes() == dense[sparse.values.name].tobytes()


def test_weights_that_would_grow_stay_dense(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="would be smaller") as caught:
        onnx_sparse(onnx_net(tmp_path / "dense.onnx", density=0.45), tmp_path / "sparse.onnx")
    assert "--sparsity" in str(caught.value.hint)
    assert not (tmp_path / "sparse.onnx").exists()


def test_a_weight_that_a_caller_can_set_stays_dense(tmp_path: Path) -> None:
    table = onnx_sparse(onnx_net(tmp_path / "d.onnx", density=0.1, weight_is_input=True), tmp_path / "s.onnx")
    assert {r.name for r in table.rows if r.encoding == Encoding.COORDINATES} == {"m"}


def test_a_missing_onnx_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no file"):
        onnx_sparse(tmp_path / "no.onnx", tmp_path / "sparse.onnx")


def test_an_exported_network_runs_from_its_sparse_file(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()
    apply_mask_(net, magnitude(net, sparsity=0.9, scope="uniform"))
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter are not this test's matter
        torch.onnx.export(
            net,
            (torch.zeros(2, 1, 6, 6),),
            tmp_path / "dense.onnx",
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    table = onnx_sparse(tmp_path / "dense.onnx", tmp_path / "sparse.onnx")
    assert sum(r.encoding == Encoding.COORDINATES for r in table.rows) == 2
    assert table.file_bytes < (tmp_path / "dense.onnx").stat().st_size
