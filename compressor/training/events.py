"""Pruning events during training: when channels leave, how many each time, and what each event costs in accuracy.

Instability of an event is the share of the accuracy that it takes: (before - after) / before; stability is one less it
(Bartoldson et al. 2020, arXiv:1906.03728, sec. 3). The paper counts on its test split; here it is the tuning split.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSchedule:
    """Events once `start`, `start + every`, ... epochs are over, up to and including `end`.

    The published code has `start` 6, `end` 275, `every` 4 or 40 for its last layer, which makes 68 or 7 events.
    """

    start: int
    end: int
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise PlanError(f"events every {self.every} epochs", hint="at least 1: `--every 1`")
        if not 0 <= self.start <= self.end:
            raise PlanError(
                f"events from epoch {self.start} to epoch {self.end}",
                hint="the first is at 0 or later, the last not before it: `--start 0 --end 4`",
            )

    @property
    def epochs(self) -> range:
        """After how many epochs each event is: before the epoch of that number, counted from 0."""
        return range(self.start, self.end + 1, self.every)

    @property
    def events(self) -> int:
        """How many there are."""
        return len(self.epochs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """How many channels leave the group `root` in all, over the events of a schedule, as evenly as they divide."""

    root: str
    channels: int
    schedule: EventSchedule

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise PlanError(f"{self.channels} channels leave `{self.root}`", hint="ask for more, or leave it out")

    def gone_after(self, event: int) -> int:
        """How many have left once the first `event` events are over: the share of all, rounded down."""
        return self.channels * event // self.schedule.events

    def due(self, epoch: int) -> int:
        """How many leave before `epoch`; 0 where there is no event, or where too few channels are to be had by all."""
        if epoch not in self.schedule.epochs:
            return 0
        event = self.schedule.epochs.index(epoch) + 1
        return self.gone_after(event) - self.gone_after(event - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What one event chose, by the group's root, and the correct answers on the tuning split before and after it."""

    epoch: int
    chosen: Mapping[str, tuple[int, ...]]
    before: int
    after: int
    total: int

    @property
    def instability(self) -> float | None:
        """The share of the accuracy that the event took; negative where it gave some, `None` where there was none."""
        return (self.before - self.after) / self.before if self.before else None

    def to_json(self) -> dict[str, Any]:
        """Plain values; `event_from_json` is the way back."""
        chosen = {root: list(channels) for root, channels in self.chosen.items()}
        return {
            "epoch": self.epoch, "chosen": chosen, "before": self.before, "after": self.after, "total": self.total,
        }  # fmt: skip


def event_from_json(plain: Mapping[str, Any]) -> Event:
    """The event that `to_json` wrote."""
    chosen = {root: tuple(channels) for root, channels in plain["chosen"].items()}
    return Event(
        epoch=plain["epoch"], chosen=chosen, before=plain["before"], after=plain["after"], total=plain["total"]
    )


def mean_stability(events: Iterable[Event]) -> float | None:
    """100 (1 - instability) in per cent, averaged over the events; `None` where there is none to average."""
    known = [i for i in (event.instability for event in events) if i is not None]
    return 100 * (1 - statistics.fmean(known)) if known else None


def targeted(events: Sequence[Event]) -> dict[str, tuple[int, ...]]:
    """Every channel that some event chose, sorted, by the group's root."""
    found: dict[str, set[int]] = {}
    for event in events:
        for root, channels in event.chosen.items():
            found.setdefault(root, set()).update(channels)
    return {root: tuple(sorted(channels)) for root, channels in found.items()}
