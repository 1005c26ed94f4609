"""Decompose operators without a rule into operators that have one, where torch has a decomposition.

A product such as `tensordot`, or a cell of a recurrent layer, is several operators in torch. Where every part has a
rule, the parts replace the whole in the graph. Otherwise the whole stays, and the channels that reach it stay too.
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


def decompose_(graph: Exported) -> None:
    """Replace every operator that has no rule by its parts, in place."""
    moved: dict[fx.Node, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and _is_whole(node):
            parts = _parts(node)
            if parts is not None:
                moved |= _put(graph.graph, node, parts)
    graph.outputs = tuple(moved.get(out, out) for out in graph.outputs)


def _is_whole(node: fx.Node) -> bool:
    """True if the operator should be decomposed."""
    if name_of(node.target) == "einsum":
        return not is_plain(str(node.args[0]))
    return not _is_settled(node)


def _parts(node: fx.Node) -> fx.Graph | None:
    """The parts of this operator, as a graph over the nodes it reads; `None` where a part has no rule.

    `None` too where a node it reads has no recorded value, because the parts cannot be traced then.
    """
    reads = node.all_input_nodes
    values = [n.meta.get("val") for n in reads]
    if any(value is None for value in values) or not any(isinstance(v, Tensor) for v in values):
        return None

    def run(*inputs: Any) -> Any:
        standing = dict(zip(reads, inputs, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: standing[n])
        operator: Any = node.target
        return operator(*args, **kwargs)

    with quiet_exporter(), torch.no_grad():
        try:
            graph = make_fx(run, decomposition_table=_decompositions(node.target))(*values).graph
        except Exception:  # torch's own code can raise anything here: then the operator stays whole
            return None
    complete = all(n.op != "call_function" or _is_settled(n) for n in graph.nodes)
    return graph if complete and not any(n.op == "get_attr" for n in graph.nodes) else None


def _is_settled(node: fx.Node) -> bool:
    """True if an operator has a rule, or reads or returns no tensors (a size, a number, a constant)."""
    if not isinstance(node.target, torch._ops.OpOverload) or is_known(node.target):
        return True
    between = (node.meta.get("val"), [n.meta.get("val") for n in node.all_input_nodes])
    return any(not any(isinstance(t, Tensor) for t in tensors_in(value)) for value in between)


def _decompositions(target: Any) -> dict[Any, Callable[..., Any]]:
    """The decompositions for this operator: its own, and those of all operators without a rule."""
    of_torch, of_unknown = _torch_decompositions()
    return {**of_unknown, target: of_torch[target]} if target in of_torch else dict(of_unknown)


@functools.cache  # there are about 900
def _torch_decompositions() -> tuple[dict[Any, Callable[..., Any]], dict[Any, Callable[..., Any]]]:
    """All decompositions that torch has, and those of operators without a rule."""
    ways: Any = core_aten_decompositions()
    table = dict(ways.items())
    return table, {op: way for op, way in table.items() if not is_known(op)}


def _put(graph: fx.Graph, node: fx.Node, parts: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Insert the parts in place of the whole; return which new result replaces which old one."""
    inputs = [n for n in parts.nodes if n.op == "placeholder"]
    standing: dict[fx.Node, fx.Node] = dict(zip(inputs, node.all_input_nodes, strict=True))
    before = set(graph.nodes)
    with graph.inserting_before(node):
        copies: Any = graph.graph_copy(parts, standing)
    for new in set(graph.nodes) - before:
        new.meta.setdefault("nn_module_stack", node.meta.get("nn_module_stack"))
    moved: dict[fx.Node, fx.Node] = {}
    if isinstance(copies, fx.Node):
        moved[node] = copies
    else:
        flat = pytree.tree_leaves(copies)
        for user in list(node.users):
            user.replace_all_uses_with(flat[user.args[1]])  # type: ignore[index]  # a `getitem`'s is a number
            moved[user] = flat[user.args[1]]  # type: ignore[index]
            graph.erase_node(user)
    for old, new in list(moved.items()):
        if old is node:
            old.replace_all_uses_with(new)
    graph.erase_node(node)
    return moved
