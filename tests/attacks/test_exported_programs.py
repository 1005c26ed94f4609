"""A `.pt2` file never runs code, whatever stands in it: torch's own reader is never called."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.checkpoint.pt2 import read_exported
from compressor.errors import CheckpointError, CompressError
from compressor.graph.operators import operation
from tests.support.topologies import alive

MODEL, WEIGHTS, CONSTANTS = "models/model.json", "data/weights/model_weights_config.json", "data/constants"
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """The members of an honest file, with sizes left open and a constant."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)
            self.register_buffer("scale", torch.linspace(1, 2, 8), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).relu().flatten(2).mean(2).view(x.shape[0], 8) * self.scale)

    path = tmp_path_factory.mktemp("good") / "net.pt2"
    dynamic = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(alive(Net()), (torch.randn(2, 1, 8, 8),), dynamic_shapes=dynamic), path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(path: Path, members: Members, *, twice: tuple[str, bytes] | None = None, how: int = 0) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", how) as archive:
        warnings.simplefilter("ignore")  # that a name is there twice
        for name, held in members.items():
            old = name.startswith("serialized") or name == "version"  # that layout has no folder
            archive.writestr(name if old else f"net/{name}", held)
        if twice is not None:
            archive.writestr(f"net/{twice[0]}", twice[1])
    return path


def evil(marker: Path) -> bytes:
    """A pickle that makes `marker`, as `torch.save` and as `pickle` would write it."""

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (marker,)

    stream = io.BytesIO()
    torch.save(Runs(), stream)
    return stream.getvalue()


def plain_evil(marker: Path) -> bytes:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (marker,)

    return pickle.dumps(Runs())


def config(path_name: str, *, use_pickle: bool) -> bytes:
    return json.dumps(
        {"config": {"x": {"path_name": path_name, "is_param": False, "use_pickle": use_pickle, "tensor_meta": None}}}
    ).encode()


def expression(good: Members, marker: Path) -> Members:
    said = json.loads(good[MODEL])
    code = f'__import__("pathlib").Path({str(marker)!r}).touch()'
    text = re.sub(r'"expr_str": "(?:[^"\\]|\\.)*"', lambda _: f'"expr_str": {json.dumps(code)}', json.dumps(said))
    assert text != json.dumps(said)
    return {**good, MODEL: text.encode()}


def old_layout(good: Members, marker: Path) -> Members:
    return {
        "version": b"8.20",
        "serialized_exported_program.json": good[MODEL],
        "serialized_state_dict.pt": evil(marker),
        "serialized_constants.pt": evil(marker),
        "serialized_example_inputs.pt": evil(marker),
    }


def exempted_inputs(good: Members, marker: Path) -> Members:
    return {
        **good,
        "data/x_config.json": config("model.pt", use_pickle=False),
        "data/sample_inputs/model.pt": plain_evil(marker),
    }


def exempted_weights(good: Members, marker: Path) -> Members:
    return {**good, "data/x_config.json": config("model.pt", use_pickle=False), "data/weights/model.pt": evil(marker)}


def opaque_object(good: Members, marker: Path) -> Members:
    listed = f"{CONSTANTS}/model_constants_config.json"
    said = json.loads(good[listed])
    said["config"] |= json.loads(config("opaque_obj_0.json", use_pickle=True))["config"]
    return {**good, listed: json.dumps(said).encode(), f"{CONSTANTS}/opaque_obj_0.json": plain_evil(marker)}


def pickled_weight(good: Members, marker: Path) -> Members:
    said = json.loads(good[WEIGHTS])
    first = next(iter(said["config"].values()))
    first["use_pickle"] = True
    return {**good, WEIGHTS: json.dumps(said).encode(), f"data/weights/{first['path_name']}": evil(marker)}


def pickled_inputs(good: Members, marker: Path) -> Members:
    return {**good, "data/sample_inputs/model.pt": evil(marker)}


VARIANTS = [
    expression, old_layout, exempted_inputs, exempted_weights, opaque_object, pickled_weight, pickled_inputs,
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_in_the_file_runs(tmp_path: Path, good: Members, variant: Callable[[Members, Path], Members]) -> None:
    marker = tmp_path / "ran"
    path = written(tmp_path / "net.pt2", variant(good, marker))
    if variant is expression:  # sizes on paper are never looked at
        read_exported(path)
    else:
        with pytest.raises(CheckpointError) as caught:
            read_exported(path)
        assert caught.value.hint
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "data/aotinductor/model/x.wrapper.so", "data/constants/custom_obj_0", "data/weights/../../x",
        "models/../x.json", "executorch/x", "code/x.py", "data/sample_inputs/model.json",
    ],
)  # fmt: skip
def test_members_that_torch_would_load_otherwise_are_refused(tmp_path: Path, good: Members, name: str) -> None:
    path = written(tmp_path / "net.pt2", {**good, name: b"\x7fELF"})
    with pytest.raises(CheckpointError) as caught:
        read_exported(path)
    assert caught.value.hint


@pytest.mark.parametrize("name", [MODEL, MODEL.upper(), "archive_format", "data/weights/weight_0"])
def test_a_member_that_is_there_twice_is_refused(tmp_path: Path, good: Members, name: str) -> None:
    """Two readers of the same archive may take different ones."""
    path = written(tmp_path / "net.pt2", good, twice=(name, good.get(name, b"{}")))
    with pytest.raises(CheckpointError, match="twice"):
        read_exported(path)


def test_packed_members_are_refused(tmp_path: Path, good: Members) -> None:
    with pytest.raises(CheckpointError, match="compressed"):
        read_exported(written(tmp_path / "net.pt2", good, how=zipfile.ZIP_DEFLATED))


def changed_model(good: Members, change: Callable[[dict[str, Any]], None]) -> Members:
    said = json.loads(good[MODEL])
    change(said["graph_module"])
    return {**good, MODEL: json.dumps(said).encode()}


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default", "torch.ops.aten.set_.source_Tensor", "torch.ops.aten.resize_.default",
        "torch.ops.aten.relu.out", "torch.ops.aten._print.default", "torch.ops.aten.warn.default",
        "torch.ops.aten.fbgemm_pack_quantized_matrix.default", "torch.ops.image.read_file.default",
        "torch.ops.aten.__class__.mro",
        "torch.ops.higher_order.cond", "torch.ops.loaded_libraries.add", "torch.hub.load", "torch.serialization.load",
        "_operator.methodcaller", "_operator.attrgetter", "operator.setitem", "math.ceil", "#executorch:x",
        "os.system", "",
    ],
)  # fmt: skip
def test_operators_are_those_of_a_list(tmp_path: Path, good: Members, target: str) -> None:
    def change(module: dict[str, Any]) -> None:
        next(n for n in module["graph"]["nodes"] if n["target"].endswith("relu.default"))["target"] = target

    with pytest.raises(CompressError) as caught:
        read_exported(written(tmp_path / "net.pt2", changed_model(good, change)))
    assert isinstance(caught.value, CheckpointError)
    assert caught.value.hint


def test_what_the_list_allows_is_there() -> None:
    for name in ("aten.conv2d.default", "aten.add.Tensor", "aten.add_.Tensor", "aten.sym_size.int", "torchvision.nms",
                 "aten.scaled_dot_product_attention.default", "prims.convert_element_type.default"):  # fmt: skip
        assert isinstance(operation(name), torch._ops.OpOverload)


@pytest.mark.parametrize(
    "name",
    ["training\")\rprint('run')#", "a'b", 'a"b', "a\nb", "a\\b", "", "a..b", "__class__.x", "forward", "_modules.x",
     "class", "conv.weight.x", "state_dict.y", "graph", "‮b"],
)  # fmt: skip
def test_names_of_tensors_are_names(tmp_path: Path, good: Members, name: str) -> None:
    before = set(vars(nn.Module))
    members = {key: held.replace(b'"fc.weight"', json.dumps(name).encode()) for key, held in good.items()}
    with pytest.raises(CheckpointError) as caught:
        read_exported(written(tmp_path / "net.pt2", members))
    assert str(caught.value).isprintable()
    assert set(vars(nn.Module)) == before


Meta = dict[str, Any]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(storage_offset={"as_int": 1}),
        lambda m: m.update(storage_offset={"as_int": -1}),
        lambda m: m.update(sizes=[{"as_int": 1 << 40}, {"as_int": 8}]),
        lambda m: m.update(strides=[{"as_int": 1 << 62}, {"as_int": 1}]),
        lambda m: m.update(strides=[{"as_int": -8}, {"as_int": 1}]),
        lambda m: m.update(sizes=[{"as_int": 1 << 40}, {"as_int": 1 << 22}], strides=[{"as_int": 0}] * 2),
        lambda m: m.update(sizes=[{"as_expr": {"expr_str": "9**9**9", "hint": None}}, {"as_int": 8}]),
        lambda m: m.update(dtype=8),
        lambda m: m.update(dtype="7"),
        lambda m: m.update(layout=1),
        lambda m: m.update(sizes=[{"as_int": 4}]),
        lambda m: m.update(sizes=[{"as_int": True}, {"as_int": 8}]),
    ],
)
def test_tensors_stay_within_their_bytes(tmp_path: Path, good: Members, change: Callable[[Meta], None]) -> None:
    said = json.loads(good[WEIGHTS])
    change(said["config"]["fc.weight"]["tensor_meta"])
    with pytest.raises(CheckpointError):
        read_exported(written(tmp_path / "net.pt2", {**good, WEIGHTS: json.dumps(said).encode()}))


@pytest.mark.parametrize(
    "model",
    [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"schema_version": {"major": 8}}', b"9" * 10_000_000,
     b'{"schema_version": {"major": 7}, "graph_module": {}}'],
)  # fmt: skip
def test_broken_json_is_refused(tmp_path: Path, good: Members, model: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_exported(written(tmp_path / "net.pt2", {**good, MODEL: model}))
    assert caught.value.hint


def test_a_power_of_numbers_is_not_computed(tmp_path: Path, good: Members) -> None:
    """Ten to the billion takes days."""

    def change(module: dict[str, Any]) -> None:
        arguments = [{"name": n, "arg": {"as_int": 10**9}, "kind": 1} for n in "ab"]
        output = [{"as_sym_int": {"as_name": "huge"}}]
        module["graph"]["nodes"].insert(
            0, {"target": "_operator.pow", "inputs": arguments, "outputs": output, "metadata": {}}
        )

    with pytest.raises(CheckpointError, match="not sizes"):
        read_exported(written(tmp_path / "net.pt2", changed_model(good, change)))


def test_one_wrong_byte_of_the_weights_is_seen(tmp_path: Path, good: Members) -> None:
    path = written(tmp_path / "net.pt2", good)
    held = bytearray(path.read_bytes())
    held[held.index(good["data/weights/weight_0"]) + 5] ^= 1
    path.write_bytes(held)
    with pytest.raises(CheckpointError, match="damaged"):
        read_exported(path)


def test_a_broken_directory_is_refused(tmp_path: Path, good: Members) -> None:
    path = written(tmp_path / "net.pt2", good)
    held = path.read_bytes()
    for cut in (len(held) - 1, len(held) - 30, len(held) // 2, 10):
        path.write_bytes(held[:cut])
        with pytest.raises(CheckpointError):
            read_exported(path)
    at = held.rindex(struct.pack("<I", 0x02014B50))
    for offset in range(at, at + 46):
        path.write_bytes(held[:offset] + bytes([held[offset] ^ 0xFF]) + held[offset + 1 :])
        with contextlib.suppress(CheckpointError):  # some of these bytes say nothing
            read_exported(path)
