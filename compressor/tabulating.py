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
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.environment import ONNXRUNTIMES, environment, processor, version
from compressor.errors import ArtifactError, ExportError, PlanError, RuntimeUnavailable
from compressor.groups import Traced
from compressor.latency_table import (
    REGULAR,
    LatencyTable,
    Sample,
    Target,
    fit_prices,
    fit_whole,
    read_table,
    write_table,
)
from compressor.measure import Call, take_turns
from compressor.plan import PruningPlan
from compressor.proof import random_like
from compressor.runtimes import NodeTime, Reads, Runtime
from compressor.shrink import shrink
from compressor.skeletons import Operator, Skeleton, narrowed, owner_of, skeleton_of
from compressor.widths import START, Layer, Numbers, Sizes, features

Say = Callable[[str], None]

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


class Networks:
    """A network at any widths, as a runtime takes it; what it writes lies in `folder`."""

    def __init__(
        self, module: nn.Module, traced: Traced, example_inputs: Sequence[Tensor], runtime: Runtime, folder: Path,
        *, batch: int = 1,
    ) -> None:  # fmt: skip
        """Refused: a network that the runtime cannot take."""
        self.module, self.traced, self.runtime, self.folder = module, traced, runtime, folder
        self.example_inputs = tuple(example_inputs)
        self.sizes = Sizes(module, traced.groups)
        self.batch = batch
        self.skeleton: Skeleton | None = None
        self._owners: dict[Path, Mapping[str, str]] = {}  # of the networks that were exported by themselves
        self._slices = False
        if runtime.reads is Reads.ONNX:
            self.skeleton = skeleton_of(module, example_inputs, batch=batch)
            self.operators: tuple[Operator, ...] = self.skeleton.operators
            self._slices = self._runs_narrow()
        else:
            self.operators = module_operators(module, example_inputs)
        self.layers = tuple(
            Layer(tensor=o.tensor, reads=0 if o.swapped else 1, writes=1 if o.swapped else 0) for o in self.operators
        )
        self.keys = tuple(o.key for o in self.operators)

    @property
    def quick(self) -> bool:
        """Whether narrow networks come from the dense one's graph, without an export each."""
        return self.runtime.reads is Reads.MODULE or self._slices

    @property
    def signature(self) -> str:
        """The same for networks of the same operators in the same order."""
        return hashlib.sha256(json.dumps(self.keys).encode()).hexdigest()[:16]

    def inputs(self) -> tuple[Tensor, ...]:
        """Random inputs of the target's batch size."""
        return tuple(random_like(self.example_inputs, batch=self.batch, seed=0))

    def at(self, row: Numbers) -> nn.Module | Path:
        """The network at these widths `[groups]`."""
        if self.runtime.reads is Reads.MODULE:
            return self._small(row)
        name = hashlib.sha256(row.tobytes()).hexdigest()[:16]
        file = self.folder / f"{name}.onnx"
        if not file.exists():
            file.write_bytes(self._onnx(row, file))
        return file

    def owners(self, model: nn.Module | Path) -> Mapping[str, str] | None:
        """Of a network that `at` gave, whose time each node's is; of a module `None`: a module is named as its weight.

        Networks that are exported by themselves name their nodes by themselves.
        """
        if self.skeleton is None or isinstance(model, nn.Module):
            return None
        return self._owners.get(model, self.skeleton.owners)

    def by_operator(self, times: Sequence[NodeTime], model: nn.Module | Path) -> Numbers:
        """What each operator took in a network that `at` gave, with what belongs to it: nanoseconds `[operators]`."""
        return by_operator(times, [o.tensor for o in self.operators], self.owners(model))

    def _length(self, row: Numbers) -> Callable[[str, int], int]:
        return lambda tensor, dim: round(float(self.sizes.at(tensor, dim, row[None])[0]))

    def _onnx(self, row: Numbers, file: Path) -> bytes:
        assert self.skeleton is not None
        if self._slices:
            return narrowed(self.skeleton, self._length(row))
        made = skeleton_of(self._small(row), self.example_inputs, batch=self.batch)
        self._owners[file] = made.owners
        return made.proto

    def _small(self, row: Numbers) -> nn.Module:
        if (row >= self.sizes.dense).all():
            return self.module
        widths = {g.root: max(1, int(w)) for g, w in zip(self.traced.groups, row, strict=True)}
        plan = PruningPlan(removed={g.root: tuple(range(widths[g.root], g.channels)) for g in self.traced.groups})
        return shrink(self.module, self.traced, plan, self.example_inputs)[0]

    def _runs_narrow(self) -> bool:
        """Whether the graph runs at other widths than its own."""
        assert self.skeleton is not None
        row = np.maximum(1, np.round(self.sizes.dense * 0.5))
        file = self.folder / "narrow.onnx"
        file.write_bytes(narrowed(self.skeleton, self._length(row)))
        try:
            with self.runtime.prepare(file, self.inputs(), threads=1) as prepared:
                prepared.run()
        except RuntimeUnavailable:
            raise
        except Exception:  # whatever the runtime says of a graph whose shapes do not fit
            return False
        return True


def by_operator(times: Sequence[NodeTime], tensors: Sequence[str], owners: Mapping[str, str] | None) -> Numbers:
    """What the operators of these weights took: nanoseconds `[tensors]`; a node without an owner counts with the last.

    `owners` is as `Networks.owners` gives it.
    """
    number = {tensor: k for k, tensor in enumerate(tensors)}
    found, last = np.zeros(len(tensors)), tensors[0]
    for node in times:
        owner = f"{node.name}.weight" if owners is None else owner_of(node.name, owners)
        last = owner if owner is not None and owner in number else last
        found[number[last]] += node.typical_ns
    return found


@contextmanager
def networks_of(
    module: nn.Module, traced: Traced, example_inputs: Sequence[Tensor], runtime: Runtime, *, batch: int
) -> Iterator[Networks]:
    """A network at any widths, with a folder for what is written."""
    with tempfile.TemporaryDirectory(prefix="compress-widths-") as folder:
        yield Networks(module, traced, example_inputs, runtime, Path(folder), batch=batch)


def table_for(
    networks: Networks, target: Target, *, seconds: float = 90.0, seed: int = 0, cache: Path | None = None,
    say: Say | None = None,
) -> LatencyTable:  # fmt: skip
    """The target's table, with all that this network takes; measured where the cache does not know it."""
    say = say or (lambda _: None)
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
    networks: Networks, target: Target, *, seconds: float = 90.0, seed: int = 0, say: Say | None = None
) -> LatencyTable:
    """A table from measurements alone. Refused: a runtime that does not say what its operators take."""
    say = say or (lambda _: None)
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

    def turn(model: nn.Module | Path) -> Callable[[], AbstractContextManager[Call]]:
        @contextmanager
        def ready() -> Iterator[Call]:
            with runtime.prepare(model, inputs, threads=target.threads) as prepared:
                yield prepared.run

        return ready

    pace = _pace(turn(models[0]), networks=len(models), seconds=seconds)
    wholes = [k for k in range(len(models)) if k % WHOLE_EVERY == 0]
    plain = take_turns(
        {str(k): turn(models[k]) for k in wholes},
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


def _pace(turn: Callable[[], AbstractContextManager[Call]], *, networks: int, seconds: float) -> _Pace:
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


def module_operators(module: nn.Module, example_inputs: Sequence[Tensor]) -> tuple[Operator, ...]:
    """The modules that hold a weight, keyed by what they say of themselves without their widths."""
    shapes: dict[str, str] = {}
    handles = []
    named = {name: m for name, m in module.named_modules() if isinstance(getattr(m, "weight", None), nn.Parameter)}
    named = {name: m for name, m in named.items() if m.weight.ndim > 1}

    def seen(name: str, x: Tensor) -> None:
        shapes.setdefault(name, "x".join(map(str, x.shape[2:] if x.ndim > 3 else x.shape[1:-1])) or "1")

    for name, one in named.items():
        handles.append(one.register_forward_pre_hook(lambda _, args, n=name: seen(n, args[0])))
    try:
        with torch.inference_mode():
            module(*example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name, positions in shapes.items():
        one = named[name]
        words = [type(one).__name__]
        for attribute in ("kernel_size", "stride", "dilation"):
            value = getattr(one, attribute, None)
            if value is not None:
                words.append(f"{attribute} {value}")
        if getattr(one, "groups", 1) > 1:
            words.append("grouped")
        swapped = bool(getattr(one, "transposed", False))
        found.append(Operator(tensor=f"{name}.weight", key=f"{' '.join(words)} on {positions}", swapped=swapped))
    if not found:
        raise ExportError("no module of this network holds a weight", hint="ask on `onnxruntime-cpu`")
    return tuple(found)
