"""Pruning events during training: when channels leave, how many at each event, and the accuracy that each event costs.

The instability of an event is its relative loss of accuracy, (before - after) / before; stability is 1 - instability
(Bartoldson et al. 2020, arXiv:1906.03728, sec. 3). The paper measures on its test split; here it is the tuning split.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compressor.errors import PlanError
from compressor.results.training import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSchedule:
    """Events after `start`, `start + every`, ... epochs, up to and including `end`.

    The published code uses `start` 6, `end` 275, and `every` 4, or 40 for its last layer: 68 or 7 events.
    """

    start: int
    end: int
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise PlanError(f"events cannot be every {self.every} epochs", hint="at least 1: `--every 1`")
        if not 0 <= self.start <= self.end:
            raise PlanError(
                f"events cannot be from epoch {self.start} to epoch {self.end}",
                hint="the first is at 0 or later, and not after the last: `--start 0 --end 4`",
            )

    @property
    def epochs(self) -> range:
        """The numbers of the epochs, counted from 0, before which an event takes place."""
        return range(self.start, self.end + 1, self.every)

    @property
    def events(self) -> int:
        """The number of events."""
        return len(self.epochs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """The number of channels that leave the group `root`, spread as evenly as possible over a schedule's events."""

    root: str
    channels: int
    schedule: EventSchedule

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise PlanError(f"no channel leaves `{self.root}`: {self.channels}", hint="remove more, or omit the group")

    def gone_after(self, event: int) -> int:
        """Return how many channels have left after the first `event` events: their share of all, rounded down."""
        return self.channels * event // self.schedule.events

    def due(self, epoch: int) -> int:
        """Return how many channels leave before `epoch`; 0 without an event, or with fewer channels than events."""
        if epoch not in self.schedule.epochs:
            return 0
        event = self.schedule.epochs.index(epoch) + 1
        return self.gone_after(event) - self.gone_after(event - 1)


def mean_stability(events: Iterable[Event]) -> float | None:
    """Return 100 (1 - instability) in per cent, averaged over the events; `None` if no event has an instability."""
    instabilities = [i for i in (event.instability for event in events) if i is not None]
    return 100 * (1 - statistics.fmean(instabilities)) if instabilities else None


def targeted(events: Sequence[Event]) -> dict[str, tuple[int, ...]]:
    """Return all channels that an event chose, sorted, by group root."""
    by_root: dict[str, set[int]] = {}
    for event in events:
        for root, channels in event.chosen.items():
            by_root.setdefault(root, set()).update(channels)
    return {root: tuple(sorted(channels)) for root, channels in by_root.items()}
