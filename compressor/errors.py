"""Everything that this package raises for something a user can cause or mend.

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
├── ExportError            the ONNX file does not say what the network says
├── StudyError             no such study, or its folder holds another run's results
├── RuntimeUnavailable     a runtime or device that is not here
├── ArtifactError          an artifact is missing, incomplete, or in the way
├── OutputError            stdout takes no more
└── InternalError          a fault of this package's own, to be reported

Each carries what was found, what is allowed, and a `hint`: what to do next.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from typing import TypeVar


class CompressError(Exception):
    """An error with a way out: `str(error)` says what is wrong, `error.hint` what to do."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class CheckpointError(CompressError):
    """A file is missing, broken, or not a checkpoint of this architecture."""


class UntrustedPickle(CheckpointError):
    """Loading the file would run code; `classes` names what it wants to build."""

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
    """The ONNX file does not say what the network says."""


class StudyError(CompressError):
    """No such study, or its folder holds the results of another run."""


class RuntimeUnavailable(CompressError):
    """A runtime or device that is not here."""


class ArtifactError(CompressError):
    """An artifact is missing, incomplete, or in the way."""


class OutputError(CompressError):
    """Stdout takes no more; `closed` where it is a pipe that nobody reads any longer."""

    def __init__(self, message: str, *, hint: str | None = None, closed: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.closed = closed


class InternalError(CompressError):
    """A fault of this package's own: nothing that a user can cause or mend, and no reason for anything."""

    def __init__(self, message: str) -> None:
        super().__init__(
            f"internal error: {message}", hint="this is a fault of `compress`: please report it with the network's code"
        )


E = TypeVar("E", bound=enum.StrEnum)


def named(kind: type[E], name: str, *, one: str, many: str, refusal: type[CompressError]) -> E:
    """The member of `kind` called `name`; refused by `refusal` where there is none: `there is no ONE called ...`."""
    try:
        return kind(name)
    except ValueError:
        raise refusal(f"there is no {one} called `{name}`", hint=unknown(many, name, list(kind))) from None


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The hint for a misspelt name: the nearest known one, else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean `{near[0]}`?" if near else f"known {kind}: {', '.join(names)}"
