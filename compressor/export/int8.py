"""Quantise a network's ONNX file to 8-bit integers: post-training static quantisation, by onnxruntime.

A real number is scale · (integer - zero point) (Jacob et al. 2018, arXiv:1712.05877, sec. 2.1). Weights are symmetric
int8, with one scale per output channel or per tensor; activations are uint8 in the range that they have on calibration
images. The file keeps float operators between pairs of QuantizeLinear and DequantizeLinear, and the runtime fuses them
into integer kernels where it has such kernels.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.environment import Processor
from compressor.errors import CalibrationError, ExportError
from compressor.export.parity import first_cause
from compressor.files.atomic import whole
from compressor.files.leftovers import temporary
from compressor.graph.lent import quiet_exporter

WEIGHTED = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (0, 1)}  # the inputs that can be a weight
NOTES = ("onnx.infer", "onnx.quant.pre_process")  # metadata of onnxruntime's own steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8:
    """The settings of a quantisation.

    `images` calibration images, drawn by `seed`, give the ranges of activations. `per_channel`: one scale for every
    output channel of a weight. `reduce_range`: weights in 7 bits. `None` depends on the `target`: 7 bits for x86
    processors without VNNI, whose products of 8 bits may saturate.
    """

    images: int = 512
    per_channel: bool = True
    reduce_range: bool | None = None
    target: Processor = Processor.HERE
    seed: int = 0

    @property
    def bits(self) -> int:
        """The number of bits of a weight."""
        return 7 if (self.target.saturates if self.reduce_range is None else self.reduce_range) else 8

    @property
    def why(self) -> str:
        """The weights' bits and the reason for them, in words."""
        if self.reduce_range is not None:
            return f"weights in {self.bits} bits, as requested"
        if self.bits == 8:
            return f"weights in 8 bits: their products do not saturate on {self.target}"
        lacking = "this processor is not known to have VNNI" if self.target is Processor.HERE else f"for {self.target}"
        return f"weights in 7 bits: {lacking}, and products of 8 bits may saturate"

    def to_json(self) -> dict[str, object]:
        """Plain values, with the resolved number of bits."""
        return {**asdict(self), "target": self.target.value, "bits": self.bits, "why": self.why}

    def __post_init__(self) -> None:
        if self.images < 1:
            raise CalibrationError(
                f"the ranges of activations cannot be measured on {self.images} images",
                hint="for example `--images 512`",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A quantised file: the number of int8 weights, the operators whose weights stayed float, and both file sizes."""

    weights: int
    left_float: tuple[str, ...]
    float_bytes: int
    int8_bytes: int

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {**asdict(self), "left_float": list(self.left_float)}


def quantize_onnx(source: Path, file: Path, inputs: Iterable[Tensor | Sequence[Tensor]], *, how: Int8) -> Quantized:
    """Quantise the ONNX file `source` to 8-bit integers and write `file`, after loading and running it.

    `inputs` are batches of what the network reads, each input `[batch, ...]` (or its one input alone), preprocessed; if
    the file's batch size is fixed, batches have that size. The metadata of `source` stay, and `quantization` is added.
    Refused: no images, a graph that onnxruntime cannot quantise or run, a graph without a weight that can be int8, a
    full disk.
    """
    stream = ([batch] if isinstance(batch, Tensor) else batch for batch in inputs)
    first_batch = next(stream, None)
    if first_batch is None:
        raise CalibrationError("no images to measure the ranges of activations on", hint="give some: `--data DIR`")
    with temporary("int8") as scratch:
        proto = _quantized_proto(source, Path(scratch), itertools.chain([first_batch], stream), how)
    quantized, left_float = weights_of(proto)
    if not quantized:
        raise ExportError(
            f"nothing in {source.name} could be quantised: no convolution or product has a weight",
            hint="int8 is for networks with convolutions or linear layers",
        )
    _tidy_(proto, how)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as part:
            part.write_bytes(proto.SerializeToString())
            _check_runs(part, first_batch)
    except OSError as error:
        raise ExportError(
            f"cannot write {file}: {error.strerror or error}", hint="free some space, or choose another folder"
        ) from error
    return Quantized(
        weights=quantized, left_float=left_float, float_bytes=source.stat().st_size, int8_bytes=file.stat().st_size
    )


class _Reader:
    """Batches in the form of onnxruntime's calibration reader."""

    def __init__(self, names: Sequence[str], inputs: Iterator[Sequence[Tensor]]) -> None:
        self.names, self.inputs = names, inputs

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.inputs, None)
        return None if batch is None else _named(self.names, batch)


def _named(names: Sequence[str], batch: Sequence[Tensor]) -> dict[str, Any]:
    """A batch as onnxruntime reads it: arrays by the inputs' names."""
    return {name: part.contiguous().numpy() for name, part in zip(names, batch, strict=True)}


def _prepare(source: Path, prepared: Path) -> None:
    """Write the graph with inferred shapes, folded constants and fused operators to `prepared`.

    Symbolic shape inference fails for some graphs, which then go without it. On failure onnxruntime leaves a file in
    the working folder, so a scratch folder is the working folder meanwhile.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        with contextlib.chdir(prepared.parent):
            quant_pre_process(str(source), str(prepared))
    except Exception:  # onnxruntime's exceptions have no common base
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)


def _quantized_proto(source: Path, scratch: Path, inputs: Iterator[Sequence[Tensor]], how: Int8) -> Any:
    """Return the quantised graph; refused: a graph that onnxruntime cannot quantise."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    entries = onnx.load(str(source), load_external_data=False).graph.input
    prepared, quantized = scratch / "prepared.onnx", scratch / "int8.onnx"
    try:
        with quiet_exporter():
            _prepare(source.absolute(), prepared.absolute())
            quantize_static(
                str(prepared),
                str(quantized),
                _Reader([entry.name for entry in entries], inputs),
                quant_format=QuantFormat.QDQ,
                per_channel=how.per_channel,
                reduce_range=how.bits == 7,
                # Signed activations are slow in onnxruntime's x86 kernels: the sample ResNet-20, batch 1, one thread of
                # an AVX-512 VNNI core, ran at 0.61 times float's speed with them and at 2.16 times with unsigned ones.
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except Exception as error:
        # onnxruntime's quantiser can raise any exception
        raise ExportError(
            f"onnxruntime cannot quantise {source.name}: {first_cause(error)}",
            hint="the float file is unchanged; `compress export --opset 20` may write a graph that works",
        ) from error
    return onnx.load(str(quantized))


def weights_of(proto: Any) -> tuple[int, tuple[str, ...]]:
    """Return the number of int8 weights of convolutions and products, and the operators whose weight is float.

    Products of two activations, as in attention, have no weight and are not counted.
    """
    import onnx

    initializers = {t.name: t for t in proto.graph.initializer}
    makers = {name: node for node in proto.graph.node for name in node.output}
    weights, float_operators = 0, []
    for node in proto.graph.node:
        for name in (node.input[i] for i in WEIGHTED.get(node.op_type, ())):
            maker = makers.get(name)
            stored = None
            if maker is not None and maker.op_type == "DequantizeLinear":
                stored = initializers.get(maker.input[0])
            if stored is not None and stored.data_type == onnx.TensorProto.INT8:
                weights += _elements(stored)
            elif name in initializers:
                float_operators.append(node.name or node.op_type)
    return weights, tuple(float_operators)


def _elements(tensor: Any) -> int:
    count = 1
    for length in tensor.dims:
        count *= int(length)
    return count


def _tidy_(proto: Any, how: Int8) -> None:
    """Keep the float file's metadata and add `quantization`; remove unused operator sets."""
    metadata = {p.key: p.value for p in proto.metadata_props if p.key not in NOTES}
    metadata["quantization"] = json.dumps({"weights": "int8", "activations": "uint8", "format": "QDQ", **how.to_json()})
    del proto.metadata_props[:]
    for key in sorted(metadata):
        proto.metadata_props.add(key=key, value=metadata[key])
    used = {"" if node.domain == "ai.onnx" else node.domain for node in proto.graph.node}
    for entry in [o for o in proto.opset_import if o.domain not in used]:
        proto.opset_import.remove(entry)


def _check_runs(part: Path, inputs: Sequence[Tensor]) -> None:
    """Raise unless onnxruntime runs the file on the inputs with finite outputs."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(part), options, providers=["CPUExecutionProvider"])
        answers = session.run(None, _named([entry.name for entry in session.get_inputs()], inputs))
    except Exception as error:
        # onnxruntime's exceptions have no common base but Exception
        raise ExportError(
            f"onnxruntime cannot run the int8 file: {first_cause(error)}",
            hint="please report it with the network; the float file is unchanged",
        ) from error
    if not all(np.isfinite(a).all() for a in answers):
        raise ExportError(
            "the outputs of the int8 file are not finite", hint="check that the images are like the network's data"
        )
