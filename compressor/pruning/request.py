"""The request for a pruning run, as one value; library and command line resolve its `auto` fields here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compressor.errors import PlanError
from compressor.pruning.repair.repairing import Repair
from compressor.surgery.mask_criteria import MaskCriterion
from compressor.surgery.masks import MaskScope
from compressor.surgery.plan import Budget, ChannelBudget, CostBudget, LatencyBudget, Scope, Sharing

CALIBRATION_IMAGES = 512
MEMORY_BYTES = 4 * 2**30
MOST_LEVELS = 100
AUTO = "auto"
WHILE_TRAINING = "l2-norm"  # of Bartoldson et al. 2020 and of soft filter pruning


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The budget of a pruning run and the way to meet it; `auto` fields depend on whether there is data.

    `auto` with data: criterion `obs`, repair by least squares; a budget of MACs, parameters or latency has the scope
    `measured`, a budget of channels `uniform`. `auto` without data: criterion `l1-norm`, scope `uniform` (for a
    latency: `global`), no repair. `auto` for pruning while training: criterion `l2-norm`, scope `uniform`, no repair.
    """

    budget: Budget
    criterion: str = AUTO
    scope: Scope = Scope.AUTO
    align: int | None = None  # None: the block size of runtimes, smaller for narrow groups (`surgery.rounding`)
    min_channels: int = 1
    protect: tuple[str, ...] = ()
    heads: bool = True  # True: attention loses whole heads; False: the same features of every head
    levels: int = 1
    largest: bool = False
    seed: int = 0
    images: int = CALIBRATION_IMAGES
    repair: Repair = Repair.AUTO
    memory_bytes: int = MEMORY_BYTES  # limit for the tensors of both networks that repair keeps at once

    def __post_init__(self) -> None:
        _check_images(self.images)
        if isinstance(self.budget, LatencyBudget) and self.levels > 1:
            raise PlanError("a budget of latency takes one level", hint="omit `--levels`, or use `--macs`")
        if self.scope is Scope.RANDOM and (isinstance(self.budget, LatencyBudget) or self.levels > 1):
            raise PlanError(
                "the scope `random` takes one level and a budget of channels, MACs or parameters",
                hint="for example `--scope random --macs 0.5`; `--seed 1` draws other widths",
            )
        if self.levels < 1:
            raise PlanError(f"the number of levels is {self.levels}", hint="one-shot pruning is `--levels 1`")
        if self.levels > MOST_LEVELS:
            raise PlanError(
                f"the number of levels is {self.levels:,}",
                hint=f"at most {MOST_LEVELS}: with more, most levels remove no channel; for example `--levels 5`",
            )

    def resolved(self, *, has_data: bool, while_training: bool = False) -> Request:
        """Return the request with every `auto` field resolved; other fields stay as they are."""
        if while_training:
            criterion, scope, repair = WHILE_TRAINING, Scope.UNIFORM, Repair.NONE
        else:
            criterion, repair = ("obs", Repair.LEAST_SQUARES) if has_data else ("l1-norm", Repair.NONE)
            scope = Scope.GLOBAL if isinstance(self.budget, LatencyBudget) else Scope.UNIFORM
            if has_data and isinstance(self.budget, (CostBudget, LatencyBudget)):
                scope = Scope.MEASURED
        return replace(
            self,
            criterion=criterion if self.criterion == AUTO else self.criterion,
            scope=scope if self.scope is Scope.AUTO else self.scope,
            repair=repair if self.repair is Repair.AUTO else self.repair,
        )

    @property
    def sharing(self) -> Sharing:
        """How the budget is shared among the groups, and the widths that they may have."""
        return Sharing(scope=self.scope, align=self.align, min_channels=self.min_channels)

    @property
    def alignment(self) -> int | str:
        """The number that widths are multiples of, for records: an integer, or `auto`."""
        return "auto" if self.align is None else self.align


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRequest:
    """Unstructured pruning: the share of the weights to zero in place, how and where they compete, and the repair."""

    sparsity: float
    criterion: MaskCriterion = MaskCriterion.LARGE_FINAL
    scope: MaskScope = MaskScope.UNIFORM
    protect: tuple[str, ...] = ()
    seed: int = 0
    images: int = CALIBRATION_IMAGES
    repair: Repair = Repair.AUTO
    memory_bytes: int = MEMORY_BYTES

    def __post_init__(self) -> None:
        _check_images(self.images)

    def resolved(self, *, has_data: bool) -> MaskRequest:
        """Return the request with its repair resolved: least squares with data, none without."""
        usual = Repair.LEAST_SQUARES if has_data else Repair.NONE
        return replace(self, repair=usual if self.repair is Repair.AUTO else self.repair)


def _check_images(images: int) -> None:
    if images < 1:
        raise PlanError(f"the number of calibration images is {images}", hint="for example `--calibration 512`")


def budget_to_json(budget: Budget) -> dict[str, float]:
    """Return the requested value under the name of its command-line option."""
    if isinstance(budget, ChannelBudget):
        return {"ratio": budget.ratio}
    if isinstance(budget, LatencyBudget):
        asked = {"speedup": budget.speedup, "latency_ms": budget.latency_ms}
        return {name: value for name, value in asked.items() if value is not None}
    return {str(budget.counted): budget.stays}
