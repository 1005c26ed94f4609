"""What `compress retrain --how lottery` does, for library users too: a network in, its winning ticket out.

The ticket is a masked artifact, like one that was pruned to a sparsity and retrained. The search's state is saved after
every round, and within a round after every epoch: an interrupted search continues from there.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compressor.checkpoint.artifact_writing import check_free, write_artifact
from compressor.checkpoint.artifacts import SUFFIX, Artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import How, Recipe, Start
from compressor.data.splits import Data, SplitName
from compressor.errors import PlanError, RetrainError, named
from compressor.files.names import file_name_from
from compressor.files.schema import anything, listed, optional, record, table
from compressor.jobs.retrain import default_folder
from compressor.planning.costs import count
from compressor.pruning.masking import masking_of
from compressor.results.artifact import Results
from compressor.results.training import EpochRecord, LotteryRound, LotterySearch, Retrained
from compressor.surgery.masks import MaskScope, WeightMask
from compressor.training.loop import Callback, iterations_per_epoch
from compressor.training.lottery.tickets import Round, Rounds, find_ticket, rest_of, rounds_with_output
from compressor.training.resume import digest_of, digest_of_state, epochs_done, read_run, tensors, write
from compressor.training.retraining import read_early_state, retrain, starting_module
from compressor.training.watch import StateAt, state_of
from compressor.training.ways import Wishes, recipe_for

LOTTERY = "lottery"
FRESH, TRAINED = "fresh", "trained"  # the values of `--rewind-to` besides a file
ROUNDS = "rounds.state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One search, decided before it starts.

    `early` are the weights to rewind to, in the network's own shapes; without them each round keeps the trained ones
    (learning-rate rewinding). `dense` is the recipe of the first training if the network starts from fresh weights,
    which is then rewound to `step`. `mask` marks what an artifact had removed before.
    """

    checkpoint: Checkpoint
    rounds: Rounds
    recipe: Recipe  # of every round
    early: Mapping[str, Tensor] | None
    dense: Recipe | None
    step: int
    mask: WeightMask | None
    source: Mapping[str, str]
    results: Results | None
    folder: Path
    device: str | None

    @property
    def state_file(self) -> Path:
        """The folder from which an interrupted search continues."""
        return self.folder.with_name(f"{self.folder.name}.partial")


def prepare(
    checkpoint: Checkpoint,
    *,
    artifact: Artifact | None = None,
    rounds: Rounds,
    rewind_to: str | None,
    step: int = 0,
    wishes: Wishes,
    folder: Path | None = None,
    device: str | None = None,
    force: bool = False,
) -> Search:
    """Decide and check everything before the first step; `artifact` is the one that holds the checkpoint, if any.

    `rewind_to` is a file with early weights; or `fresh`: new weights are drawn by the seed and trained first, and
    `step` counts the steps of that training; or `trained`: the weights stay, and the schedule is rewound. Refused: no
    `rewind_to`, because only the user knows the early weights; a step without fresh weights; an existing folder; what
    `recipe_for` refuses.
    """
    mask = None if artifact is None else artifact.mask()
    if folder is None:
        folder = (
            Path(f"{file_name_from(checkpoint.name)}.{LOTTERY}{SUFFIX}")
            if artifact is None
            else default_folder(artifact, LOTTERY)
        )
    check_free(folder, force=force)
    if rewind_to is None:
        raise RetrainError(
            "a ticket is rewound to early weights of its network, and a trained checkpoint does not hold them",
            hint="give them: `--rewind-to FILE`; or train new ones first: `--rewind-to fresh`; or keep the trained "
            "ones and rewind the learning rate alone: `--rewind-to trained`",
        )
    if rewind_to == FRESH and mask is not None:
        raise RetrainError(
            "a masked network cannot start from fresh weights", hint="give the dense network's checkpoint"
        )
    if rewind_to == FRESH and wishes.epochs is not None:
        raise RetrainError(
            "from fresh weights, every round is as long as the dense network's training",
            hint="give its length: `--dense-epochs 12`; `--rewind-step` skips its first steps",
        )
    if step and rewind_to != FRESH:
        raise RetrainError(
            f"`--rewind-step {step}` is a step of the training from fresh weights",
            hint="`--rewind-to fresh`, or name the weights of that step: `--rewind-to FILE`",
        )
    how = How.REWIND_LR if rewind_to == TRAINED else How.REWIND_WEIGHTS
    early, dense = None, None
    if rewind_to == FRESH:
        dense = _recipe(How.SCRATCH_E, checkpoint, wishes)
    elif rewind_to != TRAINED:
        module = starting_module(checkpoint, how, early_state=read_early_state(Path(rewind_to)))
        early = state_of(module)
    recipe = _of_rounds(how, checkpoint, wishes, dense)
    source = checkpoint.source
    return Search(
        checkpoint=checkpoint, rounds=rounds, early=early, dense=dense, step=step, mask=mask, folder=folder,
        recipe=dataclasses.replace(recipe, notes=(_in_words(rounds), *recipe.notes)), device=device,
        source=source if artifact is None else artifact.recipe["source"],
        results=None if artifact is None else artifact.results(),
    )  # fmt: skip


def rounds_for(
    checkpoint: Checkpoint,
    *,
    rounds: int | None = None,
    rate: float | None = None,
    output_rate: float | None = None,
    scope: str | None = None,
) -> Rounds:
    """Return the rounds for a command line's plain values; `None` means the paper's value."""
    where = (
        MaskScope.UNIFORM if scope is None else named(MaskScope, scope, one="scope", many="scopes", refusal=PlanError)
    )
    chosen: dict[str, Any] = {"rounds": rounds, "rate": rate, "output_rate": output_rate}
    values = {name: value for name, value in chosen.items() if value is not None}
    return rounds_with_output(checkpoint.module, checkpoint.example_inputs, scope=where, **values)


def _in_words(rounds: Rounds) -> str:
    """The rounds in words."""
    where = "of all weights left together" if rounds.scope is MaskScope.GLOBAL else "of each layer's weights left"
    others = "".join(f", {rate:.3g} of `{name}`" for name, rate in rounds.rates.items())
    return f"{rounds.rounds} rounds, each removes {rounds.rate:.3g} {where}{others}"


def _recipe(how: How, checkpoint: Checkpoint, wishes: Wishes) -> Recipe:
    """The recipe of a way to retrain the network."""
    cost = count(checkpoint.module, checkpoint.example_inputs)
    return recipe_for(
        how,
        dense_recipe=checkpoint.training,
        dense_cost=cost,
        small_cost=cost,
        wishes=wishes,
        images=checkpoint.reads_images,
    )


def _of_rounds(how: How, checkpoint: Checkpoint, wishes: Wishes, dense: Recipe | None) -> Recipe:
    """The recipe of every round: from fresh weights the whole dense run, which `run` shortens by the steps before
    `step`.
    """
    if dense is not None:
        whole = dense.budget.epochs
        notes = (f"{whole} epochs from fresh weights first, and in every round again", *dense.notes[1:])
        return dataclasses.replace(dense, how=how, start=Start.REWOUND, notes=notes)
    return _recipe(how, checkpoint, wishes)


def run(
    search: Search,
    data: Data,
    *,
    callbacks: tuple[Callback, ...] = (),
    say: Any = None,
    command: str = "",
    force: bool = False,
    trust_pickle: bool = False,
) -> Results:
    """Find the ticket, and write its artifact; return the artifact's results.

    `say` receives every round. The search's state is deleted once the artifact is written. Results of the old weights
    (export, bench, evaluate) are dropped.
    """
    identity = _identity(search, data)
    kept = _kept(search.state_file / ROUNDS, identity)
    if kept is None:
        current, search = _begin(search, data, callbacks)
        mask, history = search.mask, []
    else:
        search = dataclasses.replace(search, early=kept["early"], recipe=_shortened(search, data))
        current = _with_state(search.checkpoint, kept["module"], kept["lineage"])
        mask, history = (
            WeightMask(kept=kept["mask"]),
            [LotteryRound.from_json(one, place="told") for one in kept["told"]],
        )

    def train(ticket: nn.Module, mask: WeightMask) -> nn.Module:
        nonlocal current
        number = len(history) + 1
        step = {"step": "mask", "round": number, **search.rounds.to_json(), **_counts(mask)}
        # the ticket has the small shapes already: there is nothing to cut
        start = dataclasses.replace(current, module=ticket, surgery=None, lineage=(*current.lineage, step))
        retrained = retrain(
            start, data, recipe=search.recipe, callbacks=callbacks, mask=mask, early_state=state_of(ticket),
            state_file=search.state_file / f"round-{number}.state", device=search.device,
        )  # fmt: skip
        current = dataclasses.replace(retrained, surgery=current.surgery)
        return retrained.module

    search_on = find_ticket(
        current.module, rounds=search.rounds, train=train, early=search.early, within=mask, after=len(history)
    )
    for after_round in search_on:
        mask = after_round.mask
        history.append(_round(after_round, current.lineage[-1]))
        state = {
            "identity": identity, "early": search.early, "module": state_of(current.module),
            "told": [one.to_json() for one in history], "mask": dict(mask.kept), "lineage": list(current.lineage),
        }  # fmt: skip
        write(state, search.state_file / ROUNDS)
        (search.state_file / f"round-{after_round.number}.state").unlink(missing_ok=True)
        if say is not None:
            say(history[-1])
    assert mask is not None  # there is at least one round
    return _written(search, current, mask, history, data=data, command=command, force=force, trust_pickle=trust_pickle)


def _begin(search: Search, data: Data, callbacks: tuple[Callback, ...]) -> tuple[Checkpoint, Search]:
    """The trained network that the first round prunes, and the search with its early weights."""
    if search.dense is None:
        return search.checkpoint, search
    state_file = search.state_file / "round-0.state"
    done = epochs_done(state_file) * iterations_per_epoch(len(data.split(SplitName.TRAIN)), search.dense.batch_size)
    early = StateAt(search.step, file=search.state_file / f"early-{search.step}.state", done=done)
    trained = retrain(
        search.checkpoint, data, recipe=search.dense, callbacks=callbacks, after_step=(early,), state_file=state_file,
        device=search.device,
    )  # fmt: skip
    return trained, dataclasses.replace(search, early=early.state, recipe=_shortened(search, data))


def _shortened(search: Search, data: Data) -> Recipe:
    """The rounds' recipe from the rewound step on."""
    return rest_of(search.recipe, step=search.step, images=len(data.split(SplitName.TRAIN)))


def _with_state(checkpoint: Checkpoint, state: Mapping[str, Tensor], lineage: list[dict[str, object]]) -> Checkpoint:
    """The checkpoint with a state and a lineage."""
    module = starting_module(dataclasses.replace(checkpoint, surgery=None), How.REWIND_WEIGHTS, early_state=state)
    return dataclasses.replace(checkpoint, module=module, lineage=tuple(lineage))


def _counts(mask: WeightMask) -> dict[str, Any]:
    return {"sparsity": mask.sparsity, "weights": mask.weights, "zeros": mask.removed}


def _round(after_round: Round, entry: Mapping[str, Any]) -> LotteryRound:
    """The record of a round."""
    last, mask = EpochRecord.from_json(entry["history"][-1], place="history"), after_round.mask
    return LotteryRound(
        round=after_round.number, sparsity=mask.sparsity, weights=mask.weights, zeros=mask.removed,
        train_loss=last.train_loss, tune_correct=last.correct, tune_total=last.tune_total,
    )  # fmt: skip


def _written(
    search: Search,
    ticket: Checkpoint,
    mask: WeightMask,
    history: list[LotteryRound],
    *,
    data: Data,
    command: str,
    force: bool,
    trust_pickle: bool,
) -> Results:
    """Write the artifact with all results."""
    old = Results.of(ticket.name, command) if search.results is None else search.results.without_measurements()
    step = Retrained.from_json(ticket.lineage[-1], place="lineage")
    last = dataclasses.replace(step, notes=search.recipe.notes, command=command)
    results = dataclasses.replace(
        old,
        lottery=LotterySearch(
            rounds=search.rounds.rounds, rate=search.rounds.rate, rates=dict(search.rounds.rates),
            scope=str(search.rounds.scope), rewound_to=_rewound_to(search), rewind_step=search.step, data=data.name,
            epochs=search.recipe.budget.epochs, history=tuple(history), command=command,
        ),
        masking=masking_of(mask, requested=mask.sparsity, scope=search.rounds.scope),
        retrainings=(*old.retrainings, last),
        lineage=tuple(ticket.lineage),
    )  # fmt: skip
    artifact = write_artifact(
        search.folder, ticket, source=search.source, results=results, force=force, trust_pickle=trust_pickle, mask=mask
    )
    shutil.rmtree(search.state_file, ignore_errors=True)
    return artifact.results()


def _rewound_to(search: Search) -> str:
    if search.dense is not None:
        return FRESH
    return TRAINED if search.early is None else "early weights"


def _identity(search: Search, data: Data) -> dict[str, Any]:
    """Plain values that are equal for equal searches."""
    early = "" if search.early is None else digest_of_state(search.early)
    mask = "" if search.mask is None else digest_of_state(search.mask.kept)
    recipes = [search.recipe.to_json(), None if search.dense is None else search.dense.to_json()]
    return {
        "weights": digest_of(search.checkpoint.module), "early weights": early, "mask": mask, "recipe": recipes,
        "rounds": search.rounds.to_json(), "rewinding step": search.step,
        "data": data.to_json(),
    }  # fmt: skip


KEPT = record(
    {
        "identity": table(anything),
        "early": optional(tensors),
        "module": tensors,
        "lineage": listed(table(anything)),
        "mask": tensors,
        "told": listed(table(anything)),
    }
)


def _kept(file: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state after the last complete round; `None` if there is none. Refused: the state of another search."""
    if not file.exists():
        return None
    state = read_run(file, KEPT)
    own = state["identity"]
    if own != identity:
        other = ", ".join(name for name, value in identity.items() if own.get(name) != value)
        raise RetrainError(
            f"{file} belongs to a search with another {other}", hint="delete it, or repeat the command that made it"
        )
    return state
