"""Inline the nested graphs of an exported program where they are called.

`torch.export` nests what runs under `torch.no_grad()` or `torch.autocast(…, enabled=False)`.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from compressor.errors import GroupError

WRAPPED = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}  # operator → the argument that is the graph


def inline_(module: fx.GraphModule) -> None:
    """Copy the steps of every graph that the module's graph calls into that graph, in place.

    Refused: steps that run in a lower precision, because channel labels could not follow them exactly.
    """
    graph = module.graph
    for node in list(graph.nodes):
        wrapped = WRAPPED.get(getattr(node.target, "_name", "")) if node.op == "call_function" else None
        if wrapped is None:
            continue
        if wrapped == WRAPPED["wrap_with_autocast"] and node.args[0] == "cpu" and node.args[2]:
            raise GroupError(
                f"parts of this network run in {node.args[1]} by themselves (`torch.autocast`)",
                hint="take the autocast out of its code: it belongs to the caller",
            )
        inner = getattr(module, node.args[wrapped].target)
        inline_(inner)
        inputs = [n for n in inner.graph.nodes if n.op == "placeholder"]
        with graph.inserting_before(node):
            copies: Any = graph.graph_copy(inner.graph, dict(zip(inputs, node.args[wrapped + 1 :], strict=True)))
        for user in list(node.users):
            if user.target is not operator.getitem:
                raise GroupError(f"`{node.target}` returns more than its outputs", hint="please report it")
            user.replace_all_uses_with(copies[user.args[1]])
            graph.erase_node(user)
        nested = node.args[wrapped]
        graph.erase_node(node)
        if not nested.users:
            graph.erase_node(nested)
