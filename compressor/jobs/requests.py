"""The options of `compress prune` as plain values, and the request for them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import PlanError, named, only_one
from compressor.measuring.tables.table import read_table
from compressor.planning import criteria
from compressor.planning.calibration import Needs
from compressor.pruning.repair.repairing import Repair, repair_named
from compressor.pruning.request import AUTO, CALIBRATION_IMAGES, MEMORY_BYTES, MaskRequest, Request
from compressor.pruning.speed.frontier import FIRST
from compressor.pruning.speed.planner import Goal
from compressor.surgery.mask_criteria import MaskCriterion, mask_criterion_named
from compressor.surgery.masks import MaskScope
from compressor.surgery.plan import Budget, ChannelBudget, CostBudget, Countable, LatencyBudget, Scope

UNITS_MS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """The options of a request, with their command-line names and defaults."""

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    speedup: float | None = None
    latency: str | None = None
    max_drop: float | None = None
    sparsity: float | None = None
    criterion: str = AUTO
    mask_criterion: str = MaskCriterion.LARGE_FINAL
    scope: str = AUTO
    align: str = AUTO
    min_channels: int = 1
    protect: tuple[str, ...] = ()
    heads: bool = True
    levels: int = 1
    largest: bool = False
    repair: str = AUTO
    calibration: int = CALIBRATION_IMAGES
    memory: float = MEMORY_BYTES / 2**30  # GB
    seed: int = 0


def request_from(
    options: PruneOptions, *, has_data: bool = False, while_training: bool = False
) -> Request | MaskRequest:
    """Return the request for the options, with every `auto` resolved (`Request.resolved`).

    Refused: no budget or several, unknown names, values out of range, options that have no effect on this budget.
    """
    budget = _budget(options)
    if while_training and isinstance(budget, float | LatencyBudget):
        raise PlanError(
            "`--while-training` takes a share of the channels or of the cost as its budget",
            hint="give `--ratio`, `--macs` or `--params` beside `--while-training`",
        )
    scope = named(Scope, options.scope, one="scope", many="scopes", refusal=PlanError)
    if not options.memory > 0:
        raise PlanError(f"a memory budget must be positive: {options.memory:g}", hint="in GB: `--memory 4`")
    if isinstance(budget, float):
        return _mask_request(options, budget, scope).resolved(has_data=has_data)
    return _channel_request(options, budget, scope).resolved(has_data=has_data, while_training=while_training)


def _budget(options: PruneOptions) -> Budget | float:
    """The single budget of the options; a sparsity as a number."""
    latency_ms = None if options.latency is None else milliseconds(options.latency)
    name, value = only_one(
        {
            "--ratio": options.ratio, "--macs": options.macs, "--params": options.params,
            "--sparsity": options.sparsity, "--speedup": options.speedup, "--latency": latency_ms,
            "--max-drop": options.max_drop,
        },
        kind="budget",
        refusal=PlanError,
        hint="set one: `--ratio 0.5`, `--macs 0.5`, `--params 0.5`, `--speedup 2`, `--latency 4ms`, `--max-drop 1` "
        "or `--sparsity 0.9`",
    )  # fmt: skip
    if name == "--ratio":
        return ChannelBudget(ratio=value)
    if name == "--sparsity":
        return float(value)
    if name == "--max-drop":
        return LatencyBudget(speedup=FIRST)  # where the search begins
    if name in ("--speedup", "--latency"):
        return LatencyBudget(speedup=options.speedup, latency_ms=latency_ms)
    return CostBudget(counted=Countable(name.removeprefix("--")), stays=value)


def _mask_request(options: PruneOptions, sparsity: float, scope: Scope) -> MaskRequest:
    of_channels = {
        "--criterion": options.criterion != AUTO, "--align": options.align != AUTO,
        "--min-channels": options.min_channels != 1, "--head-features": not options.heads,
        "--levels": options.levels != 1, "--largest": options.largest,
        f"--scope {scope}": scope not in (Scope.AUTO, Scope.UNIFORM, Scope.GLOBAL),
    }  # fmt: skip
    for option in (option for option, is_set in of_channels.items() if is_set):
        raise PlanError(
            f"`{option}` is about channels, and `--sparsity` zeroes single weights",
            hint="omit it (single weights have `--mask-criterion`), or set a budget of channels: `--ratio 0.5`",
        )
    return MaskRequest(
        sparsity=sparsity,
        criterion=mask_criterion_named(options.mask_criterion),
        scope=MaskScope.GLOBAL if scope is Scope.GLOBAL else MaskScope.UNIFORM,
        protect=options.protect,
        seed=options.seed,
        images=options.calibration,
        repair=repair_named(options.repair),
        memory_bytes=round(options.memory * 2**30),
    )


def _channel_request(options: PruneOptions, budget: Budget, scope: Scope) -> Request:
    if options.mask_criterion != MaskCriterion.LARGE_FINAL:
        raise PlanError(
            "`--mask-criterion` judges single weights, and this budget is one of channels",
            hint="channels have `--criterion`; single weights are zeroed by `--sparsity 0.9`",
        )
    if options.criterion != AUTO:
        criteria.load(options.criterion)
    align = options.align
    if align != AUTO and not (align.isdecimal() and int(align) > 0):
        raise PlanError(f"an alignment is a positive number or `auto`, not `{align}`", hint="for example `--align 8`")
    return Request(
        budget=budget,
        criterion=options.criterion,
        scope=scope,
        align=None if align == AUTO else int(align),
        min_channels=options.min_channels,
        protect=options.protect,
        heads=options.heads,
        levels=options.levels,
        largest=options.largest,
        seed=options.seed,
        images=options.calibration,
        repair=repair_named(options.repair),
        memory_bytes=round(options.memory * 2**30),
    )


def milliseconds(text: str) -> float:
    """Return `4ms`, `800us` or `0.004s` in milliseconds. Refused: a text without a unit."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(us|µs|ms|s)\s*", text)
    if match is None:
        raise PlanError(f"a latency is a number with its unit, not `{text}`", hint="for example `--latency 4ms`")
    return float(match[1]) * UNITS_MS[match[2]]


def goal_from(
    request: Request | MaskRequest,
    *,
    runtime: str,
    batch: int,
    threads: int | None,
    tolerance: float,
    table: Path | None,
) -> Goal | None:
    """Return where a latency budget must be met; `None` for any other budget. A `table` has its own target."""
    if isinstance(request, MaskRequest) or not isinstance(request.budget, LatencyBudget):
        return None
    known = None if table is None else read_table(table)
    if known is not None:
        runtime, batch, threads = known.target.runtime, known.target.batch, known.target.threads
    return Goal(budget=request.budget, runtime=runtime, batch=batch, threads=threads, tolerance=tolerance, table=known)


def needs_data(request: Request | MaskRequest) -> bool:
    """Return true if the request's criterion, scope or repair reads images."""
    if isinstance(request, MaskRequest):
        return request.repair is not Repair.NONE
    judged = criteria.load(request.criterion).needs is not Needs.NOTHING
    return judged or request.scope is Scope.MEASURED or request.repair is not Repair.NONE
