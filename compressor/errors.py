"""All errors that this package raises for a fault that a user can cause or repair.

CompressError
├── CheckpointError        a file is missing, broken, or not a checkpoint of this architecture
│   └── UntrustedPickle    loading it would run code
├── ArchitectureError      no module could be built from a reference
├── DataError              a data set is missing, unreadable, or lacks what was asked of it
├── GroupError             nothing prunable, or no such layer or group
├── PlanError              a budget, ratio or width that cannot be met
│   └── OutOfReach         even the cheapest widths do not meet the budget
├── SurgeryError           the small network does not agree with the silenced dense one
├── InputError             an input of a size or name that a network, stored as its program, does not take
├── CalibrationError       a criterion or a repair lacks the data it needs
├── RepairError            the small network cannot be followed, or not beside the dense one
├── RetrainError           training cannot start, or its loss is no longer finite
├── ExportError            the ONNX file has other outputs than the network
├── TaskError              a task's loss or score does not fit the network's outputs, or the targets
├── StudyError             no such study, or its folder holds another run's results
├── RuntimeUnavailable     a runtime or device that this machine lacks
├── ArtifactError          an artifact is missing, incomplete, or in the way
├── OutputError            stdout cannot be written to
└── InternalError          a fault of this package's own, to be reported

Each message has the faulty value and what is allowed; its `hint` is what to do next.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable, Mapping
from typing import TypeVar


class CompressError(Exception):
    """An error with a way out: `str(error)` is the fault, `error.hint` what to do."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class CheckpointError(CompressError):
    """A file is missing, broken, or not a checkpoint of this architecture."""


class UntrustedPickle(CheckpointError):
    """Loading the file would run code; `classes` are the names of what it would create."""

    def __init__(self, message: str, *, classes: tuple[str, ...], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.classes = classes


class ArchitectureError(CompressError):
    """No module could be built from an architecture reference."""


class DataError(CompressError):
    """A data set is missing, unreadable, or lacks what was asked of it."""


class GroupError(CompressError):
    """Nothing prunable, or no such layer or group."""


class PlanError(CompressError):
    """A budget, ratio or width that cannot be met."""


class OutOfReach(PlanError):
    """A budget that even the cheapest widths do not meet."""


class SurgeryError(CompressError):
    """The small network does not agree with the silenced dense one."""


class InputError(CompressError, ValueError):
    """An input has a size or a name that a network, stored as its exported program, does not take."""


class CalibrationError(CompressError):
    """A criterion or a repair lacks the data it needs."""


class RepairError(CompressError):
    """The small network cannot be followed step by step, or not beside the dense one."""


class RetrainError(CompressError):
    """Training cannot start, or its loss is no longer finite."""


class ExportError(CompressError):
    """The ONNX file has other outputs than the network."""


class TaskError(CompressError):
    """A task's loss or score does not fit the network's outputs, or the targets."""


class StudyError(CompressError):
    """No such study, or its folder holds the results of another run."""


class RuntimeUnavailable(CompressError):
    """A runtime or device that this machine lacks."""


class ArtifactError(CompressError):
    """An artifact is missing, incomplete, or in the way."""


class OutputError(CompressError):
    """Stdout cannot be written to; `closed` if it is a pipe without a reader."""

    def __init__(self, message: str, *, hint: str | None = None, closed: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.closed = closed


class InternalError(CompressError):
    """A fault of this package itself, which a user can neither cause nor repair."""

    def __init__(self, message: str) -> None:
        super().__init__(
            f"internal error: {message}", hint="this is a fault of `compress`: please report it with the network's code"
        )


E = TypeVar("E", bound=enum.StrEnum)
T = TypeVar("T")


def named(kind: type[E], name: str, *, one: str, many: str, refusal: type[CompressError]) -> E:
    """Return the member of `kind` called `name`; raise `refusal` if there is none: `there is no ONE called ...`."""
    try:
        return kind(name)
    except ValueError:
        raise refusal(f"there is no {one} called `{name}`", hint=unknown(many, name, list(kind))) from None


def only_one(options: Mapping[str, T | None], *, kind: str, refusal: type[CompressError], hint: str) -> tuple[str, T]:
    """Return the name and value of the one option that is set; raise `refusal` if none or several are."""
    values = [(name, value) for name, value in options.items() if value is not None]
    if len(values) != 1:
        what = f"several {kind}s: {', '.join(name for name, _ in values)}" if values else f"no {kind}"
        raise refusal(f"{what} given", hint=hint)
    return values[0]


def unknown(kind: str, name: str, candidates: Iterable[str]) -> str:
    """Return the hint for a misspelt name: the nearest known name, else all of them."""
    names = sorted(candidates)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean `{near[0]}`?" if near else f"known {kind}: {', '.join(names)}"
