"""Store masked weights sparse, on disk only: in memory they are dense again, and run no faster.

`write_sparse` writes one file, `sparse.safetensors`. A tensor without a mask has its own name in it. A masked tensor
`w` is stored in the smaller of two encodings, each with `w:values`, the kept values in row-major order, bit for bit:

    bitmask   `w:bits`      uint8 [⌈n / 8⌉], one bit per weight, the first in the highest bit
    csr       `w:pointers`  int32 or int64 [rows + 1], and `w:columns` uint8, uint16 or int32 [kept], over the tensor
                            viewed as a matrix [shape[0], rest]

The header's metadata has one entry, `compress`, JSON: {"schema": 1, "masked": {w: {"encoding": …, "shape": […]}}}. CSR
is smaller below about one kept weight in 8 (at most 256 columns) or in 16.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from compressor.errors import ArtifactError, ExportError, PlanError
from compressor.files.atomic import whole
from compressor.results.changes import Masking, StoredTensor
from compressor.surgery.masks import WeightMask

FILE_NAME = "sparse.safetensors"
SAVES_NO_TIME = "sparse storage saves disk, not time: a runtime makes the weights dense again when it loads them"


class Encoding(enum.StrEnum):
    """How a tensor is stored; `COORDINATES` is ONNX's encoding."""

    DENSE = "dense"
    BITMASK = "bitmask"
    CSR = "csr"
    COORDINATES = "coordinates"


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseTable:
    """The bytes saved by sparse storage, tensor by tensor, and the size of the whole file."""

    rows: tuple[StoredTensor, ...]
    file_bytes: int

    @property
    def dense_bytes(self) -> int:
        """The bytes of all tensors stored dense."""
        return sum(row.dense_bytes for row in self.rows)

    @property
    def stored_bytes(self) -> int:
        """The bytes of all tensors as stored."""
        return sum(row.stored_bytes for row in self.rows)

    def on(self, masking: Masking) -> Masking:
        """Return the masking with the bytes that sparse storage saves."""
        return replace(
            masking, rows=self.rows, dense_bytes=self.dense_bytes, stored_bytes=self.stored_bytes,
            file_bytes=self.file_bytes, statement=SAVES_NO_TIME,
        )  # fmt: skip

    def to_json(self) -> dict[str, object]:
        """Return plain values: the rows, the sums, and a statement that time is not saved."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "dense_bytes": self.dense_bytes,
            "stored_bytes": self.stored_bytes,
            "file_bytes": self.file_bytes,
            "statement": SAVES_NO_TIME,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedState:
    """A state that was stored sparse, dense again, and its mask."""

    state: dict[str, Tensor]
    mask: WeightMask


def write_sparse(
    folder: Path, state: Mapping[str, Tensor], mask: WeightMask, *, marks: Mapping[str, str] | None = None
) -> SparseTable:
    """Write `state`, zero where `mask` removed, to `folder / "sparse.safetensors"`; return the table of the saved
    bytes.

    The file appears whole or not at all. Refused: a mask of a missing tensor or of another shape, a removed weight that
    is not +0.0, a NaN, a folder that cannot be written.
    """
    strangers = mask.kept.keys() - state.keys()
    if strangers:
        raise ArtifactError(f"the mask covers `{min(strangers)}`, which the state lacks", hint="prune it again")
    pieces: dict[str, Tensor] = {}
    masked: dict[str, dict[str, object]] = {}
    table = []
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous().clone()  # cloned, because the format accepts no shared memory
        if plain.is_floating_point() and bool(plain.isnan().any()):
            raise ArtifactError(f"`{name}` holds NaN", hint="the weights are broken: retrain with a lower rate")
        kept = mask.kept.get(name)
        if kept is None:
            encoding, own = Encoding.DENSE, {name: plain}
        else:
            encoding, own = _smaller(name, plain, kept.cpu())
            masked[name] = {"encoding": str(encoding), "shape": list(plain.shape)}
        table.append(
            StoredTensor(
                name=name,
                encoding=str(encoding),
                elements=plain.numel(),
                kept=plain.numel() if kept is None else int(kept.sum()),
                dense_bytes=plain.nbytes,
                stored_bytes=sum(t.nbytes for t in own.values()),
            )
        )
        pieces |= own
    header = json.dumps({"schema": 1, "masked": masked}, sort_keys=True)
    data = safetensors.torch.save(pieces, metadata={**(marks or {}), "compress": header})
    _write_whole(folder / FILE_NAME, data)
    return SparseTable(rows=tuple(table), file_bytes=len(data))


def read_sparse(folder: Path) -> MaskedState:
    """Return the state and the mask that `write_sparse` wrote, bit for bit. Refused: a missing or broken file."""
    file = folder / FILE_NAME
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            masked = json.loads((opened.metadata() or {})["compress"])["masked"]
            pieces = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
        kept, state = {}, {}
        for name, stored in masked.items():
            kept[name] = _pattern(name, stored, pieces)
            state[name] = torch.zeros(kept[name].shape, dtype=pieces[f"{name}:values"].dtype)
            state[name][kept[name]] = pieces[f"{name}:values"]
        parts = {f"{name}:{part}" for name in masked for part in ("values", "bits", "pointers", "columns")}
        state |= {name: piece for name, piece in pieces.items() if name not in parts}
        return MaskedState(state=state, mask=WeightMask(kept=kept))
    except FileNotFoundError as error:
        raise ArtifactError(f"there is no `{FILE_NAME}` in {folder}", hint="prune it again") from error
    except (safetensors.SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError, PlanError) as error:
        raise ArtifactError(f"{file} is not a whole sparse file: {error}", hint="write it again") from error


def _smaller(name: str, tensor: Tensor, kept: Tensor) -> tuple[Encoding, dict[str, Tensor]]:
    """The smaller encoding of a masked tensor and its pieces."""
    if kept.shape != tensor.shape or not tensor.ndim:
        raise ArtifactError(
            f"the mask of `{name}` is {list(kept.shape)}, the tensor {list(tensor.shape)}", hint="prune it again"
        )
    if bool(tensor[~kept].view(torch.uint8).any()):
        raise ArtifactError(f"`{name}` is not +0.0 everywhere its mask removed", hint="call `apply_mask_` first")
    matrix = kept.reshape(len(kept), -1)
    columns = matrix.nonzero()[:, 1]
    width = matrix.shape[1]
    column_type = torch.uint8 if width <= 2**8 else torch.uint16 if width <= 2**16 else torch.int32
    pointer_type = torch.int32 if len(columns) < 2**31 else torch.int64
    pointers = torch.cat([torch.zeros(1, dtype=torch.int64), matrix.sum(dim=1).cumsum(0)]).to(pointer_type)
    values = {f"{name}:values": tensor[kept]}
    csr = {f"{name}:pointers": pointers, f"{name}:columns": columns.to(column_type)}
    bits = {f"{name}:bits": torch.from_numpy(numpy.packbits(kept.flatten().numpy()))}
    if sum(t.nbytes for t in csr.values()) < sum(t.nbytes for t in bits.values()):
        return Encoding.CSR, values | csr
    return Encoding.BITMASK, values | bits


def _pattern(name: str, stored: Mapping[str, Any], pieces: Mapping[str, Tensor]) -> Tensor:
    """The mask of a stored tensor; raises `ValueError` if its pieces disagree."""
    kept = torch.zeros(stored["shape"], dtype=torch.bool)
    if stored["encoding"] == Encoding.BITMASK:
        bits = numpy.unpackbits(pieces[f"{name}:bits"].numpy(), count=kept.numel())
        kept = torch.from_numpy(bits.astype(bool)).view(kept.shape)
    elif stored["encoding"] == Encoding.CSR:
        lengths = pieces[f"{name}:pointers"].diff()
        if len(lengths) != len(kept):
            raise ValueError(f"`{name}` has {len(lengths)} rows of columns for {len(kept)} rows")
        row = torch.arange(len(lengths)).repeat_interleave(lengths)
        kept.view(len(kept), -1)[row, pieces[f"{name}:columns"].to(torch.int64)] = True
    else:
        raise ValueError(f"`{name}` has an unknown encoding: {stored['encoding']}")
    if int(kept.sum()) != len(pieces[f"{name}:values"]):
        raise ValueError(f"`{name}` has {len(pieces[f'{name}:values'])} values for {int(kept.sum())} places")
    return kept


def _write_whole(file: Path, data: bytes) -> None:
    """Write the bytes, whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as part:
            part.write_bytes(data)
    except OSError as error:
        raise ArtifactError(f"cannot write {file}: {error}", hint="check the folder and the disk's space") from error


READS_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # their second or third input is a layer's weight
FLOATS = {1: "float32", 10: "float16", 11: "float64"}  # onnx.TensorProto.DataType


def onnx_sparse(onnx_file: Path, out_file: Path) -> SparseTable:
    """Write `onnx_file` with its mostly-zero weights as `sparse_initializer`; return the table of the saved bytes.

    A weight is converted if more than half of it is zero *and* the result is smaller: ONNX stores an int64 index beside
    every value, so float32 must be more than two thirds zero. `onnx.checker` checks the result, and onnxruntime
    compares its outputs on random inputs with those of `onnx_file`. It saves no time: onnxruntime makes the weights
    dense at load. Refused: a file without such a weight, outputs that differ.
    """
    import onnx  # seconds to import, and only this function needs it

    if not onnx_file.is_file():
        raise ExportError(f"there is no file {onnx_file}", hint="make one with `compress export --onnx`")
    model = onnx.load(onnx_file)
    table = []
    weights = _weights_of(model.graph)
    dense = list(model.graph.initializer)
    del model.graph.initializer[:]
    for tensor in dense:
        array = onnx.numpy_helper.to_array(tensor)
        row = _row(tensor.name, array, convertible=tensor.name in weights and tensor.data_type in FLOATS)
        table.append(row)
        if row.encoding == Encoding.DENSE:
            model.graph.initializer.append(tensor)
            continue
        flat = array.ravel()
        places = _places(flat)
        values = onnx.numpy_helper.from_array(flat[places], tensor.name)
        indices = onnx.numpy_helper.from_array(places.astype(numpy.int64), f"{tensor.name}_indices")
        model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, array.shape))
    if not model.graph.sparse_initializer:
        raise ExportError(
            f"no weight in {onnx_file} would be smaller as a sparse one",
            hint="a float32 weight must be more than two thirds zero: prune with `--sparsity 0.9`",
        )
    onnx.checker.check_model(model)  # not `full_check`: ONNX infers no shapes from a sparse weight
    data = model.SerializeToString()
    _refuse_difference(str(onnx_file), data)
    _write_whole(out_file, data)
    return SparseTable(rows=tuple(table), file_bytes=len(data))


def _weights_of(graph: Any) -> set[str]:
    """The initialisers that only convolutions and matrix products read, and that are not inputs or outputs."""
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        nested = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        for name in node.input:
            readers.setdefault(name, set()).add("" if nested else node.op_type)
        if nested:  # a subgraph may read any name around it
            return set()
    visible = {value.name for value in (*graph.input, *graph.output)}
    return {name for name, kinds in readers.items() if kinds <= set(READS_WEIGHTS)} - visible


def _places(flat: Any) -> Any:
    """The indices of all values except +0.0: a negative zero is a value."""
    return numpy.flatnonzero((flat != 0) | numpy.signbit(flat))


def _row(name: str, array: Any, *, convertible: bool) -> StoredTensor:
    """The row of a tensor in the table."""
    kept = len(_places(array.ravel())) if convertible else array.size
    sparse_bytes = kept * (array.itemsize + 8)
    smaller = convertible and array.ndim > 1 and 0 < kept < array.size / 2 and sparse_bytes < array.nbytes
    return StoredTensor(
        name=name,
        encoding=str(Encoding.COORDINATES if smaller else Encoding.DENSE),
        elements=array.size,
        kept=kept,
        dense_bytes=array.nbytes,
        stored_bytes=sparse_bytes if smaller else array.nbytes,
    )


def _refuse_difference(dense: str, sparse: bytes) -> None:
    """Run both models on the same random inputs; raises `ExportError` if an output differs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = [onnxruntime.InferenceSession(m, options, providers=["CPUExecutionProvider"]) for m in (dense, sparse)]
    generator = numpy.random.default_rng(0)
    types = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
    feeds = {}
    for entry in sessions[0].get_inputs():
        shape = [size if isinstance(size, int) else 2 for size in entry.shape]
        numbers = generator.standard_normal(shape)
        feeds[entry.name] = numbers.astype(types[entry.type]) if entry.type in types else numpy.zeros(shape, "int64")
    for one, other in zip(sessions[0].run(None, feeds), sessions[1].run(None, feeds), strict=True):
        if not numpy.allclose(one, other, rtol=1e-6, atol=1e-6 * float(numpy.abs(one).max(initial=0))):
            raise ExportError("the outputs of the sparse and the dense ONNX file differ", hint="keep the dense one")
