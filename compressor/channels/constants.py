"""What a network computes from no input and no parameter: tables of positions, masks of what comes later.

Each is a constant, however many operators make it, and shrinks as a buffer does: its positions have labels of their own
where it meets what is no constant, and what leaves is cut out of it there. So nothing that its operators do couples
channels: of sines and cosines side by side, each is a channel of its own.

Sizes of inputs may be part of what it is computed from: it is computed whole at any size, and cut along channels alone.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from compressor.graph.exported_program import Exported
from compressor.graph.outputs import tensors_in

# the same everywhere: a narrower one is made at once, by writing the smaller size
UNIFORM = {"zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "empty", "new_empty", "rand", "randn",
           "scalar_tensor"}  # fmt: skip
ASKING = {"sym_size", "sym_numel", "sym_stride", "sym_storage_offset", "new_zeros", "new_ones", "new_full", "new_empty"}


def constants_of(graph: Exported) -> frozenset[fx.Node]:
    """The operators whose results hang on no input and no parameter, and are not the same everywhere.

    A value that is written into counts with all that shares its memory.
    """
    follows = _following(graph)
    free = [n for n in graph.graph.nodes if n not in follows and n.op == "call_function" and _is_tensor(n)]
    tables = {n for n in free if _is_made(n)}
    shared = _sharing(graph)
    spoilt = {n for n in free if any(other in follows for other in shared[n])}
    while True:
        grown = {n for n in free if not tables.isdisjoint((*n.all_input_nodes, *shared[n]))} | tables
        spread = {n for n in free if not spoilt.isdisjoint((*n.all_input_nodes, *n.users))} & grown | spoilt
        if grown == tables and spread == spoilt:
            return frozenset(tables - spoilt)
        tables, spoilt = grown, spread


def _following(graph: Exported) -> set[fx.Node]:
    """What hangs on the values of an input, a parameter or a statistic."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        read = [] if _name(node) in ASKING else node.all_input_nodes
        if not found.isdisjoint(read) or (node.op == "placeholder" and not _is_constant(graph, node)):
            found.add(node)
    return found


def _is_constant(graph: Exported, node: fx.Node) -> bool:
    """Whether a placeholder is a constant or a table of whole numbers, as an index is."""
    if node.name in graph.constants:
        return True
    tensor = graph.tensors[node.name][1] if node.name in graph.tensors else None
    return tensor is not None and not tensor.is_floating_point() and not tensor.is_complex()


def _is_made(node: fx.Node) -> bool:
    """Whether the operator makes a tensor from numbers alone, and not the same number everywhere."""
    return _name(node) not in UNIFORM and not any(map(_is_tensor, node.all_input_nodes))


def _sharing(graph: Exported) -> dict[fx.Node, list[fx.Node]]:
    """Of each value in memory that is written into: all that share that memory, and what is written there."""
    writers = [n for n in graph.graph.nodes if any(writes for _, writes in _seen_through(n))]
    root: dict[fx.Node, fx.Node] = {}

    def top(node: fx.Node) -> fx.Node:
        while node in root:
            node = root[node]
        return node

    for node in graph.graph.nodes if writers else ():
        for argument, _ in _seen_through(node):
            if top(argument) is not top(node):
                root[top(node)] = top(argument)
    together: dict[fx.Node, list[fx.Node]] = {top(writer): [] for writer in writers}
    for node in graph.graph.nodes:
        together.get(top(node), []).append(node)
    for writer in writers:
        together[top(writer)] += writer.all_input_nodes
    return defaultdict(list, {n: together[top(n)] for n in graph.graph.nodes if top(n) in together})


def _seen_through(node: fx.Node) -> Iterable[tuple[fx.Node, bool]]:
    """The arguments whose memory the operator's result has, and whether it writes there."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        yield node.args[0], False
    schema = getattr(node.target, "_schema", None)
    for given, wanted in zip(node.args, schema.arguments if schema is not None else (), strict=False):
        if wanted.alias_info is not None and isinstance(given, fx.Node):
            yield given, wanted.alias_info.is_write


def _is_tensor(node: fx.Node) -> bool:
    return any(isinstance(t, Tensor) for t in tensors_in(node.meta.get("val")))


def _name(node: fx.Node) -> str:
    return node.target._opname if isinstance(node.target, torch._ops.OpOverload) else ""
