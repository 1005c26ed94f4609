"""Rethinking the value of network pruning (Liu et al. 2019, arXiv:1810.05270): fine-tuned, rewound, or from scratch.

**Claim:** A network that lost channels and is trained from scratch for the dense network's MACs (Scratch-B) is as good
as one that is fine-tuned as published, within a standard deviation; one that lost many single weights is not. The later
finding (Renda et al. 2020, arXiv:2003.02389; Wang et al. 2023, arXiv:2301.05219) is that what loses is the published
fine-tuning's constant low rate: with a good schedule inherited weights win at mild ratios.

**Command:** `compress study rethinking --scale small --jobs 2`

**Expected:** at `small`, three seeds: Scratch-B is 2.8 to 13 points above the published fine-tuning of a few epochs
at a constant low rate; at ratio 0.3 it is 2.2 above the tuned one, and level with LR rewinding (-0.2, -1.1 to 0.8).
No chooser of widths is told from chance (-1.1 to 0.0). Two claims reproduced, one contradicted, three inconclusive.

**Cost:** 29 minutes of one core for three seeds at `small` (the processor's time, on a shared machine); the paper's
scale needs a GPU and the full data.

`small` trains ResNet-8 on images halved to 14x14, so that a core affords the epochs, `paper` ResNet-20 on whole ones.
Every cell of a level has the MACs that uniform l1-norm pruning leaves at that ratio of channels, whoever chose its
widths, so that Scratch-B's accuracies compare criteria as searches for architectures. (Under a uniform scope all
criteria leave the same one.) `scratch-b` has no cap, `scratch-b-capped` trains for twice the dense epochs at most.
Fine-tuning takes a quarter of the dense epochs (40 of 160), as published at the dense run's last rate, a hundredth of
its peak, throughout; tuned, from a fifth of the peak down along a cosine. LR rewinding repeats the dense schedule.

With single weights gone, scratch is fresh weights under the same mask, as Liu et al. have it. That is a trap: they are
drawn for the dense layer's number of inputs, too small by the root of the density, and often do worse (Wang et al.).
Scratch of channels draws for the small shapes. Accuracies are of the last epoch, where the original code reports the
best on the test split.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import How, Recipe, Schedule, Shape, Step
from compressor.data.splits import Data, SplitName
from compressor.graph.copies import copy_of
from compressor.planning.costs import Cost, count, masked_macs
from compressor.pruning.pipeline import Pruned, prune
from compressor.pruning.repair.repairing import Repair
from compressor.pruning.request import Request
from compressor.studies.interval import difference, pooled_deviation
from compressor.studies.smaller import reduced
from compressor.studies.study import (
    Cell,
    Claim,
    Finding,
    Plot,
    PlotLine,
    PlotPoint,
    Scale,
    StudyResults,
    Value,
    Workspace,
    curve,
)
from compressor.studies.subjects import percent_correct, subject
from compressor.surgery.masks import apply_mask_, magnitude
from compressor.surgery.plan import ChannelBudget, CostBudget, Countable, Scope
from compressor.training.loop import Hooks, train
from compressor.training.retraining import device_named, retrain, starting_module
from compressor.training.ways import SCRATCH, Wishes, recipe_for

TITLE = "Rethinking the value of network pruning"
NAME = "rethinking"

DENSE, SPARSE = "dense", "dense-sparse"
PUBLISHED, TUNED, REWIND = "fine-tune-published", "fine-tune-tuned", "rewind-lr"
SCRATCH_E, SCRATCH_B, CAPPED = "scratch-e", "scratch-b", "scratch-b-capped"
WAYS = {
    PUBLISHED: How.FINE_TUNE, TUNED: How.FINE_TUNE, REWIND: How.REWIND_LR,
    SCRATCH_E: How.SCRATCH_E, SCRATCH_B: How.SCRATCH_B, CAPPED: How.SCRATCH_B,
}  # fmt: skip
CAP = 2.0
FRESH = 1000  # added to a cell's seed, so that scratch runs have other first weights than the dense network

MAGNITUDE, UNIFORM, SLIMMING = "magnitude of weights", "l1-norm uniform", "slimming"
GLOBAL, MEASURED, CHANCE = "l1-norm global", "obs measured", "random widths"
CHOOSERS: Mapping[str, Mapping[str, Any]] = {  # the fields of the request of each way to choose widths
    SLIMMING: {"criterion": "bn-scale", "scope": Scope.GLOBAL},
    GLOBAL: {"criterion": "l1-norm", "scope": Scope.GLOBAL},
    "taylor global": {"criterion": "taylor", "scope": Scope.GLOBAL},
    MEASURED: {"criterion": "obs", "scope": Scope.MEASURED, "repair": Repair.LEAST_SQUARES},
    CHANCE: {"criterion": "l1-norm", "scope": Scope.RANDOM},
}
ALL = tuple(WAYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """A way to prune, its share of removed channels (or weights), and the arms that train the result."""

    source: str
    level: float
    arms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The values of a scale; 0 images stand for all, 0 pixels for the images' own size."""

    runs: tuple[Runs, ...]
    epochs: int
    seeds: int
    bn_l1: float  # of the dense networks that Network Slimming prunes
    ref: str = "sample_models.networks:resnet8"
    images: int = 0
    tune: int = 0
    test: int = 0
    pixels: int = 0

    def values(self) -> dict[str, Value]:
        """Return the values that all cells share."""
        return {
            "ref": self.ref, "images": self.images, "tune": self.tune, "test": self.test, "pixels": self.pixels,
            "epochs": self.epochs, "fine_tune_epochs": max(1, self.epochs // 4), "batch": 64, "rate": 0.1,
            "low_rate": 0.001, "tuned_rate": 0.02, "weight_decay": 1e-4,
        }  # fmt: skip


def _each(sources: Sequence[str], level: float, arms: tuple[str, ...]) -> tuple[Runs, ...]:
    return tuple(Runs(source=source, level=level, arms=arms) for source in sources)


SMOKE = Size(
    epochs=2, seeds=2, images=128, tune=64, test=100, pixels=14, bn_l1=1e-2,
    runs=(
        Runs(source=UNIFORM, level=0.5, arms=ALL),
        Runs(source=MAGNITUDE, level=0.9, arms=(PUBLISHED, SCRATCH_E)),
        *_each((SLIMMING, CHANCE), 0.5, (CAPPED,)),
    ),
)  # fmt: skip
SMALL = Size(
    epochs=8, seeds=3, images=8000, tune=1000, pixels=14,
    bn_l1=2e-3,  # in 1,000 steps; the published 1e-5 acts for 125,000
    runs=(
        Runs(source=UNIFORM, level=0.3, arms=(PUBLISHED, TUNED, REWIND, SCRATCH_E, SCRATCH_B)),
        Runs(source=UNIFORM, level=0.5, arms=(PUBLISHED, TUNED, SCRATCH_E, SCRATCH_B, CAPPED)),
        Runs(source=UNIFORM, level=0.7, arms=(PUBLISHED, TUNED, SCRATCH_E, CAPPED)),
        Runs(source=MAGNITUDE, level=0.8, arms=(PUBLISHED, SCRATCH_E)),
        Runs(source=MAGNITUDE, level=0.95, arms=(PUBLISHED, TUNED, SCRATCH_E)),
        *_each((SLIMMING, MEASURED), 0.5, (PUBLISHED, TUNED, CAPPED)),
        *_each((GLOBAL, CHANCE), 0.5, (CAPPED,)),
    ),
)  # fmt: skip
PAPER = Size(
    epochs=160, seeds=5, ref="sample_models.networks:resnet20", bn_l1=1e-5,
    runs=(
        *(Runs(source=UNIFORM, level=ratio, arms=ALL) for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)),
        *(Runs(source=MAGNITUDE, level=sparsity, arms=ALL) for sparsity in (0.3, 0.6, 0.8, 0.95)),
        *(runs for ratio in (0.3, 0.5, 0.7) for runs in _each(tuple(CHOOSERS), ratio, ALL)),
    ),
)  # fmt: skip
SIZES = {Scale.SMOKE: SMOKE, Scale.SMALL: SMALL, Scale.PAPER: PAPER}


def cells(scale: Scale) -> Sequence[Cell]:
    """Return for every seed a dense network, one with penalised scales, and the networks pruned from each."""
    size, every = SIZES[scale], list[Cell]()
    for seed in range(size.seeds):
        dense = Cell(study=NAME, arm=DENSE, seed=seed, values={**size.values(), "bn_l1": 0.0})
        sparse = Cell(study=NAME, arm=SPARSE, seed=seed, values={**size.values(), "bn_l1": size.bn_l1})
        every += [dense, sparse]
        for runs in size.runs:
            values = {**size.values(), "source": runs.source, "level": runs.level}
            needs = (sparse if runs.source == SLIMMING else dense,)
            every += [Cell(study=NAME, arm=arm, seed=seed, values=values, needs=needs) for arm in runs.arms]
    return every


def run(cell: Cell, workspace: Workspace) -> Mapping[str, Any]:
    """Train one network, or prune and retrain one; return its accuracies after the last epoch."""
    data, ref = images_of(cell, workspace.data), str(cell.values["ref"])
    if not cell.needs:
        dense, recipe = subject(ref, data=data, seed=cell.seed), dense_recipe(cell)
        trained = retrain(dense, data, recipe=recipe, device="auto", state_file=workspace.state_file)
        workspace.keep(trained.module.state_dict())
        return _row(trained, data, recipe=recipe, macs=1.0)
    state, training = workspace.state_of(cell.needs[0]), dense_recipe(cell.needs[0])
    dense, level = subject(ref, data=data, state=state, training=training), float(cell.values["level"] or 0)
    if cell.values["source"] == MAGNITUDE:
        return _run_masked(cell, dense, data, workspace, sparsity=level)
    pruned = pruned_by(str(cell.values["source"]), dense, level, data=data, seed=cell.seed)
    recipe = recipe_of(cell, dense, dense_cost=pruned.dense_cost, small_cost=pruned.small_cost)
    trained = retrain(pruned.checkpoint, data, recipe=recipe, device="auto", state_file=workspace.state_file)
    before = percent_correct(pruned.checkpoint, data, SplitName.TUNE)
    macs = pruned.small_cost.macs / pruned.dense_cost.macs
    return {**_row(trained, data, recipe=recipe, macs=macs), "pruned_tune": before, "widths": widths_of(pruned)}


def images_of(cell: Cell, data: Data) -> Data:
    """Return the cell's number of images of each split, in the cell's size; they are the same for all seeds."""
    value: Any = cell.values
    return reduced(data, train=value["images"], tune=value["tune"], test=value["test"], side=value["pixels"])


def dense_recipe(cell: Cell) -> Recipe:
    """Return the published recipe with other lengths: SGD, rate / 10 at half and at three quarters, crops, flips."""
    value = cell.values
    return Recipe(
        budget=Step(epochs=int(value["epochs"] or 0)),
        schedule=Schedule(rate=float(value["rate"] or 0), shape=Shape.STEP, warmup=0.0),
        weight_decay=float(value["weight_decay"] or 0),
        batch_size=int(value["batch"] or 0),
        bn_l1=float(value["bn_l1"] or 0),
        seed=cell.seed,
    )


def recipe_of(cell: Cell, dense: Checkpoint, *, dense_cost: Cost, small_cost: Cost) -> Recipe:
    """Return the recipe of the cell's arm for this pair of networks."""
    value, seed = cell.values, FRESH + cell.seed
    wishes = Wishes(seed=seed)
    if cell.arm in (PUBLISHED, TUNED):
        rate = float(value["low_rate" if cell.arm == PUBLISHED else "tuned_rate"] or 0)
        wishes = Wishes(seed=seed, epochs=int(value["fine_tune_epochs"] or 0), rate=rate)
        if cell.arm == PUBLISHED:
            wishes = dataclasses.replace(wishes, shape=Shape.CONSTANT, warmup=0.0)
    elif cell.arm == REWIND:
        wishes = Wishes(seed=seed, epochs=int(value["epochs"] or 0))
    elif cell.arm == CAPPED:
        wishes = Wishes(seed=seed, cap=CAP)
    return recipe_for(
        WAYS[cell.arm], dense_recipe=dense.training, dense_cost=dense_cost, small_cost=small_cost, wishes=wishes
    )


def pruned_by(source: str, dense: Checkpoint, ratio: float, *, data: Data, seed: int) -> Pruned:
    """Prune by `source`, to the MACs that uniform l1-norm pruning leaves at this ratio of channels."""
    uniform = prune(dense, Request(budget=ChannelBudget(ratio=ratio), criterion="l1-norm", align=1))
    if source == UNIFORM:
        return uniform
    budget = CostBudget(counted=Countable.MACS, stays=uniform.small_cost.macs / uniform.dense_cost.macs)
    return prune(
        dense,
        Request(**{"budget": budget, "align": 1, "seed": seed, "repair": Repair.NONE, **CHOOSERS[source]}),
        data=data,
    )


def widths_of(pruned: Pruned) -> dict[str, int]:
    """Return how many channels stay of each group; 0 for an emptied group."""
    level = pruned.levels[0]
    stays = {g.root: g.channels - len(level.plan.removed.get(g.root, ())) for g in pruned.traced.groups}
    return {root: 0 if root in level.emptied else width for root, width in stays.items()}


def _run_masked(
    cell: Cell, dense: Checkpoint, data: Data, workspace: Workspace, *, sparsity: float
) -> Mapping[str, Any]:
    """Run one arm with a mask on the convolutions' weights; a scratch arm's fresh weights are masked too."""
    mask = magnitude(dense.module, sparsity=sparsity, protect=("fc",))
    cost, macs = count(dense.module, dense.example_inputs), masked_macs(dense.module, mask, dense.example_inputs)
    recipe = recipe_of(cell, dense, dense_cost=cost, small_cost=dataclasses.replace(cost, macs=macs))
    masked = dataclasses.replace(dense, module=apply_mask_(copy_of(dense.module), mask))
    if WAYS[cell.arm] in SCRATCH:  # `retrain` refuses these: only this paper trains masked networks from scratch
        fresh = starting_module(dense, WAYS[cell.arm], seed=recipe.seed).to(device_named("auto"))
        result = train(
            fresh, data, recipe=recipe, preprocessing=dense.preprocessing, state_file=workspace.state_file,
            hooks=Hooks(after_step=(lambda module: apply_mask_(module, mask),)),
        )  # fmt: skip
        trained = dataclasses.replace(dense, module=result.module.cpu())
    else:
        trained = retrain(masked, data, recipe=recipe, mask=mask, device="auto", state_file=workspace.state_file)
    before = percent_correct(masked, data, SplitName.TUNE)
    return {**_row(trained, data, recipe=recipe, macs=macs / cost.macs), "pruned_tune": before}


def _row(trained: Checkpoint, data: Data, *, recipe: Recipe, macs: float) -> dict[str, Any]:
    """Return a cell's result: accuracies in per cent, MACs as a share of the dense network's, epochs and notes."""
    return {
        "accuracy": percent_correct(trained, data, SplitName.TEST),
        "tune": percent_correct(trained, data, SplitName.TUNE),
        "macs": macs, "epochs": recipe.budget.epochs, "notes": list(recipe.notes),
    }  # fmt: skip


TOO_SHORT = (
    "Fine-tuning has a quarter of the dense network's epochs here, and Scratch-B more than all of them. Where the "
    "dense network itself is not trained to its end, as at this scale, those epochs are what decides."
)


def verdict(results: StudyResults) -> Sequence[Claim]:
    """Return Liu et al.'s claims, and those of later papers against the first."""
    channels = [p for p in _places(results, PUBLISHED) if p[0] != MAGNITUDE and _budgeted(results, p) is not None]
    weights = [p for p in _places(results, PUBLISHED, SCRATCH_E) if p[0] == MAGNITUDE][-1:]
    uniform = [p for p in _places(results, SCRATCH_B) if p[0] == UNIFORM]
    return (
        Claim(
            text="Channels: Scratch-B is as good as the published fine-tuning, within one (pooled) standard deviation",
            source="Liu et al. 2019, sec. 4.1 and 4.2",
            findings=tuple(_gap(results, p, _budgeted(results, p) or "", PUBLISHED, within=True) for p in channels),
        ),
        Claim(
            text="Single weights at the highest sparsity: the published fine-tuning beats Scratch-E",
            source="Liu et al. 2019, sec. 4.3",
            findings=tuple(_gap(results, p, PUBLISHED, SCRATCH_E) for p in weights),
        ),
        Claim(
            text="As many MACs as the dense network's training make scratch better than as many epochs",
            source="Liu et al. 2019, sec. 3",
            findings=tuple(_gap(results, p, SCRATCH_B, SCRATCH_E) for p in uniform),
        ),
        Claim(
            text="At the mildest ratio fine-tuning with a good schedule beats Scratch-B: it was the rate's fault",
            source="Wang et al. 2023, arXiv:2301.05219",
            findings=tuple(_gap(results, p, TUNED, SCRATCH_B) for p in uniform[:1]),
        ).explained(TOO_SHORT),
        Claim(
            text="At the mildest ratio LR rewinding, for the dense network's epochs, beats Scratch-B",
            source="Renda et al. 2020, arXiv:2003.02389",
            findings=tuple(_gap(results, p, REWIND, SCRATCH_B) for p in uniform[:1]),
        ),
        Claim(
            text="A criterion finds a better architecture than chance at equal MACs, by Scratch-B; the best first",
            source="Liu et al. 2019, sec. 5",
            findings=tuple(
                Finding(
                    quantity=f"{source} minus {CHANCE}, {CAPPED} at {level:g}",
                    interval=difference(_accuracies(results, CAPPED, (source, level)),
                                        _accuracies(results, CAPPED, (CHANCE, level))),
                )
                for source, level in ranked(results)
                if source != CHANCE
            ),
        ),
    )  # fmt: skip


Place = tuple[str, float]  # a way to prune, and its level


def ranked(results: StudyResults) -> list[Place]:
    """Return the ways to choose widths, where random widths ran too, by mean accuracy of capped Scratch-B, sorted."""
    levels = {level for source, level in _places(results, CAPPED) if source == CHANCE}
    places = [p for p in _places(results, CAPPED) if p[1] in levels and p[0] != MAGNITUDE]
    return sorted(places, key=lambda p: -statistics.fmean(_accuracies(results, CAPPED, p)))


def _places(results: StudyResults, *arms: str) -> list[Place]:
    """Return the places at which all of these arms ran, sorted by level, then in the order of the cells."""
    ran = [
        {(str(c.values["source"]), float(c.values["level"] or 0)): None for c in results.where(a).rows} for a in arms
    ]
    return sorted((p for p in ran[0] if all(p in other for other in ran)), key=lambda p: p[1])


def _budgeted(results: StudyResults, place: Place) -> str | None:
    """Return the arm that trained from scratch for the dense network's MACs at a place, or up to the cap."""
    return next((arm for arm in (SCRATCH_B, CAPPED) if place in _places(results, arm)), None)


def _accuracies(results: StudyResults, arm: str, place: Place) -> list[float]:
    return list(results.by_seed("accuracy", arm, source=place[0], level=place[1]).values())


def _gap(results: StudyResults, place: Place, one: str, other: str, *, within: bool = False) -> Finding:
    """Return how much better `one` is at a place; seeds are not paired, as scratch runs are independent of `dense`."""
    groups = [_accuracies(results, arm, place) for arm in (one, other)]
    deviation = pooled_deviation(*groups) if within and any(len(g) > 1 for g in groups) else 0.0
    quantity = f"{one} minus {other}, {place[0]} at {place[1]:g}"
    return Finding(quantity=quantity, interval=difference(*groups), bound=0.0 - deviation)


def plots(results: StudyResults) -> Sequence[Plot]:
    """Plot accuracy over ratio and sparsity for each arm, and the architectures of equal MACs by rank."""
    dense = PlotLine(name=DENSE, points=(PlotPoint(x=0, values=tuple(results.by_seed("accuracy", DENSE).values())),))
    chart = []
    for source, x in ((UNIFORM, "channels removed of each group"), (MAGNITUDE, "weights removed of the convolutions")):
        curves = [curve(arm, results.where(arm, source=source), "accuracy", along="level") for arm in WAYS]
        chart.append(
            Plot(title=f"Test accuracy, {source}", x=x, y="%", curves=(dense, *(c for c in curves if c.points)))
        )
    places = [
        PlotLine(name=source, points=(PlotPoint(x=rank, values=tuple(_accuracies(results, CAPPED, (source, level)))),))
        for rank, (source, level) in enumerate(ranked(results), start=1)
    ]
    title = "Architectures of equal MACs, trained from scratch (capped at twice the dense epochs)"
    return (*chart, Plot(title=title, x="rank by the mean", y="%", curves=tuple(places), joined=False))
