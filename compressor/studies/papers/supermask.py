"""Deconstructing Lottery Tickets (Zhou et al. 2019): signs, zeros and supermasks.

**Claim:** a lottery ticket's mask is worth something without any training: laid on the initial weights, one that keeps
large final weights of an unchanged sign classifies far above chance, and better still where every weight is replaced
by a constant of its sign. When the masked network is trained, what matters of the initial weights is their signs;
pruned weights are better zeroed than frozen where they began, best so those that training moved towards zero. A mask
that is learned for untrained weights comes near a trained network.

**Command:** `compress study supermask --scale small --jobs 2`

**Expected:** at `small`, five seeds: untrained, 75 % of the test images under the same-sign mask, 80 with a constant of
each sign, 14 under a random mask; signs kept are worth 1.0 to 1.5 points after training; a constant of the initial sign
comes within 0.3 to 0.6 points of the ticket; zeroing only what moved towards zero is 0.6 to 2.0 above zeroing all;
learned and rescaled, within 1.3 to 1.4 of the trained network. Magnitude increase is as good as large final weights
with a tenth of the weights, and 1.5 points under them with 3 %. Five claims reproduced, one contradicted, three
inconclusive.

**Cost:** 21 minutes of one core at `small` (the processor's time, on a shared machine).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compressor.checkpoint.recipes import Optimiser, Recipe, Schedule, Shape, Step
from compressor.data.preprocessing import Preprocessing
from compressor.data.splits import Data, SplitName
from compressor.measuring.quality import evaluate
from compressor.studies.interval import Interval, mean_interval, paired_difference
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
from compressor.studies.subjects import subject
from compressor.surgery.mask_criteria import MaskCriterion, mask_by, slower_at_the_output
from compressor.surgery.masks import WeightMask, maskable
from compressor.training.loop import Hooks, train
from compressor.training.lottery.initialisation import glorot_normal
from compressor.training.lottery.supermask import Multiplied, learn_mask
from compressor.training.lottery.treatments import Frozen, Kept, PrunedWeights, start_weights, with_weights

TITLE = "Deconstructing lottery tickets: signs, zeros and supermasks"
STUDY = "supermask"
NETWORK = "sample_models.networks:lenet_300_100"
PAPER = "Zhou et al. 2019, arXiv:1905.01067"
INPUTS = Preprocessing()  # pixels in [0, 1], as in the paper

M, K, P = MaskCriterion, Kept, PrunedWeights
Arm = tuple[MaskCriterion, Kept, PrunedWeights]
SAME_SIGN = M.LARGE_FINAL_SAME_SIGN
UNTRAINED = (
    *((criterion, K.REWIND) for criterion in MaskCriterion),
    *((criterion, K.SIGNED_CONSTANT) for criterion in (SAME_SIGN, M.LARGE_FINAL, M.MAGNITUDE_INCREASE_SAME_SIGN)),
)
TICKET: Arm = (M.LARGE_FINAL, K.REWIND, P.ZERO)
TRAINED: tuple[Arm, ...] = (
    *((M.LARGE_FINAL, kept, P.ZERO) for kept in Kept if kept is not K.BY_DIRECTION),
    *((M.LARGE_FINAL, K.REWIND, pruned) for pruned in PrunedWeights if pruned is not P.ZERO),
    (M.LARGE_FINAL, K.BY_DIRECTION, P.BY_DIRECTION),
    *((c, K.REWIND, P.ZERO) for c in (M.MAGNITUDE_INCREASE, M.MOVEMENT, SAME_SIGN, M.LARGE_INIT, M.RANDOM)),
)
LEARNED = tuple((multiplied, rescaled) for multiplied in Multiplied for rescaled in (False, True))
BEGAN_SMALL = (
    "After six epochs the two masks agree on half of the weights of the first layer. Those kept for their increase "
    "began at 0.9 times its mean magnitude (those of large final weights at 2.1), 17 % of them have changed their sign "
    "since (4 %), and where 3 % stay they leave 14 to 17 % of the pixels without a weight (1 to 2 %): rewound, a worse "
    "start. That was looked at apart from the study, with seeds 10 and 11; four times the epochs before the mask did "
    "not close the gap."
)
JUDGED_AT = (0.1, 0.03)  # the shares of the weights kept that claims about training speak of, or the nearest there are


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The values of a scale; `densities` are the shares of the hidden layers' weights that a trained network keeps.

    If `iterative`, each density starts from the one before, as published; else each starts from the dense network. An
    untrained supermask is evaluated at `levels` shares, each `factor` times the one before.
    """

    seeds: int
    images: int  # largest number of training images
    evaluated: int  # largest number of images of the tuning and of the test split
    epochs: int
    densities: tuple[float, ...]
    levels: int
    factor: float
    mask_epochs: int
    iterative: bool = False


SIZES = {
    Scale.SMOKE: Size(
        seeds=2, images=300, evaluated=200, epochs=1, densities=(0.1,), levels=2, factor=0.4, mask_epochs=1
    ),
    Scale.SMALL: Size(
        seeds=5, images=10_000, evaluated=10_000, epochs=6, densities=(0.3, 0.1, 0.03), levels=10, factor=0.64,
        mask_epochs=12,
    ),
    Scale.PAPER: Size(
        seeds=5, images=60_000, evaluated=10_000, epochs=55, densities=tuple(round(0.8**k, 5) for k in range(1, 25)),
        levels=25, factor=0.8, mask_epochs=2000, iterative=True,
    ),
}  # fmt: skip


def cells(scale: Scale) -> list[Cell]:
    """Return for every seed a dense network, its untrained and trained masked networks, and learned masks."""
    size = SIZES[scale]
    return [cell for seed in range(size.seeds) for cell in _of_seed(seed, size)]


def _of_seed(seed: int, size: Size) -> Iterator[Cell]:
    """Yield one seed's cells: the dense network, untrained masks, trained masked networks, and learned masks."""
    images: dict[str, Value] = {"images": size.images, "evaluated": size.evaluated}
    trained: dict[str, Value] = {**images, "epochs": size.epochs, "rate": 1.2e-3, "batch": 60}
    dense = Cell(study=STUDY, arm="dense", seed=seed, values=trained)
    yield dense
    for criterion, kept in UNTRAINED:
        values = {**images, "criterion": str(criterion), "kept": str(kept), "levels": size.levels}
        yield Cell(study=STUDY, arm="untrained", seed=seed, values={**values, "factor": size.factor}, needs=(dense,))
    for criterion, kept, pruned in TRAINED:
        needs: tuple[Cell, ...] = (dense,)
        for density in size.densities:
            values = {**trained, **_named(criterion, kept, pruned), "density": density, "iterative": size.iterative}
            cell = Cell(study=STUDY, arm="trained", seed=seed, values=values, needs=needs)
            needs = (dense, cell) if size.iterative else (dense,)
            yield cell
    for multiplied, rescaled in LEARNED:
        values = {**images, "multiplied": str(multiplied), "rescaled": rescaled, "epochs": size.mask_epochs}
        yield Cell(study=STUDY, arm="learned", seed=seed, values={**values, "rate": 100.0, "batch": 60})


def _named(criterion: MaskCriterion, kept: Kept, pruned: PrunedWeights) -> dict[str, Value]:
    return {"criterion": str(criterion), "kept": str(kept), "pruned": str(pruned)}


def run(cell: Cell, workspace: Workspace) -> Mapping[str, Any]:
    """Run one network, or one mask on one network's initial weights at several levels."""
    value: Any = cell.values
    data = reduced(workspace.data, train=value["images"], tune=value["evaluated"], test=value["evaluated"])
    network = glorot_normal(subject(NETWORK, data=data).module, seed=cell.seed)
    return {"dense": _dense, "untrained": _untrained, "trained": _trained, "learned": _learned}[cell.arm](
        cell, workspace, data, network
    )


def _recipe(cell: Cell) -> Recipe:
    """Return the cell's training: Adam for weights, SGD with momentum for a mask's logits; a constant rate."""
    values: Any = cell.values
    return Recipe(
        budget=Step(epochs=values["epochs"]),
        schedule=Schedule(rate=values["rate"], shape=Shape.CONSTANT, warmup=0.0),
        optimiser=Optimiser.SGD if cell.arm == "learned" else Optimiser.ADAMW,
        weight_decay=0.0,
        batch_size=values["batch"],
        augment=(),
        seed=cell.seed,
    )


def _accuracies(module: nn.Module, data: Data) -> dict[str, float]:
    return {"tune": _accuracy(module, data, SplitName.TUNE), "accuracy": _accuracy(module, data, SplitName.TEST)}


def _accuracy(module: nn.Module, data: Data, split: SplitName) -> float:
    """Return the accuracy in per cent."""
    return round(100 * evaluate(module, data.split(split), split=str(split), preprocessing=INPUTS).value, 4)


def _dense(cell: Cell, workspace: Workspace, data: Data, network: nn.Module) -> dict[str, Any]:
    trained = train(network, data, recipe=_recipe(cell), preprocessing=INPUTS, state_file=workspace.state_file).module
    workspace.keep(trained.state_dict())
    return _accuracies(trained, data)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in maskable(network).items()}


def _untrained(cell: Cell, workspace: Workspace, data: Data, network: nn.Module) -> dict[str, Any]:
    """Return the accuracies at every level, and at the level that is best on the tuning split."""
    values: Any = cell.values
    initial, after = _weights(network), workspace.state_of(cell.needs[0])
    final = {name: after[name] for name in initial}
    densities = [values["factor"] ** level for level in range(1, values["levels"] + 1)]
    by_level = []
    for density in densities:
        mask = mask_by(
            MaskCriterion(values["criterion"]), initial=initial, final=final, seed=cell.seed,
            sparsity=slower_at_the_output(initial, 1 - density),
        )  # fmt: skip
        start = start_weights(mask, initial=initial, final=final, kept=Kept(values["kept"]), seed=cell.seed)
        by_level.append(_accuracies(with_weights(network, start), data))
    best = max(by_level, key=lambda level: level["tune"])
    return {
        **best,
        "density": densities[by_level.index(best)],
        "densities": densities,
        "tuned": [level["tune"] for level in by_level],
        "accuracies": [level["accuracy"] for level in by_level],
    }


def _trained(cell: Cell, workspace: Workspace, data: Data, network: nn.Module) -> dict[str, Any]:
    """Train the masked network from the cell's treatment of its weights, and return its accuracies."""
    values: Any = cell.values
    initial, after = _weights(network), workspace.state_of(cell.needs[-1])
    final = {name: after[name] for name in initial}
    earlier = {name: after[f"mask.{name}"] for name in initial if f"mask.{name}" in after}
    mask = mask_by(
        MaskCriterion(values["criterion"]), initial=initial, final=final, seed=cell.seed,
        sparsity=slower_at_the_output(initial, 1 - values["density"]),
        within=WeightMask(kept=earlier) if earlier else None,
    )  # fmt: skip
    start = start_weights(
        mask,
        initial=initial,
        final=final,
        kept=Kept(values["kept"]),
        pruned=PrunedWeights(values["pruned"]),
        seed=cell.seed,
    )
    trained = train(
        with_weights(network, start), data, recipe=_recipe(cell), preprocessing=INPUTS,
        hooks=Hooks(after_step=(Frozen(mask, start),)), state_file=workspace.state_file,
    ).module  # fmt: skip
    if values["iterative"]:
        workspace.keep({**trained.state_dict(), **{f"mask.{name}": kept for name, kept in mask.kept.items()}})
    return {**_accuracies(trained, data), "sparsity": mask.sparsity}


def _learned(cell: Cell, workspace: Workspace, data: Data, network: nn.Module) -> dict[str, Any]:
    """Learn a mask, and return the mean accuracy of several draws."""
    learned = learn_mask(
        network, data, recipe=_recipe(cell), preprocessing=INPUTS, state_file=workspace.state_file,
        multiplied=Multiplied(str(cell.values["multiplied"])), rescaled=bool(cell.values["rescaled"]),
    )  # fmt: skip
    drawn = {
        split: [100 * a.value for a in learned.accuracies(data.split(split), split=str(split), preprocessing=INPUTS)]
        for split in (SplitName.TUNE, SplitName.TEST)
    }
    tune, test = (statistics.fmean(drawn[split]) for split in (SplitName.TUNE, SplitName.TEST))
    return {"tune": tune, "accuracy": test, "draws": drawn[SplitName.TEST], "density": learned.density}


def verdict(results: StudyResults) -> list[Claim]:
    """Return the paper's claims, each with the accuracies of networks that share a seed."""
    densities = [float(d or 0.0) for d in results.where("trained").values_of("density")]
    judged = sorted({min(densities, key=lambda d: abs(math.log(d / wanted))) for wanted in JUDGED_AT}, reverse=True)
    dense = results.by_seed("accuracy", "dense")

    def untrained(criterion: MaskCriterion, kept: Kept = K.REWIND) -> dict[int, float]:
        return results.by_seed("accuracy", "untrained", criterion=str(criterion), kept=str(kept))

    def learned(multiplied: Multiplied, *, rescaled: bool) -> dict[int, float]:
        return results.by_seed("accuracy", "learned", multiplied=str(multiplied), rescaled=rescaled)

    def above(what: str, higher: dict[int, float], lower: dict[int, float], *, by: float = 0.0) -> Finding:
        return Finding(quantity=what, interval=paired_difference(higher, lower), bound=by)

    def trained(what: str, higher: Arm, lower: Arm, *, by: float = 0.0) -> tuple[Finding, ...]:
        """Return a finding for each judged share."""

        def at(share: float, arm: Arm) -> dict[int, float]:
            return results.by_seed("accuracy", "trained", **_named(*arm), density=share)

        return tuple(above(f"{what} at {s:.3g} kept", at(s, higher), at(s, lower), by=by) for s in judged)

    by_sign = untrained(SAME_SIGN)
    return [
        Claim(
            text="a mask of large final weights that kept their sign classifies far above chance, nothing trained",
            source=f"{PAPER}, sec. 5: over 80 % on MNIST",
            findings=(
                Finding(quantity="accuracy under the same-sign mask", interval=_mean(by_sign), bound=40.0, unit="%"),
                above("same-sign - large-final mask", by_sign, untrained(M.LARGE_FINAL)),
                above("large-final - random mask", untrained(M.LARGE_FINAL), untrained(M.RANDOM)),
            ),
        ),
        Claim(
            text="untrained, the signs times one constant do better under that mask than the initial weights",
            source=f"{PAPER}, sec. 5: 86 % on MNIST",
            findings=(above("signed constant - initial", untrained(SAME_SIGN, K.SIGNED_CONSTANT), by_sign),),
        ),
        Claim(
            text="trained from other values, a masked network does better where these keep the initial signs",
            source=f"{PAPER}, sec. 3",
            findings=(
                *trained("re-initialised: signed - not", _kept(K.SIGNED_REINITIALISE), _kept(K.REINITIALISE)),
                *trained("reshuffled: signed - not", _kept(K.SIGNED_RESHUFFLE), _kept(K.RESHUFFLE)),
                *trained("constant: signed - not", _kept(K.SIGNED_CONSTANT), _kept(K.CONSTANT)),
            ),
        ),
        Claim(
            text="the magnitudes do not matter: with the signs alone it comes within half a point of the ticket",
            source=f"{PAPER}, sec. 3",
            findings=(
                *trained("signed constant - ticket", _kept(K.SIGNED_CONSTANT), TICKET, by=-0.5),
                *trained("signed reshuffle - ticket", _kept(K.SIGNED_RESHUFFLE), TICKET, by=-0.5),
            ),
        ),
        Claim(
            text="pruned weights are better zeroed than frozen at their initial values",
            source=f"{PAPER}, sec. 4",
            findings=trained("zero - freeze", TICKET, _pruned(P.FREEZE)),
        ),
        Claim(
            text="to zero only the pruned weights that moved towards zero is as good, to zero the others is bad",
            source=f"{PAPER}, sec. 4",
            findings=(
                *trained("by direction - zero", _pruned(P.BY_DIRECTION), TICKET, by=-0.5),
                *trained("by direction - random", _pruned(P.BY_DIRECTION), _pruned(P.RANDOM)),
                *trained("random - reversed", _pruned(P.RANDOM), _pruned(P.REVERSED)),
            ),
        ),
        Claim(
            text="magnitude increase is as good a criterion as large final weights, and both beat random masks",
            source=f"{PAPER}, sec. 2",
            findings=(
                *trained("magnitude increase - large final", _masked(M.MAGNITUDE_INCREASE), TICKET, by=-0.5),
                *trained("magnitude increase - random", _masked(M.MAGNITUDE_INCREASE), _masked(M.RANDOM)),
                *trained("large final - random", TICKET, _masked(M.RANDOM)),
            ),
        ).explained(BEGAN_SMALL),
        Claim(
            text="a learned mask on untrained weights, rescaled, comes within two points of the trained network",
            source=f"{PAPER}, sec. 5",
            findings=tuple(above(f"{m} - dense", learned(m, rescaled=True), dense, by=-2.0) for m in Multiplied),
        ),
        Claim(
            text="rescaling helps a learned mask, and a learned mask is better than one taken from trained weights",
            source=f"{PAPER}, sec. 5",
            findings=(
                *(
                    above(f"{m}: rescaled - not", learned(m, rescaled=True), learned(m, rescaled=False))
                    for m in Multiplied
                ),
                above("learned - same-sign mask", learned(Multiplied.INITIAL, rescaled=False), by_sign),
            ),
        ),
    ]


def _kept(kept: Kept) -> Arm:
    return M.LARGE_FINAL, kept, P.ZERO


def _pruned(pruned: PrunedWeights) -> Arm:
    return M.LARGE_FINAL, K.REWIND, pruned


def _masked(criterion: MaskCriterion) -> Arm:
    return criterion, K.REWIND, P.ZERO


def _mean(by_seed: Mapping[int, float]) -> Interval | None:
    return mean_interval(list(by_seed.values()))


def plots(results: StudyResults) -> list[Plot]:
    """Plot untrained masks over density; trained ones by criterion, by kept and by pruned weights; learned ones."""
    trained = results.where("trained")
    share = "share of the hidden layers' weights kept"

    def drawn(title: str, arms: dict[str, tuple[MaskCriterion, Kept, PrunedWeights]]) -> Plot:
        curves = tuple(
            curve(name, trained.where(**_named(*arm)), "accuracy", along="density") for name, arm in arms.items()
        )
        return Plot(title=title, x=share, y="test accuracy, %", curves=curves, logarithmic=True)

    return [
        Plot(
            title="Masks on untrained weights", x=share, y="test accuracy, %", logarithmic=True,
            curves=tuple(_levels(results, *arm) for arm in UNTRAINED),
        ),
        drawn("Trained, by criterion", {str(arm[0]): arm for arm in TRAINED if arm[1:] == TICKET[1:]}),
        drawn("Trained, by what is kept of kept weights", {
            str(arm[1]): arm for arm in TRAINED if arm[0] is M.LARGE_FINAL and arm[2] is P.ZERO
        }),
        drawn("Trained, by what becomes of pruned weights", {
            str(arm[2]) + " (kept too)" * (arm[1] is K.BY_DIRECTION): arm
            for arm in TRAINED
            if arm[0] is M.LARGE_FINAL and arm[1] in (K.REWIND, K.BY_DIRECTION)
        }),
        Plot(
            title="Learned masks, by the share of weights that a draw keeps", x="share of the weights kept",
            y="test accuracy, %", joined=False,
            curves=tuple(
                PlotLine(
                    name=f"{multiplied}{', rescaled' * rescaled}",
                    points=tuple(
                        PlotPoint(x=row["density"], values=(row["accuracy"],))
                        for _, row in results.where("learned", multiplied=str(multiplied), rescaled=rescaled)
                    ),
                )
                for multiplied, rescaled in LEARNED
            ),
        ),
    ]  # fmt: skip


def _levels(results: StudyResults, criterion: MaskCriterion, kept: Kept) -> PlotLine:
    """Return the curve of an untrained mask's accuracy over density, one value per seed."""
    rows = [row for _, row in results.where("untrained", criterion=str(criterion), kept=str(kept))]
    densities = rows[0]["densities"] if rows else ()
    points = (
        PlotPoint(x=density, values=tuple(row["accuracies"][level] for row in rows))
        for level, density in enumerate(densities)
    )
    name = f"{criterion}{', signed constant' * (kept is K.SIGNED_CONSTANT)}"
    return PlotLine(name=name, points=tuple(sorted(points, key=lambda point: point.x)))
