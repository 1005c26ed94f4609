"""The published ways to retrain, as recipes: number of epochs, first weights and schedule.

Fine-tuning continues from the surviving weights. The scratch arms (Liu et al. 2019, arXiv:1810.05270) train the small
architecture from fresh weights for the dense network's epochs (E) or MACs (B). The rewinding arms (Renda et al. 2020,
arXiv:2003.02389) repeat the end of the dense schedule, from early weights or from the final ones.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from compressor.checkpoint.recipes import How, Optimiser, Recipe, Schedule, Shape, Start, Step
from compressor.data.batches import augmentation_named
from compressor.errors import RetrainError, named
from compressor.planning.costs import Cost

FINE_TUNE_EPOCHS = 3
# A trial on the tuning split (sample ResNet-20 at ratio 0.5, 3 epochs of the shipped sample, correct of 2,000, mean of
# 2 seeds): 0.05 of the dense peak 1792, 0.1 1820, 0.2 1822, 0.3 1825, 0.5 1816, 1.0 1792; seeds deviate by about 7.
FINE_TUNE_SHARE_OF_PEAK = 0.2
USUAL_PEAK = {Optimiser.SGD: 0.1, Optimiser.ADAMW: 1e-3}  # if the dense network's peak rate is unknown
STARTS = {
    How.FINE_TUNE: Start.TRAINED,
    How.REWIND_LR: Start.TRAINED,
    How.REWIND_WEIGHTS: Start.REWOUND,
    How.SCRATCH_E: Start.FRESH,
    How.SCRATCH_B: Start.FRESH,
}
SCRATCH = (How.SCRATCH_E, How.SCRATCH_B)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The user's choices for a recipe; `None` stands for the published value.

    `epochs` is the length of fine-tuning, or the number of the dense run's last epochs that a rewinding arm repeats.
    `dense_epochs` is the length of the dense network's training, if its checkpoint does not record it. `cap` is the
    largest factor by which Scratch-B trains longer (Liu et al. state 2 in the text and use none in their CIFAR code).
    """

    epochs: int | None = None
    dense_epochs: int | None = None
    cap: float | None = None
    rate: float | None = None
    shape: Shape | None = None
    warmup: float | None = None
    batch_size: int | None = None
    label_smoothing: float | None = None
    temperature: float | None = None
    augment: tuple[str, ...] | None = None
    optimiser: Optimiser | None = None
    bn_l1: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cap is not None and self.cap < 1:
            raise RetrainError(
                f"a cap of {self.cap:g} would shorten Scratch-B", hint="at least 1; the usual value is `--cap 2`"
            )
        for option, epochs in (("epochs", self.epochs), ("dense-epochs", self.dense_epochs)):
            if epochs is not None and epochs < 1:
                raise RetrainError(f"`--{option}` of {epochs}", hint=f"at least one: `--{option} 3`")


def wishes_from(
    *,
    shape: str | None = None,
    optimiser: str | None = None,
    augment: str | None = None,
    **plain: Any,
) -> Wishes:
    """Return the wishes for a command line's plain values; refused: an unknown name."""
    augmentations = tuple(name.strip() for name in (augment or "").split(",") if name.strip() not in ("", "none"))
    if augmentations:
        augmentation_named(augmentations, size=(1, 1))  # raises for an unknown name
    return Wishes(
        shape=None if shape is None else named(Shape, shape, one="schedule", many="schedules", refusal=RetrainError),
        optimiser=None
        if optimiser is None
        else named(Optimiser, optimiser, one="optimiser", many="optimisers", refusal=RetrainError),
        augment=None if augment is None else augmentations,
        **plain,
    )


def recipe_for(
    how: How,
    *,
    dense_recipe: Recipe | None,
    dense_cost: Cost,
    small_cost: Cost,
    wishes: Wishes | None = None,
    images: bool = True,
) -> Recipe:
    """Return the recipe of `how` for this pair of networks; its `notes` explain each choice.

    Only `images` are augmented where nothing else is wished.

    Refused: a scratch or rewinding arm for a network whose training is unknown, wishes that contradict the arm.
    """
    wishes = wishes or Wishes()
    optimiser = wishes.optimiser or (dense_recipe.optimiser if dense_recipe else Optimiser.SGD)
    base = dense_recipe or Recipe(budget=Step(epochs=1), schedule=Schedule(rate=USUAL_PEAK[optimiser]))
    if how is How.FINE_TUNE:
        epochs, schedule, notes = _fine_tuning(wishes, dense_recipe, optimiser)
    elif how in SCRATCH:
        epochs, schedule, notes = _scratch(how, wishes, dense_recipe, base, dense_cost, small_cost)
    else:
        epochs, schedule, notes = _rewinding(how, wishes, dense_recipe, base)
    if wishes.bn_l1 or base.bn_l1:
        notes.append(
            f"an L1 penalty of {wishes.bn_l1:g} on batch norm scales"
            if wishes.bn_l1
            else f"without the dense network's penalty of {base.bn_l1:g} on batch norm scales (Liu et al. 2017)"
        )
    asked_of_schedule: dict[str, Any] = {"rate": wishes.rate, "shape": wishes.shape, "warmup": wishes.warmup}
    asked: dict[str, Any] = {
        "batch_size": wishes.batch_size,
        "label_smoothing": wishes.label_smoothing,
        "temperature": wishes.temperature,
        "augment": () if wishes.augment is None and not images else wishes.augment,
    }
    return dataclasses.replace(
        base,
        how=how,
        start=STARTS[how],
        budget=Step(epochs=epochs),
        schedule=dataclasses.replace(schedule, **{k: v for k, v in asked_of_schedule.items() if v is not None}),
        optimiser=optimiser,
        bn_l1=wishes.bn_l1,
        seed=wishes.seed,
        notes=tuple(notes),
        **{k: v for k, v in asked.items() if v is not None},
    )


def _fine_tuning(wishes: Wishes, dense_recipe: Recipe | None, optimiser: Optimiser) -> tuple[int, Schedule, list[str]]:
    """Return epochs, schedule and notes of fine-tuning: at a share of the dense network's peak rate."""
    same = dense_recipe is not None and dense_recipe.optimiser is optimiser
    peak = dense_recipe.schedule.rate if dense_recipe is not None and same else USUAL_PEAK[optimiser]
    rate = FINE_TUNE_SHARE_OF_PEAK * peak
    epochs = wishes.epochs or FINE_TUNE_EPOCHS
    whose = "the dense network's" if same else "a usual"
    notes = [f"{_epochs(epochs)} from the surviving weights"]
    if wishes.rate is None:
        notes.append(f"learning rate {rate:g}: {FINE_TUNE_SHARE_OF_PEAK:g} of {whose} peak {peak:g}")
    return epochs, Schedule(rate=rate, shape=Shape.COSINE, warmup=0.1), notes


def _scratch(
    how: How, wishes: Wishes, dense_recipe: Recipe | None, base: Recipe, dense_cost: Cost, small_cost: Cost
) -> tuple[int, Schedule, list[str]]:
    """Return epochs, schedule and notes of a scratch arm: as many epochs (E) or MACs (B) as the dense training."""
    if wishes.epochs is not None:
        raise RetrainError(
            f"the number of epochs of `{how}` follows from the dense network's training",
            hint="omit `--epochs`; if the checkpoint does not record its training, use `--dense-epochs`",
        )
    dense_epochs, notes = _dense_epochs(how, wishes, dense_recipe)
    notes.append("fresh weights, drawn by each layer's own initialisation, in the small shapes")
    if how is How.SCRATCH_E:
        return dense_epochs, base.schedule, [f"{_epochs(dense_epochs)}, as the dense network had", *notes]
    ratio = dense_cost.macs / small_cost.macs
    epochs = dense_epochs * dense_cost.macs // small_cost.macs  # exact: integers
    notes.insert(
        0, f"floor({dense_epochs} x {ratio:.3f}) = {_epochs(epochs)}, as many MACs as the dense network's training"
    )
    if wishes.cap is None:
        notes.append("no cap on the epochs")
    elif ratio > wishes.cap:
        epochs = int(dense_epochs * wishes.cap + 1e-9)
        notes.append(f"capped at {wishes.cap:g} x {dense_epochs} = {_epochs(epochs)}")
    else:
        notes.append(f"the cap of {wishes.cap:g} is not reached")
    return max(1, epochs), base.schedule, notes


def _rewinding(how: How, wishes: Wishes, dense_recipe: Recipe | None, base: Recipe) -> tuple[int, Schedule, list[str]]:
    """Return epochs, schedule and notes of a rewinding arm: the last part of the dense schedule."""
    total, notes = _dense_epochs(how, wishes, dense_recipe)
    if total < 2:
        raise RetrainError(f"a run of {_epochs(total)} cannot be rewound", hint="give its length: `--dense-epochs`")
    epochs = wishes.epochs or total - 1
    if epochs > total:
        raise RetrainError(
            f"the dense network trained for {_epochs(total)}: its last {epochs} cannot be repeated",
            hint=f"at most `--epochs {total}`",
        )
    schedule = dataclasses.replace(base.schedule, skipped=1 - epochs / total)
    where = "the weights it had then" if how is How.REWIND_WEIGHTS else "the surviving final weights"
    return epochs, schedule, [f"the dense schedule from epoch {total - epochs} of {total} on, with {where}", *notes]


def _dense_epochs(how: How, wishes: Wishes, dense_recipe: Recipe | None) -> tuple[int, list[str]]:
    """Return the epochs of the dense network's training, by the user or else by its recipe, with notes."""
    recorded = dense_recipe.budget.epochs if dense_recipe else None
    if wishes.dense_epochs is not None:
        unlike = f", not the recorded {recorded}" if recorded not in (None, wishes.dense_epochs) else ""
        notes = [f"the user states that the dense network trained for {_epochs(wishes.dense_epochs)}{unlike}"]
        if dense_recipe is None:
            notes.append("its own recipe is unknown: this recipe has the usual values")
        return wishes.dense_epochs, notes
    if recorded is None:
        raise RetrainError(
            f"`{how}` follows the dense network's training, and this checkpoint does not record it",
            hint="give its length, and more if you know it: `--dense-epochs 160 --lr 0.1 --schedule step`",
        )
    return recorded, []


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count != 1)}"
