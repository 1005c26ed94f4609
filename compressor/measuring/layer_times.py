"""Where the time goes, layer by layer, before and after: what each took, and which ceiling it sits under.

The dense and the small network are profiled in turns on the runtime. What a runtime fuses into a layer, and what has
no weights of its own, counts with the weight that came last before it. Beside its times stand what a layer reads and
writes, its arithmetic intensity (MACs per byte moved), and how near it is to what the machine can do at most.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.errors import RuntimeUnavailable
from compressor.files.leftovers import temporary
from compressor.graph.input_spec import random_like
from compressor.measuring.ceilings import Ceilings, ceilings
from compressor.measuring.runtimes import NodeTime, Reads, Runtime
from compressor.measuring.tables.networks import owned
from compressor.measuring.tables.skeletons import skeleton_of
from compressor.planning.costs import LayerCost, layer_costs
from compressor.progress import Say, quiet
from compressor.results.timing import LayerShare, LayerTime, LayerTimes

ROUNDS, WARMUP, CALLS = 5, 2, 12
SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """What one network's operators took with one weight: nanoseconds, bytes, and how many they are."""

    ns: float
    bytes: int
    operators: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    """A network as the runtime takes it, whose weights its operators count with, and what they cost."""

    model: nn.Module | Path
    owners: Mapping[str, str] | None
    costs: dict[str, LayerCost]


def why(
    small: Checkpoint, dense: Checkpoint, runtime: Runtime, *, batch: int, threads: int, seed: int = 0,
    say: Say = quiet,
) -> LayerTimes:  # fmt: skip
    """A row for every weight of the dense network, the ceilings, and the totals.

    Refused: a runtime that does not say what its operators take.
    """
    if runtime.profile is None:
        raise RuntimeUnavailable(
            f"`{runtime.name}` does not say what its operators take", hint="`--runtimes onnxruntime-cpu` does"
        )
    say("measuring what the machine can do at most")
    peaks = ceilings(runtime, threads=threads)
    with temporary("why") as folder:
        say("writing both networks for the profiler")
        networks = [
            _network(checkpoint, runtime, Path(folder) / f"{k}.onnx") for k, checkpoint in enumerate((dense, small))
        ]
        inputs = tuple(random_like(dense.example_inputs, batch=batch, seed=seed))
        profiles: tuple[list[list[NodeTime]], ...] = ([], [])
        draw = random.Random(seed)
        calls = CALLS if batch == 1 else max(3, CALLS // 3)
        for done in range(ROUNDS):
            say(f"profiling, round {done + 1} of {ROUNDS}")
            for k in draw.sample((0, 1), 2):
                found = runtime.profile(networks[k].model, inputs, threads=threads, warmup=WARMUP, calls=calls)
                profiles[k].append(found)
    before, after = (_by_layer(n, rounds) for n, rounds in zip(networks, profiles, strict=True))
    rows = [
        _row(tensor, networks, before.get(tensor), after.get(tensor), peaks, batch)
        for tensor in dict.fromkeys((*before, *after))
    ]
    return LayerTimes(
        runtime=runtime.name,
        batch=batch,
        threads=threads,
        ceilings=peaks.to_json(),
        total_us=tuple(sum(layer.ns for layer in layers.values()) / 1e3 for layers in (before, after)),
        rows=tuple(rows),
    )


def _network(checkpoint: Checkpoint, runtime: Runtime, file: Path) -> _Network:
    costs = {c.weight: c for c in layer_costs(checkpoint.module, checkpoint.example_inputs)}
    if runtime.reads is Reads.MODULE:
        return _Network(model=checkpoint.module, owners=None, costs=costs)
    skeleton = skeleton_of(checkpoint.module, checkpoint.example_inputs)
    file.write_bytes(skeleton.proto)
    return _Network(model=file, owners=skeleton.owners, costs=costs)


def _by_layer(network: _Network, rounds: Sequence[Sequence[NodeTime]]) -> dict[str, _Layer]:
    """By weight: of every operator the round in which it was quickest, for others can only slow it."""
    found: dict[str, _Layer] = {}
    for k, (node, owner) in enumerate(
        zip(rounds[0], owned(rounds[0], list(network.costs), network.owners), strict=True)
    ):
        ns = min(nodes[k].typical_ns for nodes in rounds if k < len(nodes))
        before = found.get(owner, _Layer(ns=0.0, bytes=0, operators=0))
        found[owner] = _Layer(ns=before.ns + ns, bytes=before.bytes + node.bytes, operators=before.operators + 1)
    return found


def _row(
    tensor: str, networks: Sequence[_Network], before: _Layer | None, after: _Layer | None, peaks: Ceilings, batch: int
) -> LayerTime:
    pair = [n.costs.get(tensor) for n in networks]
    cost = pair[0] or pair[1]
    sides: list[LayerShare | None] = []
    for found, one in zip((before, after), pair, strict=True):
        if found is None:
            sides.append(None)
            continue
        macs = batch * one.macs if one is not None else 0
        ceiling, least = peaks.over(macs=macs, moved=found.bytes, operators=found.operators)
        sides.append(
            LayerShare(
                us=found.ns / 1e3,
                operators=found.operators,
                macs=macs,
                bytes=found.bytes,
                intensity=macs / found.bytes if found.bytes else None,
                ceiling=str(ceiling),
                of_ceiling=least / found.ns if found.ns else None,
            )
        )
    inputs, outputs = ([getattr(p, side) if p is not None else 0 for p in pair] for side in ("inputs", "outputs"))
    return LayerTime(
        layer=tensor.removesuffix(".weight"),
        kind=cost.kind if cost is not None else "",
        inputs=(inputs[0], inputs[1]),
        outputs=(outputs[0], outputs[1]),
        dense=sides[0],
        small=sides[1],
    )
