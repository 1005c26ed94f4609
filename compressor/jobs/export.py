"""What `compress export` does, for library users too: the ONNX file of an artifact or of a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compressor.checkpoint.artifact_writing import add_results
from compressor.checkpoint.artifacts import Artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.sparse import SAVES_NO_TIME, onnx_sparse
from compressor.errors import ExportError
from compressor.export.onnx import export_onnx
from compressor.files.names import file_name_from
from compressor.results.parity import Parity, SparseFile


def export_to(
    file: Path | None, checkpoint: Checkpoint, *, artifact: Artifact | None = None, opset: int | None = None
) -> tuple[Path, Parity]:
    """Export to `file`, or into the artifact, or else to `NAME.onnx` here; return the `export` section of its results.

    For a masked artifact, a second file stores the mostly-zero weights sparse, if that is smaller.
    """
    target = file or (artifact.onnx if artifact is not None else Path(f"{file_name_from(checkpoint.name)}.onnx"))
    if target.is_dir():
        raise ExportError(f"{target} is a folder", hint="name a file: `--out model.onnx`")
    parity = export_onnx(checkpoint, target, opset=opset)
    if artifact is not None and artifact.mask() is not None:
        sparse = target.with_suffix(".sparse.onnx")
        try:
            table = onnx_sparse(target, sparse)
        except ExportError as error:
            parity = replace(parity, sparse_note=f"no sparse file: {error}")
        else:
            beside = SparseFile(
                file=str(sparse), bytes=sparse.stat().st_size, statement=SAVES_NO_TIME, rows=table.rows,
                dense_bytes=table.dense_bytes, stored_bytes=table.stored_bytes,
            )  # fmt: skip
            parity = replace(parity, sparse=beside)
    if artifact is not None and target == artifact.onnx:
        add_results(artifact.folder, export=parity)
    return target, parity
