"""How well an exported file agrees with its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.results.changes import StoredTensor
from compressor.results.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseFile(Record):
    """A second ONNX file whose mostly-zero weights are stored sparse, and what that saves, tensor by tensor."""

    file: str
    bytes: int
    statement: str | None = None
    rows: tuple[StoredTensor, ...] = ()
    dense_bytes: int | None = None
    stored_bytes: int | None = None

    @classmethod
    def prepared(cls, plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of schema 1: its table's rows and sums."""
        table = plain.get("table") or {}
        sums = {key: table[key] for key in ("rows", "dense_bytes", "stored_bytes") if key in table}
        return {key: value for key, value in plain.items() if key != "table"} | sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity(Record):
    """The difference of the ONNX file's outputs from the network's: max |a - b| / max |b|, the largest of all outputs.

    `note` says why the batch size is fixed, where it is; `sparse_note` why there is no sparse file beside it;
    `same_maxima` that the network was run with the positions of the file's maxima (`export.same_maxima`), for by
    rounding alone they chose others.
    """

    DERIVED: ClassVar = ("dynamic_batch",)
    SPARE: ClassVar = frozenset({"same_maxima", "sparse", "sparse_note"})

    opset: int
    bytes: int
    largest_relative_difference: float
    outputs: int = 1
    batches: int = 1
    batch_sizes: tuple[int, ...] = ()
    note: str | None = None
    same_maxima: bool = False
    sparse: SparseFile | None = None
    sparse_note: str | None = None

    @classmethod
    def prepared(cls, plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of schema 1, whose note held both."""
        note, why = plain.get("note"), "no sparse file: "
        if not isinstance(note, str) or why not in note:
            return plain
        fixed, _, sparse = note.partition(why)
        return {**plain, "note": fixed.removesuffix("; ") or None, "sparse_note": why + sparse}

    @property
    def dynamic_batch(self) -> bool:
        """True if the file accepts batches of any size."""
        return self.note is None
