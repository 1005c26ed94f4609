"""Operators that no rule knows, taken apart into those that some rule knows, where torch says how.

A product such as `tensordot`, or a cell of a recurrent layer, is several operators to torch itself. Where every part is
known, the parts stand in the graph in place of the whole; else the whole stays, and what reaches it stays with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from compressor.channels.rules import is_known
from compressor.channels.rules.products import is_plain
from compressor.graph.exported_program import Exported
from compressor.graph.lent import quiet_exporter
from compressor.graph.operators import name_of
from compressor.graph.outputs import tensors_in


def take_apart_(graph: Exported) -> None:
    """Put the parts of every operator that no rule knows in its place, in place."""
    moved: dict[fx.Node, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and _is_whole(node):
            parts = _parts(node)
            if parts is not None:
                moved |= _put(graph.graph, node, parts)
    graph.outputs = tuple(moved.get(out, out) for out in graph.outputs)


def _is_whole(node: fx.Node) -> bool:
    """Whether the operator is one that is to be taken apart."""
    if name_of(node.target) == "einsum":
        return not is_plain(str(node.args[0]))
    return not _is_settled(node)


def _parts(node: fx.Node) -> fx.Graph | None:
    """The operators that this one is made of, as a graph over all nodes it reads; `None` where they are not all known.

    What stands for a node that has no value on record cannot be made.
    """
    reads = node.all_input_nodes
    values = [n.meta.get("val") for n in reads]
    if any(value is None for value in values) or not any(isinstance(v, Tensor) for v in values):
        return None

    def run(*given: Any) -> Any:
        standing = dict(zip(reads, given, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: standing[n])
        called: Any = node.target
        return called(*args, **kwargs)

    with quiet_exporter(), torch.no_grad():
        try:
            graph = make_fx(run, decomposition_table=_ways(node.target))(*values).graph
        except Exception:  # whatever torch's own code stumbles over: then the operator stays whole
            return None
    known = all(n.op != "call_function" or _is_settled(n) for n in graph.nodes)
    return graph if known and not any(n.op == "get_attr" for n in graph.nodes) else None


def _is_settled(node: fx.Node) -> bool:
    """Whether a part is known, or takes or gives no tensors: a size, a number, a constant."""
    if not isinstance(node.target, torch._ops.OpOverload) or is_known(node.target):
        return True
    between = (node.meta.get("val"), [n.meta.get("val") for n in node.all_input_nodes])
    return any(not any(isinstance(t, Tensor) for t in tensors_in(value)) for value in between)


def _ways(target: Any) -> dict[Any, Callable[..., Any]]:
    """How torch takes operators apart: this one, and of the others those that no rule knows."""
    of_torch, of_unknown = _ways_of_torch()
    return {**of_unknown, target: of_torch[target]} if target in of_torch else dict(of_unknown)


@functools.cache  # there are about 900
def _ways_of_torch() -> tuple[dict[Any, Callable[..., Any]], dict[Any, Callable[..., Any]]]:
    """All ways that torch has, and those of operators that no rule knows."""
    ways: Any = core_aten_decompositions()
    table = dict(ways.items())
    return table, {op: way for op, way in table.items() if not is_known(op)}


def _put(graph: fx.Graph, node: fx.Node, parts: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The parts in place of the whole: which results are which."""
    given = [n for n in parts.nodes if n.op == "placeholder"]
    standing: dict[fx.Node, fx.Node] = dict(zip(given, node.all_input_nodes, strict=True))
    before = set(graph.nodes)
    with graph.inserting_before(node):
        made: Any = graph.graph_copy(parts, standing)
    for new in set(graph.nodes) - before:
        new.meta.setdefault("nn_module_stack", node.meta.get("nn_module_stack"))
    moved: dict[fx.Node, fx.Node] = {}
    if isinstance(made, fx.Node):
        moved[node] = made
    else:
        flat = pytree.tree_leaves(made)
        for user in list(node.users):
            user.replace_all_uses_with(flat[user.args[1]])  # type: ignore[index]  # a `getitem`'s is a number
            moved[user] = flat[user.args[1]]  # type: ignore[index]
            graph.erase_node(user)
    for old, new in list(moved.items()):
        if old is node:
            old.replace_all_uses_with(new)
    graph.erase_node(node)
    return moved
