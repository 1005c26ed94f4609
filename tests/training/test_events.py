"""When channels leave, how many, and what an event costs: against tables and figures made by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import PlanError
from compressor.results.training import Event
from compressor.training.events import Departure, EventSchedule, mean_stability, targeted


def departure(channels: int, *, start: int = 0, end: int = 9, every: int = 1) -> Departure:
    return Departure(root="r", channels=channels, schedule=EventSchedule(start=start, end=end, every=every))


@pytest.mark.parametrize(("every", "events", "share"), [(4, 68, 1.3), (40, 7, 12.9), (300, 1, 90.0)])
def test_the_published_schedules_have_the_published_events(every: int, events: int, share: float) -> None:
    """The last layer of VGG11 loses 90 % from epoch 6 to 275: 68 times 1.3 %, 7 times 12.9 %, or once 90 %."""
    schedule = EventSchedule(start=6, end=275, every=every)
    assert schedule.events == events
    assert round(90 / events, 1) == share
    assert schedule.epochs[0] == 6
    assert schedule.epochs[-1] <= 275


@pytest.mark.parametrize(
    ("channels", "epochs", "expected"),
    [
        (10, range(5), [2, 2, 2, 2, 2]),
        (7, range(3), [2, 2, 3]),  # 7/3 and 14/3 rounded down
        (2, range(5), [0, 0, 1, 0, 1]),  # 0.4, 0.8, 1.2, 1.6, 2
        (5, range(1), [5]),
    ],
)
def test_channels_leave_as_evenly_as_they_divide(channels: int, epochs: range, expected: list[int]) -> None:
    leaving = departure(channels, end=epochs[-1])
    assert [leaving.due(epoch) for epoch in epochs] == expected


@given(st.integers(1, 600), st.integers(0, 20), st.integers(0, 300), st.integers(1, 50))
def test_all_of_them_leave_in_the_end_and_none_at_other_times(channels: int, start: int, more: int, every: int) -> None:
    leaving = departure(channels, start=start, end=start + more, every=every)
    assert sum(leaving.due(epoch) for epoch in range(start + more + 100)) == channels
    assert all(not leaving.due(e) or e in leaving.schedule.epochs for e in range(start + more + 100))


def event(before: int, after: int, **chosen: tuple[int, ...]) -> Event:
    return Event(epoch=3, chosen=chosen or {"r": (1,)}, before=before, after=after, total=100)


def test_instability_is_the_share_of_the_accuracy_that_was_lost() -> None:
    assert event(80, 60).instability == pytest.approx(0.25)
    assert event(80, 84).instability == pytest.approx(-0.05)  # an event may help
    assert event(0, 5).instability is None
    assert mean_stability([event(80, 60), event(50, 50), event(0, 1)]) == pytest.approx(87.5)
    assert mean_stability([]) is None


def test_an_event_reads_back_as_it_was_written() -> None:
    one = event(80, 60, a=(1, 4), b=(0,))
    assert Event.from_json(one.to_json()) == one
    assert targeted([one, event(1, 1, a=(2, 1))]) == {"a": (1, 2, 4), "b": (0,)}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"start": 0, "end": 4, "every": 0}, "events cannot be every 0 epochs"),
        ({"start": 5, "end": 4}, "from epoch 5 to epoch 4"),
        ({"start": -1, "end": 4}, "from epoch -1"),
    ],
)
def test_a_schedule_without_events_is_refused(values: dict[str, int], says: str) -> None:
    with pytest.raises(PlanError, match=says) as caught:
        EventSchedule(**values)
    assert caught.value.hint


def test_nothing_that_leaves_is_refused() -> None:
    with pytest.raises(PlanError, match="no channel leaves `r`: 0"):
        departure(0)
