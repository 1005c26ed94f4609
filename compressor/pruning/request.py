"""What is asked of a pruning run, as one value; what is left `auto` is resolved here, for library and command line."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compressor.errors import PlanError
from compressor.pruning.repair.repairing import Repair
from compressor.surgery.mask_criteria import MaskCriterion
from compressor.surgery.masks import MaskScope
from compressor.surgery.plan import Budget, ChannelBudget, CostBudget, LatencyBudget, Scope

CALIBRATION_IMAGES = 512
MEMORY_BYTES = 4 * 2**30
MOST_LEVELS = 100
AUTO = "auto"
WHILE_TRAINING = "l2-norm"  # of Bartoldson et al. 2020 and of soft filter pruning


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a pruning run; a criterion, scope or repair that is `auto` depends on whether there is data.

    With data `obs` judges channels, least squares repairs what is left, and a budget of MACs, parameters or latency is
    shared by measurement. Without data `l1-norm` judges, uniformly (a latency: by the scores of all groups), and
    nothing is repaired. Channels that leave while the network trains are judged by `l2-norm`, uniformly, and nothing is
    left to repair.
    """

    budget: Budget
    criterion: str = AUTO
    scope: Scope = Scope.AUTO
    align: int | None = None  # None: as a runtime's blocks are, less where a group is narrow (`surgery.rounding`)
    min_channels: int = 1
    protect: tuple[str, ...] = ()
    heads: bool = True  # attention loses whole heads; else the same features of every head
    levels: int = 1
    largest: bool = False
    seed: int = 0
    images: int = CALIBRATION_IMAGES
    repair: Repair = Repair.AUTO
    memory_bytes: int = MEMORY_BYTES  # for what repair holds of both networks at once

    def __post_init__(self) -> None:
        _check_images(self.images)
        if isinstance(self.budget, LatencyBudget) and self.levels > 1:
            raise PlanError("a latency is met in one level", hint="leave `--levels` out, or give `--macs`")
        if self.scope is Scope.RANDOM and (isinstance(self.budget, LatencyBudget) or self.levels > 1):
            raise PlanError(
                "random widths are drawn once, at a share of channels, MACs or parameters",
                hint="`--scope random --macs 0.5`, and another draw with `--seed 1`",
            )
        if self.levels < 1:
            raise PlanError(f"{self.levels} levels", hint="one-shot is `--levels 1`")
        if self.levels > MOST_LEVELS:
            raise PlanError(
                f"{self.levels:,} levels",
                hint=f"more than {MOST_LEVELS} remove no channel in most of them: `--levels 5`",
            )

    def resolved(self, *, has_data: bool, while_training: bool = False) -> Request:
        """The request with nothing left `auto`; what is resolved already stays as it is."""
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
    def alignment(self) -> int | str:
        """What widths are multiples of, for records: a number, or `auto`."""
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
        """The request with its repair resolved: least squares where there is data."""
        usual = Repair.LEAST_SQUARES if has_data else Repair.NONE
        return replace(self, repair=usual if self.repair is Repair.AUTO else self.repair)


def _check_images(images: int) -> None:
    if images < 1:
        raise PlanError(f"{images} calibration images", hint="for example `--calibration 512`")


def budget_to_json(budget: Budget) -> dict[str, float]:
    """What was asked for, under the name of its option."""
    if isinstance(budget, ChannelBudget):
        return {"ratio": budget.ratio}
    if isinstance(budget, LatencyBudget):
        asked = {"speedup": budget.speedup, "latency_ms": budget.latency_ms}
        return {name: value for name, value in asked.items() if value is not None}
    return {str(budget.counted): budget.stays}
