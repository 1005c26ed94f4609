"""Saves and restores the state of a training run, so that it can continue after an interruption."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.checkpoint.recipes import Recipe
from compressor.data.splits import Data
from compressor.errors import RetrainError
from compressor.files.atomic import whole
from compressor.files.schema import Form, Misfit, anything, check, count, listed, number, optional, record, table, text
from compressor.results.training import EpochRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The identity of a run: recipe, data, first weights, and the objective if the loss is not the cross entropy."""

    recipe: Recipe
    data: Data
    start: str  # sha256 of the weights
    objective: Mapping[str, object] = field(default_factory=dict)  # empty: the cross entropy

    def identity(self) -> dict[str, object]:
        """Return plain values: equal runs have equal values."""
        plain: dict[str, object] = {"recipe": self.recipe.to_json(), "data": self.data.to_json(), "weights": self.start}
        return {**plain, "objective": dict(self.objective)} if self.objective else plain


def digest_of(module: nn.Module) -> str:
    """Return a sha256 over the names and bytes of the module's state."""
    return digest_of_state(module.state_dict())


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """Return a sha256 over the names and bytes of the tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(file: Path, module: nn.Module, optimiser: torch.optim.Optimizer, run: Run, history: list[EpochRecord]) -> None:
    """Write the run's state to `file`, completely or not at all."""
    state: dict[str, Any] = {
        "run": run.identity(),
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": [record.to_json() for record in history],
    }
    write(state, file)


def write(state: dict[str, Any], file: Path) -> None:
    """Write `state` to `file`, completely or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as part:
            torch.save(state, part)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where a disk is full
        raise RetrainError(
            f"cannot write {file}: {error}",
            hint="free some space and repeat the command: it goes on from the last epoch",
        ) from error


def read_run(file: Path, form: Form) -> dict[str, Any]:
    """Return what `write` wrote to `file`, checked against the form; nothing that could run code is unpickled.

    Refused: another kind of file, a damaged file (torch does not verify checksums).
    """
    hint = "delete it and start again"
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise RetrainError(f"{file} is damaged: its checksums differ", hint=hint)
        state = torch.load(file, weights_only=True, map_location="cpu")
    except BROKEN as error:
        raise RetrainError(f"{file} is no state of a run: {error}", hint=hint) from error
    check(state, form, where=f"{file} is no state of a run", hint=hint, refusal=RetrainError)
    return dict(state)


# the exceptions of zipfile and torch for broken files
BROKEN = (
    OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError,
    AssertionError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


def epochs_done(file: Path) -> int:
    """Return how many epochs the run in `file` has finished: 0 if the file is missing or cannot be read."""
    try:
        return len(read_run(file, STATE)["history"])
    except RetrainError:
        return 0  # `restore_` raises for such a file


def restore_(file: Path, module: nn.Module, optimiser: torch.optim.Optimizer, run: Run) -> list[EpochRecord]:
    """Restore the module and the optimiser in place, and return the records of the finished epochs.

    Refused: a file that is no state, the state of another run (recipe, data or first weights differ).
    """
    state = read_run(file, STATE)
    stored, expected = state["run"], run.identity()
    if stored != expected:
        other = ", ".join(str(name)[:40] for name in {**expected, **stored} if stored.get(name) != expected.get(name))
        raise RetrainError(
            f"{file} belongs to a run with another {other}", hint="delete it, or repeat the command that made it"
        )
    try:
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
    except BROKEN as error:
        raise RetrainError(f"{file} is no state of this run: {error}", hint="delete it and start again") from error
    return [EpochRecord(**r) for r in state["history"]]


def tensors(value: object, place: str) -> None:
    """Raise unless the value is a table of tensors by name."""
    table(tensor)(value, place)


def tensor(value: object, place: str) -> None:
    """Raise unless the value is a tensor."""
    if not isinstance(value, Tensor):
        raise Misfit(place, "a tensor", value)


HISTORY = listed(
    record(
        {"epoch": count(), "rate": number, "train_loss": number, "tune_total": count(1)},
        may={"tune_correct": optional(count()), "tune_score": optional(number), "metric": optional(text)},
    )
)
STATE = record({"run": table(anything), "module": tensors, "optimiser": table(anything), "history": HISTORY})
