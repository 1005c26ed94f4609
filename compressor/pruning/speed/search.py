"""Prune to a measured speed: the budget is a latency, and measurement decides whether it is met.

A plan for the speed is made (`pruning.speed.planner`). The network is shrunk by it, proved, repaired and exported, and
the exported file is timed in turns with the dense one. If the speed-up misses the request, the plan is corrected by the
measurement and made again. The reported speed-up is always measured on the exported files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.splits import Data
from compressor.environment import cores
from compressor.errors import OutOfReach
from compressor.export.onnx import export_onnx
from compressor.files.leftovers import temporary
from compressor.measuring.machine import Conditions, conditions
from compressor.measuring.runtimes import Reads, usable
from compressor.measuring.setting import row_of
from compressor.measuring.tables.measured import target_of
from compressor.measuring.tables.table import LatencyTable, Target
from compressor.measuring.turns import Measurement, caveats_of_machine, speedup
from compressor.progress import Say, quiet
from compressor.pruning.pipeline import Pruned, prune
from compressor.pruning.request import Request
from compressor.pruning.speed.planner import Cache, Goal, Planner
from compressor.results.latency import MeetingLatency, Trial
from compressor.results.timing import Speedup

RETURNS = 2  # how often the measured network may cause a new plan
FINAL_SECONDS = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fast:
    """A pruned network and its measured speed-up."""

    pruned: Pruned
    goal: Goal
    target: Target
    table: LatencyTable
    error: float  # relative error of the table's first prediction
    trials: tuple[Trial, ...]
    wanted: float  # the requested speed-up
    measured: Speedup | None
    dense: Measurement | None
    small: Measurement | None
    caveats: tuple[str, ...] = ()  # about the machine's state during the measurement

    @property
    def met(self) -> bool:
        """True if the measured speed-up is within the tolerance of the requested one."""
        return self.measured is not None and abs(self.measured.ratio / self.wanted - 1) <= self.goal.tolerance

    @property
    def result(self) -> MeetingLatency:
        """The `latency` section of an artifact's results."""
        target = self.target
        costs = self.pruned.dense_cost, self.pruned.small_cost
        timed = [(one, cost) for one, cost in zip((self.dense, self.small), costs, strict=True) if one is not None]
        return MeetingLatency(
            runtime=target.runtime,
            batch=target.batch,
            threads=target.threads,
            hardware=target.hardware,
            version=target.version,
            wanted=self.wanted,
            tolerance=self.goal.tolerance,
            met=self.met,
            rows=tuple(
                row_of(
                    one, None if one is self.dense else self.dense, runtime=target.runtime, params=cost.params,
                    macs=cost.macs, dense_macs=costs[0].macs,
                )
                for one, cost in timed
            ),
            caveats=self.caveats,
            align=self.table.align,
            alignments=tuple({"multiple": a, "excess": e} for a, e in self.table.alignments),
            table_error=self.error,
            trials=self.trials,
        )  # fmt: skip


def prune_to_speed(
    checkpoint: Checkpoint,
    request: Request,
    goal: Goal,
    *,
    data: Data | None = None,
    say: Say = quiet,
    cache: Cache | None = None,
    look: Callable[[], Conditions] = conditions,
) -> Fast:
    """Return the network with the goal's speed and the lowest error; the checkpoint is not modified.

    `cache` holds the table and curves of an earlier run that differs only in the requested speed. `look` returns the
    load of the machine; high load becomes a caveat. Refused: a speed that cannot be reached (the error names the best
    one and the slowest layers), a small network that measures slower than the dense one, a missing runtime.
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
            cache=cache or Cache(folder=Path(folder)),
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
    """Return the pruned network with its measurements and the planner's trials."""
    assert planner.cache.table is not None
    first = planner.trials[0]
    return Fast(
        pruned=pruned,
        goal=planner.goal,
        target=planner.target,
        table=planner.cache.table,
        error=0.0 if first.measured is None else abs(first.predicted / first.measured.ratio - 1),
        trials=tuple(planner.trials),
        wanted=planner.wanted,
        measured=None if dense is None or small is None else speedup(dense, small),
        dense=dense,
        small=small,
        caveats=caveats,
    )


def _timed_files(checkpoint: Checkpoint, small: Checkpoint, planner: Planner) -> tuple[Measurement, Measurement]:
    """Export the dense and the small network, where the runtime reads files, and time them in turns."""
    if planner.runtime.reads is Reads.MODULE:
        return planner.in_turns(checkpoint.module, small.module, seconds=FINAL_SECONDS)
    files = planner.cache.folder / "dense.onnx", planner.cache.folder / "small.onnx"
    if not files[0].exists():
        export_onnx(checkpoint, files[0])
    export_onnx(small, files[1])
    return planner.in_turns(*files, seconds=FINAL_SECONDS)
