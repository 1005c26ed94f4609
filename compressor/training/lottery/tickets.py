"""Lottery tickets: rounds of pruning by magnitude and rewinding (Frankle & Carbin 2019, arXiv:1803.03635).

A ticket is a mask and the early weights of its network: at initialisation, or after k steps (late rewinding, Frankle et
al. 2020, arXiv:1912.05671). Learning-rate rewinding (Renda et al. 2020, arXiv:2003.02389) keeps the trained weights and
repeats the schedule alone. Two controls show the value of a ticket's parts: the mask with fresh weights, and the early
weights with a random mask.

    for ticket in find_ticket(trained, rounds=Rounds(rounds=5), early=early, train=train_masked):
        print(ticket.number, ticket.mask.sparsity)
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
    """The number of rounds, the share of the remaining weights that each removes, and the scope of the ranking.

    `rates` holds other rates by globs of layers, in the form of `magnitude_round`.
    """

    rounds: int = 5
    rate: float = 0.2  # of each layer, as in the paper
    rates: Mapping[str, float] = field(default_factory=dict)
    scope: MaskScope = MaskScope.UNIFORM

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise PlanError(f"the number of rounds is {self.rounds}", hint="one-shot pruning is `--rounds 1`")

    def next_mask(self, trained: nn.Module, *, within: WeightMask | None = None) -> WeightMask:
        """Return the mask after one more round, nested in `within`; refused: what `magnitude_round` refuses."""
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
    """Return rounds that prune the output layer at a rate of its own.

    By default this is half of the other layers' rate (Frankle & Carbin 2019, fig. 2), and 0 with the global scope.
    """
    own = output_rate if output_rate is not None else 0.0 if scope is MaskScope.GLOBAL else rate / 2
    return Rounds(rounds=rounds, rate=rate, rates={output_weight(module, example_inputs): own}, scope=scope)


def output_weight(module: nn.Module, example_inputs: Sequence[Tensor]) -> str:
    """Return the name of the weight that a forward pass uses last: that of a classifier's output layer."""
    weights = maskable(module)
    by_layer = {name.rpartition(".")[0]: name for name in weights}
    last = last_to_run(module, by_layer, example_inputs)
    return list(weights)[-1] if last is None else by_layer[last]


def rewound(module: nn.Module, early: Mapping[str, Tensor], mask: WeightMask) -> nn.Module:
    """Return the ticket: a copy of `module` with the state `early`, and zeros where `mask` removed a weight."""
    ticket = copy_of(module)
    put_state_(ticket, early)
    return apply_mask_(ticket, mask)


def rest_of(recipe: Recipe, *, step: int, images: int) -> Recipe:
    """Return the recipe for the rest of a run on `images` images after `step` steps, in whole epochs.

    An epoch that `step` has begun is repeated whole. The schedule ends with the same rates as the whole run's. Refused:
    a step at or after the end.
    """
    whole, per_epoch = recipe.budget.epochs, iterations_per_epoch(images, recipe.batch_size)
    remaining = whole - step // per_epoch
    if remaining < 1:
        raise RetrainError(
            f"the dense run has {whole * per_epoch} steps: none remains after {step}",
            hint="rewind to an earlier step: `--rewind-step`",
        )
    if remaining == whole:
        return recipe
    schedule = dataclasses.replace(recipe.schedule, skipped=1 - (1 - recipe.schedule.skipped) * remaining / whole)
    return dataclasses.replace(recipe, budget=Step(epochs=remaining), schedule=schedule)


def redrawn(checkpoint: Checkpoint, mask: WeightMask, *, seed: int) -> nn.Module:
    """Return the control without early weights: fresh weights by each layer's initialisation and `seed`, masked."""
    return apply_mask_(starting_module(checkpoint, How.SCRATCH_E, seed=seed), mask)


def shuffled(mask: WeightMask, *, seed: int) -> WeightMask:
    """Return the control without the mask's structure: the same density per tensor, at positions drawn by `seed`."""
    drawing = generator(seed, "shuffled mask")
    return WeightMask(
        kept={
            name: kept.flatten()[torch.randperm(kept.numel(), generator=drawing)].view(kept.shape)
            for name, kept in mask.kept.items()
        }
    )


class Keeping:
    """Keeps the weights that `mask` removed at zero; for `after_step` of `training.loop.train`."""

    def __init__(self, mask: WeightMask) -> None:
        self.mask = mask
        self._masker: tuple[nn.Module, Masker] | None = None

    def __call__(self, module: nn.Module) -> None:
        """Set the removed weights to zero again."""
        if self._masker is None or self._masker[0] is not module:
            self._masker = module, Masker(module, self.mask)
        self._masker[1]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round: its number, from 1, its mask, and the network trained with this mask."""

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
    """Prune, rewind and train in rounds, and yield each round; its mask is nested in the mask of the round before.

    The first round ranks the weights of `trained`, each later one those of the network trained last. `train` takes the
    ticket and its mask, keeps the mask, and returns the trained network; it must not modify the ticket. The ticket has
    the weights of `early`, or without `early` (learning-rate rewinding) the surviving trained ones. To continue an
    interrupted search, give the last round's network, its mask as `within` and its number as `after`.
    """
    mask = within
    for number in range(after + 1, rounds.rounds + 1):
        mask = rounds.next_mask(trained, within=mask)
        start = rewound(trained, trained.state_dict() if early is None else early, mask)
        trained = train(start, mask)
        yield Round(number=number, mask=mask, trained=trained)
