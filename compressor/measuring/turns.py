"""Latency in turns: blocks of calls in random order, every sample kept, speed-ups with exact intervals.

Two programs on one machine share its caches, its clock rate and its other users. If they are timed one after the other,
a drift of any of these looks like a difference; if they alternate call by call, each pays for the other's cold caches.
So each round has one block of several calls per candidate, in a new random order, and each block starts with a few
uncounted calls. The independent units are rounds: a speed-up is the median over rounds of a ratio of two block medians.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

from compressor.measuring.machine import Conditions
from compressor.results.timing import Speedup
from compressor.words import speedup_with_interval

Clock = Callable[[], int]  # nanoseconds
Call = Callable[[], object]  # one finished forward pass
Turn = Callable[[], AbstractContextManager[Call]]  # prepares a candidate for a block, and releases it afterwards

CONFIDENCE = 0.99  # a table has a dozen intervals: at 95 % every second table would contain a false one
MIN_BLOCKS = 8  # below that, no interval of that confidence exists
ENOUGH_BLOCKS = 20
BLOCK_NS = 40_000_000
WARMUP_NS = 10_000_000
UNSTABLE_CV = 0.05
LOADED_CORES = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Every sample of one candidate: nanoseconds per call, by block, in the order of the rounds."""

    name: str
    batch_size: int
    samples_ns: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not self.samples_ns or not all(self.samples_ns):
            raise ValueError("a measurement needs a batch, a block, and a sample in every block")

    @property
    def block_medians_ns(self) -> tuple[float, ...]:
        """Each block's median."""
        return tuple(float(statistics.median(block)) for block in self.samples_ns)

    @property
    def median_ms(self) -> float:
        """The median latency of one batch."""
        return statistics.median(self._sorted()) / 1e6

    @property
    def p90_ms(self) -> float:
        """The latency that 90 % of the calls did not exceed."""
        return self._no_slower(0.90)

    @property
    def p99_ms(self) -> float:
        """The latency that 99 % of the calls did not exceed."""
        return self._no_slower(0.99)

    @property
    def throughput(self) -> float:
        """Samples per second at the median latency."""
        return self.batch_size * 1e3 / self.median_ms if self.median_ms else math.inf

    @property
    def variation(self) -> float:
        """The coefficient of variation of the block medians: standard deviation over mean."""
        medians = self.block_medians_ns
        mean = statistics.fmean(medians)
        return statistics.stdev(medians) / mean if len(medians) > 1 and mean else 0.0

    def _sorted(self) -> list[int]:
        return sorted(sample for block in self.samples_ns for sample in block)

    def _no_slower(self, share: float) -> float:
        samples = self._sorted()
        return samples[math.ceil(share * len(samples) - 1e-9) - 1] / 1e6


def speedup(reference: Measurement, candidate: Measurement, *, confidence: float = CONFIDENCE) -> Speedup:
    """The candidate's speed-up over the reference, from the rounds in which both had a block.

    In each round the ratio of the two block medians; over the rounds their median, and for it the exact interval of
    the sign test. It assumes nothing of the noise but that rounds are independent, and a few rounds that another
    process spoilt do not move it.
    """
    pairs = zip(reference.block_medians_ns, candidate.block_medians_ns, strict=True)
    logarithms = [math.log(before / after) for before, after in pairs]
    low, high = median_interval(logarithms, confidence=confidence)
    return Speedup(ratio=math.exp(statistics.median(logarithms)), low=math.exp(low), high=math.exp(high))


def median_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact interval of the median, by the sign test. Refused: fewer than 8 values.

    It is the k-th smallest and k-th largest value, with the largest k for which 2 P(Binomial(n, 1/2) < k) ≤ 1 −
    confidence (David & Nagaraja, Order Statistics, sec. 7.1).
    """
    from scipy.stats import quantile_test  # 0.7 seconds

    bounds = quantile_test(values, p=0.5).confidence_interval(confidence)
    if math.isnan(bounds.low) or math.isnan(bounds.high):
        raise ValueError(f"{len(values)} rounds give no interval of {confidence:.0%}: at least {MIN_BLOCKS} do")
    return float(bounds.low), float(bounds.high)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Pause the garbage collector."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def take_turns(
    candidates: Mapping[str, Turn],
    *,
    blocks: int,
    calls_per_block: int,
    warmup: int,
    batch_size: int = 1,
    clock: Clock = time.perf_counter_ns,
    seed: int = 0,
    after_round: Callable[[int], None] = lambda _: None,
) -> dict[str, Measurement]:
    """Time the candidates in `blocks` rounds, one block each per round, in a new random order in every round.

    A block prepares its candidate, calls it `warmup` times uncounted, times `calls_per_block` single calls, and
    releases it. So chance effects of a preparation (its place in memory) are drawn anew too, unless the candidate is
    `held`.
    """
    if blocks < 1 or calls_per_block < 1 or warmup < 0 or not candidates:
        raise ValueError("take_turns needs a candidate, a block, and a call in each block")
    order = list(candidates)
    draw = random.Random(seed)
    samples: dict[str, list[tuple[int, ...]]] = {name: [] for name in order}
    for number in range(blocks):
        draw.shuffle(order)
        for name in order:
            samples[name].append(_block(candidates[name], calls=calls_per_block, warmup=warmup, clock=clock))
        after_round(number + 1)
    return {name: Measurement(name=name, batch_size=batch_size, samples_ns=tuple(samples[name])) for name in candidates}


def _block(turn: Turn, *, calls: int, warmup: int, clock: Clock) -> tuple[int, ...]:
    """The samples of one block."""
    timed = []
    with turn() as call, _quiet():
        for _ in range(warmup):
            call()
        for _ in range(calls):
            start = clock()
            call()
            timed.append(clock() - start)
    del call  # frees what it holds (a session with its threads) now, and not within the next candidate's block
    return tuple(timed)


def held(call: Call) -> Turn:
    """Return the turn of a candidate that stays prepared through all its blocks."""
    return lambda: contextlib.nullcontext(call)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The length of a block, in calls, and the number of rounds."""

    calls_per_block: int
    warmup: int
    blocks: int


def pace(
    turn: Turn, *, candidates: int, seconds: float, blocks: int | None, clock: Clock = time.perf_counter_ns
) -> Pace:
    """Return a pace with blocks of about 40 ms, and as many rounds (8 to 30) as fit in `seconds`, or `blocks` if set.

    It is based on a few uncounted calls of the slowest candidate, the dense network.
    """
    start = clock()
    with turn() as call:
        call()
        ready_ns = clock() - start
        timed = []
        for _ in range(3):
            start = clock()
            call()
            timed.append(clock() - start)
    call_ns = max(1, min(timed))
    calls = min(200, max(3, round(BLOCK_NS / call_ns)))
    warmup = min(20, max(2, round(WARMUP_NS / call_ns)))
    if blocks is None:
        round_ns = candidates * (ready_ns + (calls + warmup) * call_ns)
        blocks = min(30, max(MIN_BLOCKS, int(seconds * 1e9 / round_ns)))
    return Pace(calls_per_block=calls, warmup=warmup, blocks=blocks)


class CaveatKind(StrEnum):
    """Why a number needs care."""

    UNSTABLE = "unstable"
    FEW_BLOCKS = "few blocks"
    NULL_NOT_CLEAN = "null check failed"
    LOADED_MACHINE = "loaded machine"
    FREQUENCY = "clock rate"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caveat:
    """A kind and its sentence."""

    kind: CaveatKind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def caveats_of(measurements: Sequence[Measurement], *, null: Speedup | None, where: str) -> tuple[Caveat, ...]:
    """Return the caveats from the samples of one setting; `null` is the reference against itself."""
    caveats = []
    shaky = max(measurements, key=lambda m: m.variation)
    if shaky.variation > UNSTABLE_CV:
        text = f"{where}: the blocks of `{shaky.name}` vary by {shaky.variation:.0%}, more than {UNSTABLE_CV:.0%}"
        caveats.append(Caveat(kind=CaveatKind.UNSTABLE, text=text))
    blocks = len(shaky.samples_ns)
    if blocks < ENOUGH_BLOCKS:
        text = f"{where}: {blocks} blocks make wide intervals; more with `--blocks {ENOUGH_BLOCKS}`"
        caveats.append(Caveat(kind=CaveatKind.FEW_BLOCKS, text=text))
    if null is not None and null.resolved:
        ratio = speedup_with_interval(null)
        text = f"{where}: dense against itself came out at {ratio}; differences of this size mean nothing"
        caveats.append(Caveat(kind=CaveatKind.NULL_NOT_CLEAN, text=text))
    return tuple(caveats)


def caveats_of_machine(seen: Sequence[Conditions]) -> tuple[Caveat, ...]:
    """Return the caveats from the machine's state, observed before and after the timing."""
    caveats = []
    worst = max(seen, key=lambda c: (c.busy_cores or 0.0, c.load_average or 0.0))
    if worst.busy_cores is not None and worst.busy_cores > LOADED_CORES:
        text = f"other processes took {worst.busy_cores:.1f} of {worst.cores} cores while nothing was timed"
        caveats.append(Caveat(kind=CaveatKind.LOADED_MACHINE, text=text))
    elif worst.busy_cores is None and worst.load_average is not None and worst.load_average > worst.cores:
        text = f"the load average was {worst.load_average:.1f} on {worst.cores} cores"
        caveats.append(Caveat(kind=CaveatKind.LOADED_MACHINE, text=text))
    if worst.governor is not None and worst.governor != "performance":
        text = f"the processor's clock rate follows its load (governor `{worst.governor}`)"
        caveats.append(Caveat(kind=CaveatKind.FREQUENCY, text=text))
    return tuple(caveats)
