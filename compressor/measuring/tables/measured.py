"""Measure a latency table: operators within whole networks, at random widths.

Operators are timed inside their network, with their neighbours, their memory layouts and fused operators. Every channel
group gets a random width, and the runtime's profiler reports the time of each operator. About two dozen such networks,
in turns, yield as many points of each operator's two widths. Some of the networks have widths that are multiples of
only 1, 2 or 4: their time beyond the others' prices is the cost of misalignment on this runtime.

Measurements are stored in the user's cache, and the next network with the same operators is not measured again.
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

ALIGNED = ((8, 10), (16, 8))  # multiples, and the number of networks drawn at each
IRREGULAR = ((1, 3), (2, 3), (4, 4))  # multiples of this number, but not of twice this number
EXPORTED = 8  # networks, if each must be exported separately
BLOCK_NS, WARMUP_NS = 25_000_000, 8_000_000
WHOLE_EVERY = 2  # every second network is also timed without the profiler


def target_of(runtime: Runtime, *, batch: int, threads: int) -> Target:
    """Return this machine as a target."""
    name = version("torch") if runtime.reads is Reads.MODULE else version(*ONNXRUNTIMES)
    hardware = processor() or "unknown"
    if "cuda" in runtime.name and torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    return Target(runtime=runtime.name, batch=batch, threads=threads, hardware=hardware, version=name or "unknown")


def table_for(
    networks: Networks, target: Target, *, seconds: float = 90.0, seed: int = 0, cache: Path | None = None,
    say: Say = quiet,
) -> LatencyTable:  # fmt: skip
    """Return the target's table with all operators of this network; measured if the cache does not have them."""
    file = (cache or cache_folder()) / f"{_target_key(target)}.json"
    cached = _kept(file)
    if cached is not None and cached.describes(networks.keys, networks.signature):
        say("the latency table is known from before")
        return cached
    table = measured_table(networks, target, seconds=seconds, seed=seed, say=say)
    if cached is not None:
        kept = {k: v for k, v in cached.samples.items() if k not in table.samples}
        table = replace(table.with_samples(kept), wholes={**cached.wholes, **table.wholes})
    write_table(file, table)
    return table


def _kept(file: Path) -> LatencyTable | None:
    """The cached table, if this version can read it."""
    try:
        return read_table(file) if file.exists() else None
    except ArtifactError:
        return None


def cache_folder() -> Path:
    """Return the folder of cached tables."""
    state = os.environ.get("COMPRESS_STATE_DIR")
    if state:
        return Path(state) / "latency"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "compress" / "latency"


def _target_key(target: Target) -> str:
    """The cache key of a target."""
    fields = json.dumps([target.runtime, target.batch, target.threads, target.hardware, target.version])
    return f"{target.runtime}-{hashlib.sha256(fields.encode()).hexdigest()[:12]}"


def drawn_widths(sizes: Sizes, *, seed: int, few: bool = False) -> list[tuple[int, Numbers]]:
    """Return alignments and rows of widths: the dense network, then random ones at multiples of each alignment."""
    generator = random.Random(seed)
    rows = [(0, sizes.dense.copy())]
    plan = ((8, EXPORTED),) if few else (*ALIGNED, *IRREGULAR)
    for align, count in plan:
        odd = (align, count) in IRREGULAR
        rows += [(align, np.array([_drawn(int(c), align, odd, generator) for c in sizes.dense])) for _ in range(count)]
    return rows


def _drawn(channels: int, align: int, odd: bool, generator: random.Random) -> float:
    """One random width: a multiple of `align` or, if `odd`, one that is not a multiple of twice `align`."""
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
    """Return a table from measurements alone. Refused: a runtime that does not report the times of operators."""
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
    times_ns = np.stack(
        [np.min(rounds, axis=0) for rounds in profiles]
    )  # [networks, operators]; other processes can only slow them
    walls = {k: min(plain[str(k)].block_medians_ns) for k in wholes}
    return table_of(drawn_of(networks, rows), target, times_ns, walls)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pace:
    rounds: int
    warmup: int
    calls: int


def _pace(turn: Turn, *, networks: int, seconds: float) -> _Pace:
    """Short blocks, and two to five rounds in the seconds; drawn networks take about half of the dense one's time."""
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
    """The networks behind a table: alignments, and each operator's input and output width `[networks, operators]`.

    An alignment of 0 means the dense network.
    """

    aligns: tuple[int, ...]
    reads: Numbers
    writes: Numbers
    keys: tuple[str, ...]
    signature: str


def drawn_of(networks: Networks, rows: Sequence[tuple[int, Numbers]]) -> Drawn:
    """Return the drawn networks of rows of widths."""
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


def table_of(drawn: Drawn, target: Target, times_ns: Numbers, walls: Mapping[int, float]) -> LatencyTable:
    """Return the table of measurements: `times_ns` `[networks, operators]`, and whole networks' times by number."""
    aligns, keys = np.array(drawn.aligns), drawn.keys

    def samples(keep: NDArray[np.bool_]) -> dict[str, tuple[Sample, ...]]:
        by_key: dict[str, list[Sample]] = {}
        for k in np.flatnonzero(keep):
            for o, key in enumerate(keys):
                if times_ns[k, o] > 0:
                    point = float(drawn.reads[k, o]), float(drawn.writes[k, o]), float(times_ns[k, o])
                    by_key.setdefault(key, []).append(point)
        return {key: tuple(some) for key, some in by_key.items()}

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
        excess = times_ns[here].sum(axis=1) / np.maximum(1.0, expected[here].sum(axis=1))
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
