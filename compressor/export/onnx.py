"""Export a network as an ONNX file with the network's outputs: checked, run and compared before it is written."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compressor.errors import ExportError
from compressor.export.attention import translations
from compressor.export.parity import BATCHES, TOLERANCE, BatchIsFixedError, first_cause, largest_difference
from compressor.files.atomic import whole
from compressor.graph.copies import copy_of
from compressor.graph.detector_heads import WithHeads, head_layers
from compressor.graph.exported_program import is_data_dependent
from compressor.graph.input_spec import random_like
from compressor.graph.lent import lengths_left_open, quiet_exporter
from compressor.graph.structures import with_plain_outputs_
from compressor.results.parity import Parity

if TYPE_CHECKING:
    from compressor.checkpoint.checkpoint import Checkpoint

__all__ = ["Parity", "export_onnx", "lineage_sha256", "metadata_of", "proto_of", "strip_"]

OLDEST_OPSET = 18  # torch's exporter writes it; older ones need a conversion that may fail
BATCH_SIZES = (1, 4)
PROTOBUF_BYTES = 2**31 - 1  # one file cannot be larger


def export_onnx(checkpoint: Checkpoint, file: Path, *, opset: int | None = None) -> Parity:
    """Write the checkpoint's network to `file`, and compare all outputs of both on random batches of two sizes.

    If the network cannot be exported with a dynamic batch, its batch size is fixed at 1, and `note` has the reason. For
    a data-dependent network such as a detector, the values that it chooses from are compared (`graph.detector_heads`).
    A network with unpooling is compared at the positions of the file's maxima, where rounding makes the two differ.

    The file is written completely, after the comparison, or not at all; an existing file stays until then. Refused: an
    opset that cannot be written or run, a difference above 1e-3, an operator without ONNX counterpart, a full disk.
    """
    _check_opset(opset)
    module = with_plain_outputs_(copy_of(checkpoint.module).cpu().eval())
    examples = [t.cpu() for t in checkpoint.example_inputs]
    size = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    if size > PROTOBUF_BYTES:
        raise ExportError(f"{size / 1e9:.1f} GB of weights do not fit into one ONNX file", hint="2 GB is its limit")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as part:
            try:
                parity = _written(checkpoint, module, examples, part, opset=opset, sizes=BATCH_SIZES)
            except BatchIsFixedError as reason:
                heads = head_layers(module, examples) if is_data_dependent(reason.__cause__ or reason) else {}
                parity = _written(
                    checkpoint, module, examples, part, opset=opset, sizes=(1,), heads=heads,
                    note=f"its outputs are data-dependent: the outputs of {', '.join(heads)} are compared instead"
                    if heads else str(reason),
                )  # fmt: skip
            worst = parity.largest_relative_difference
            if not worst <= TOLERANCE:
                raise ExportError(
                    f"the ONNX file differs from the network by {worst:.2g}, more than {TOLERANCE:g}",
                    hint="try another `--opset`; if that does not help, please report it with the network",
                )
    except OSError as error:
        raise ExportError(
            f"cannot write {file}: {error.strerror or error}", hint="free some space, or choose another folder"
        ) from error
    return parity


def _check_opset(opset: int | None) -> None:
    from onnx.defs import onnx_opset_version

    newest = int(onnx_opset_version())
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ExportError(
            f"opset {opset} cannot be written, only {OLDEST_OPSET} to {newest}",
            hint="omit `--opset` for the default",
        )


def _written(
    checkpoint: Checkpoint,
    module: nn.Module,
    examples: Sequence[Tensor],
    part: Path,
    *,
    opset: int | None,
    sizes: tuple[int, ...],
    note: str | None = None,
    heads: dict[str, int] | None = None,
) -> Parity:
    """Export to `part`, check the file, run it, and return its parity; one size in `sizes` fixes the batch size."""
    import onnx

    if heads:
        module = WithHeads(module, heads).eval()
        proto = _traced_proto(module, examples, part, opset=opset)
    else:
        proto = proto_of(module, examples, opset=opset, dynamic=len(sizes) > 1)
    written = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    if opset is not None and written != opset:
        raise ExportError(
            f"this network cannot be written in opset {opset}, only in {written}", hint=f"`--opset {written}`"
        )
    if len(sizes) > 1 and _has_fixed_batch(proto):
        raise BatchIsFixedError("it could not be exported with a dynamic batch: its graph is valid for one size only")
    strip_(proto)
    onnx.helper.set_model_props(proto, metadata_of(checkpoint))
    part.write_bytes(proto.SerializeToString())
    try:
        onnx.checker.check_model(str(part), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the ONNX file is not valid: {error}", hint="try another `--opset`") from error
    compared = sum(heads.values()) if heads else None
    worst, outputs, same_maxima = largest_difference(module, examples, part, sizes, last=compared)
    if compared:
        del proto.graph.output[-compared:]
        part.write_bytes(proto.SerializeToString())
    return Parity(
        largest_relative_difference=worst,
        outputs=outputs,
        batches=BATCHES * len(sizes),
        batch_sizes=sizes,
        opset=int(written),
        bytes=part.stat().st_size,
        note=note,
        same_maxima=same_maxima,
    )


def proto_of(module: nn.Module, examples: Sequence[Tensor], *, opset: int | None, dynamic: bool) -> Any:
    """Return torch's export of the network in eval mode, for batches of any size or of one; without a comparison.

    Refused: networks that cannot be exported; raises `BatchIsFixedError` where a fixed batch size may work.
    """
    # torch.export would treat a batch of one as a constant
    inputs = tuple(random_like(examples, batch=2 if dynamic else 1))
    shapes: Any = tuple({0: torch.export.Dim("batch")} if t.ndim else {} for t in inputs) if dynamic else None
    kinds = {p.kind for p in inspect.signature(module.forward).parameters.values()}
    if shapes is not None and inspect.Parameter.VAR_POSITIONAL in kinds:
        shapes = (shapes,)

    def written(table: dict[Any, Any] | None, *, optimize: bool = True) -> Any:
        with quiet_exporter(), torch.no_grad():
            proto = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=opset,
                output_names=_output_names(module, inputs),
                custom_translation_table=table,
                optimize=optimize,
                verbose=False,
            ).model_proto  # type: ignore[union-attr]  # None only with a file name
        # torch's optimiser loses the bounds if one value is clamped twice by tensors (seen in onnxscript 0.7)
        return written(table, optimize=False) if optimize and _lacks_a_value(proto) else proto

    def translated() -> Any:
        try:
            return written(None)
        except Exception as error:
            if "4D query" not in first_cause(error):
                raise
            return written(translations())

    try:
        proto = translated()
        if dynamic and _has_fixed_batch(proto):
            with lengths_left_open():
                return translated()
        return proto
    except Exception as error:
        # the exporter runs the network's own code, which can raise anything
        reason = first_cause(error)
        if dynamic:
            raise BatchIsFixedError(f"it could not be exported with a dynamic batch: {reason}") from error
        raise ExportError(
            f"the network cannot be exported: {reason}",
            hint="it must be traceable: no control flow on values, only operators with an ONNX counterpart",
        ) from error


def _has_fixed_batch(proto: Any) -> bool:
    """True if an input accepts a single batch size: torch's exporter fixes a dynamic one without an error."""
    leading = [i.type.tensor_type.shape.dim[:1] for i in proto.graph.input]
    return any(dim.HasField("dim_value") for dims in leading for dim in dims)


def _lacks_a_value(proto: Any) -> bool:
    """True if an operator reads a value that no earlier operator, input or initializer defines."""
    defined = {"", *(i.name for i in proto.graph.input), *(i.name for i in proto.graph.initializer)}
    for node in proto.graph.node:
        if not defined.issuperset(node.input):
            return True
        defined.update(node.output)
    return False


def _traced_proto(module: WithHeads, examples: Sequence[Tensor], part: Path, *, opset: int | None) -> Any:
    """Export by torch's older exporter, which records a run on the examples, with its choices; writes to `part`."""
    import onnx

    parameters = inspect.signature(module.module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    try:
        with quiet_exporter(), torch.no_grad():
            torch.onnx.export(
                module,
                tuple(examples),
                str(part),
                dynamo=False,
                opset_version=opset or OLDEST_OPSET,
                input_names=names[: len(examples)],
                output_names=_output_names(module.module, examples) or [],
            )
    except Exception as error:
        # the exporter runs the network's own code, which can raise anything
        raise ExportError(
            f"the network cannot be exported: {first_cause(error)}",
            hint="its outputs are data-dependent, through operators without an ONNX counterpart",
        ) from error
    return onnx.load(str(part))


def _output_names(module: nn.Module, inputs: Sequence[Tensor]) -> list[str] | None:
    """Return a dict's own keys, else `output` or `output_0` …; `None` leaves the names to the exporter."""
    with torch.no_grad():
        outputs = module(*inputs)
    if isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], dict):  # a detector's, for one image
        outputs = outputs[0]
    input_names = set(inspect.signature(module.forward).parameters)
    if isinstance(outputs, Tensor):
        names = ["output"]
    elif isinstance(outputs, dict) and all(isinstance(v, Tensor) for v in outputs.values()):
        names = [str(key) for key in outputs]
    elif isinstance(outputs, (tuple, list)) and all(isinstance(v, Tensor) for v in outputs):
        names = [f"output_{i}" for i in range(len(outputs))]
    else:
        return None
    return [f"output_{n}" if n in input_names else n for n in names]


def strip_(proto: Any) -> None:
    """Remove the exporter's notes from every node: they are large, and hold stack traces with this machine's paths."""
    graphs = [proto.graph]
    for function in proto.functions:
        function.ClearField("metadata_props")
        function.ClearField("doc_string")
        graphs.append(function)
    while graphs:
        graph = graphs.pop()
        for field in ("value_info", "input", "output", "initializer"):
            for value in getattr(graph, field, ()):
                if not isinstance(value, str):  # a function's inputs are names
                    value.ClearField("metadata_props")
                    value.ClearField("doc_string")
        for node in graph.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
            graphs += [a.g for a in node.attribute if a.HasField("g")]
            graphs += [g for a in node.attribute for g in a.graphs]
    proto.graph.ClearField("metadata_props")
    proto.graph.ClearField("doc_string")


def metadata_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the file's `metadata_props`; `evaluate.load_onnx` reads them."""
    preprocessing = checkpoint.preprocessing
    shapes = [list(t.shape) for t in checkpoint.example_inputs]
    images = len(shapes) == 1 and len(shapes[0]) == 4
    return {
        "name": checkpoint.name,
        "task": "image-classification" if images else "unknown",
        "classes": json.dumps(list(checkpoint.classes) if checkpoint.classes else None, ensure_ascii=False),
        "preprocessing": json.dumps(
            {
                "mean": list(preprocessing.mean),
                "std": list(preprocessing.std),
                "size": list(preprocessing.size) if preprocessing.size else None,
                "channels": preprocessing.channels,
            }
        ),
        "lineage_sha256": lineage_sha256(checkpoint.lineage),
    }


def lineage_sha256(lineage: Sequence[Mapping[str, object]]) -> str:
    """Return a sha256 over the lineage: all steps of the network's changes."""
    return hashlib.sha256(json.dumps(list(lineage), sort_keys=True).encode()).hexdigest()
