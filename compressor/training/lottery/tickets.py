"""Lottery tickets: rounds of pruning by magnitude and rewinding (Frankle & Carbin 2019, arXiv:1803.03635).

A ticket is a mask together with weights that its network had early: at initialisation, or after k steps (late
rewinding, Frankle et al. 2020, arXiv:1912.05671). Learning-rate rewinding (Renda et al. 2020, arXiv:2003.02389) keeps
the trained weights and repeats the schedule alone. Two controls say what a ticket's parts are worth: the mask with
weights drawn afresh, and the early weights with a mask that is random.

    for found in find_ticket(trained, rounds=Rounds(rounds=5), early=early, train=train_masked):
        print(found.number, found.mask.sparsity)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compressor.chance import generator
from compressor.checkpoint.recipes import How, Recipe, Step
from compressor.errors import PlanError, RetrainError
from compressor.graph.copies import copy_of
from compressor.graph.lent import last_to_run
from compressor.surgery.masks import Masker, MaskScope, WeightMask, apply_mask_, magnitude_round, maskable
from compressor.surgery.surgery import put_state_
from compressor.training.loop import iterations_per_epoch
from compressor.training.retraining import starting_module

if TYPE_CHECKING:
    from compressor.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How many rounds, what share of the remaining weights leaves in each, and where the weights compete.

    `rates` holds other rates by globs of layers, as `magnitude_round` takes them.
    """

    rounds: int = 5
    rate: float = 0.2  # a layer's, as in the paper
    rates: Mapping[str, float] = field(default_factory=dict)
    scope: MaskScope = MaskScope.UNIFORM

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise PlanError(f"{self.rounds} rounds", hint="one-shot is `--rounds 1`")

    def next_mask(self, trained: nn.Module, *, within: WeightMask | None = None) -> WeightMask:
        """The mask after one more round, nested in `within`; refused as by `magnitude_round`."""
        return magnitude_round(trained, rate=self.rate, rates=self.rates, scope=self.scope, within=within)

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {"rounds": self.rounds, "rate": self.rate, "rates": dict(self.rates), "scope": str(self.scope)}


def rounds_with_output(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    rounds: int = 5,
    rate: float = 0.2,
    output_rate: float | None = None,
    scope: MaskScope = MaskScope.UNIFORM,
) -> Rounds:
    """Rounds that prune the output layer at a rate of its own.

    That is half of the others' where nobody says (Frankle & Carbin 2019, fig. 2), and none where all compete globally.
    """
    own = output_rate if output_rate is not None else 0.0 if scope is MaskScope.GLOBAL else rate / 2
    return Rounds(rounds=rounds, rate=rate, rates={output_weight(module, example_inputs): own}, scope=scope)


def output_weight(module: nn.Module, example_inputs: Sequence[Tensor]) -> str:
    """The name of the weight that a forward pass uses last (a classifier's output layer); the module stays as is."""
    weights = maskable(module)
    by_layer = {name.rpartition(".")[0]: name for name in weights}
    last = last_to_run(module, by_layer, example_inputs)
    return list(weights)[-1] if last is None else by_layer[last]


def rewound(module: nn.Module, early: Mapping[str, Tensor], mask: WeightMask) -> nn.Module:
    """The ticket: a copy of `module` with the state `early`, and zeros where `mask` has removed a weight."""
    ticket = copy_of(module)
    put_state_(ticket, early)
    return apply_mask_(ticket, mask)


def rest_of(recipe: Recipe, *, step: int, images: int) -> Recipe:
    """What is left of a run on so many images after `step` steps, in whole epochs, the begun one among them.

    It ends as the whole run does, with the same last rates. Refused: a step with nothing behind it.
    """
    whole, per_epoch = recipe.budget.epochs, iterations_per_epoch(images, recipe.batch_size)
    left = whole - step // per_epoch
    if left < 1:
        raise RetrainError(
            f"the dense run has {whole * per_epoch} steps: none is left after {step}",
            hint="rewind to an earlier step: `--rewind-step`",
        )
    if left == whole:
        return recipe
    schedule = dataclasses.replace(recipe.schedule, skipped=1 - (1 - recipe.schedule.skipped) * left / whole)
    return dataclasses.replace(recipe, budget=Step(epochs=left), schedule=schedule)


def redrawn(checkpoint: Checkpoint, mask: WeightMask, *, seed: int) -> nn.Module:
    """The control without the early weights: each layer's own initialisation drawn by `seed`, masked."""
    return apply_mask_(starting_module(checkpoint, How.SCRATCH_E, seed=seed), mask)


def shuffled(mask: WeightMask, *, seed: int) -> WeightMask:
    """The control without the mask's structure: as many weights stay in every tensor, in places drawn by `seed`."""
    drawing = generator(seed, "shuffled mask")
    return WeightMask(
        kept={
            name: kept.flatten()[torch.randperm(kept.numel(), generator=drawing)].view(kept.shape)
            for name, kept in mask.kept.items()
        }
    )


class Keeping:
    """For `after_step` of `training.loop.train`: what `mask` has removed stays zero in every forward pass."""

    def __init__(self, mask: WeightMask) -> None:
        self.mask = mask
        self._made: tuple[nn.Module, Masker] | None = None

    def __call__(self, module: nn.Module) -> None:
        """Zero it again."""
        if self._made is None or self._made[0] is not module:
            self._made = module, Masker(module, self.mask)
        self._made[1]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round: its number, from 1; the mask that it pruned to; the network as it was trained then."""

    number: int
    mask: WeightMask
    trained: nn.Module


def find_ticket(
    trained: nn.Module,
    *,
    rounds: Rounds,
    train: Callable[[nn.Module, WeightMask], nn.Module],
    early: Mapping[str, Tensor] | None = None,
    within: WeightMask | None = None,
    after: int = 0,
) -> Iterator[Round]:
    """Prune, rewind, train; prune what came out; and so on. Each round's mask is nested in the one before.

    The first round judges the weights of `trained`. `train` gets the ticket (weights of `early`, or with learning-rate
    rewinding, without `early`, those that survive) and the mask that it has to keep, and gives the trained network;
    what it got stays as it was. A search that was stopped goes on with the last round's network and mask and its number
    as `after`.
    """
    mask = within
    for number in range(after + 1, rounds.rounds + 1):
        mask = rounds.next_mask(trained, within=mask)
        start = rewound(trained, trained.state_dict() if early is None else early, mask)
        trained = train(start, mask)
        yield Round(number=number, mask=mask, trained=trained)
