"""The lottery ticket hypothesis: pruned networks that train as well as the dense one, from its early weights.

**Claim:** iterative magnitude pruning finds subnetworks of at most 21 % of the weights that, from their *original*
initialisation, reach the dense network's accuracy, and their lowest tuning loss no later; the same masks with weights
drawn afresh do not (Frankle & Carbin 2019, arXiv:1803.03635). With a large learning rate the tickets lose their edge,
and warm-up or rewinding to step k restores it (Frankle et al. 2020, arXiv:1912.05671). Rewinding the rate alone does
no worse (Renda et al. 2020, arXiv:2003.02389). Where l1-norm pruning takes whole channels out, early weights help at
neither rate (Liu et al. 2019, arXiv:1810.05270).

**Command:** `compress study lottery-ticket --scale small --jobs 2`

**Expected:** at `small`, five seeds (of the convolutional network first three, and two more when those had been seen):
at 21, 11 and 7 % of the weights tickets of LeNet-300-100 are 0.5 to 0.8 points above fresh weights (the interval
excludes 0 at 11 and 7 %), and 0.9 above the dense network at 21 %, whose lowest tuning loss they reach 280 to 425 steps
sooner, fresh weights 950 to 1,075 steps later than they. The convolutional network's edge is 3.1 points at the low rate
and half of that at the high one, and with warm-up. Rewinding to step k, as good as the ticket, has no more to give
back. Where channels leave, early weights help by 0.9 points at the low rate. Eight claims reproduced, four
inconclusive.

**Cost:** 31 minutes of one core at `small` (the processor's time, on a shared machine). `paper`: 540 cells, the longest
of 85 epochs of ResNet-20.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import How, Optimiser, Recipe, Schedule, Shape, Step
from compressor.data.splits import Data, SplitName
from compressor.measuring.quality import evaluate
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.studies.interval import mean_interval, paired_difference
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
)
from compressor.studies.subjects import subject
from compressor.surgery.masks import MaskScope, WeightMask
from compressor.surgery.plan import ChannelBudget
from compressor.training.lottery.early_stopping import holding, train_watched
from compressor.training.lottery.initialisation import glorot_normal
from compressor.training.lottery.tickets import Rounds, rest_of, rewound, rounds_with_output, shuffled
from compressor.training.retraining import device_named, starting_module
from compressor.training.watch import state_of

TITLE = "The lottery ticket hypothesis: early weights, masks, and learning rates"
STUDY = "lottery-ticket"
HALF_A_POINT = 0.5  # the least difference of accuracies that counts as one
REDRAWN = 10_000  # added to the seed of fresh weights
AT_MOST = 21.5  # per cent of the weights; seven rounds leave 21.1 of LeNet-300-100

LENET, DROPOUT, LOW, HIGH, WARM_UP = "lenet", "dropout", "low rate", "high rate", "warm-up"
DENSE, TICKET, AFRESH, RANDOM = "dense", "ticket", "drawn-afresh", "random-mask"
ONE_SHOT, LATE, RATE = "one-shot", "rewound-to-k", "rate-rewound"
CHAINS = (TICKET, LATE, RATE)  # rounds, each of which starts from the one before
SMALL_EARLY, SMALL_AFRESH = "structured-early", "structured-afresh"


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketSetting:
    """One network with its training and its pruning; each field is a value of all its cells."""

    setting: str
    network: str
    epochs: int
    every: int  # steps between two measurements of the tuning loss
    learning_rate: float
    optimiser: str = str(Optimiser.SGD)
    shape: str = str(Shape.STEP)
    warmup: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 64
    augment: str = ""
    glorot: bool = False
    dropout: float = 0.0
    images: int = 0  # of the training split; 0: all
    judged: int = 0  # of each other split
    side: int = 28  # of an image
    rate: float = 0.2  # share of the remaining weights that a round removes
    output_rate: float = 0.1
    scope: str = str(MaskScope.UNIFORM)
    rewind: int = 0  # the step that `rewound to k` goes back to

    def values(self) -> dict[str, Value]:
        """Return the fields by name."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The runs of a scale: seeds, settings, the number of rounds, and the rounds with controls."""

    seeds: int
    lenet: TicketSetting
    rounds: int
    afresh: tuple[int, ...]  # rounds with a control of fresh weights
    random: tuple[int, ...]  # rounds with a control of a random mask
    one_shot: tuple[int, ...]
    dropout_rounds: int
    conv_seeds: int
    convolutional: TicketSetting  # at the high rate
    low_rate: float
    warmup: float
    conv_rounds: int
    ratio: float  # of the channels that structured pruning removes


def plan_of(scale: Scale) -> Plan:
    """Return the plan of a scale."""
    lenet = TicketSetting(
        setting=LENET, network="lenet_300_100", epochs=10, every=25, optimiser=str(Optimiser.ADAMW),
        shape=str(Shape.CONSTANT), learning_rate=1.2e-3, batch_size=60, glorot=True,
    )  # fmt: skip
    conv = TicketSetting(
        setting=HIGH, network="small_cnn", epochs=6, every=80, learning_rate=0.1, weight_decay=1e-4, side=14,
        rate=0.4, output_rate=0.0, scope=str(MaskScope.GLOBAL), rewind=157,
    )  # fmt: skip
    small = Plan(
        seeds=5, lenet=lenet, rounds=12, afresh=(4, 7, 10, 12), random=(7, 12), one_shot=(12,), dropout_rounds=4,
        conv_seeds=5, convolutional=conv, low_rate=0.01, warmup=0.3, conv_rounds=4, ratio=0.5,
    )  # fmt: skip
    if scale is Scale.SMALL:
        return small
    if scale is Scale.SMOKE:
        few: dict[str, Any] = {"images": 300, "judged": 200, "epochs": 1, "side": 14}
        return dataclasses.replace(
            small, seeds=2, rounds=2, afresh=(2,), random=(2,), one_shot=(2,), dropout_rounds=1,
            conv_seeds=2, conv_rounds=1,
            lenet=dataclasses.replace(lenet, **{**few, "side": 28}, every=3, rate=0.6),
            convolutional=dataclasses.replace(conv, **few, every=3, rewind=2, rate=0.6),
        )  # fmt: skip
    deep = (4, 7, 10, 12, 17, 24)
    resnet = dataclasses.replace(
        conv, network="resnet20", epochs=85, every=200, batch_size=128, augment="flip,crop", side=28, rate=0.2,
        rewind=2000,
    )  # fmt: skip
    return dataclasses.replace(
        small, rounds=24, afresh=deep, random=deep, one_shot=deep, dropout_rounds=8, conv_seeds=5,
        lenet=dataclasses.replace(lenet, epochs=55, every=100), convolutional=resnet, warmup=0.65, conv_rounds=9,
    )  # fmt: skip


def cells(scale: Scale) -> list[Cell]:
    """Return every arm with every seed."""
    plan = plan_of(scale)
    parts = ((_lenet, plan.seeds), (_convolutional, plan.conv_seeds))
    return [cell for part, seeds in parts for seed in range(seeds) for cell in part(plan, seed)]


def _cell(arm: str, setting: TicketSetting, seed: int, *needs: Cell, **values: Value) -> Cell:
    return Cell(study=STUDY, arm=arm, seed=seed, values={**setting.values(), **values}, needs=needs)


def _chain(arm: str, setting: TicketSetting, dense: Cell, rounds: int) -> list[Cell]:
    """Return a cell for each round; each needs the dense network's early weights and the round before."""
    chain: list[Cell] = []
    for number in range(1, rounds + 1):
        chain.append(_cell(arm, setting, dense.seed, dense, *chain[-1:], round=number))
    return chain


def _lenet(plan: Plan, seed: int) -> Iterator[Cell]:
    """Yield LeNet's cells of one seed: dense, tickets, their controls, one-shot masks, and the same with dropout."""
    lenet = plan.lenet
    dense = _cell(DENSE, lenet, seed, round=0)
    tickets = _chain(TICKET, lenet, dense, plan.rounds)
    yield from (dense, *tickets)
    for arm, numbers in ((AFRESH, plan.afresh), (RANDOM, plan.random)):
        for number in numbers:
            yield _cell(arm, lenet, seed, dense, tickets[number - 1], round=number)
    for number in plan.one_shot:
        at_once = dataclasses.replace(
            lenet, rate=1 - (1 - lenet.rate) ** number, output_rate=1 - (1 - lenet.output_rate) ** number
        )
        yield _cell(ONE_SHOT, at_once, seed, dense, round=number)
    dropped = dataclasses.replace(
        lenet,
        setting=DROPOUT,
        dropout=0.5,
        rate=1 - (1 - lenet.rate) ** 2,
        output_rate=1 - (1 - lenet.output_rate) ** 2,
    )
    dense = _cell(DENSE, dropped, seed, round=0)
    tickets = _chain(TICKET, dropped, dense, plan.dropout_rounds)
    yield from (dense, *tickets, _cell(AFRESH, dropped, seed, dense, tickets[-1], round=plan.dropout_rounds))


def _convolutional(plan: Plan, seed: int) -> Iterator[Cell]:
    """Yield the convolutional network's cells of one seed: low rate, high rate and warm-up, with their controls."""
    high = plan.convolutional
    low = dataclasses.replace(high, setting=LOW, learning_rate=plan.low_rate)
    warm = dataclasses.replace(high, setting=WARM_UP, warmup=plan.warmup)
    last = plan.conv_rounds
    for setting in (low, high, warm):
        dense = _cell(DENSE, setting, seed, round=0)
        tickets = _chain(TICKET, setting, dense, last)
        yield from (dense, *tickets, _cell(AFRESH, setting, seed, dense, tickets[-1], round=last))
        if setting is high:
            yield from (*_chain(LATE, setting, dense, last), *_chain(RATE, setting, dense, last))
        if setting is not warm:
            for arm in (SMALL_EARLY, SMALL_AFRESH):
                yield _cell(arm, setting, seed, dense, ratio=plan.ratio)


def run(cell: Cell, workspace: Workspace) -> Mapping[str, Any]:
    """Train one network from its arm's start, and measure the tuning loss; the test split is read after training."""
    sizes: Mapping[str, Any] = cell.values
    data = reduced(
        workspace.data, train=sizes["images"], tune=sizes["judged"], test=sizes["judged"], side=sizes["side"]
    )
    fresh = _fresh(cell, data, seed=cell.seed)
    if cell.arm == DENSE:
        return _trained(cell, workspace, data, fresh, None)
    dense = workspace.state_of(cell.needs[0])
    if cell.arm in (SMALL_EARLY, SMALL_AFRESH):
        return _trained(cell, workspace, data, _structured(cell, fresh, _part(dense, "trained")), None)
    before = workspace.state_of(cell.needs[-1])  # the dense network's own in the first round
    within = WeightMask(kept=kept) if (kept := _part(before, "kept")) else None
    early = _part(dense, "early") if cell.arm == LATE else state_of(fresh.module)
    if cell.arm in (AFRESH, RANDOM):
        assert within is not None  # a control needs a ticket
        mask = shuffled(within, seed=cell.seed) if cell.arm == RANDOM else within
        if cell.arm == AFRESH:
            early = state_of(_fresh(cell, data, seed=cell.seed + REDRAWN).module)
    else:
        trained = _part(before, "trained")
        fresh.module.load_state_dict(trained)
        mask = _rounds(cell, fresh).next_mask(fresh.module, within=within)
        early = trained if cell.arm == RATE else early
    start = dataclasses.replace(fresh, module=rewound(fresh.module, early, mask))
    return _trained(cell, workspace, data, start, mask)


def _fresh(cell: Cell, data: Data, *, seed: int) -> Checkpoint:
    """Return the cell's network with first weights drawn by `seed`."""
    dropout = cell.values["dropout"]
    arguments = (("dropout", dropout),) if dropout else ()
    network = subject(f"sample_models.networks:{cell.values['network']}", data=data, seed=seed, arguments=arguments)
    if not cell.values["glorot"]:
        return network
    return dataclasses.replace(network, module=glorot_normal(network.module, seed=seed))


def _rounds(cell: Cell, checkpoint: Checkpoint) -> Rounds:
    values: Mapping[str, Any] = cell.values
    return rounds_with_output(
        checkpoint.module, checkpoint.example_inputs, rate=values["rate"], output_rate=values["output_rate"],
        scope=MaskScope(values["scope"]),
    )  # fmt: skip


def _structured(cell: Cell, fresh: Checkpoint, trained: Mapping[str, Tensor]) -> Checkpoint:
    """Return the dense network without its channels of least l1-norm, with its early weights or fresh ones."""
    dense = dataclasses.replace(fresh, module=holding(fresh.module, trained))
    small = prune(
        dense, Request(budget=ChannelBudget(ratio=float(cell.values["ratio"] or 0)), criterion="l1-norm")
    ).checkpoint
    if cell.arm == SMALL_EARLY:
        module = starting_module(small, How.REWIND_WEIGHTS, early_state=state_of(fresh.module))
    else:
        module = starting_module(small, How.SCRATCH_E, seed=cell.seed + REDRAWN)
    return dataclasses.replace(small, module=module)


def _recipe(cell: Cell, images: int) -> Recipe:
    """Return the cell's training; arms rewound to step k train for the remaining epochs only."""
    values: Mapping[str, Any] = cell.values
    recipe = Recipe(
        budget=Step(epochs=values["epochs"]),
        schedule=Schedule(rate=values["learning_rate"], shape=Shape(values["shape"]), warmup=values["warmup"]),
        optimiser=Optimiser(values["optimiser"]), weight_decay=values["weight_decay"],
        batch_size=values["batch_size"], augment=tuple(filter(None, values["augment"].split(","))), seed=cell.seed,
    )  # fmt: skip
    return rest_of(recipe, step=values["rewind"], images=images) if cell.arm in (LATE, RATE) else recipe


def _trained(
    cell: Cell, workspace: Workspace, data: Data, start: Checkpoint, mask: WeightMask | None
) -> Mapping[str, Any]:
    """Train the network, keep the tensors that later cells need, and return the cell's result."""
    values: Mapping[str, Any] = cell.values
    recipe = _recipe(cell, len(data.split(SplitName.TRAIN)))
    watched = train_watched(
        start, data, recipe=recipe, every=values["every"], mask=mask, device=device_named("auto"),
        early_step=values["rewind"] if cell.arm == DENSE else 0,
    )  # fmt: skip
    test, seen = data.split(SplitName.TEST), start.preprocessing
    if cell.arm in (DENSE, *CHAINS):
        kept = {"trained": state_of(watched.trained), "kept": {} if mask is None else mask.kept}
        kept |= {"early": watched.early} if cell.arm == DENSE else {}
        workspace.keep({f"{part}.{name}": tensor for part, state in kept.items() for name, tensor in state.items()})
    weights = sum(p.numel() for p in start.module.parameters())
    return {
        "left": 100.0 if mask is None else 100 * (1 - mask.sparsity),
        "weights": weights - (0 if mask is None else mask.removed),
        "test": 100 * evaluate(watched.trained, test, split="test", preprocessing=seen).value,
        "test_at_stop": 100 * evaluate(watched.stopped, test, split="test", preprocessing=seen).value,
        "tune": 100 * watched.history[-1].tuned,
        "stop": watched.lowest.step,
        "lowest": watched.lowest.loss,
        "epochs": recipe.budget.epochs,
        "losses": [[look.step, round(look.loss, 5)] for look in watched.seen],
    }


def _part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors under the prefix `name`, without the prefix."""
    return {n.removeprefix(f"{name}."): t for n, t in state.items() if n.startswith(f"{name}.")}


NOTHING_LOST = (
    "Rewinding to step k is for networks that are not yet stable to the noise of SGD when they begin, and those of "
    "MNIST's scale are (Frankle et al. 2020, abstract). Three convolutions keep their edge over fresh weights at this "
    "rate too: there is nothing to give back, and a network rewound to step k has k steps of training less."
)


def verdict(results: StudyResults) -> list[Claim]:
    """Return the claims; differences are between cells of one seed, accuracies are of the test split."""
    frankle, stop = "Frankle & Carbin 2019", {"number": "test_at_stop"}
    levels, random, once = (
        [n for n in _rounds_of(results, arm, LENET) if _share_left(results, n) <= AT_MOST]
        for arm in (AFRESH, RANDOM, ONE_SHOT)
    )
    dropout, last = (max(_rounds_of(results, AFRESH, setting), default=0) for setting in (DROPOUT, HIGH))
    early = f"accuracy where the tuning loss is lowest, {frankle}"
    edges = {
        s: _differences(results, TICKET, AFRESH, setting=s, level=last, number="test") for s in (LOW, HIGH, WARM_UP)
    }

    def gap(first: str, second: str, *, setting: str = LENET, level: int | None = None, **fields: Any) -> Finding:
        number = fields.pop("number", "test")
        differences = _differences(results, first, second, setting=setting, level=level, number=number)
        where = setting if level is None else f"{setting}, {_share_left(results, level, setting):.1f} % left"
        interval = mean_interval(list(differences.values()))
        return Finding(quantity=f"{first} - {second}, {where}", interval=interval, **fields)

    def steps(first: str, second: str, level: int, **fields: Any) -> Finding:
        return gap(first, second, level=level, number="stop", unit="steps", **fields)

    return [
        Claim(
            text="at most 21 % of the weights do better from their early values than from fresh ones",
            findings=tuple(gap(TICKET, AFRESH, level=n, **stop) for n in levels),
            source=f"{early}, fig. 4b",
        ),
        Claim(
            text="tickets reach their lowest tuning loss no later than the dense network, within one look",
            findings=tuple(steps(TICKET, DENSE, n, below=True, bound=_looks(results)) for n in levels),
            source=f"{frankle}, fig. 4a",
        ),
        Claim(
            text="with fresh weights the same masks reach it later than the tickets",
            findings=tuple(steps(AFRESH, TICKET, n) for n in levels),
            source=f"{frankle}, fig. 4a",
        ),
        Claim(
            text="a ticket of 21 % of the weights is as good as the dense network, but for half a point",
            findings=tuple(gap(TICKET, DENSE, level=n, bound=-HALF_A_POINT, **stop) for n in levels[:1]),
            source=f"{early}, sec. 2",
        ),
        Claim(
            text="where a ticket's weights are matters: random masks of the same sparsities do worse",
            findings=tuple(gap(TICKET, RANDOM, level=n, **stop) for n in random),
            source=f"{early}, fig. 1",
        ),
        Claim(
            text="masks found in rounds are better than one-shot masks",
            findings=tuple(gap(TICKET, ONE_SHOT, level=n, **stop) for n in once[-1:]),
            source=f"{early}, sec. 2",
        ),
        Claim(
            text="there are tickets in a network with dropout too",
            findings=(gap(TICKET, AFRESH, setting=DROPOUT, level=dropout, **stop),),
            source=f"{early}, sec. 3",
        ),
        Claim(
            text="a large learning rate takes from the tickets the edge over fresh weights that a small one gives them",
            findings=(
                gap(TICKET, AFRESH, setting=LOW, level=last),
                Finding(quantity=f"that, {LOW} - {HIGH}", interval=paired_difference(edges[LOW], edges[HIGH])),
            ),
            source=f"{frankle}, sec. 4; Liu et al. 2019, sec. 6",
        ),
        Claim(
            text="warm-up gives it back",
            findings=(gap(TICKET, AFRESH, setting=WARM_UP, level=last),),
            source=f"{frankle}, sec. 4",
        ),
        Claim(
            text="so does rewinding to step k",
            findings=tuple(gap(LATE, other, setting=HIGH, level=last) for other in (TICKET, AFRESH)),
            source="Frankle et al. 2020, sec. 5",
        ).explained(NOTHING_LOST if edges[HIGH] and statistics.fmean(edges[HIGH].values()) > 0 else ""),
        Claim(
            text="rewinding the learning rate alone does no worse than rewinding to step k, but for half a point",
            findings=(gap(RATE, LATE, setting=HIGH, level=last, bound=-HALF_A_POINT),),
            source="Renda et al. 2020, sec. 4",
        ),
        Claim(
            text="where whole channels leave, early weights help by less than half a point at either rate",
            findings=tuple(
                gap(SMALL_EARLY, SMALL_AFRESH, setting=setting, bound=HALF_A_POINT, below=True)
                for setting in (LOW, HIGH)
            ),
            source="Liu et al. 2019, sec. 6",
        ),
    ]  # fmt: skip


def _differences(
    results: StudyResults, first: str, second: str, *, setting: str, level: int | None, number: str
) -> dict[int, float]:
    """Return a number of one arm minus that of another after `level` rounds, by seed; `dense` is at round 0."""

    def of(arm: str) -> dict[int, float]:
        rounds: dict[str, Value] = {} if level is None else {"round": 0 if arm == DENSE else level}
        return results.by_seed(number, arm, setting=setting, **rounds)

    one, other = of(first), of(second)
    return {seed: one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())}


def _looks(results: StudyResults) -> float:
    """Return the steps between two measurements of LeNet's tuning loss."""
    return max((float(n) for n in results.where(setting=LENET).values_of("every") if n), default=0.0)


def _rounds_of(results: StudyResults, arm: str, setting: str) -> list[int]:
    """Return the rounds of an arm."""
    return [int(n) for n in results.where(arm, setting=setting).values_of("round") if n]


def _share_left(results: StudyResults, level: int, setting: str = LENET) -> float:
    """Return the share of the weights that remain after `level` rounds, in per cent."""
    return next((float(row["left"]) for _, row in results.where(TICKET, setting=setting, round=level)), math.nan)


def plots(results: StudyResults) -> list[Plot]:
    """Plot accuracy, speed and losses of LeNet's arms, and the convolutional network's accuracy by arm and rate."""
    lenet, share = results.where(setting=LENET), "weights left, %"
    arms = (TICKET, AFRESH, RANDOM, ONE_SHOT)
    return [
        Plot(
            title="LeNet-300-100: accuracy where the tuning loss is lowest", x=share, y="test accuracy, %",
            curves=tuple(_over_left(lenet, arm, "test_at_stop") for arm in arms), logarithmic=True,
        ),
        Plot(
            title="LeNet-300-100: when the tuning loss is lowest", x=share, y="step",
            curves=tuple(_over_left(lenet, arm, "stop") for arm in arms), logarithmic=True,
        ),
        Plot(
            title="LeNet-300-100: the tuning loss on the way", x="step", y="cross-entropy",
            curves=tuple(_losses(lenet)),
        ),
        Plot(
            title="Convolutional network: learning rates and rewinding", x=share, y="test accuracy, %",
            curves=tuple(
                _over_left(results.where(setting=setting), arm, "test", name=f"{arm}, {setting}")
                for setting in (LOW, HIGH, WARM_UP)
                for arm in (TICKET, AFRESH, *((LATE, RATE) if setting == HIGH else ()))
            ),
            logarithmic=True,
        ),
    ]  # fmt: skip


def _over_left(results: StudyResults, arm: str, number: str, *, name: str = "") -> PlotLine:
    """Return the curve of a number over the share of remaining weights; tickets begin at the dense network."""
    mine = {**(results.where(DENSE).rows if arm == TICKET else {}), **results.where(arm).rows}
    places: dict[float, list[float]] = {}
    for row in mine.values():
        places.setdefault(round(float(row["left"]), 2), []).append(float(row[number]))
    return PlotLine(name=name or arm, points=tuple(PlotPoint(x=x, values=tuple(v)) for x, v in sorted(places.items())))


def _losses(lenet: StudyResults) -> Iterator[PlotLine]:
    """Yield the curves of the loss during training: the dense network, the smallest ticket and its control."""
    deepest = max(_rounds_of(lenet, AFRESH, LENET), default=0)
    for arm, level in ((DENSE, 0), (TICKET, deepest), (AFRESH, deepest)):
        places: dict[float, list[float]] = {}
        for _, row in lenet.where(arm, round=level):
            for step, loss in row["losses"]:
                places.setdefault(float(step), []).append(float(loss))
        points = tuple(PlotPoint(x=x, values=tuple(v)) for x, v in sorted(places.items()))
        yield PlotLine(name=arm if arm == DENSE else f"{arm}, {_share_left(lenet, level):.1f} %", points=points)
