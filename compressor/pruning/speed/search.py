"""Prune to a measured speed: latency is the budget, and the clock has the last word.

A plan is made for the speed (`pruning.speed.planner`), the network shrunk by it, proved and repaired; it is exported,
and the file that came out is timed against the dense one in turns. Where that is not what was asked for, the plan is
made again with what the clock said; what is said of the speed-up in the end was measured on the files that came out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.splits import Data
from compressor.environment import cores
from compressor.errors import OutOfReach
from compressor.export.onnx import export_onnx
from compressor.files.leftovers import temporary
from compressor.measuring.machine import Conditions, conditions
from compressor.measuring.runtimes import Reads, usable
from compressor.measuring.tables.measured import target_of
from compressor.measuring.tables.table import LatencyTable, Target
from compressor.measuring.turns import Measurement, Speedup, caveats_of_machine, speedup
from compressor.progress import Say, quiet
from compressor.pruning.pipeline import Pruned, prune
from compressor.pruning.request import Request
from compressor.pruning.speed.planner import Goal, Known, Planner, Trial

RETURNS = 2  # times that the real network may send the plan back
FINAL_SECONDS = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fast:
    """A pruned network with what the clock says of it."""

    pruned: Pruned
    goal: Goal
    target: Target
    table: LatencyTable
    error: float  # of the table on the network, before any correction; relative
    trials: tuple[Trial, ...]
    wanted: float  # the speed-up
    measured: Speedup | None
    dense: Measurement | None
    small: Measurement | None
    caveats: tuple[str, ...] = ()  # what the machine's state says against the measurement

    @property
    def met(self) -> bool:
        """Whether what was measured lies within the tolerance."""
        return self.measured is not None and abs(self.measured.ratio / self.wanted - 1) <= self.goal.tolerance

    def to_json(self) -> dict[str, Any]:
        """The `latency` section of an artifact's results."""
        return {
            "runtime": self.target.runtime,
            "batch": self.target.batch,
            "threads": self.target.threads,
            "hardware": self.target.hardware,
            "version": self.target.version,
            "wanted": self.wanted,
            "tolerance": self.goal.tolerance,
            "met": self.met,
            "speedup": None if self.measured is None else self.measured.to_json(),
            "dense_ms": None if self.dense is None else self.dense.median_ms,
            "small_ms": None if self.small is None else self.small.median_ms,
            "samples_ns": {
                name: [list(block) for block in m.samples_ns]
                for name, m in (("dense", self.dense), ("small", self.small))
                if m is not None
            },
            "caveats": list(self.caveats),
            "align": self.table.align,
            "alignments": [{"multiple": a, "excess": e} for a, e in self.table.alignments],
            "table_error": self.error,
            "trials": [trial.to_json() for trial in self.trials],
        }


def prune_to_speed(
    checkpoint: Checkpoint,
    request: Request,
    goal: Goal,
    *,
    data: Data | None = None,
    say: Say = quiet,
    known: Known | None = None,
    look: Callable[[], Conditions] = conditions,
) -> Fast:
    """The network that is as fast as `goal` says, at the least loss; the checkpoint stays as it was.

    With `known`, what an earlier run with the same goal but for its speed found out is not measured again. `look` says
    what others take of the machine; where that is much, it is said beside what was measured. Refused: a
    speed that cannot be reached, with the best that can and what holds it; a small network that measures slower than
    the dense one; a runtime that is not here.
    """
    request = request.resolved(has_data=data is not None)
    (runtime,) = usable((goal.runtime,))
    threads = goal.threads or cores()
    here = target_of(runtime, batch=goal.batch, threads=threads)
    elsewhere = goal.table is not None and goal.table.target != here
    with temporary("speed") as folder:
        planner = Planner(
            checkpoint=checkpoint,
            request=request,
            goal=goal,
            runtime=runtime,
            target=here if goal.table is None else goal.table.target,
            known=known or Known(folder=Path(folder)),
            say=say,
            measures=not elsewhere,
        )
        again, before = 0, look()
        while True:
            pruned = prune(checkpoint, request, data=data, say=say, planner=planner)
            if elsewhere:
                return _fast(pruned, planner)
            say("exporting the small network, and timing it against the dense one")
            dense, small = _timed_files(checkpoint, pruned.checkpoint, planner)
            caveats = tuple(caveat.text for caveat in caveats_of_machine((before, look())))
            fast = _fast(pruned, planner, dense=dense, small=small, caveats=caveats)
            ratio = speedup(dense, small).ratio
            if ratio <= 1 and (again == RETURNS or planner.exhausted):
                raise OutOfReach(
                    f"the small network measured {ratio:.2f} times as fast as the dense one: that is kept",
                    hint="ask for more, or on another runtime or batch: `--on`, `--batch`",
                )
            if fast.met or again == RETURNS or planner.exhausted:
                return fast
            planner.correct(ratio)
            again += 1


def _fast(
    pruned: Pruned,
    planner: Planner,
    *,
    dense: Measurement | None = None,
    small: Measurement | None = None,
    caveats: tuple[str, ...] = (),
) -> Fast:
    """What came out, and what was measured of it."""
    assert planner.known.table is not None
    first = planner.trials[0]
    return Fast(
        pruned=pruned,
        goal=planner.goal,
        target=planner.target,
        table=planner.known.table,
        error=0.0 if first.measured is None else abs(first.predicted / first.measured.ratio - 1),
        trials=tuple(planner.trials),
        wanted=planner.wanted,
        measured=None if dense is None or small is None else speedup(dense, small),
        dense=dense,
        small=small,
        caveats=caveats,
    )


def _timed_files(checkpoint: Checkpoint, small: Checkpoint, planner: Planner) -> tuple[Measurement, Measurement]:
    """The dense and the small network as they come out, in turns."""
    if planner.runtime.reads is Reads.MODULE:
        return planner.in_turns(checkpoint.module, small.module, seconds=FINAL_SECONDS)
    files = planner.known.folder / "dense.onnx", planner.known.folder / "small.onnx"
    if not files[0].exists():
        export_onnx(checkpoint, files[0])
    export_onnx(small, files[1])
    return planner.in_turns(*files, seconds=FINAL_SECONDS)
