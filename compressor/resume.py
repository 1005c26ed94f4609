"""What a training run needs to go on after an interruption, and how it is kept: whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data import Data
from compressor.errors import RetrainError
from compressor.files import whole
from compressor.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """What one epoch did: the rate of its last iteration, the mean of its losses, what the tune split says after it."""

    epoch: int
    rate: float
    train_loss: float
    tune_correct: int
    tune_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What makes a run this run: recipe, data, the weights it starts from, and a loss of its own if it has one."""

    recipe: Recipe
    data: Data
    start: str  # sha256 of the weights
    objective: Mapping[str, object] = field(default_factory=dict)  # empty: the cross entropy

    def identity(self) -> dict[str, object]:
        """Plain values that are equal for equal runs."""
        plain: dict[str, object] = {"recipe": self.recipe.to_json(), "data": self.data.to_json(), "weights": self.start}
        return {**plain, "objective": dict(self.objective)} if self.objective else plain


def digest_of(module: nn.Module) -> str:
    """A sha256 over the names and bytes of the module's state."""
    return digest_of_state(module.state_dict())


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """A sha256 over names and bytes of tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(file: Path, module: nn.Module, optimiser: torch.optim.Optimizer, run: Run, history: list[EpochRecord]) -> None:
    """Keep all that the run needs to go on, whole or not at all."""
    state: dict[str, Any] = {
        "run": run.identity(),
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": [dataclasses.asdict(r) for r in history],
    }
    write(state, file)


def write(state: dict[str, Any], file: Path) -> None:
    """Save whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as part:
            torch.save(state, part)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where a disk is full
        raise RetrainError(
            f"cannot write {file}: {error}",
            hint="free some space and repeat the command: it goes on from the last epoch",
        ) from error


def epochs_done(file: Path) -> int:
    """How many epochs the run that is kept in `file` has behind it: none where no file is, or it cannot be read."""
    try:
        return len(torch.load(file, weights_only=True, map_location="cpu")["history"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, IndexError, pickle.UnpicklingError):
        return 0  # `restore_` refuses it


def restore_(file: Path, module: nn.Module, optimiser: torch.optim.Optimizer, run: Run) -> list[EpochRecord]:
    """Put the module and the optimiser back to where the run was, in place: the epochs that are done.

    Refused: a file that is no state, the state of another run (recipe, data or first weights differ).
    """
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
        found = state["run"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, IndexError, pickle.UnpicklingError) as error:
        raise RetrainError(f"{file} is no state of a run", hint="delete it and start again") from error
    expected = run.identity()
    if found != expected:
        other = ", ".join(name for name in {**expected, **found} if found.get(name) != expected.get(name))
        raise RetrainError(
            f"{file} belongs to a run with another {other}", hint="delete it, or repeat the command that made it"
        )
    module.load_state_dict(state["module"])
    optimiser.load_state_dict(state["optimiser"])
    return [EpochRecord(**r) for r in state["history"]]
