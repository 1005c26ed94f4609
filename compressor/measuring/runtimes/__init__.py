"""Runtimes: one file each; the file name is the runtime's name.

A runtime's module says its help in its docstring's first line, what it reads in `READS`, how its peak memory can be
known in `MEMORY`, whether it is prepared once for a whole measurement, because that takes long, in `HELD`, and has

    def unavailable() -> str | None                      # why it cannot be used on this machine
    def prepare(model, inputs, *, threads) -> ...        # a context that holds the network ready, as `Prepared`

and, where it can say how long each operator takes,

    def profile(model, inputs, *, threads, warmup, calls) -> list[NodeTime]

The model stays unchanged: each preparation has weights and inputs of its own. Optional packages are imported inside
these functions.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from compressor.errors import RuntimeUnavailable
from compressor.plugins import help_of, plugin_named, plugin_names

if TYPE_CHECKING:  # naming the runtimes, as `--help` does, must not import torch
    from torch import Tensor, nn


class Reads(StrEnum):
    """What a runtime takes a network as."""

    MODULE = "module"
    ONNX = "onnx"


class Memory(StrEnum):
    """How a runtime's peak memory is known, in words; where it is not, why."""

    PROCESS = "what a fresh process grew by at most, from before it loaded the network"
    DEVICE = "what torch held on the GPU at most, in a fresh process"
    UNKNOWN_COMPILER = "not measured: in one process, the compiler's memory cannot be told from the network's"
    UNKNOWN_DEVICE = "not measured: onnxruntime does not say what it holds on the GPU"

    @property
    def known(self) -> bool:
        """Whether it can be measured at all."""
        return self in (Memory.PROCESS, Memory.DEVICE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A network ready to run: `run()` is one finished forward pass; `provider` is what really runs it, as verified."""

    run: Callable[[], object]
    provider: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTime:
    """An operator of a network as the runtime runs it, in the order of the forward pass, and what each call took.

    `bytes` is what it reads and writes, weights among it.
    """

    name: str
    kind: str
    samples_ns: tuple[int, ...]
    bytes: int = 0
    provider: str = ""

    @property
    def typical_ns(self) -> float:
        """The mean of the middle half: a profiler's microseconds are too coarse for a median."""
        ordered = sorted(self.samples_ns)
        quarter = len(ordered) // 4
        return statistics.fmean(ordered[quarter : len(ordered) - quarter])


class Profile(Protocol):
    """How long each operator takes in `calls` forward passes, after some that do not count."""

    def __call__(
        self, model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int, warmup: int, calls: int
    ) -> list[NodeTime]:
        """The operators in their order; their times do not quite add up to a call's."""
        ...


class Prepare(Protocol):
    """How a runtime makes a network ready; leaving the context gives back what it took, torch's threads included."""

    def __call__(
        self, model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int
    ) -> AbstractContextManager[Prepared]:
        """The network on these inputs, its own copy of both."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A runtime's module as a value."""

    name: str
    help: str
    reads: Reads
    memory: Memory
    held: bool
    unavailable: Callable[[], str | None]
    prepare: Prepare
    profile: Profile | None = None

    def turn(
        self, model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int
    ) -> Callable[[], AbstractContextManager[Callable[[], object]]]:
        """The network as `measuring.turns` takes it: each call makes it ready for a block, and gives it back."""

        @contextmanager
        def ready() -> Iterator[Callable[[], object]]:
            with self.prepare(model, inputs, threads=threads) as prepared:
                yield prepared.run

        return ready


def names() -> tuple[str, ...]:
    """The names of all runtimes, sorted, whether or not they can be used here; nothing of theirs is imported."""
    return plugin_names(__path__)


def load(name: str) -> Runtime:
    """The runtime called `name`; refused where there is none."""
    module = plugin_named(
        name, package=__name__, names=names(), one="runtime", many="runtimes", refusal=RuntimeUnavailable
    )
    return Runtime(
        name=name,
        help=help_of(module),
        reads=module.READS,
        memory=module.MEMORY,
        held=module.HELD,
        unavailable=module.unavailable,
        prepare=module.prepare,
        profile=getattr(module, "profile", None),
    )


def usable(asked: tuple[str, ...] | None = None) -> tuple[Runtime, ...]:
    """The runtimes asked for, each once, or all that can be used here.

    Refused: an unknown name, a runtime that was asked for and is not here: another one never stands in for it.
    """
    if asked is None:
        return tuple(r for r in map(load, names()) if r.unavailable() is None)
    found = tuple(load(name) for name in dict.fromkeys(asked))
    for runtime in found:
        reason = runtime.unavailable()
        if reason is not None:
            here = ", ".join(r.name for r in usable())
            raise RuntimeUnavailable(f"`{runtime.name}` cannot be used here: {reason}", hint=f"usable here: {here}")
    return found
