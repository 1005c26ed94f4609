"""A network as a `torch.export` graph, with the module's own tensors behind the names of its parameters and buffers."""

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
from compressor.graph.structures import structure_of, with_plain_outputs_


@dataclass(slots=True, eq=False)
class Exported:
    """A network as a `torch.export` graph, with the module's own tensors behind the placeholders."""

    graph: fx.Graph
    tensors: dict[str, tuple[str, Tensor]]  # placeholder → name in the module, tensor
    constants: dict[str, Tensor]  # placeholder → tensor that is neither parameter nor buffer
    inputs: tuple[str, ...]
    outputs: tuple[fx.Node, ...]
    open: bool  # the batch size is open
    choices: tuple[Choice, ...] = ()  # data-dependent choices on the example, as of detectors; fixed in the graph
    named: dict[str, Tensor] = field(default_factory=dict)  # every name in the module; a tied tensor has several
    takes: dict[str, Any] | None = None  # the input sizes that it accepts (`graph.sizes`), where known
    returns: dict[str, Any] | None = None  # the structure around its `outputs` (`graph.structures`)

    def users(self, placeholder: str) -> list[fx.Node]:
        """The operators that read a placeholder."""
        return [user for node in self.graph.nodes if node.name == placeholder for user in node.users]

    def last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        """For each operator, the values that no later operator reads."""
        last = {argument: node for node in self.graph.nodes for argument in node.all_input_nodes}
        leaving: dict[fx.Node, list[fx.Node]] = {}
        for argument, user in last.items():
            leaving.setdefault(user, []).append(argument)
        return leaving

    def names_of(self, tensor: Tensor) -> list[str]:
        """All names of a tensor of the module."""
        return [name for name, other in self.named.items() if other is tensor]


def exported(module: nn.Module, example_inputs: Sequence[Tensor]) -> Exported:
    """Export the module in eval mode as a graph of operators, with an open batch size where possible.

    Refused: a network that `torch.export` cannot export.
    """
    inputs = tuple(in_precision(t, torch.float32) for t in example_inputs)
    with quiet_exporter(), torch.no_grad():
        try:
            twin = _prepared(module, inputs)
            program = _export(twin, inputs)
            if not any(map(_depends_on_values, program.graph.nodes)):
                return _at(followed(read_program(program, named_tensors(twin)), module), inputs)
        except GroupError:
            raise
        except Exception as error:  # the exporter can raise anything, from the network's own code
            if not is_data_dependent(error):
                raise _untraceable(error) from error
        try:
            twin = twin_of(module)
            choices = choices_of(twin, inputs)
            _check_ways(choices)
            program = torch.export.export(Forced(twin, choices), inputs)
        except GroupError:
            raise
        except Exception as error:  # as above
            raise _untraceable(error) from error
    named, trainable = named_tensors(twin), {name for name, _ in twin.named_parameters()}
    graph = read_program(program, {f"module.{name}": tensor for name, tensor in named.items()})
    chosen = {n: t for n, (name, t) in graph.tensors.items() if not name.startswith("module.")}
    tensors = {n: (name.removeprefix("module."), t) for n, (name, t) in graph.tensors.items() if n not in chosen}
    idle = [name for node, (name, _) in tensors.items() if name in trainable and not graph.users(node)]
    if idle:
        layer = idle[0].rpartition(".")[0]
        raise GroupError(f"which layers run depends on the data: `{layer}` did not on this input", hint=OTHER_LAYERS)
    graph = dataclasses.replace(
        graph, tensors=tensors, constants={**graph.constants, **chosen}, named=named, choices=tuple(choices), open=False
    )
    return followed(graph, module)


def _prepared(module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Return the twin after one pass: some networks prepare themselves in their first pass.

    Raises `Stopped` where the code asks for data-dependent shapes: an exporter raises much later, or not at all.
    """
    with contextlib.suppress(Stopped), StoppedAtValues():
        twin = twin_of(module)
        twin(*inputs)
        return twin
    twin = twin_of(module)
    twin(*inputs)
    with StoppedAtValues():  # the preparation may have been data-dependent, so the pass after it decides
        twin(*inputs)
    return twin


def followed(graph: Exported, module: nn.Module) -> Exported:
    """Return the graph with each constant that is a parameter or buffer, reached through a list or closure, named as
    such.

    Refused: a constant that is only a part of one, or that belongs to the module itself and not to its copy. Copies do
    not follow the path to such a tensor.
    """
    tensors, constants = dict(graph.tensors), dict(graph.constants)
    for node, constant in graph.constants.items():
        own = next((n for n, t in named_tensors(module).items() if same_storage(t, constant)), None)
        if own is not None:
            raise GroupError(f"this network reads `{own}` in a way that a copy of it does not follow", hint=BY_SELF)
        name = next((n for n, t in graph.named.items() if same_storage(t, constant)), None)
        if name is not None and graph.named[name].shape != constant.shape:
            raise GroupError(f"this network reads a part of `{name}` that it took before", hint=BY_SELF)
        if name is not None:
            tensors[node] = name, graph.named[name]
            del constants[node]
    return dataclasses.replace(graph, tensors=tensors, constants=constants)


BY_SELF = "let its `forward` take parameters from `self` or from its layers"
OTHER_LAYERS = "a network that runs other layers for other inputs cannot be pruned as a whole"


def _check_ways(choices: Sequence[Choice]) -> None:
    """Refuse a network whose code reads a value while layers are to come: the proof would not cover another branch."""
    call = next((choice.call.strip("_") for choice in choices if choice.decides), None)
    if call is not None:
        reason = f"which layers run may depend on the data (`{call}` of a value, with layers to come)"
        raise GroupError(f"this network cannot be traced: {reason}", hint=OTHER_LAYERS)


def twin_of(module: nn.Module) -> nn.Module:
    """Return a copy in float32 and eval mode; parameters that are float32 already take no memory."""
    twin = copy_in_precision(module, torch.float32, trainable=False).eval().requires_grad_(False)
    return with_plain_outputs_(twin)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, by each of its names."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def _untraceable(error: Exception) -> GroupError:
    """The error for a network that cannot be exported, with the reason that torch gives."""
    kept = re.search(r"attributes? (\S+)(?:, .*)? (?:was|were) assigned during export", str(error))
    if kept or "Node arity mismatch" in str(error):  # torch 2.9 raises here, later versions do not
        name = f"`{kept[1]}`" if kept else "tensors in a list or dict"
        return GroupError(
            f"this network keeps {name} beside its buffers while it runs, which this torch does not export",
            hint="update torch to 2.10 or later, or pass the tensors on inside `forward`",
        )
    unknown = re.search(r"Found <class '([\w.]+)'> in output, which is not a known type", str(error))
    if unknown:
        return GroupError(
            f"this network returns a `{unknown[1]}`, in which no tensors are seen",
            hint="name the outputs that matter: `--outputs logits`, by name or number",
        )
    return GroupError(
        f"this network cannot be traced: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
        hint="check that `--input` fits; a network whose graph depends on its data cannot be traced",
    )


def read_program(program: Any, named: Mapping[str, Tensor]) -> Exported:
    """Return an exported program's graph, with the tensors `named` behind the names of its parameters and buffers.

    Nested graphs are inlined where they are called (`graph.inlining`).
    """
    inline_(program.graph_module)
    signature = program.graph_signature
    lifted = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors: dict[str, tuple[str, Tensor]] = {}
    constants: dict[str, Tensor] = {}
    inputs: list[str] = []
    outputs, returns = _outputs(program), _returns(program)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in lifted:
            name = lifted[node.name]
            tensors[node.name] = name, named[name] if name in named else program.state_dict[name]
        elif node.op == "placeholder" and node.name in signature.inputs_to_lifted_tensor_constants:
            constants[node.name] = program.constants[signature.inputs_to_lifted_tensor_constants[node.name]]
        elif node.op == "placeholder":
            inputs.append(node.name)
    return Exported(
        graph=program.graph,
        tensors=tensors,
        constants=constants,
        inputs=tuple(inputs),
        outputs=outputs,
        open=_is_open(program),
        named=dict(named),
        takes=takes_of(program),
        returns=returns,
    )


def _at(graph: Exported, inputs: Sequence[Tensor]) -> Exported:
    """Return the graph without the conditions that these inputs do not meet, for example "the size is not one".

    The proof runs on these inputs, so the graph is valid for them.
    """
    assert graph.takes is not None
    sizes = [t.shape for t in inputs]
    holds = [condition for condition in graph.takes["holds"] if is_met(condition, sizes)]
    return dataclasses.replace(graph, takes={**graph.takes, "holds": holds})


def _export(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Export with an open batch size, first as the code is, then with an open `len`; otherwise with the example's batch
    size.
    """
    doubled = tuple(torch.cat([t, t]) if t.ndim and len(t) == 1 else t for t in inputs)
    # keyed by tensor, because `forward(*inputs)` nests the inputs one level deeper
    open_batch: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]  # torch's own
    for tensor in (t for t in doubled if t.ndim):
        open_batch[tensor] = {0: torch.export.Dim.AUTO}
    for lengths in (contextlib.nullcontext(), lengths_left_open()):
        try:
            with lengths:
                program = torch.export.export(module, doubled, dynamic_shapes=open_batch)
        except Exception as error:  # as above; the network may still export with the example's batch size
            if is_data_dependent(error):
                raise
            break
        if _is_open(program):
            return program
    return torch.export.export(module, inputs)


def is_data_dependent(error: BaseException) -> bool:
    """True if an exporter stopped at a decision of the network that depends on computed values."""
    text = f"{type(error).__name__} {error}".lower()
    return "data-dependent" in text or "datadependent" in text


def _depends_on_values(node: fx.Node) -> bool:
    """True if the operator's output shape is data-dependent."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols  # sympy, which takes a second to import

    shaped = [t for t in tensors_in(node.meta.get("val")) if isinstance(t, Tensor)]
    return any(free_unbacked_symbols(t) for t in shaped)


def _outputs(program: Any) -> tuple[fx.Node, ...]:
    """The network's outputs, without the buffers that the program writes."""
    specs = zip(program.graph.output_node().args[0], program.graph_signature.output_specs, strict=True)
    return tuple(n for n, spec in specs if spec.kind is OutputKind.USER_OUTPUT and isinstance(n, fx.Node))


def _returns(program: Any) -> dict[str, Any] | None:
    """The structure of the network's output, whose tensors are `_outputs`; `None` where the program has no record of
    it.
    """
    spec = getattr(program, "call_spec", None)
    if spec is None or spec.out_spec is None:
        return None
    specs = zip(program.graph.output_node().args[0], program.graph_signature.output_specs, strict=True)
    values = [value for value, spec in specs if spec.kind is OutputKind.USER_OUTPUT]
    return structure_of(pytree.tree_unflatten(values, spec.out_spec))[0]


def _is_open(program: Any) -> bool:
    """True if the batch size of the first input is open, all the way to the first output."""
    first = program.graph_signature.user_inputs[:1]
    ends = [node for node in program.graph.nodes if node.name in first] + list(_outputs(program)[:1])
    sizes = [getattr(node.meta.get("val"), "shape", ())[:1] for node in ends]
    return all(size_of(d) is None for size in sizes for d in size or (0,))
