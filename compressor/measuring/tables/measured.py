"""Measure a latency table: operators within whole networks, at widths that are drawn.

A network's operators are timed where they stand, with their neighbours, their layouts and what is fused into them:
every channel group gets a width of its own at random, and the runtime's profiler says what each operator took. Some
two dozen such networks, in turns, give every operator as many points of its two widths. A few of them have widths that
are multiples of 1, 2 or 4 alone: what they take beyond the others' prices is what misalignment costs on this runtime.

What was measured is kept in the user's cache, and the next network with the same operators is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.environment import ONNXRUNTIMES, environment, processor, version
from compressor.errors import ArtifactError, PlanError, RuntimeUnavailable
from compressor.measuring.runtimes import Reads, Runtime
from compressor.measuring.tables.networks import Networks
from compressor.measuring.tables.table import (
    REGULAR,
    LatencyTable,
    Sample,
    Target,
    fit_prices,
    fit_whole,
    read_table,
    write_table,
)
from compressor.measuring.turns import Turn, take_turns
from compressor.planning.widths import START, Numbers, Sizes, features
from compressor.progress import Say, quiet

ALIGNED = ((8, 10), (16, 8))  # multiples, and how many networks are drawn at each
IRREGULAR = ((1, 3), (2, 3), (4, 4))  # multiples of it, not of twice it
EXPORTED = 8  # networks where each has to be exported by itself
BLOCK_NS, WARMUP_NS = 25_000_000, 8_000_000
WHOLE_EVERY = 2  # of the networks, those that are also timed without the profiler


def target_of(runtime: Runtime, *, batch: int, threads: int) -> Target:
    """The target that this machine is."""
    name = version("torch") if runtime.reads is Reads.MODULE else version(*ONNXRUNTIMES)
    hardware = processor() or "unknown"
    if "cuda" in runtime.name and torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    return Target(runtime=runtime.name, batch=batch, threads=threads, hardware=hardware, version=name or "unknown")


def table_for(
    networks: Networks, target: Target, *, seconds: float = 90.0, seed: int = 0, cache: Path | None = None,
    say: Say = quiet,
) -> LatencyTable:  # fmt: skip
    """The target's table, with all that this network takes; measured where the cache does not know it."""
    file = (cache or cache_folder()) / f"{_target_key(target)}.json"
    known = _kept(file)
    if known is not None and known.describes(networks.keys, networks.signature):
        say("the latency table is known from before")
        return known
    found = measured_table(networks, target, seconds=seconds, seed=seed, say=say)
    if known is not None:
        kept = {k: v for k, v in known.samples.items() if k not in found.samples}
        found = replace(found.with_samples(kept), wholes={**known.wholes, **found.wholes})
    write_table(file, found)
    return found


def _kept(file: Path) -> LatencyTable | None:
    """What is in the cache, where this version can read it."""
    try:
        return read_table(file) if file.exists() else None
    except ArtifactError:
        return None


def cache_folder() -> Path:
    """Where tables are kept between runs."""
    state = os.environ.get("COMPRESS_STATE_DIR")
    if state:
        return Path(state) / "latency"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "compress" / "latency"


def _target_key(target: Target) -> str:
    told = json.dumps([target.runtime, target.batch, target.threads, target.hardware, target.version])
    return f"{target.runtime}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def drawn_widths(sizes: Sizes, *, seed: int, few: bool = False) -> list[tuple[int, Numbers]]:
    """Alignments and rows of widths: the dense network, then some at multiples of each alignment, drawn at random."""
    generator = random.Random(seed)
    rows = [(0, sizes.dense.copy())]
    plan = ((8, EXPORTED),) if few else (*ALIGNED, *IRREGULAR)
    for align, count in plan:
        odd = (align, count) in IRREGULAR
        rows += [(align, np.array([_drawn(int(c), align, odd, generator) for c in sizes.dense])) for _ in range(count)]
    return rows


def _drawn(channels: int, align: int, odd: bool, generator: random.Random) -> float:
    wanted = generator.uniform(min(channels, max(1, channels / 8)), channels)
    if odd:
        width = align * (2 * int(wanted / (2 * align)) + 1)
        while width > channels and width > align:
            width -= 2 * align
    else:
        width = align * max(1, round(wanted / align))
    return float(min(width, channels))


def measured_table(
    networks: Networks, target: Target, *, seconds: float = 90.0, seed: int = 0, say: Say = quiet
) -> LatencyTable:
    """A table from measurements alone. Refused: a runtime that does not say what its operators take."""
    runtime = networks.runtime
    if runtime.profile is None:
        raise RuntimeUnavailable(
            f"`{runtime.name}` does not say what its operators take",
            hint="a latency can be asked for on onnxruntime-cpu and torch-eager, and elsewhere by `--table FILE`",
        )
    rows = drawn_widths(networks.sizes, seed=seed, few=not networks.quick)
    models = []
    for k, (_, row) in enumerate(rows):
        say(f"preparing network {k + 1} of {len(rows)} for the latency table")
        models.append(networks.at(row))
    inputs = networks.inputs()

    turns = [runtime.turn(model, inputs, threads=target.threads) for model in models]
    pace = _pace(turns[0], networks=len(models), seconds=seconds)
    wholes = [k for k in range(len(models)) if k % WHOLE_EVERY == 0]
    plain = take_turns(
        {str(k): turns[k] for k in wholes},
        blocks=pace.rounds,
        calls_per_block=pace.calls,
        warmup=pace.warmup,
        seed=seed,
        after_round=lambda done: say(f"timing whole networks: round {done} of {pace.rounds}"),
    )
    order = list(range(len(models)))
    draw = random.Random(seed)
    profiles: list[list[Numbers]] = [[] for _ in models]
    for done in range(pace.rounds):
        draw.shuffle(order)
        for at, k in enumerate(order):
            say(f"timing operators: round {done + 1} of {pace.rounds}, network {at + 1} of {len(models)}")
            times = runtime.profile(models[k], inputs, threads=target.threads, warmup=pace.warmup, calls=pace.calls)
            profiles[k].append(networks.by_operator(times, models[k]))
    taken = np.stack([np.min(rounds, axis=0) for rounds in profiles])  # [networks, operators]; others only slow it
    walls = {k: min(plain[str(k)].block_medians_ns) for k in wholes}
    return table_of(drawn_of(networks, rows), target, taken, walls)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pace:
    rounds: int
    warmup: int
    calls: int


def _pace(turn: Turn, *, networks: int, seconds: float) -> _Pace:
    """Short blocks, and two to five rounds within the seconds: drawn networks take about half of the dense one."""
    started = time.perf_counter_ns()
    with turn() as call:
        call()
        ready_ns = time.perf_counter_ns() - started
        started = time.perf_counter_ns()
        call()
        call_ns = max(1, time.perf_counter_ns() - started)
    calls = min(60, max(1, round(BLOCK_NS / call_ns)))
    warmup = min(10, max(1, round(WARMUP_NS / call_ns)))
    round_ns = 1.5 * networks * (ready_ns + (calls + warmup) * call_ns * 0.5)
    return _Pace(rounds=min(5, max(2, int(seconds * 1e9 / round_ns))), warmup=warmup, calls=calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The networks that a table is made from: alignment, what each operator reads and writes `[networks, operators]`.

    An alignment of 0 is the dense network's.
    """

    aligns: tuple[int, ...]
    reads: Numbers
    writes: Numbers
    keys: tuple[str, ...]
    signature: str


def drawn_of(networks: Networks, rows: Sequence[tuple[int, Numbers]]) -> Drawn:
    """The same of rows of widths."""
    widths = np.stack([row for _, row in rows])
    pairs = [networks.sizes.of(layer, widths) for layer in networks.layers]
    reads, writes = (np.stack([pair[k] for pair in pairs], axis=1) for k in (0, 1))
    return Drawn(
        aligns=tuple(align for align, _ in rows),
        reads=reads,
        writes=writes,
        keys=networks.keys,
        signature=networks.signature,
    )


def table_of(drawn: Drawn, target: Target, taken: Numbers, walls: Mapping[int, float]) -> LatencyTable:
    """The table that measurements make: `taken` `[networks, operators]` and whole networks by number, nanoseconds."""
    aligns, keys = np.array(drawn.aligns), drawn.keys

    def samples(keep: NDArray[np.bool_]) -> dict[str, tuple[Sample, ...]]:
        found: dict[str, list[Sample]] = {}
        for k in np.flatnonzero(keep):
            for o, key in enumerate(keys):
                if taken[k, o] > 0:
                    point = float(drawn.reads[k, o]), float(drawn.writes[k, o]), float(taken[k, o])
                    found.setdefault(key, []).append(point)
        return {key: tuple(some) for key, some in found.items()}

    regular = (aligns == 0) | (aligns >= REGULAR)
    aligned = samples(regular)
    missing = [key for key in keys if key not in aligned]
    if missing:
        raise PlanError(f"the runtime did not say what `{missing[0]}` takes", hint="try another runtime: `--on`")
    prices = {key: fit_prices(some) for key, some in aligned.items()}
    expected = np.stack(
        [features(drawn.reads[:, o], drawn.writes[:, o]) @ prices[key] for o, key in enumerate(keys)], axis=1
    )
    alignments = []
    for align in sorted(set(drawn.aligns) - {0}):
        here = aligns == align
        excess = taken[here].sum(axis=1) / np.maximum(1.0, expected[here].sum(axis=1))
        alignments.append((align, float(statistics.median(excess.tolist()))))
    table = LatencyTable(
        target=target, samples=aligned, alignments=tuple(alignments), wholes={}, environment=environment()
    )
    fine = (aligns == 0) | (aligns >= table.align)
    table = replace(table, samples=samples(fine))
    parts = np.einsum("klf,lf->kf", features(drawn.reads, drawn.writes), table.prices(keys))
    starts, rest = parts[:, START], np.delete(parts, START, axis=1).sum(axis=1)
    measured = [k for k in walls if fine[k]]
    whole = fit_whole(starts[measured].tolist(), rest[measured].tolist(), [walls[k] for k in measured])
    return replace(table, wholes={drawn.signature: whole})
