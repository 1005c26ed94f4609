"""The time of each layer, before and after: its latency, and which machine limit it is near.

The dense and the small network are profiled in turns on the runtime. Operators that a runtime fuses into a layer, or
that have no weights, count with the last weight before them. Beside the times are a layer's input and output widths,
its arithmetic intensity (MACs per byte moved), and its distance from the machine's limit.
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
    """The total of one network's operators with one weight: nanoseconds, bytes, and their number."""

    ns: float
    bytes: int
    operators: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    """A network in the runtime's form, the weights that its operators count with, and its costs."""

    model: nn.Module | Path
    owners: Mapping[str, str] | None
    costs: dict[str, LayerCost]


def why(
    small: Checkpoint, dense: Checkpoint, runtime: Runtime, *, batch: int, threads: int, seed: int = 0,
    say: Say = quiet,
) -> LayerTimes:  # fmt: skip
    """Return a row for every weight of the dense network, the ceilings, and the totals, as plain values.

    Refused: a runtime that does not report the times of operators.
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
                times = runtime.profile(networks[k].model, inputs, threads=threads, warmup=WARMUP, calls=calls)
                profiles[k].append(times)
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
    """The times by weight, each operator's from its quickest round, because other processes can only slow it."""
    layers: dict[str, _Layer] = {}
    for k, (node, owner) in enumerate(
        zip(rounds[0], owned(rounds[0], list(network.costs), network.owners), strict=True)
    ):
        ns = min(nodes[k].typical_ns for nodes in rounds if k < len(nodes))
        before = layers.get(owner, _Layer(ns=0.0, bytes=0, operators=0))
        layers[owner] = _Layer(ns=before.ns + ns, bytes=before.bytes + node.bytes, operators=before.operators + 1)
    return layers


def _row(
    tensor: str, networks: Sequence[_Network], before: _Layer | None, after: _Layer | None, peaks: Ceilings, batch: int
) -> LayerTime:
    """The row of one weight."""
    pair = [n.costs.get(tensor) for n in networks]
    cost = pair[0] or pair[1]
    sides: list[LayerShare | None] = []
    for layer, one in zip((before, after), pair, strict=True):
        if layer is None:
            sides.append(None)
            continue
        macs = batch * one.macs if one is not None else 0
        ceiling, least = peaks.over(macs=macs, moved=layer.bytes, operators=layer.operators)
        sides.append(
            LayerShare(
                us=layer.ns / 1e3,
                operators=layer.operators,
                macs=macs,
                bytes=layer.bytes,
                intensity=macs / layer.bytes if layer.bytes else None,
                ceiling=str(ceiling),
                of_ceiling=least / layer.ns if layer.ns else None,
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
