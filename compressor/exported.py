"""A network as `torch.export` writes it, with its own tensors behind the names of its parameters and buffers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from compressor.chosen import UntilLastLayer
from compressor.errors import GroupError
from compressor.lent import quiet_exporter
from compressor.outputs import tensors_in


@dataclass(slots=True, eq=False)
class Exported:
    """A network as `torch.export` writes it, with the module's own tensors behind the placeholders."""

    graph: fx.Graph
    tensors: dict[str, tuple[str, Tensor]]  # placeholder → name in the module, tensor
    constants: dict[str, Tensor]  # placeholder → tensor that is neither parameter nor buffer
    inputs: tuple[str, ...]
    outputs: tuple[fx.Node, ...]
    open: bool  # whether it takes batches of any size
    chooses: bool = False  # whether what it gives hangs on the values that it computes, as a detector's does
    held: dict[str, Tensor] = field(default_factory=dict)  # every name in the module; a tied tensor has several

    @property
    def last_layer(self) -> fx.Node:
        """The last operator that takes a tensor of the module's own."""
        found: fx.Node = [n for n in self.graph.nodes if any(a.name in self.tensors for a in n.all_input_nodes)][-1]
        return found

    def users(self, placeholder: str) -> list[fx.Node]:
        """The operators that take what stands behind a placeholder."""
        return [user for node in self.graph.nodes if node.name == placeholder for user in node.users]

    def names_of(self, tensor: Tensor) -> list[str]:
        """All names of a tensor of the module."""
        return [name for name, other in self.held.items() if other is tensor]


def exported(module: nn.Module, example_inputs: Sequence[Tensor]) -> Exported:
    """The module in eval mode as a graph of operators, its batch size left open where that can be.

    Refused: a network that `torch.export` does not take.
    """
    module = copy.deepcopy(module).float().eval().requires_grad_(False)
    inputs = tuple(t.float() if t.is_floating_point() else t for t in example_inputs)
    learnt = dict(module.named_parameters(remove_duplicate=False))
    held = learnt | dict(module.named_buffers(remove_duplicate=False))
    with quiet_exporter(), torch.no_grad():
        try:
            return read_program(_export(module, inputs), held)
        except Exception as error:  # the exporter raises whatever the network's code made it stumble over
            found = _as_far_as_its_layers(module, inputs) if hangs_on_data(error) else None
            if found is None:
                raise GroupError(
                    f"this network cannot be traced: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
                    hint="check that `--input` fits; a network whose graph depends on its data cannot be traced",
                ) from error
    graph = read_program(found, {f"module.{name}": tensor for name, tensor in held.items()})
    tensors = {node: (name.removeprefix("module."), tensor) for node, (name, tensor) in graph.tensors.items()}
    idle = [name for node, (name, _) in tensors.items() if name in learnt and not graph.users(node)]
    if idle:
        raise GroupError(
            f"which layers run hangs on the data: `{idle[0].rpartition('.')[0]}` did not on this input",
            hint="a network that takes other layers for other inputs cannot be pruned as a whole",
        )
    return dataclasses.replace(graph, tensors=tensors, held=held, chooses=True, open=False)


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
        chooses=any(map(_hangs_on_values, found.graph.nodes)),
        held=dict(held),
    )


def _export(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    doubled = tuple(torch.cat([t, t]) if t.ndim and len(t) == 1 else t for t in inputs)
    open_batch = tuple({0: torch.export.Dim.AUTO} if t.ndim else None for t in doubled)
    try:
        found = torch.export.export(module, doubled, dynamic_shapes=open_batch)
    except Exception:  # as above; with the batch size that it knows the network may do
        found = None
    # code that asks for `len(x)` fixes the batch without a word: then at the example's
    return found if found is not None and _is_open(found) else torch.export.export(module, inputs)


def hangs_on_data(error: BaseException) -> bool:
    """Whether an exporter stumbled over a decision that the network takes by the values it computes."""
    said = f"{type(error).__name__} {error}".lower()
    return "data-dependent" in said or "datadependent" in said


def _as_far_as_its_layers(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """What the network does on these inputs until its last layer has run; `None` where that cannot be written down."""
    try:
        part = UntilLastLayer(module, inputs).requires_grad_(False).eval()
        try:
            return torch.export.export(part, inputs)
        except Exception as error:  # as above
            return torch.export.draft_export(part, inputs) if hangs_on_data(error) else None
    except Exception:  # as above
        return None


def _hangs_on_values(node: fx.Node) -> bool:
    """Whether the shape of what the operator gives hangs on values."""
    shaped = [t for t in tensors_in(node.meta.get("val")) if isinstance(t, Tensor)]
    return any(free_unbacked_symbols(t) for t in shaped)


def _is_open(found: Any) -> bool:
    """Whether the batch size of the first input is left open, all the way to the first output."""
    signature = found.graph_signature
    by_name = {node.name: node.meta.get("val") for node in found.graph.nodes}
    ends = [by_name.get(names[0]) for names in (signature.user_inputs, signature.user_outputs) if names]
    return all(isinstance(v, Tensor) and any(isinstance(d, torch.SymInt) for d in v.shape[:1]) for v in ends)
