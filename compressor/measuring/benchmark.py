"""Time the dense, masked and small networks: every runtime, every batch size, in turns, with every sample kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.checkpoint.architectures import PICKLE, PROGRAM
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.batches import is_labelled
from compressor.data.classes import with_labels_of
from compressor.data.splits import Data, SplitName
from compressor.environment import environment
from compressor.errors import ExportError, RuntimeUnavailable
from compressor.files.leftovers import temporary
from compressor.graph.input_spec import random_like
from compressor.measuring.candidates import Candidate, CandidateName, Candidates, candidates_of, with_onnx
from compressor.measuring.machine import Conditions, conditions
from compressor.measuring.peak_memory import Load, peak_memory, unmeasurable
from compressor.measuring.quality import agreement, evaluate
from compressor.measuring.runtimes import Reads, Runtime, usable
from compressor.measuring.setting import Setting, Timed, model_of, timed
from compressor.measuring.turns import CONFIDENCE, Caveat, CaveatKind, caveats_of_machine
from compressor.progress import Say, quiet
from compressor.results.quality import Quality
from compressor.results.timing import Bench, TimedRow
from compressor.surgery.masks import WeightMask
from compressor.words import speedup_with_interval

SECONDS = 8.0  # for one runtime at one batch size
BATCHES = (1, 64)


def bench(
    small: Checkpoint,
    dense: Checkpoint,
    *,
    mask: WeightMask | None = None,
    runtimes: Sequence[str] | None = None,
    batches: Sequence[int] = BATCHES,
    threads: int | None = None,
    data: Data | None = None,
    blocks: int | None = None,
    seconds: float = SECONDS,
    seed: int = 0,
    say: Say = quiet,
    look: Callable[[], Conditions] = conditions,
) -> Bench:
    """Return the `bench` section of an artifact's results; both checkpoints stay unchanged.

    With `mask`, `small` is a masked network that keeps those weights. Without `blocks`, a setting has as many rounds as
    fit in `seconds`. With `data`, every candidate's accuracy on the test split is added to its latency. Refused: a
    named runtime that this machine lacks, a network that no runtime can run.
    """
    threads = torch.get_num_threads() if threads is None else threads
    usables = usable(None if runtimes is None else tuple(runtimes))
    candidates = candidates_of(small, dense, mask=mask)
    parts = [Timed(notes=candidates.notes)]
    with temporary("bench") as scratch:
        folder = Path(scratch)
        if any(runtime.reads is Reads.ONNX for runtime in usables):
            try:
                candidates = with_onnx(candidates, small, dense, folder, say=say)
            except ExportError as error:
                if runtimes is not None:
                    raise
                usables, left = _without_onnx(usables, error)
                parts.append(left)
        accuracies = _accuracies(candidates, dense, data, say=say)
        batch_inputs = {n: tuple(random_like(dense.example_inputs, batch=n, seed=seed)) for n in dict.fromkeys(batches)}
        before = look()
        for runtime in usables:
            for batch, inputs in batch_inputs.items():
                setting = Setting(
                    runtime=runtime, batch=batch, threads=threads, blocks=blocks, seconds=seconds, seed=seed
                )
                say(f"preparing {setting}")
                parts.append(timed(setting, candidates, inputs, say=say))
        seen = (before, look())
        say("measuring peak memory")
        rows = [row for part in parts for row in part.rows]
        caveats = [*caveats_of_machine(seen), *(caveat for part in parts for caveat in part.caveats)]
        if not rows:
            reasons = "; ".join(caveat.text for caveat in caveats if caveat.kind is CaveatKind.LEFT_OUT)
            raise RuntimeUnavailable(f"nothing could be timed: {reasons}", hint="try another runtime or batch size")
        memory = _memory(rows, usables, candidates, batch_inputs, dense, folder=folder, threads=threads)
    notes = (*(note for part in parts for note in part.notes), *memory.notes)
    return Bench(
        environment={**environment(), "threads": threads},
        threads=threads,
        blocks=min(row.blocks or 0 for row in rows),
        batches=tuple(batch_inputs),
        confidence=CONFIDENCE,
        seed=seed,
        machine_before=seen[0].to_json(),
        machine_after=seen[1].to_json(),
        rows=tuple(
            replace(row, accuracy=accuracies.get(row.candidate), peak_memory_bytes=memory.peaks.get(place_of(row)))
            for row in rows
        ),
        caveats=tuple(str(caveat) for caveat in caveats),
        notes=tuple(dict.fromkeys(notes)),
    )


def missed(result: Bench, *, at_least: float) -> list[str]:
    """Return the settings in which the small (or masked) network's interval is not entirely at or above `at_least`."""
    names = {row.candidate for row in result.rows}
    judged = CandidateName.SMALL if CandidateName.SMALL in names else CandidateName.MASKED_WEIGHTS
    return [
        f"{row.runtime}, batch {row.batch}: {speedup_with_interval(row.speedup)}"
        for row in result.rows
        if row.candidate == judged and row.speedup is not None and row.speedup.low < at_least
    ]


def _without_onnx(usables: Sequence[Runtime], error: ExportError) -> tuple[tuple[Runtime, ...], Timed]:
    """The runtimes that read modules, and a caveat for the others."""
    readers = ", ".join(runtime.name for runtime in usables if runtime.reads is Reads.ONNX)
    caveat = Caveat(kind=CaveatKind.LEFT_OUT, text=f"{readers}: {error}")
    return tuple(r for r in usables if r.reads is not Reads.ONNX), Timed(caveats=(caveat,))


def _accuracies(candidates: Candidates, dense: Checkpoint, data: Data | None, *, say: Say) -> dict[str, Quality]:
    """Each candidate's accuracy on the test split, or, without labels, its agreement with the dense network."""
    if data is None:
        return {}
    data = with_labels_of(data, dense.classes)
    split = next(name for name in (SplitName.TEST, SplitName.TUNE, SplitName.TRAIN) if getattr(data, name) is not None)
    images = data.split(split)
    options: dict[str, Any] = {"split": str(split), "preprocessing": dense.preprocessing, "task": data.task}
    labelled = is_labelled(images, preprocessing=dense.preprocessing)
    qualities: dict[str, Quality] = {}
    for candidate in candidates.distinct:
        say(f"evaluating {candidate.name}")
        qualities[candidate.name] = (
            evaluate(candidate.module, images, **options)
            if labelled
            else agreement(candidate.module, dense.module, images, **options)
        )
    return qualities | {CandidateName.DENSE_AGAIN: qualities[CandidateName.DENSE]}


Place = tuple[str, int, str]  # runtime, batch size, candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """Bytes at the peak by the row's place, and how they were measured or why they were not."""

    peaks: Mapping[Place, int | None]
    notes: tuple[str, ...]


def place_of(row: TimedRow) -> Place:
    """What tells one row of a bench from the others."""
    return row.runtime, row.batch, row.candidate


def _memory(
    rows: Sequence[TimedRow],
    usables: Sequence[Runtime],
    candidates: Candidates,
    batch_inputs: Mapping[int, tuple[Tensor, ...]],
    dense: Checkpoint,
    *,
    folder: Path,
    threads: int,
) -> _Memory:
    """Each candidate's peak memory in a process of its own."""
    runtimes = {runtime.name: runtime for runtime in usables}
    notes = []
    for runtime in usables:
        reason = unmeasurable() if runtime.memory.known else None
        notes.append(f"peak memory on {runtime.name}: {'not measured: ' + reason if reason else runtime.memory}")
    inputs = {batch: _saved(list(tensors), folder / f"inputs-{batch}.pt") for batch, tensors in batch_inputs.items()}
    loads: list[tuple[TimedRow, Load]] = []
    for row in rows:
        runtime = runtimes[row.runtime]
        candidate = next((c for c in candidates.distinct if c.name == row.candidate), None)
        if candidate is None or not runtime.memory.known or unmeasurable():
            continue  # the dense network's peak is measured once, not for `dense again`
        model = _model_file(candidate, runtime, folder)
        saved = inputs[row.batch]
        if model is None or saved is None:
            notes.append(
                f"peak memory on {runtime.name}: `{candidate.name}` cannot be pickled for a process of its own"
            )
            continue
        loads.append((row, Load(runtime=runtime.name, model=str(model), inputs=str(saved), threads=threads)))
    own = dense.architecture
    plain = {"ref": own.ref, "arguments": [list(pair) for pair in own.arguments], "sha256": own.sha256}
    peaks = peak_memory([load for _, load in loads], architecture=None if own.ref in (PICKLE, PROGRAM) else plain)
    for (row, load), peak in zip(loads, peaks, strict=True):
        if peak is None:
            notes.append(f"peak memory on {load.runtime}: `{row.candidate}` did not run in a process of its own")
    return _Memory(peaks={place_of(row): peak for (row, _), peak in zip(loads, peaks, strict=True)}, notes=tuple(notes))


def _model_file(candidate: Candidate, runtime: Runtime, folder: Path) -> Path | None:
    """The candidate as a file for another process; `None` where its module cannot be pickled."""
    model = model_of(candidate, runtime)
    if isinstance(model, Path):
        return model
    file = folder / f"{candidate.stem}.pt"
    return file if file.exists() else _saved(model, file)


def _saved(value: object, file: Path) -> Path | None:
    """The file with the pickled value; `None` if it cannot be pickled."""
    try:
        torch.save(value, file)
    except Exception:
        # a module may hold anything, so pickling can raise anything: its peak stays unknown
        file.unlink(missing_ok=True)
        return None
    return file
