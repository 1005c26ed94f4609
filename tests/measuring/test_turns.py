from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.environment import cores
from compressor.measuring.machine import Conditions, Ticks, conditions, ticks
from compressor.measuring.turns import (
    CONFIDENCE,
    MIN_BLOCKS,
    Call,
    CaveatKind,
    Measurement,
    Turn,
    caveats_of,
    caveats_of_machine,
    held,
    median_interval,
    pace,
    speedup,
    take_turns,
)
from compressor.results.timing import Speedup


class FakeMachine:
    """A clock that only moves when a candidate runs, on a machine whose speed drifts and which others disturb."""

    def __init__(self, seed: int = 0, *, noise: float = 0.0, drift: float = 0.0, bursts: float = 0.0) -> None:
        self.now, self.calls = 0, 0
        self.noise, self.drift, self.bursts = noise, drift, bursts
        self.draw = random.Random(seed)

    def clock(self) -> int:
        return self.now

    def candidate(self, latency_ns: float, *, cold: float = 1.0, luck: float = 0.0) -> Turn:
        """Takes so long, `cold` times as long in the first two calls of a block, and is `luck`ier in some blocks."""

        @contextlib.contextmanager
        def turn() -> Iterator[Call]:
            done = 0
            own = math.exp(self.draw.gauss(0, luck))

            def call() -> None:
                nonlocal done
                slow = cold if done < 2 else 1.0
                done += 1
                self.calls += 1
                burst = 3.0 if self.draw.random() < self.bursts else 1.0
                wave = 1 + self.drift * math.sin(self.calls / 500)
                self.now += round(latency_ns * slow * own * burst * wave * math.exp(self.draw.gauss(0, self.noise)))

            yield call

        return turn


def measurement(blocks: list[list[int]], *, batch_size: int = 1) -> Measurement:
    return Measurement(name="it", batch_size=batch_size, samples_ns=tuple(map(tuple, blocks)))


class TestTurns:
    def test_a_clock_without_noise_gives_the_exact_ratio(self) -> None:
        machine = FakeMachine()
        found = take_turns(
            {"dense": machine.candidate(2_000_000), "small": machine.candidate(500_000)},
            blocks=8,
            calls_per_block=5,
            warmup=2,
            clock=machine.clock,
        )
        assert found["dense"].median_ms == 2.0
        assert speedup(found["dense"], found["small"]).to_json() == pytest.approx({"ratio": 4, "low": 4, "high": 4})

    def test_cold_calls_are_not_counted(self) -> None:
        machine = FakeMachine()
        found = take_turns(
            {"a": machine.candidate(1000, cold=50), "b": machine.candidate(1000)},
            blocks=8,
            calls_per_block=3,
            warmup=2,
            clock=machine.clock,
        )
        assert {sample for block in found["a"].samples_ns for sample in block} == {1000}

    def test_every_sample_is_kept(self) -> None:
        machine = FakeMachine(noise=0.1)
        found = take_turns({"a": machine.candidate(1000)}, blocks=9, calls_per_block=7, warmup=1, clock=machine.clock)
        assert [len(block) for block in found["a"].samples_ns] == [7] * 9

    def test_each_block_is_prepared_on_its_own_and_given_back_before_the_next(self) -> None:
        log: list[str] = []

        def candidate(name: str) -> Turn:
            @contextlib.contextmanager
            def turn() -> Iterator[Call]:
                log.append(f"open {name}")
                yield lambda: None
                log.append(f"close {name}")

            return turn

        take_turns({"a": candidate("a"), "b": candidate("b")}, blocks=3, calls_per_block=1, warmup=0)
        assert all(after == before.replace("open", "close") for before, after in zip(log[::2], log[1::2], strict=True))
        assert sorted(log) == sorted(["open a", "close a", "open b", "close b"] * 3)

    def test_what_a_candidate_holds_is_gone_when_its_block_ends(self) -> None:
        class Session:
            alive = 0

            def __init__(self) -> None:
                Session.alive += 1
                self.neighbours = Session.alive - 1

            def __del__(self) -> None:
                Session.alive -= 1

            def __call__(self) -> None:
                assert self.neighbours == 0

        @contextlib.contextmanager
        def turn() -> Iterator[Call]:
            yield Session()

        take_turns({"a": turn, "b": turn}, blocks=3, calls_per_block=1, warmup=0)
        assert Session.alive == 0

    def test_the_order_is_drawn_anew_for_each_round_and_by_the_seed(self) -> None:
        def orders(seed: int) -> list[tuple[str, ...]]:
            ran: list[str] = []
            candidates: dict[str, Turn] = {name: held(lambda name=name: ran.append(name)) for name in "abc"}
            take_turns(candidates, blocks=20, calls_per_block=1, warmup=0, seed=seed)
            return list(zip(ran[::3], ran[1::3], ran[2::3], strict=True))

        assert all(sorted(order) == ["a", "b", "c"] for order in orders(0))
        assert len(set(orders(0))) > 3
        assert orders(0) == orders(0) != orders(1)

    def test_the_garbage_collector_waits_and_is_let_go_again(self) -> None:
        seen: list[bool] = []
        take_turns({"a": held(lambda: seen.append(gc.isenabled()))}, blocks=1, calls_per_block=2, warmup=0)
        assert seen == [False, False]
        assert gc.isenabled()

    def test_the_garbage_collector_is_let_go_when_a_candidate_breaks(self) -> None:
        def broken() -> None:
            raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"):
            take_turns({"a": held(broken)}, blocks=1, calls_per_block=1, warmup=0)
        assert gc.isenabled()

    @pytest.mark.parametrize("wrong", [{"blocks": 0}, {"calls_per_block": 0}, {"warmup": -1}])
    def test_no_block_and_no_call_are_refused(self, wrong: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="needs a candidate"):
            take_turns({"a": held(lambda: None)}, **({"blocks": 1, "calls_per_block": 1, "warmup": 0} | wrong))


def share_of(simulations: int, holds: Callable[[int], bool]) -> float:
    return sum(map(holds, range(simulations))) / simulations


MACHINES = {
    "quiet": {"noise": 0.01},
    "noisy": {"noise": 0.1, "drift": 0.3},
    "shared": {"noise": 0.05, "drift": 0.2, "bursts": 0.2},
}


@pytest.mark.parametrize("kind", MACHINES)
@pytest.mark.parametrize("blocks", [8, 13, 30])
def test_dense_against_itself_holds_one_in_its_interval(kind: str, blocks: int) -> None:
    """The null check, 200 times: at 99 % it may fail twice; fewer than 193 would mean a biased or boastful harness."""

    def holds(seed: int) -> bool:
        machine = FakeMachine(seed, **MACHINES[kind])
        candidates = {name: machine.candidate(1_000_000, luck=0.02) for name in ("dense", "dense again", "other")}
        found = take_turns(candidates, blocks=blocks, calls_per_block=3, warmup=1, clock=machine.clock, seed=seed)
        return not speedup(found["dense"], found["dense again"]).resolved

    assert share_of(200, holds) >= 0.965


@pytest.mark.parametrize("kind", MACHINES)
def test_the_interval_holds_the_true_ratio(kind: str) -> None:
    def holds(seed: int) -> bool:
        machine = FakeMachine(seed, **MACHINES[kind])
        candidates = {"dense": machine.candidate(2_300_000), "small": machine.candidate(1_000_000)}
        found = take_turns(candidates, blocks=20, calls_per_block=3, warmup=1, clock=machine.clock, seed=seed)
        answer = speedup(found["dense"], found["small"])
        return answer.low <= 2.3 <= answer.high

    assert share_of(200, holds) >= 0.965


def test_a_difference_of_five_per_cent_is_resolved_on_a_quiet_machine() -> None:
    machine = FakeMachine(3, noise=0.02)
    candidates = {"dense": machine.candidate(1_050_000), "small": machine.candidate(1_000_000)}
    found = take_turns(candidates, blocks=30, calls_per_block=20, warmup=1, clock=machine.clock)
    assert speedup(found["dense"], found["small"]).resolved


def test_luck_that_stays_with_a_preparation_would_fool_the_harness() -> None:
    """Why candidates are prepared afresh: the same luck for all blocks looks like a difference."""

    def fooled(seed: int) -> bool:
        machine = FakeMachine(seed, noise=0.01)
        with contextlib.ExitStack() as stack:
            calls = {n: stack.enter_context(machine.candidate(1_000_000, luck=0.02)()) for n in ("dense", "again")}
            turns = {name: held(call) for name, call in calls.items()}
            found = take_turns(turns, blocks=30, calls_per_block=3, warmup=0, clock=machine.clock, seed=seed)
        return speedup(found["dense"], found["again"]).resolved

    assert share_of(50, fooled) > 0.5


class TestMedianInterval:
    """The k-th value from either end; the 95 % ones are in every table of the sign test."""

    @pytest.mark.parametrize(("rounds", "k"), [(6, 1), (9, 2), (12, 3), (20, 6), (30, 10)])
    def test_at_95_per_cent_as_in_the_tables(self, rounds: int, k: int) -> None:
        assert median_interval(range(rounds), confidence=0.95) == (k - 1, rounds - k)

    def test_it_is_the_smallest_that_keeps_its_promise(self) -> None:
        draw = random.Random(0)
        for rounds in range(MIN_BLOCKS, 201):
            low, high = median_interval(draw.sample(range(rounds), rounds))
            assert low == rounds - 1 - high
            outside = [2 * sum(math.comb(rounds, i) for i in range(int(low) + k)) / 2**rounds for k in (1, 2)]
            assert outside[0] <= 1 - CONFIDENCE < outside[1], rounds

    @pytest.mark.parametrize("rounds", range(1, MIN_BLOCKS))
    def test_too_few_rounds_have_no_interval(self, rounds: int) -> None:
        with pytest.raises(ValueError, match="at least 8"):
            median_interval(range(rounds))

    def test_an_interval_with_one_end_is_none(self) -> None:
        """So close to the bound scipy gives one end alone."""
        with pytest.raises(ValueError, match="no interval"):
            median_interval(range(8), confidence=1 - 2 / 2**8)


class TestSpeedup:
    @settings(max_examples=50)
    @given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 10**9)), min_size=8, max_size=40))
    def test_turned_round_it_is_the_reciprocal(self, pairs: list[tuple[int, int]]) -> None:
        a, b = (measurement([[pair[i]] for pair in pairs]) for i in (0, 1))
        there, back = speedup(a, b), speedup(b, a)
        assert there.ratio == pytest.approx(1 / back.ratio)
        assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low))
        assert there.resolved == back.resolved

    def test_blocks_are_paired_by_round(self) -> None:
        drift = [100 * 2**i for i in range(10)]
        found = speedup(measurement([[3 * d] for d in drift]), measurement([[d] for d in drift]))
        assert (found.low, found.ratio, found.high) == pytest.approx((3, 3, 3))

    def test_rounds_that_another_process_spoilt_do_not_move_it(self) -> None:
        before, after = [[2000]] * 30, [[1000]] * 30
        spoilt = [[90_000]] * 7 + before[7:]
        found = speedup(measurement(spoilt), measurement(after))
        assert (found.low, found.ratio, found.high) == pytest.approx((2, 2, 2))

    def test_different_numbers_of_blocks_are_refused(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            speedup(measurement([[1]] * 8), measurement([[1]] * 9))

    def test_resolved_says_that_one_lies_outside(self) -> None:
        assert Speedup(ratio=1.2, low=1.1, high=1.3).resolved
        assert Speedup(ratio=0.8, low=0.7, high=0.9).resolved
        assert not Speedup(ratio=1.2, low=1.0, high=1.3).resolved

    def test_a_ratio_outside_its_interval_is_refused(self) -> None:
        with pytest.raises(ValueError, match="does not lie"):
            Speedup(ratio=2, low=3, high=4)


class TestMeasurement:
    def test_percentiles_by_hand(self) -> None:
        found = measurement([[i * 1_000_000 for i in range(start, start + 10)] for start in range(1, 101, 10)])
        assert (found.median_ms, found.p90_ms, found.p99_ms) == (50.5, 90, 99)

    def test_throughput_counts_samples_and_not_batches(self) -> None:
        assert measurement([[4_000_000]], batch_size=64).throughput == 16_000

    @given(st.lists(st.lists(st.integers(1, 10**9), min_size=1, max_size=9), min_size=1, max_size=9))
    def test_the_percentiles_are_ordered(self, blocks: list[list[int]]) -> None:
        found = measurement(blocks)
        assert found.median_ms <= found.p99_ms
        assert found.p90_ms <= found.p99_ms <= max(map(max, blocks)) / 1e6

    @pytest.mark.parametrize("blocks", [[], [[]], [[1], []]])
    def test_one_without_samples_cannot_exist(self, blocks: list[list[int]]) -> None:
        with pytest.raises(ValueError, match="needs a batch"):
            measurement(blocks)

    def test_variation_is_that_of_the_block_medians(self) -> None:
        found = measurement([[90, 90, 900], [110, 110, 1]])
        assert found.variation == pytest.approx(statistics.stdev([90, 110]) / 100)


class TestPace:
    @pytest.mark.parametrize(
        ("latency_ms", "calls", "warmup", "blocks"),
        [(0.05, 200, 20, 30), (0.4, 100, 20, 30), (4, 10, 2, 30), (40, 3, 2, 8), (2000, 3, 2, 8)],
    )
    def test_a_block_lasts_about_40_ms(self, latency_ms: float, calls: int, warmup: int, blocks: int) -> None:
        machine = FakeMachine()
        turn = machine.candidate(latency_ms * 1e6)
        found = pace(turn, candidates=5, seconds=8, blocks=None, clock=machine.clock)
        assert (found.calls_per_block, found.warmup, found.blocks) == (calls, warmup, blocks)

    def test_an_explicit_number_of_blocks_stays(self) -> None:
        machine = FakeMachine()
        assert pace(machine.candidate(1e9), candidates=5, seconds=1, blocks=50, clock=machine.clock).blocks == 50

    def test_slow_preparation_means_fewer_rounds(self) -> None:
        machine = FakeMachine()

        @contextlib.contextmanager
        def slow() -> Iterator[Call]:
            machine.now += 100_000_000
            with machine.candidate(1_000_000)() as call:
                yield call

        blocks = pace(slow, candidates=5, seconds=8, blocks=None, clock=machine.clock).blocks
        assert (
            blocks
            < pace(machine.candidate(1_000_000), candidates=5, seconds=8, blocks=None, clock=machine.clock).blocks
        )


class TestCaveats:
    def kinds(self, blocks: list[list[int]], null: Speedup | None = None) -> list[CaveatKind]:
        return [c.kind for c in caveats_of((measurement(blocks),), null=null, where="here")]

    def test_a_steady_measurement_has_none(self) -> None:
        assert self.kinds([[1000]] * 30, Speedup(ratio=1, low=0.99, high=1.01)) == []

    def test_blocks_that_vary_are_unstable(self) -> None:
        assert self.kinds([[1000], [1300]] * 15) == [CaveatKind.UNSTABLE]

    def test_few_blocks_are_said(self) -> None:
        assert self.kinds([[1000]] * 19) == [CaveatKind.FEW_BLOCKS]

    def test_a_null_check_that_failed_is_said_with_its_figures(self) -> None:
        null = Speedup(ratio=1.04, low=1.02, high=1.06)
        found = caveats_of((measurement([[1000]] * 30),), null=null, where="torch-eager, batch 1")
        assert [str(c) for c in found] == [
            "null check failed: torch-eager, batch 1: dense against itself came out at 1.04× (1.02 to 1.06); "
            "differences of this size mean nothing"
        ]

    @pytest.mark.parametrize(
        ("busy", "load", "governor", "kinds"),
        [
            (0.02, 3.0, None, []),
            (1.2, 0.1, None, [CaveatKind.LOADED_MACHINE]),
            (None, 3.0, None, [CaveatKind.LOADED_MACHINE]),
            (None, 1.0, None, []),
            (0.0, 0.0, "performance", []),
            (0.0, 0.0, "powersave", [CaveatKind.FREQUENCY]),
        ],
    )
    def test_the_machine(self, busy: float | None, load: float, governor: str | None, kinds: list[CaveatKind]) -> None:
        seen = Conditions(cores=2, busy_cores=busy, load_average=load, governor=governor)
        calm = Conditions(cores=2, busy_cores=None if busy is None else 0.0, load_average=0.0, governor=governor)
        assert [c.kind for c in caveats_of_machine((seen, calm))] == kinds
        assert [c.kind for c in caveats_of_machine((calm, seen))] == kinds


class TestConditions:
    def test_busy_cores_are_what_others_took_while_we_slept(self, tmp_path: Path) -> None:
        seen = iter((Ticks(busy=1.55, total=11.65, processors=2), Ticks(busy=2.0, total=12.45, processors=2)))
        found = conditions(sleep=lambda _: None, ticks=lambda: next(seen), governor=tmp_path / "none")
        assert found.busy_cores == pytest.approx(2 * 45 / 80)
        assert found.governor is None

    def test_a_system_that_does_not_say_is_not_guessed(self, tmp_path: Path) -> None:
        found = conditions(sleep=lambda _: None, ticks=lambda: None, governor=tmp_path / "none")
        assert found.busy_cores is None

    def test_the_governor_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "governor").write_text("powersave\n")
        found = conditions(sleep=lambda _: None, ticks=lambda: None, governor=tmp_path / "governor")
        assert found.governor == "powersave"


class TestTicks:
    @pytest.mark.parametrize(
        ("system", "seconds", "busy", "total"),
        [
            # a guest's seconds are user's already, and waiting for a disk is no work
            (
                "Linux",
                {"user": 8, "nice": 2, "idle": 80, "iowait": 7, "steal": 3, "guest": 4, "guest_nice": 1},
                13,
                100,
            ),
            ("macOS", {"user": 8, "nice": 2, "system": 10, "idle": 80}, 20, 100),
            ("Windows", {"user": 8, "system": 10, "idle": 80, "interrupt": 1, "dpc": 1}, 20, 100),
        ],
    )
    def test_every_systems_seconds_are_busy_or_idle(
        self, monkeypatch: pytest.MonkeyPatch, system: str, seconds: dict[str, float], busy: float, total: float
    ) -> None:
        one = namedtuple(system, seconds)(**seconds)
        monkeypatch.setattr(psutil, "cpu_times", lambda *, percpu: [one] * 4 if percpu else None)
        assert ticks() == Ticks(busy=4 * busy, total=4 * total, processors=4)

    def test_a_system_that_refuses_does_not_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*, percpu: bool) -> None:
            del percpu
            raise PermissionError

        monkeypatch.setattr(psutil, "cpu_times", refused)
        assert ticks() is None

    def test_this_systems_seconds_pass(self) -> None:
        before, spent = ticks(), time.process_time()
        assert before is not None
        while time.process_time() < spent + 0.05:
            pass
        after = ticks()
        assert after is not None
        assert after.processors == before.processors >= cores()
        assert after.busy >= before.busy + 0.03
        assert after.total - after.busy >= before.total - before.busy
