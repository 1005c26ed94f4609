"""Tables measured for real, on a tiny network: what is drawn, what is measured, and what is not measured again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import compressor.measuring.tables.measured
from compressor.channels.groups import trace
from compressor.errors import RuntimeUnavailable
from compressor.measuring.runtimes import Runtime, load
from compressor.measuring.tables.measured import (
    ALIGNED,
    IRREGULAR,
    drawn_widths,
    measured_table,
    table_for,
    target_of,
)
from compressor.measuring.tables.networks import networks_of
from compressor.measuring.tables.skeletons import Skeleton
from compressor.planning.widths import Sizes
from tests.support.topologies import INPUT, Attention, Residual, Shuffled, alive
from tests.support.versions import WIDTHS_ARE_IN_THE_GRAPH

EXAMPLE = (torch.zeros(INPUT),)


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 1), nn.Flatten()
    )


def test_widths_are_drawn_at_every_alignment_and_the_dense_network_is_among_them() -> None:
    net = alive(wide())
    sizes = Sizes(net, trace(net, EXAMPLE).groups)
    rows = drawn_widths(sizes, seed=0)
    assert (rows[0][1] == sizes.dense).all()
    for align, count in (*ALIGNED, *IRREGULAR):
        here = [row for a, row in rows if a == align]
        assert len(here) == count
        for row in here:
            assert (row >= 1).all()
            assert (row <= sizes.dense).all()
            assert (row % align == 0).all()
            if (align, count) in IRREGULAR:
                assert (row % (2 * align) != 0).all()
    assert len({tuple(row) for _, row in rows}) > len(rows) // 2
    again = drawn_widths(sizes, seed=0)
    assert all((a[1] == b[1]).all() for a, b in zip(rows, again, strict=True))


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "torch-eager"])
def test_a_table_is_measured_and_the_next_run_takes_it_from_the_cache(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = alive(wide())
    traced, runtime = trace(net, EXAMPLE), load(name)
    target = target_of(runtime, batch=2, threads=1)
    with networks_of(net, traced, EXAMPLE, runtime, batch=2) as networks:
        table = table_for(networks, target, seconds=0.5, cache=tmp_path)
        assert table.describes(networks.keys, networks.signature)
        cost = table.cost(networks.sizes, networks.layers, networks.keys, signature=networks.signature)
        rows = np.stack([networks.sizes.dense, np.maximum(1, networks.sizes.dense / 4)])
        assert cost.total(rows)[0] > cost.total(rows)[1] > 0

        def never(*_: Any, **__: Any) -> Any:
            raise AssertionError("measured again")

        monkeypatch.setattr(compressor.measuring.tables.measured, "measured_table", never)
        assert table_for(networks, target, cache=tmp_path) == table
        with pytest.raises(AssertionError, match="measured again"):
            table_for(networks, target_of(runtime, batch=4, threads=1), cache=tmp_path)


def test_another_networks_operators_join_the_target_s_file(tmp_path: Path) -> None:
    runtime = load("onnxruntime-cpu")
    target = target_of(runtime, batch=1, threads=1)
    signatures = []
    for net in (alive(wide()), alive(Residual())):
        with networks_of(net, trace(net, EXAMPLE), EXAMPLE, runtime, batch=1) as networks:
            table = table_for(networks, target, seconds=0.2, cache=tmp_path)
            signatures.append(networks.signature)
    assert set(table.wholes) == set(signatures)
    (file,) = tmp_path.iterdir()
    file.write_text('{"schema": 1}')  # what an older version left is measured again, and is no error
    with networks_of(net, trace(net, EXAMPLE), EXAMPLE, runtime, batch=1) as networks:
        assert set(table_for(networks, target, seconds=0.2, cache=tmp_path).wholes) == {networks.signature}


@pytest.mark.parametrize(("make", "quick"), [(Residual, True), (lambda: Shuffled(12), False), (Attention, None)])
def test_networks_whose_graph_holds_widths_are_exported_one_by_one(
    make: Callable[[], nn.Module], quick: bool | None, tmp_path: Path
) -> None:
    del tmp_path
    net = alive(make())
    traced, runtime = trace(net, EXAMPLE), load("onnxruntime-cpu")
    with networks_of(net, traced, EXAMPLE, runtime, batch=1) as networks:
        if quick is not None and not (quick and WIDTHS_ARE_IN_THE_GRAPH):
            assert networks.quick is quick
        row = np.maximum(1, np.round(networks.sizes.dense / 2))
        with runtime.prepare(networks.at(row), networks.inputs(), threads=1) as prepared:
            assert prepared.run() is not None


def test_a_runtime_that_does_not_say_what_its_operators_take_is_refused() -> None:
    net = alive(Residual())
    plain = load("torch-eager")
    silent = Runtime(
        name="silent", help="", reads=plain.reads, memory=plain.memory, held=plain.held,
        unavailable=plain.unavailable, prepare=plain.prepare,
    )  # fmt: skip
    with (
        networks_of(net, trace(net, EXAMPLE), EXAMPLE, silent, batch=1) as networks,
        pytest.raises(RuntimeUnavailable, match="does not say"),
    ):
        measured_table(networks, target_of(silent, batch=1, threads=1))


def test_networks_exported_by_themselves_count_every_node_with_its_own_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their nodes may have other names than the dense network's: none is counted with the layer before it for that."""
    real, calls = compressor.measuring.tables.networks.skeleton_of, [0]

    def renaming(*arguments: Any, **options: Any) -> Skeleton:
        made, number = real(*arguments, **options), calls[0]
        calls[0] += 1
        proto = onnx.ModelProto.FromString(made.proto)
        ends = {value.name for value in (*proto.graph.input, *proto.graph.output)}
        computed = [node for node in proto.graph.node if node.op_type != "ConstantOfShape"]
        every = {name for node in computed for name in (node.name, *node.output)} - {""}
        names = {name: name if name in ends else f"{name}_of_{number}" for name in every}
        for node in computed:
            node.name = names[node.name]
            node.input[:] = [names.get(i, i) for i in node.input]
            node.output[:] = [names.get(o, o) for o in node.output]
        owners = {names.get(name, name): owner for name, owner in made.owners.items()}
        return dataclasses.replace(made, proto=proto.SerializeToString(), owners=owners)

    monkeypatch.setattr(compressor.measuring.tables.networks, "skeleton_of", renaming)
    net = alive(Shuffled(12))
    traced, runtime = trace(net, EXAMPLE), load("onnxruntime-cpu")
    with networks_of(net, traced, EXAMPLE, runtime, batch=1) as networks:
        model = networks.at(np.maximum(1, np.round(networks.sizes.dense / 2)))
        assert runtime.profile is not None
        times = runtime.profile(model, networks.inputs(), threads=1, warmup=1, calls=3)
        assert (networks.by_operator(times, model) > 0).all()
