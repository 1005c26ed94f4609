"""A network as `torch.export` writes it, with its own tensors behind the names of its parameters and buffers."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from compressor.errors import GroupError
from compressor.graph.choices import Choice, Forced, Stopped, StoppedAtValues, choices_of
from compressor.graph.copies import same_storage
from compressor.graph.inlining import inline_
from compressor.graph.lent import lengths_left_open, quiet_exporter
from compressor.graph.outputs import tensors_in
from compressor.graph.precision import copy_in_precision, in_precision
from compressor.graph.sizes import is_met, size_of, takes_of
from compressor.graph.structures import taken_apart, with_plain_outputs_


@dataclass(slots=True, eq=False)
class Exported:
    """A network as `torch.export` writes it, with the module's own tensors behind the placeholders."""

    graph: fx.Graph
    tensors: dict[str, tuple[str, Tensor]]  # placeholder → name in the module, tensor
    constants: dict[str, Tensor]  # placeholder → tensor that is neither parameter nor buffer
    inputs: tuple[str, ...]
    outputs: tuple[fx.Node, ...]
    open: bool  # whether it takes batches of any size
    choices: tuple[Choice, ...] = ()  # made by values on the example, as detectors do; the graph has them fixed
    held: dict[str, Tensor] = field(default_factory=dict)  # every name in the module; a tied tensor has several
    takes: dict[str, Any] | None = None  # which sizes of its inputs it is for (`graph.sizes`), where that is known
    returns: dict[str, Any] | None = None  # what is around its `outputs` (`graph.structures`)

    def users(self, placeholder: str) -> list[fx.Node]:
        """The operators that take what stands behind a placeholder."""
        return [user for node in self.graph.nodes if node.name == placeholder for user in node.users]

    def last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        """Which values each operator is the last to read."""
        last = {argument: node for node in self.graph.nodes for argument in node.all_input_nodes}
        leaving: dict[fx.Node, list[fx.Node]] = {}
        for argument, user in last.items():
            leaving.setdefault(user, []).append(argument)
        return leaving

    def names_of(self, tensor: Tensor) -> list[str]:
        """All names of a tensor of the module."""
        return [name for name, other in self.held.items() if other is tensor]


def exported(module: nn.Module, example_inputs: Sequence[Tensor]) -> Exported:
    """The module in eval mode as a graph of operators, its batch size left open where that can be.

    Refused: a network that `torch.export` does not take.
    """
    inputs = tuple(in_precision(t, torch.float32) for t in example_inputs)
    with quiet_exporter(), torch.no_grad():
        try:
            twin = _prepared(module, inputs)
            found = _export(twin, inputs)
            if not any(map(_depends_on_values, found.graph.nodes)):
                return _at(followed(read_program(found, held_of(twin)), module), inputs)
        except GroupError:
            raise
        except Exception as error:  # the exporter raises whatever the network's code made it stumble over
            if not hangs_on_data(error):
                raise _untraceable(error) from error
        try:
            twin = twin_of(module)
            choices = choices_of(twin, inputs)
            _check_ways(choices)
            found = torch.export.export(Forced(twin, choices), inputs)
        except GroupError:
            raise
        except Exception as error:  # as above
            raise _untraceable(error) from error
    held, learnt = held_of(twin), {name for name, _ in twin.named_parameters()}
    graph = read_program(found, {f"module.{name}": tensor for name, tensor in held.items()})
    chosen = {n: t for n, (name, t) in graph.tensors.items() if not name.startswith("module.")}
    tensors = {n: (name.removeprefix("module."), t) for n, (name, t) in graph.tensors.items() if n not in chosen}
    idle = [name for node, (name, _) in tensors.items() if name in learnt and not graph.users(node)]
    if idle:
        layer = idle[0].rpartition(".")[0]
        raise GroupError(f"which layers run hangs on the data: `{layer}` did not on this input", hint=OTHER_LAYERS)
    graph = dataclasses.replace(
        graph, tensors=tensors, constants={**graph.constants, **chosen}, held=held, choices=tuple(choices), open=False
    )
    return followed(graph, module)


def _prepared(module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The twin after a pass: in its first one a network may prepare itself.

    `Stopped` where it asks for shapes that depend on values: an exporter says so much later, or not at all.
    """
    with contextlib.suppress(Stopped), StoppedAtValues():
        twin = twin_of(module)
        twin(*inputs)
        return twin
    twin = twin_of(module)
    twin(*inputs)
    with StoppedAtValues():  # it may have been the preparation
        twin(*inputs)
    return twin


def followed(graph: Exported, module: nn.Module) -> Exported:
    """The graph with a parameter or buffer behind every constant that is one, reached by a list or a closure.

    Refused: a constant that is a part of one, or that belongs to the module itself and not to its copy: there is a path
    to it that copies do not follow.
    """
    tensors, constants = dict(graph.tensors), dict(graph.constants)
    for node, constant in graph.constants.items():
        own = next((n for n, t in held_of(module).items() if same_storage(t, constant)), None)
        if own is not None:
            raise GroupError(f"this network reads `{own}` in a way that a copy of it does not follow", hint=BY_SELF)
        name = next((n for n, t in graph.held.items() if same_storage(t, constant)), None)
        if name is not None and graph.held[name].shape != constant.shape:
            raise GroupError(f"this network reads a part of `{name}` that it took before", hint=BY_SELF)
        if name is not None:
            tensors[node] = name, graph.held[name]
            del constants[node]
    return dataclasses.replace(graph, tensors=tensors, constants=constants)


BY_SELF = "let its `forward` take parameters from `self` or from its layers"
OTHER_LAYERS = "a network that takes other layers for other inputs cannot be pruned as a whole"


def _check_ways(choices: Sequence[Choice]) -> None:
    """Refuses a network whose code sees a value while layers are to come: the other way would not be proved."""
    call = next((choice.call.strip("_") for choice in choices if choice.decides), None)
    if call is not None:
        said = f"which layers run may hang on the data (`{call}` of a value, with layers to come)"
        raise GroupError(f"this network cannot be traced: {said}", hint=OTHER_LAYERS)


def twin_of(module: nn.Module) -> nn.Module:
    """A copy in float32 and eval mode, which takes no memory for parameters that are float32 already."""
    twin = copy_in_precision(module, torch.float32, trainable=False).eval().requires_grad_(False)
    return with_plain_outputs_(twin)


def held_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by each of its names."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def _untraceable(error: Exception) -> GroupError:
    kept = re.search(r"attribute (\S+) was assigned during export", str(error))
    if kept:  # torch 2.9 says so, later ones let it be
        return GroupError(
            f"this network keeps `{kept[1]}` beside its buffers while it runs, which this torch does not export",
            hint="update torch, or register it as a buffer",
        )
    return GroupError(
        f"this network cannot be traced: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
        hint="check that `--input` fits; a network whose graph depends on its data cannot be traced",
    )


def read_program(found: Any, held: Mapping[str, Tensor]) -> Exported:
    """An exported program's graph, with the tensors `held` behind the names of its parameters and buffers.

    Graphs within it are put where they are called (`graph.inlining`).
    """
    inline_(found.graph_module)
    signature = found.graph_signature
    lifted = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors: dict[str, tuple[str, Tensor]] = {}
    constants: dict[str, Tensor] = {}
    given: list[str] = []
    outputs, returns = _outputs(found), _returns(found)
    for node in found.graph.nodes:
        if node.op == "placeholder" and node.name in lifted:
            name = lifted[node.name]
            tensors[node.name] = name, held[name] if name in held else found.state_dict[name]
        elif node.op == "placeholder" and node.name in signature.inputs_to_lifted_tensor_constants:
            constants[node.name] = found.constants[signature.inputs_to_lifted_tensor_constants[node.name]]
        elif node.op == "placeholder":
            given.append(node.name)
    return Exported(
        graph=found.graph,
        tensors=tensors,
        constants=constants,
        inputs=tuple(given),
        outputs=outputs,
        open=_is_open(found),
        held=dict(held),
        takes=takes_of(found),
        returns=returns,
    )


def _at(graph: Exported, inputs: Sequence[Tensor]) -> Exported:
    """The graph without conditions that these inputs do not meet, for which it is proved: one says "not one", say."""
    assert graph.takes is not None
    sizes = [t.shape for t in inputs]
    holds = [condition for condition in graph.takes["holds"] if is_met(condition, sizes)]
    return dataclasses.replace(graph, takes={**graph.takes, "holds": holds})


def _export(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    doubled = tuple(torch.cat([t, t]) if t.ndim and len(t) == 1 else t for t in inputs)
    # by tensor: `forward(*inputs)` has them one level deeper
    open_batch: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]  # torch's own
    for tensor in (t for t in doubled if t.ndim):
        open_batch[tensor] = {0: torch.export.Dim.AUTO}
    for lengths in (contextlib.nullcontext(), lengths_left_open()):
        try:
            with lengths:
                found = torch.export.export(module, doubled, dynamic_shapes=open_batch)
        except Exception as error:  # as above; with the batch size that it knows the network may do
            if hangs_on_data(error):
                raise
            break
        if _is_open(found):
            return found
    return torch.export.export(module, inputs)


def hangs_on_data(error: BaseException) -> bool:
    """Whether an exporter stumbled over a decision that the network takes by the values it computes."""
    said = f"{type(error).__name__} {error}".lower()
    return "data-dependent" in said or "datadependent" in said


def _depends_on_values(node: fx.Node) -> bool:
    """Whether the shape of what the operator gives depends on values."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols  # sympy, which takes a second to import

    shaped = [t for t in tensors_in(node.meta.get("val")) if isinstance(t, Tensor)]
    return any(free_unbacked_symbols(t) for t in shaped)


def _outputs(found: Any) -> tuple[fx.Node, ...]:
    """What the network gives, without the buffers that the program writes."""
    given = zip(found.graph.output_node().args[0], found.graph_signature.output_specs, strict=True)
    return tuple(n for n, spec in given if spec.kind is OutputKind.USER_OUTPUT and isinstance(n, fx.Node))


def _returns(found: Any) -> dict[str, Any] | None:
    """The structure of what the network gives, whose tensors are `_outputs`; `None` where the program does not say."""
    spec = getattr(found, "call_spec", None)
    if spec is None or spec.out_spec is None:
        return None
    given = zip(found.graph.output_node().args[0], found.graph_signature.output_specs, strict=True)
    values = [value for value, spec in given if spec.kind is OutputKind.USER_OUTPUT]
    return taken_apart(pytree.tree_unflatten(values, spec.out_spec))[0]


def _is_open(found: Any) -> bool:
    """Whether the batch size of the first input is left open, all the way to the first output."""
    first = found.graph_signature.user_inputs[:1]
    ends = [node for node in found.graph.nodes if node.name in first] + list(_outputs(found)[:1])
    sizes = [getattr(node.meta.get("val"), "shape", ())[:1] for node in ends]
    return all(size_of(d) is None for size in sizes for d in size or (0,))
