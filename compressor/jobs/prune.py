"""What `compress prune` does, for the library's users too: plain values in, an artifact and its results out."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.checkpoint.artifacts import SUFFIX, check_free, write_artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.splits import Data
from compressor.errors import CalibrationError, PlanError, named
from compressor.files.names import file_name_from
from compressor.measuring.tables.table import read_table
from compressor.planning import criteria
from compressor.planning.calibration import Needs, calibration_split
from compressor.progress import Say, quiet
from compressor.pruning.masking import mask_weights
from compressor.pruning.pipeline import prune
from compressor.pruning.repair.repairing import Repair, repair_named
from compressor.pruning.repair.synthetic import synthetic_data
from compressor.pruning.request import AUTO, CALIBRATION_IMAGES, MEMORY_BYTES, MaskRequest, Request
from compressor.pruning.speed.frontier import FIRST, fastest_within
from compressor.pruning.speed.planner import Goal
from compressor.pruning.speed.search import prune_to_speed
from compressor.pruning.while_training import During, during_from, prune_while_training
from compressor.results.artifact import Results
from compressor.surgery.mask_criteria import MaskCriterion, mask_criterion_named
from compressor.surgery.masks import MaskScope
from compressor.surgery.plan import Budget, ChannelBudget, CostBudget, Countable, LatencyBudget, Scope

__all__ = ["default_folder", "during_from", "goal_from", "needs_data", "partial_of", "prune_to", "request_from"]

STATE = "train.state"


def request_from(
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    sparsity: float | None = None,
    speedup: float | None = None,
    latency: str | None = None,
    max_drop: float | None = None,
    criterion: str = "auto",
    mask_criterion: str = MaskCriterion.LARGE_FINAL,
    scope: str = "auto",
    repair: str = "auto",
    calibration: int = CALIBRATION_IMAGES,
    memory_gb: float = MEMORY_BYTES / 2**30,
    align: str = "auto",
    min_channels: int = 1,
    protect: Sequence[str] = (),
    heads: bool = True,
    levels: int = 1,
    largest: bool = False,
    seed: int = 0,
    data_given: bool = False,
    while_training: bool = False,
) -> Request | MaskRequest:
    """The request that a command line's plain values make; refused where they are not one budget, or name nothing.

    What is `auto` is resolved (`Request.resolved`), by whether there will be data.
    """
    budget = _budget(
        ratio=ratio, macs=macs, params=params, sparsity=sparsity, speedup=speedup,
        latency_ms=None if latency is None else milliseconds(latency), max_drop=max_drop,
    )  # fmt: skip
    if while_training and isinstance(budget, (float, LatencyBudget)):
        raise PlanError(
            "channels leave while a network trains, by a share of them or of its cost",
            hint="give `--ratio`, `--macs` or `--params` beside `--while-training`",
        )
    shared = named(Scope, scope, one="scope", many="scopes", refusal=PlanError)
    if not memory_gb > 0:
        raise PlanError(f"a memory budget must be positive: {memory_gb:g}", hint="in GB: `--memory 4`")
    memory_bytes = round(memory_gb * 2**30)
    if isinstance(budget, float):
        _check_masking(
            {
                "--criterion": criterion != "auto", "--align": align != "auto", "--min-channels": min_channels != 1,
                "--head-features": not heads, "--levels": levels != 1, "--largest": largest,
                f"--scope {shared}": shared not in (Scope.AUTO, Scope.UNIFORM, Scope.GLOBAL),
            }
        )  # fmt: skip
        return MaskRequest(
            sparsity=budget,
            criterion=mask_criterion_named(mask_criterion),
            scope=MaskScope.GLOBAL if shared is Scope.GLOBAL else MaskScope.UNIFORM,
            protect=tuple(protect),
            seed=seed,
            images=calibration,
            repair=repair_named(repair),
            memory_bytes=memory_bytes,
        ).resolved(has_data=data_given)
    if mask_criterion != MaskCriterion.LARGE_FINAL:
        raise PlanError(
            "`--mask-criterion` judges single weights, and this budget is one of channels",
            hint="channels are judged by `--criterion`; single weights go by `--sparsity 0.9`",
        )
    if criterion != AUTO:
        criteria.load(criterion)
    if align != "auto" and not (align.isdecimal() and int(align) > 0):
        raise PlanError(f"an alignment is a positive number or `auto`, not `{align}`", hint="for example `--align 8`")
    return Request(
        budget=budget,
        criterion=criterion,
        scope=shared,
        align=None if align == "auto" else int(align),
        min_channels=min_channels,
        protect=tuple(protect),
        heads=heads,
        levels=levels,
        largest=largest,
        seed=seed,
        images=calibration,
        repair=repair_named(repair),
        memory_bytes=memory_bytes,
    ).resolved(has_data=data_given, while_training=while_training)


def _check_masking(of_channels: Mapping[str, bool]) -> None:
    """Refuses options that are about channels beside a sparsity; whether each was given."""
    for option in (option for option, given in of_channels.items() if given):
        raise PlanError(
            f"`{option}` is about channels, and `--sparsity` zeroes single weights",
            hint="leave it out (single weights have `--mask-criterion`), or give a budget of channels: `--ratio 0.5`",
        )


def _budget(
    *,
    ratio: float | None,
    macs: float | None,
    params: float | None,
    sparsity: float | None,
    speedup: float | None,
    latency_ms: float | None,
    max_drop: float | None,
) -> Budget | float:
    """The one budget that is given, a sparsity as it is; refused where there is none or several."""
    given = {
        "--ratio": ratio, "--macs": macs, "--params": params, "--sparsity": sparsity, "--speedup": speedup,
        "--latency": latency_ms, "--max-drop": max_drop,
    }  # fmt: skip
    budgets = [(name, value) for name, value in given.items() if value is not None]
    if len(budgets) != 1:
        what = f"several budgets: {', '.join(name for name, _ in budgets)}" if budgets else "no budget"
        raise PlanError(
            f"{what} given",
            hint="give one: `--ratio 0.5`, `--macs 0.5`, `--params 0.5`, `--speedup 2`, `--latency 4ms`, "
            "`--max-drop 1` or `--sparsity 0.9`",
        )
    name, value = budgets[0]
    if name == "--ratio":
        return ChannelBudget(ratio=value)
    if name == "--sparsity":
        return float(value)
    if name == "--max-drop":
        return LatencyBudget(speedup=FIRST)  # where the search begins
    if name in ("--speedup", "--latency"):
        return LatencyBudget(speedup=speedup, latency_ms=latency_ms)
    return CostBudget(counted=Countable(name.removeprefix("--")), stays=value)


UNITS_MS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}


def milliseconds(text: str) -> float:
    """`4ms`, `800us` or `0.004s` as milliseconds; refused without a unit."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(us|µs|ms|s)\s*", text)
    if found is None:
        raise PlanError(f"a latency is a number with its unit, not `{text}`", hint="for example `--latency 4ms`")
    return float(found[1]) * UNITS_MS[found[2]]


def goal_from(
    request: Request | MaskRequest,
    *,
    runtime: str,
    batch: int,
    threads: int | None,
    tolerance: float,
    table: Path | None,
) -> Goal | None:
    """Where a budget of latency is to be met; `None` for any other."""
    if isinstance(request, MaskRequest) or not isinstance(request.budget, LatencyBudget):
        return None
    known = None if table is None else read_table(table)
    if known is not None:
        runtime, batch, threads = known.target.runtime, known.target.batch, known.target.threads
    return Goal(budget=request.budget, runtime=runtime, batch=batch, threads=threads, tolerance=tolerance, table=known)


def needs_data(request: Request | MaskRequest) -> bool:
    """Whether the request's criterion, scope or repair looks at images."""
    if isinstance(request, MaskRequest):
        return request.repair is not Repair.NONE
    judged = criteria.load(request.criterion).needs is not Needs.NOTHING
    return judged or request.scope is Scope.MEASURED or request.repair is not Repair.NONE


def default_folder(checkpoint: Checkpoint) -> Path:
    """Where an artifact goes when nobody says: `NAME.compressed` in the working folder."""
    return Path(f"{file_name_from(checkpoint.name)}{SUFFIX}")


def prune_to(
    folder: Path | None,
    checkpoint: Checkpoint,
    request: Request | MaskRequest,
    *,
    data: Data | None = None,
    initial: Mapping[str, Tensor] | None = None,
    command: str = "",
    force: bool = False,
    trust_pickle: bool = False,
    say: Say = quiet,
    goal: Goal | None = None,
    max_drop: float | None = None,
    during: During | None = None,
) -> Results:
    """Prune, and write the artifact to `folder` unless that is `None`; the results as they stand in the artifact.

    A budget of latency is met on what `goal` says; with `max_drop` it is searched for, on the tuning split of `data`.
    With `during` the network trains meanwhile; what an interrupted run needs to go on lies in `FOLDER.partial`.
    `initial` is the state before training that some criteria of single weights compare with.
    """
    if folder is not None:
        check_free(folder, force=force)
    mask, sections = None, dict[str, Any]()
    if isinstance(request, MaskRequest):
        request = request.resolved(has_data=data is not None)
    else:
        request = request.resolved(has_data=data is not None, while_training=during is not None)
    if initial is not None and not isinstance(request, MaskRequest):
        raise PlanError(
            "`--initial` is for single weights, and this budget is one of channels",
            hint="leave it out, or ask for `--sparsity 0.9 --mask-criterion magnitude-increase`",
        )
    if data is None and request.repair not in (Repair.NONE, Repair.MEAN):
        data = synthetic_data(checkpoint, count=request.images, seed=request.seed)
    if isinstance(request, MaskRequest):
        masked = mask_weights(checkpoint, request, initial=initial, data=data, say=say)
        small, mask, sections["masking"] = masked.checkpoint, masked.mask, masked.result
        repaired = masked.repair_result
    else:
        if goal is not None and max_drop is not None:
            if data is None:
                raise CalibrationError("a drop is judged on images", hint="with labels or without: `--data DIR`")
            found = fastest_within(checkpoint, request, goal, data, max_drop=max_drop, say=say)
            pruned, sections["latency"] = found.fast.pruned, found.result
        elif goal is not None:
            fast = prune_to_speed(checkpoint, request, goal, data=data, say=say)
            pruned, sections["latency"] = fast.pruned, fast.result
        elif during is not None:
            away = prune_while_training(checkpoint, request, _resumable(during, folder), data=data, say=say)
            pruned, sections["while_training"] = away.pruned, away.result
        else:
            pruned = prune(checkpoint, request, data=data, say=say)
        small, pruning = pruned.checkpoint, pruned.result
        if max_drop is not None:
            pruning = dataclasses.replace(pruning, requested={"max_drop": max_drop})
        if data is not None and needs_data(request):
            images = min(request.images, len(calibration_split(data)))
            pruning = dataclasses.replace(pruning, data={"name": data.name, "images": images})
        sections["pruning"], repaired = pruning, pruned.repair_result
    if repaired is not None:
        seen = "the batch norms" if data is None else data.name
        sections["repairing"] = dataclasses.replace(repaired, data=seen)
    results = Results.of(checkpoint.name, command, small.lineage, **sections)
    if folder is not None:
        say("writing, and reading it back in a fresh process")
        source = {"path": str(Path(checkpoint.path).resolve()), "sha256": checkpoint.sha256}
        artifact = write_artifact(
            folder, small, source=source, results=results, force=force, trust_pickle=trust_pickle, mask=mask
        )
        results = artifact.results()
        if during is not None:
            shutil.rmtree(partial_of(folder), ignore_errors=True)
    return results


def partial_of(folder: Path) -> Path:
    """Where an interrupted training run that was to end in `folder` keeps what it goes on from."""
    return folder.with_name(f"{folder.name}.partial")


def _resumable(during: During, folder: Path | None) -> During:
    return during if folder is None else dataclasses.replace(during, state_file=partial_of(folder) / STATE)
