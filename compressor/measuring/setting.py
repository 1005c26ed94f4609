"""Measure on one runtime at one batch size: the candidates in turns, as rows of the results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from compressor.errors import RuntimeUnavailable
from compressor.measuring.candidates import Candidate, CandidateName, Candidates
from compressor.measuring.runtimes import Reads, Runtime
from compressor.measuring.turns import (
    Call,
    Caveat,
    CaveatKind,
    Measurement,
    Turn,
    caveats_of,
    held,
    pace,
    speedup,
    take_turns,
)
from compressor.progress import Say
from compressor.results.timing import TimedRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How to measure: the runtime, the threads, and the rounds, as requested or as fit in `seconds`."""

    runtime: Runtime
    batch: int
    threads: int
    blocks: int | None
    seconds: float
    seed: int

    def __str__(self) -> str:
        return f"{self.runtime.name}, batch {self.batch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """The result of one setting."""

    rows: tuple[TimedRow, ...] = ()
    caveats: tuple[Caveat, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the preparations report: each candidate's provider, and notes."""

    providers: dict[str, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)  # in order, each once


def timed(setting: Setting, candidates: Candidates, inputs: tuple[Tensor, ...], *, say: Say) -> Timed:
    """Return the candidates' rows on `inputs`, measured in turns; only a caveat if an ONNX file does not accept this
    batch.
    """
    fixed = {c.onnx.batch for c in candidates.all if c.onnx is not None and c.onnx.batch is not None}
    if setting.runtime.reads is Reads.ONNX and fixed - {setting.batch}:
        text = f"{setting}: the ONNX file takes batches of {min(fixed)} only"
        return Timed(caveats=(Caveat(kind=CaveatKind.LEFT_OUT, text=text),))
    seen = _Seen()
    with ExitStack() as stack:
        turns: dict[str, Turn] = {}
        for candidate in candidates.all:
            turn = _turn(setting, candidate, inputs, seen)
            turns[candidate.name] = held(stack.enter_context(turn())) if setting.runtime.held else turn
        dense = turns[candidates.dense.name]
        rhythm = pace(dense, candidates=len(turns), seconds=setting.seconds, blocks=setting.blocks)
        measured = take_turns(
            turns,
            blocks=rhythm.blocks,
            calls_per_block=rhythm.calls_per_block,
            warmup=rhythm.warmup,
            batch_size=setting.batch,
            seed=setting.seed,
            after_round=lambda done: say(f"timing on {setting}: round {done} of {rhythm.blocks}"),
        )
    null = speedup(measured[CandidateName.DENSE], measured[CandidateName.DENSE_AGAIN])
    return Timed(
        rows=tuple(_row(setting, c, candidates.dense, measured, seen.providers[c.name]) for c in candidates.all),
        caveats=caveats_of(tuple(measured.values()), null=null, where=str(setting)),
        notes=tuple(f"{setting.runtime.name}: {note}" for note in seen.notes),
    )


def model_of(candidate: Candidate, runtime: Runtime) -> nn.Module | Path:
    """Return the candidate in the form that the runtime reads."""
    if runtime.reads is Reads.MODULE:
        return candidate.module
    assert candidate.onnx is not None, "exported before anything is timed"
    return candidate.onnx.file


def _turn(setting: Setting, candidate: Candidate, inputs: tuple[Tensor, ...], seen: _Seen) -> Turn:
    """The candidate, prepared anew for each of its blocks; `seen` collects what the preparation reports."""

    @contextmanager
    def turn() -> Iterator[Call]:
        model = model_of(candidate, setting.runtime)
        with setting.runtime.prepare(model, inputs, threads=setting.threads) as prepared:
            before = seen.providers.setdefault(candidate.name, prepared.provider)
            if before != prepared.provider:
                raise RuntimeUnavailable(
                    f"{setting}: the provider changed from {before} to {prepared.provider}",
                    hint="measure again, with nothing else running",
                )
            seen.notes.update(dict.fromkeys(prepared.notes))
            yield prepared.run

    return turn


def _row(
    setting: Setting, candidate: Candidate, dense: Candidate, measured: dict[str, Measurement], provider: str
) -> TimedRow:
    on_disk = candidate.onnx is not None and setting.runtime.reads is Reads.ONNX
    return row_of(
        measured[candidate.name],
        None if candidate is dense else measured[dense.name],
        runtime=setting.runtime.name,
        provider=provider,
        file_bytes=candidate.onnx.file.stat().st_size if on_disk and candidate.onnx else None,
        params=candidate.params,
        macs=candidate.macs,
        dense_macs=dense.macs,
    )


def row_of(
    mine: Measurement,
    reference: Measurement | None,
    *,
    runtime: str,
    provider: str | None = None,
    file_bytes: int | None = None,
    params: int | None = None,
    macs: int | None = None,
    dense_macs: int | None = None,
) -> TimedRow:
    """Return a candidate's row of the results; `dense` is `None` for the dense network, as are unmeasured values."""
    return TimedRow(
        runtime=runtime,
        provider=provider,
        batch=mine.batch_size,
        candidate=str(mine.name),
        median_ms=mine.median_ms,
        p90_ms=mine.p90_ms,
        p99_ms=mine.p99_ms,
        throughput=mine.throughput,
        file_bytes=file_bytes,
        params=params,
        macs=macs,
        speedup=None if reference is None else speedup(reference, mine),
        theoretical_speedup=dense_macs / macs if macs and dense_macs is not None else None,
        blocks=len(mine.samples_ns),
        calls_per_block=len(mine.samples_ns[0]),
        samples_ns=mine.samples_ns,
    )
