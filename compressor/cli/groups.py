"""Options that travel together are one frozen value: a group. A command takes groups, and Typer sees their options.

A group is a frozen dataclass. Each field is an option, and the class names the help panel in which they are listed.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Protocol, get_args, get_type_hints


class Panel(StrEnum):
    """The help panels, under which `--help` lists the options of every command."""

    BUDGET = "Budget: give one"
    CHANNELS = "Channels"
    LATENCY = "Latency"
    REPAIR = "Repair"
    MASKS = "Masks: with --sparsity"
    WHILE_TRAINING = "While training: with --while-training"
    TRAINING = "Training"
    WAYS = "Ways: with one --how only"
    LOTTERY = "Lottery: with --how lottery"
    TEACHER = "Teacher"
    LAYERS = "Layers"
    INTEGERS = "Integers"
    MEASURING = "Measuring"
    ELSEWHERE = "Another machine"
    DATA = "Data"
    NETWORK = "Network"
    RUN = "Run"
    OUTPUT = "Output"


class Group(Protocol):
    """A frozen dataclass whose fields are options, all listed in one panel."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    panel: ClassVar[Panel]


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a parameter for every option of its groups, as Typer reads it."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Group]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if dataclasses.is_dataclass(hint):
            groups[parameter.name] = hint  # type: ignore[assignment]  # a class, and mypy sees a value or a class
            parameters += _parameters_of(hint)
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        grouped = {
            name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        command(**values, **grouped)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what `inspect` looks for
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def changed(group: Group, *names: str) -> dict[str, bool]:
    """Which options of the group differ from their default, by the name that a user types: those named, or all."""
    hints = get_type_hints(type(group), include_extras=True)
    fields = {_typed(field.name, hints[field.name]): field for field in dataclasses.fields(group)}
    return {n: getattr(group, fields[n].name) not in (fields[n].default, []) for n in names or fields}


def _parameters_of(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        annotation = _listed(hints[field.name], group.panel)
        yield inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _listed(hint: Any, panel: Panel) -> Any:
    """The option's annotation, with the panel of its group unless the option names one."""
    kind, info = get_args(hint)
    info = copy.copy(info)
    info.rich_help_panel = info.rich_help_panel or panel
    return Annotated[kind, info]


def _typed(name: str, hint: Any) -> str:
    """The option's name on the command line."""
    _, info = get_args(hint)
    named = [text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str)]
    return named[0].partition("/")[0] if named else f"--{name.replace('_', '-')}"
