"""A network as `torch.export` writes it, with its own tensors behind the names of its parameters and buffers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.errors import GroupError
from compressor.lent import plain_attention


@dataclass(slots=True, eq=False)
class Exported:
    """A network as `torch.export` writes it, with the module's own tensors behind the placeholders."""

    graph: fx.Graph
    tensors: dict[str, tuple[str, Tensor]]  # placeholder → name in the module, tensor
    constants: dict[str, Tensor]  # placeholder → tensor that is neither parameter nor buffer
    inputs: tuple[str, ...]
    outputs: tuple[fx.Node, ...]
    open: bool  # whether it takes batches of any size
    held: dict[str, Tensor] = field(default_factory=dict)  # every name in the module; a tied tensor has several

    def names_of(self, tensor: Tensor) -> list[str]:
        """All names of a tensor of the module."""
        return [name for name, other in self.held.items() if other is tensor]


def exported(module: nn.Module, example_inputs: Sequence[Tensor]) -> Exported:
    """The module in eval mode as a graph of operators, its batch size left open where that can be.

    Refused: a network that `torch.export` does not take.
    """
    module = copy.deepcopy(module).float().eval().requires_grad_(False)
    inputs = tuple(t.float() if t.is_floating_point() else t for t in example_inputs)
    held = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return read_program(_export(module, inputs), held)


def read_program(found: Any, held: Mapping[str, Tensor]) -> Exported:
    """An exported program's graph, with the tensors `held` behind the names of its parameters and buffers."""
    signature = found.graph_signature
    lifted = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors: dict[str, tuple[str, Tensor]] = {}
    constants: dict[str, Tensor] = {}
    given: list[str] = []
    outputs: tuple[fx.Node, ...] = ()
    for node in found.graph.nodes:
        if node.op == "placeholder" and node.name in lifted:
            tensors[node.name] = lifted[node.name], held[lifted[node.name]]
        elif node.op == "placeholder" and node.name in signature.inputs_to_lifted_tensor_constants:
            constants[node.name] = found.constants[signature.inputs_to_lifted_tensor_constants[node.name]]
        elif node.op == "placeholder":
            given.append(node.name)
        elif node.op == "output":
            outputs = tuple(n for n in node.args[0] if isinstance(n, fx.Node) and n.name in signature.user_outputs)
    return Exported(
        graph=found.graph,
        tensors=tensors,
        constants=constants,
        inputs=tuple(given),
        outputs=outputs,
        open=_is_open(found),
        held=dict(held),
    )


def _export(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    doubled = tuple(torch.cat([t, t]) if t.ndim and len(t) == 1 else t for t in inputs)
    open_batch = tuple({0: torch.export.Dim.AUTO} if t.ndim else None for t in doubled)
    with plain_attention(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what the exporter says of itself
        try:
            found = torch.export.export(module, doubled, dynamic_shapes=open_batch)
            # code that asks for `len(x)` fixes the batch without a word: then at the example's
            return found if _is_open(found) else torch.export.export(module, inputs)
        except Exception:  # the exporter raises whatever the network's code made it stumble over
            try:
                return torch.export.export(module, inputs)
            except Exception as error:
                raise GroupError(
                    f"this network cannot be traced: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
                    hint="check that `--input` fits; a network whose graph depends on its data cannot be traced",
                ) from error


def _is_open(found: Any) -> bool:
    """Whether the batch size of the first input is left open, all the way to the first output."""
    signature = found.graph_signature
    by_name = {node.name: node.meta.get("val") for node in found.graph.nodes}
    ends = [by_name.get(names[0]) for names in (signature.user_inputs, signature.user_outputs) if names]
    return all(isinstance(v, Tensor) and any(isinstance(d, torch.SymInt) for d in v.shape[:1]) for v in ends)
