"""How a network is called: which inputs it takes by position, and which of its outputs matter.

A network of several optional inputs (`input_ids`, `attention_mask`, `labels` …) takes those that are set as its only
positional ones, and returns the outputs that were named. By keywords it is called as its own class defines it, so it
still fits a trainer of its framework.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from compressor.errors import CheckpointError

OWN = "_class_of_the_network"  # on the class that `calling_` puts in a network's own class's place


def calling_(module: nn.Module, *, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> nn.Module:
    """Let the module itself take `inputs` by position, in this order, and return only `outputs`; return the module.

    Without `inputs` its forward keeps its own, without `outputs` it returns all. The class that it gets has the name
    of its own class and is a subclass of it. Refused: a forward that is none of the class's own.
    """
    own_class_(module)
    kind = type(module)
    inputs = () if _fits(kind, inputs) else inputs
    if not outputs and not inputs:
        return module
    if "forward" in vars(module):
        raise CheckpointError(
            f"the forward of a `{kind.__name__}` was replaced on the network itself", hint="write it in the class"
        )
    chosen = {"forward": _forward_of(kind, tuple(inputs), tuple(outputs)), OWN: kind, "__module__": kind.__module__}
    metaclass: Any = type(kind)
    called = metaclass(kind.__name__, (kind,), {**chosen, "__qualname__": kind.__qualname__})
    object.__setattr__(module, "__class__", called)
    return module


def own_class_(module: nn.Module) -> nn.Module:
    """Give the module itself its own class back, which it had before `calling_`; return the module."""
    own = vars(type(module)).get(OWN)
    if own is not None:
        object.__setattr__(module, "__class__", own)
    return module


def _fits(kind: type[nn.Module], inputs: Sequence[str]) -> bool:
    """True if the forward takes these names by position as it is, or has none such: `*inputs`, say."""
    names = list(inspect.signature(kind.forward).parameters)[1:]
    return names[: len(inputs)] == list(inputs) or not set(inputs) <= set(names)


def _forward_of(kind: type[nn.Module], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    """The forward of the narrower class."""

    def forward(self: nn.Module, *values: Any, **named: Any) -> Any:
        if not values:
            return kind.forward(self, **named)
        by_name = dict(zip(inputs, values, strict=False))
        answer = kind.forward(self, *values[len(inputs) :], **by_name, **named)
        return kept(answer, outputs) if outputs else answer

    own = inspect.signature(kind.forward)
    if inputs:
        names = [name for name in own.parameters if name not in inputs][1:]
        first = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in inputs]
        rest = [
            own.parameters[name].replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name in names
            if own.parameters[name].kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        ]
        self_parameter = next(iter(own.parameters.values()))
        own = inspect.Signature([self_parameter, *first, *rest])
    forward.__signature__ = own  # type: ignore[attr-defined]  # what `inspect.signature` reads
    return forward


def kept(answer: Any, outputs: Sequence[str]) -> Any:
    """Return the outputs of these names: a dict by name, or a tuple by number. Refused: a name that is not there.

    `vision.pooled` is the part `pooled` of the part `vision`.
    """
    parts = {name: _part(answer, name) for name in outputs}
    return tuple(parts.values()) if all(name.isdecimal() for name in outputs) else parts


def _part(answer: Any, name: str) -> Any:
    """The part of the answer by its dotted name."""
    part = answer
    for step in name.split("."):
        parts = _parts(part)
        if parts.get(step) is None:
            there = [key for key, value in parts.items() if value is not None]
            raise CheckpointError(
                f"the network has no output `{name}`",
                hint=f"it has {', '.join(f'`{key}`' for key in there)}" if there else "it returns a single tensor",
            )
        part = parts[step]
    return part


def _parts(answer: Any) -> dict[str, Any]:
    """The parts of one level, by name or number."""
    if isinstance(answer, Mapping):
        return {str(key): value for key, value in answer.items()}
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    if isinstance(answer, tuple) and hasattr(answer, "_fields"):
        return dict(zip(answer._fields, answer, strict=True))
    if isinstance(answer, (tuple, list)):
        return {str(number): value for number, value in enumerate(answer)}
    return {}
