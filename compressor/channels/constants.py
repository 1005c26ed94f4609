"""Tables that a network computes from no input and no parameter: position tables, masks of later positions.

Each is a constant, however many operators compute it, and shrinks as a buffer does. Its positions get labels of their
own where it meets a value that is not constant, and channels are cut out of it there. So the operators that compute it
couple no channels: in a table of sines and cosines side by side, each column is a channel of its own.

A table may be computed from the sizes of inputs. It is computed whole at any size, and cut along channels alone.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from compressor.graph.exported_program import Exported
from compressor.graph.outputs import tensors_in

# the same value everywhere: a narrower tensor is created directly, with the smaller size
UNIFORM = {"zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "empty", "new_empty", "rand", "randn",
           "scalar_tensor"}  # fmt: skip
ASKING = {"sym_size", "sym_numel", "sym_stride", "sym_storage_offset", "new_zeros", "new_ones", "new_full", "new_empty"}


def constants_of(graph: Exported) -> frozenset[fx.Node]:
    """Return the operators whose results depend on no input and no parameter, and are not one value everywhere.

    A value that is written into counts together with all values that share its memory.
    """
    follows = _following(graph)
    free = [n for n in graph.graph.nodes if n not in follows and n.op == "call_function" and _is_tensor(n)]
    tables = {n for n in free if _creates_a_table(n)}
    shared = _sharing(graph)
    spoilt = {n for n in free if any(other in follows for other in shared[n])}
    while True:
        grown = {n for n in free if not tables.isdisjoint((*n.all_input_nodes, *shared[n]))} | tables
        spread = {n for n in free if not spoilt.isdisjoint((*n.all_input_nodes, *n.users))} & grown | spoilt
        if grown == tables and spread == spoilt:
            return frozenset(tables - spoilt)
        tables, spoilt = grown, spread


def _following(graph: Exported) -> set[fx.Node]:
    """The operators whose results depend on the values of an input, a parameter or a statistic."""
    dependent: set[fx.Node] = set()
    for node in graph.graph.nodes:
        read = [] if _name(node) in ASKING else node.all_input_nodes
        if not dependent.isdisjoint(read) or (node.op == "placeholder" and not _is_constant(graph, node)):
            dependent.add(node)
    return dependent


def _is_constant(graph: Exported, node: fx.Node) -> bool:
    """True if a placeholder is a constant, or a table of integers such as an index."""
    if node.name in graph.constants:
        return True
    tensor = graph.tensors[node.name][1] if node.name in graph.tensors else None
    return tensor is not None and not tensor.is_floating_point() and not tensor.is_complex()


def _creates_a_table(node: fx.Node) -> bool:
    """True if the operator creates a tensor from numbers alone, with different values at different positions."""
    return _name(node) not in UNIFORM and not any(map(_is_tensor, node.all_input_nodes))


def _sharing(graph: Exported) -> dict[fx.Node, list[fx.Node]]:
    """For each value in memory that is written into: all values that share the memory, and the values written there."""
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
    """The arguments whose memory the operator's result shares, and whether the operator writes there."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        yield node.args[0], False
    schema = getattr(node.target, "_schema", None)
    for argument, declared in zip(node.args, schema.arguments if schema is not None else (), strict=False):
        if declared.alias_info is not None and isinstance(argument, fx.Node):
            yield argument, declared.alias_info.is_write


def _is_tensor(node: fx.Node) -> bool:
    return any(isinstance(t, Tensor) for t in tensors_in(node.meta.get("val")))


def _name(node: fx.Node) -> str:
    return node.target._opname if isinstance(node.target, torch._ops.OpOverload) else ""
