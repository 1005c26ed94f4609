"""Results of older schemas are read as the newest ones; a newer one is refused."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.errors import ArtifactError
from compressor.results.artifact import SCHEMA, Results
from compressor.results.changes import Pruning
from compressor.results.parity import Parity
from compressor.results.quality import Accuracy

SPEEDUP = {"ratio": 2.0, "low": 1.9, "high": 2.1}
FIRST: dict[str, Any] = {
    "schema": 1,
    "name": "old",
    "prune": {"requested": {"ratio": 0.5}, "achieved": {"channels": [10, 5], "params": [9, 4], "macs": [8, 3]}},
    "export": {
        "opset": 20, "bytes": 5, "largest_relative_difference": 1e-7, "outputs": 1, "batches": 6,
        "batch_sizes": [1, 4], "dynamic_batch": True, "note": "no sparse file: it would be larger",
    },
    "latency": {
        "runtime": "onnxruntime-cpu", "batch": 1, "threads": 2, "wanted": 2.0, "met": True, "speedup": SPEEDUP,
        "dense_ms": 4.0, "small_ms": 2.0, "samples_ns": {"dense": [[4], [5]], "small": [[2], [2]]},
    },
    "quantize": {
        "float_bytes": 9, "int8_bytes": 3, "runtime": "onnxruntime-cpu",
        "speed": [
            {
                "batch": b, "float_ms": 4.0, "int8_ms": 2.0, "speedup": SPEEDUP, "blocks": 8,
                "samples_ns": {"float": [[4]], "int8": [[2]]},
            }
            for b in (1, 64)
        ],
    },
    "evaluate": [{"model": "small", "data": "x", "correct": 3, "total": 4, "split": "test", "low": 0.3, "high": 0.9}],
    "lineage": [{"step": "prune"}],
}  # fmt: skip


def test_the_first_schema_is_read_as_the_newest() -> None:
    results = Results.from_json(FIRST)
    assert results.schema == SCHEMA
    assert results.achieved("channels") == (10, 5)
    latency, int8, parity = results.latency, results.quantizing, results.export
    assert latency is not None
    assert [(row.candidate, row.median_ms, row.samples_ns) for row in latency.rows] == [
        ("dense", 4.0, ((4,), (5,))), ("small", 2.0, ((2,), (2,))),
    ]  # fmt: skip
    assert latency.speedup is not None
    assert latency.speedup.to_json() == SPEEDUP
    assert int8 is not None
    assert [(a.batch, a.candidate, b.candidate, b.samples_ns) for a, b in int8.pairs] == [
        (1, "float", "int8", ((2,),)), (64, "float", "int8", ((2,),)),
    ]  # fmt: skip
    assert int8.faster
    assert parity is not None
    assert parity.dynamic_batch
    assert parity.sparse_note == "no sparse file: it would be larger"
    assert results.evaluations[0].quality == Accuracy(correct=3, total=4, split="test")
    assert Results.from_json(results.to_json()) == results


def test_a_newer_schema_is_refused() -> None:
    with pytest.raises(ArtifactError, match=f"of schema {SCHEMA + 1}, and this version reads up to {SCHEMA}"):
        Results.from_json({**FIRST, "schema": SCHEMA + 1})


def test_what_was_measured_of_the_old_weights_is_left_behind() -> None:
    results = Results.from_json({**FIRST, "newer": 1}).without_measurements()
    assert (results.export, results.bench, results.quantizing, results.evaluations) == (None, None, None, ())
    assert results.pruning is not None
    assert results.rest == {"newer": 1}


def test_the_batch_is_open_unless_a_note_says_why_not() -> None:
    open_ = Parity(opset=20, bytes=1, largest_relative_difference=0.0, sparse_note="no sparse file: why not")
    assert Parity.from_json(open_.to_json()) == open_
    assert open_.to_json()["dynamic_batch"] is True
    assert (
        Parity(opset=20, bytes=1, largest_relative_difference=0.0, note="it asks").to_json()["dynamic_batch"] is False
    )


def test_a_pruning_shows_what_was_recorded_and_nothing_else() -> None:
    assert Pruning(seed=0, criterion="obs").facts() == (("criterion", "obs"), ("seed", 0))
