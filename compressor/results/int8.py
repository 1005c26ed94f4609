"""The int8 file against the float one: bytes, latencies, and how closely it follows the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compressor.results.quality import Quality
from compressor.results.records import Plain, Record
from compressor.results.timing import TimedRow


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatAndInt8(Record):
    """The accuracy, or another score, of both files on one split."""

    float: Quality
    int8: Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizing(Record):
    """What became of a network's ONNX file in 8-bit integers; `rows` are both files in turns, at each batch size."""

    command: str | None = None
    environment: Plain = field(default_factory=dict)
    how: Plain = field(default_factory=dict)
    data: Plain = field(default_factory=dict)
    weights: int | None = None
    left_float: tuple[str, ...] = ()
    float_bytes: int
    int8_bytes: int
    agreement: Quality | None = None
    accuracy: FloatAndInt8 | None = None
    runtime: str | None = None
    threads: int | None = None
    confidence: float | None = None
    rows: tuple[TimedRow, ...] = ()
    caveats: tuple[str, ...] = ()

    @classmethod
    def prepared(cls, plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of schema 1: both latencies of each batch size as rows."""
        if "speed" not in plain:
            return plain
        rows = [
            {
                "runtime": plain.get("runtime") or "onnxruntime-cpu", "batch": pair.get("batch"), "candidate": name,
                "median_ms": pair.get(f"{name}_ms"), "speedup": pair.get("speedup") if name == "int8" else None,
                "blocks": pair.get("blocks"), "samples_ns": (pair.get("samples_ns") or {}).get(name),
            }
            for pair in plain["speed"]
            for name in ("float", "int8")
        ]  # fmt: skip
        return {key: value for key, value in plain.items() if key != "speed"} | {"rows": rows}

    @property
    def faster(self) -> bool:
        """Whether int8 was measured faster than float at some batch size."""
        return any(row.speedup is not None and row.speedup.low > 1 for row in self.rows)

    @property
    def pairs(self) -> tuple[tuple[TimedRow, TimedRow], ...]:
        """Float and int8 at each batch size."""
        return tuple(zip(self.rows[::2], self.rows[1::2], strict=True))
