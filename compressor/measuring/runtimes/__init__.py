"""Runtimes: one file each; the file name is the runtime's name.

The first line of a runtime's docstring is its help text. `READS` is the form of a network that it reads, `MEMORY` how
its peak memory can be measured, `HELD` true if it is prepared once for a whole measurement because that takes long, and
it has

    def unavailable() -> str | None                      # why it cannot be used on this machine
    def prepare(model, inputs, *, threads) -> ...        # a context with the network ready, as `Prepared`

and, if it can report the time of each operator,

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
    """The form of a network that a runtime reads."""

    MODULE = "module"
    ONNX = "onnx"


class Memory(StrEnum):
    """How a runtime's peak memory is measured, in words; or why it is not."""

    PROCESS = "what a fresh process grew by at most, from before it loaded the network"
    DEVICE = "what torch held on the GPU at most, in a fresh process"
    UNKNOWN_COMPILER = "not measured: in one process, the compiler's memory cannot be told from the network's"
    UNKNOWN_DEVICE = "not measured: onnxruntime does not say what it holds on the GPU"

    @property
    def known(self) -> bool:
        """True if it can be measured."""
        return self in (Memory.PROCESS, Memory.DEVICE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A network ready to run: `run()` is one complete forward pass; `provider` is the verified device that runs it."""

    run: Callable[[], object]
    provider: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTime:
    """An operator of a network in the runtime, with the time of each call; in the order of the forward pass.

    `bytes` is what it reads and writes, weights included.
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
    """How long each operator takes in `calls` forward passes, after some uncounted ones."""

    def __call__(
        self, model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int, warmup: int, calls: int
    ) -> list[NodeTime]:
        """Return the operators in their order; their times do not add up exactly to a call's."""
        ...


class Prepare(Protocol):
    """How a runtime prepares a network; leaving the context releases what it used, torch's threads included."""

    def __call__(
        self, model: nn.Module | Path, inputs: tuple[Tensor, ...], *, threads: int
    ) -> AbstractContextManager[Prepared]:
        """Return the network on these inputs, with copies of both."""
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
        """Return the network in the form of `measuring.turns`: each call prepares it for a block, and releases it."""

        @contextmanager
        def ready() -> Iterator[Callable[[], object]]:
            with self.prepare(model, inputs, threads=threads) as prepared:
                yield prepared.run

        return ready


def names() -> tuple[str, ...]:
    """Return the names of all runtimes, sorted, usable here or not, without importing them."""
    return plugin_names(__path__)


def load(name: str) -> Runtime:
    """Return the runtime called `name`. Refused: an unknown name."""
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
    """Return the named runtimes, each once, or all that can be used here.

    Refused: an unknown name, a named runtime that cannot be used here: another one never replaces it.
    """
    if asked is None:
        return tuple(r for r in map(load, names()) if r.unavailable() is None)
    runtimes = tuple(load(name) for name in dict.fromkeys(asked))
    for runtime in runtimes:
        reason = runtime.unavailable()
        if reason is not None:
            here = ", ".join(r.name for r in usable())
            raise RuntimeUnavailable(f"`{runtime.name}` cannot be used here: {reason}", hint=f"usable here: {here}")
    return runtimes
