"""A training run as a value: its start, length, optimiser, schedule and augmentation."""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from compressor.errors import RetrainError, unknown


class How(enum.StrEnum):
    """The published ways to train a pruned network."""

    FINE_TUNE = "fine-tune"  # from the remaining weights, with a schedule of its own
    SCRATCH_E = "scratch-e"  # fresh weights, as many epochs as the dense network had (Liu et al. 2019, sec. 3)
    SCRATCH_B = "scratch-b"  # fresh weights, as many MACs as the dense network's training took (ibid.)
    REWIND_WEIGHTS = "rewind-weights"  # an early checkpoint's weights, and the schedule from there (Renda et al. 2020)
    REWIND_LR = "rewind-lr"  # the remaining weights, the dense schedule's last epochs again (ibid.)


class Start(enum.StrEnum):
    """The weights that a run starts from."""

    TRAINED = "trained"
    REWOUND = "rewound"
    FRESH = "fresh"


class Optimiser(enum.StrEnum):
    """The optimiser of a run."""

    SGD = "sgd"  # with Nesterov momentum
    ADAMW = "adamw"


class Shape(enum.StrEnum):
    """How the learning rate falls after its warm-up."""

    COSINE = "cosine"  # to zero
    STEP = "step"  # by ten at each milestone
    CONSTANT = "constant"
    INVERSE = "inverse"  # rate / (1 + 10 p)^0.75, of domain adaptation (Ganin & Lempitsky 2015, arXiv:1409.7495)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Step:
    """A length of training; never a bare integer."""

    epochs: int

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise RetrainError(f"a run of {self.epochs} epochs", hint="at least one is needed: `--epochs 3`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The learning rate as a function of progress: linear warm-up to `rate`, then `shape`.

    `skipped` is the share of the schedule that a rewound run skips at its start.
    """

    rate: float
    shape: Shape = Shape.COSINE
    warmup: float = 0.1  # share of the run
    milestones: tuple[float, ...] = (0.5, 0.75)  # shares of the run (Liu et al. 2019)
    skipped: float = 0.0

    def __post_init__(self) -> None:
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise RetrainError(f"a learning rate must be positive: {self.rate}", hint="for example `--lr 0.01`")
        if not (0 <= self.warmup < 1 and 0 <= self.skipped < 1):
            raise RetrainError(
                f"warm-up {self.warmup} and skipped share {self.skipped} must lie in [0, 1)",
                hint="for example `--warmup 0.1`",
            )

    def at(self, progress: float) -> float:
        """Return the rate at `progress` in [0, 1] through the run."""
        at = self.skipped + (1 - self.skipped) * progress
        if at < self.warmup:
            return self.rate * max(at, 1e-3 * self.warmup) / self.warmup
        match self.shape:
            case Shape.CONSTANT:
                return self.rate
            case Shape.STEP:
                return self.rate * float(0.1 ** sum(at >= m for m in self.milestones))
            case Shape.INVERSE:
                return self.rate / float((1 + 10 * (at - self.warmup) / (1 - self.warmup)) ** 0.75)
            case Shape.COSINE:
                return self.rate * 0.5 * (1 + math.cos(math.pi * (at - self.warmup) / (1 - self.warmup)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One complete training run: the same recipe on the same data produces the same bytes on a CPU."""

    budget: Step
    schedule: Schedule
    start: Start = Start.TRAINED
    how: How | None = None
    optimiser: Optimiser = Optimiser.SGD
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    label_smoothing: float = 0.0
    temperature: float = 4.0  # of a teacher; Hinton et al. 2015, sec. 3: best from 2.5 to 20, by the student's size
    augment: tuple[str, ...] = ("flip", "crop")
    bn_l1: float = 0.0  # penalty on the batch norms' scales: `training.bn_penalty`
    mixed_precision: bool = True  # used where the device has it: CUDA
    seed: int = 0
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.budget.epochs < 1:
            raise RetrainError("a run needs at least one epoch", hint="for example `--epochs 3`")
        if self.batch_size < 1:
            raise RetrainError(
                f"a batch size must be at least 1: {self.batch_size}", hint="for example `--batch-size 128`"
            )
        if not 0 <= self.label_smoothing < 1:
            raise RetrainError(
                f"label smoothing must lie in [0, 1): {self.label_smoothing}",
                hint="for example `--label-smoothing 0.1`",
            )
        if not (0 <= self.momentum < 1 and 0 <= self.weight_decay < math.inf):
            raise RetrainError(
                f"momentum must lie in [0, 1), weight decay be finite and not negative: {self.momentum}, "
                f"{self.weight_decay}",
                hint="the usual are 0.9 and 5e-4",
            )
        if not 0 <= self.bn_l1 < math.inf:
            raise RetrainError(
                f"a penalty must be finite and not negative: {self.bn_l1}", hint="such as `--bn-l1 1e-4`"
            )
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise RetrainError(
                f"a temperature must be positive: {self.temperature}", hint="the usual is `--temperature 4`"
            )

    def to_json(self) -> dict[str, object]:
        """Return plain values; `recipe_from_json` reads them back."""
        plain: dict[str, object] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    """Enums as text and tuples as lists: the values that JSON has, and that `torch.load` reads without running code."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, enum.Enum) else value


def recipe_from_json(plain: dict[str, object]) -> Recipe:
    """Return the recipe that `to_json` wrote. Refused: an unknown field."""
    values = dict(plain)
    try:
        schedule = dict(values.pop("schedule"))  # type: ignore[call-overload]  # checked by the constructors
        schedule["shape"] = Shape(schedule["shape"])
        schedule["milestones"] = tuple(schedule["milestones"])
        how = values.pop("how", None)
        return Recipe(
            budget=Step(**values.pop("budget")),  # type: ignore[arg-type]
            schedule=Schedule(**schedule),
            how=How(str(how)) if how else None,
            start=Start(str(values.pop("start"))),
            optimiser=Optimiser(str(values.pop("optimiser"))),
            augment=tuple(values.pop("augment")),  # type: ignore[arg-type]
            notes=tuple(values.pop("notes", ())),  # type: ignore[arg-type]
            **values,  # type: ignore[arg-type]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RetrainError(
            f"not a training recipe: {error}", hint="set the dense network's training by options: `--dense-epochs 30`"
        ) from error


def how_named(name: str, *, besides: tuple[str, ...] = ()) -> How:
    """Return the way to retrain called `name`. Refused: an unknown name, with a hint that lists `besides` too."""
    try:
        return How(name)
    except ValueError:
        hint = unknown("ways", name, [*How, *besides])
        raise RetrainError(f"there is no way to retrain called `{name}`", hint=hint) from None
