"""Run a network's forward pass as a flat list of operators, one by one on many batches at once.

`torch.export` produces the list. The weights stay outside it, so that the same operators can run with other weights of
the same shapes. The dense and the small network come from the same code, so their lists match step by step, and repair
can compare the two inside (`pruning.repair.repairing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.errors import RepairError
from compressor.graph.copies import copy_of
from compressor.graph.exported_program import read_program
from compressor.graph.lent import quiet_exporter
from compressor.graph.outputs import outputs_of, relative_difference, tensors_in
from compressor.graph.recorded import RecordedProgram
from compressor.graph.structures import with_plain_outputs_
from compressor.surgery.mending import as_program

aten = torch.ops.aten
CONVOLVING = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
CONVOLVING_PADDED = (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
TRANSPOSING = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
READING = (*CONVOLVING, *CONVOLVING_PADDED, *TRANSPOSING, aten.linear.default)
NORMALISING = (aten.batch_norm.default,)
SPLITTING = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes}

AS_IT_IS = "`--criterion l1-norm --scope uniform --repair batch-norm` (or `--repair none`) runs it as it is"

Values = list[Any]  # a node's results, batch by batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The operators of a forward pass on batches of exactly `batch` images.

    `constants`: the tensors that the operators read besides the inputs, by their nodes. `names`: the names in the
    module of those that are parameters or buffers.
    """

    nodes: tuple[fx.Node, ...]
    constants: Mapping[fx.Node, Tensor]
    names: Mapping[fx.Node, str]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    batch: int

    @property
    def index(self) -> dict[fx.Node, int]:
        """The index of each operator in the list."""
        return {node: i for i, node in enumerate(self.nodes)}

    def tensor_name(self, argument: object) -> str | None:
        """Return the name of the parameter or buffer that an operator's argument is; `None` for any other value."""
        return self.names.get(argument) if isinstance(argument, fx.Node) else None

    def last_uses(self) -> dict[fx.Node, int]:
        """Return the index of the last operator that reads each value; outputs are read at the very end."""
        last: dict[fx.Node, int] = {}
        for i, node in enumerate(self.nodes):
            for argument in node.all_input_nodes:
                last[argument] = i
        last.update(dict.fromkeys(self.outputs, len(self.nodes)))
        return last


def program_of(module: nn.Module, example_inputs: Sequence[Tensor], *, batch: int) -> Program:
    """Return the module's forward pass in eval mode on `batch` images; the module stays unchanged.

    Refused: a network that `torch.export` cannot export, or whose operators, run one by one, have other outputs.
    """
    module = with_plain_outputs_(copy_of(module).eval().requires_grad_(False))
    inputs = tuple(_batch_of(t, batch) for t in example_inputs)
    program = _read(_exported(module, inputs), module, batch=batch)
    outputs = [t for value in run(program, [[t] for t in inputs]) for t in tensors_in(value[0])]
    expected = outputs_of(module, list(inputs))
    worst = max((relative_difference(a, b) for a, b in zip(outputs, expected, strict=False)), default=1.0)
    if len(outputs) != len(expected) or worst > 1e-4:
        raise RepairError(f"the network's operators, run one by one, differ from it by {worst:.2g}", hint=AS_IT_IS)
    return program


def _exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The module exported with the inputs' batch size."""
    try:
        with quiet_exporter(), torch.no_grad():
            return torch.export.export(module, inputs)
    except Exception as error:
        # the exporter can raise anything, from the network's own code
        raise RepairError(
            f"the network cannot be followed: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
            hint=AS_IT_IS,
        ) from error


def _read(exported_program: Any, module: nn.Module, *, batch: int) -> Program:
    """The exported program's operators, with the module's own tensors behind the names of its parameters."""
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    graph = read_program(exported_program, tensors)
    for node in exported_program.graph.nodes:
        if node.op not in ("placeholder", "call_function", "output"):
            raise RepairError(f"the network cannot be followed: it has a step `{node.op}`", hint=AS_IT_IS)
    by_name = {node.name: node for node in exported_program.graph.nodes}
    named = {by_name[node]: (name, tensor.detach()) for node, (name, tensor) in graph.tensors.items()}
    constants = {by_name[node]: tensor for node, tensor in graph.constants.items()}
    return Program(
        nodes=tuple(node for node in exported_program.graph.nodes if node.op == "call_function"),
        constants={node: tensor for node, (_, tensor) in named.items()} | constants,
        names={node: name for node, (name, _) in named.items()},
        inputs=tuple(by_name[node] for node in graph.inputs),
        outputs=graph.outputs,
        batch=batch,
    )


def _batch_of(example: Tensor, batch: int) -> Tensor:
    """The example's rows, repeated to a batch of this size."""
    repeats = -(-batch // len(example))
    return torch.cat([example] * repeats)[:batch].clone()


def call(node: fx.Node, value_of: Callable[[fx.Node], Any], *, training: bool = False) -> Any:
    """Return the operator's result for the values of its arguments, which stay unchanged.

    With `training`, a batch norm uses the batch's statistics, and updates its running ones.
    """
    args = fx.map_arg(node.args, value_of)
    kwargs = fx.map_arg(node.kwargs, value_of)
    if training:
        args = (*args[:5], True, *args[6:])
    return _functional(node.target)(*args, **kwargs)


def _functional(target: Any) -> Any:
    """The operator that returns a new value where `target` writes into its first argument."""
    name, _, overload = str(target).removeprefix("aten.").partition(".")
    if str(target).startswith("aten.") and name.endswith("_") and not name.endswith("__"):
        return getattr(getattr(aten, name[:-1]), overload)
    return target


def operator(node: fx.Node) -> Any:
    """Return the node's operator; an in-place operator counts as the plain one."""
    return _functional(node.target)


class Walk:
    """A program half-way: values batch by batch, each kept until its last reader has run (and is freed).

    `weights` replace the program's constants by name. While `training`, batch norms use the batch's statistics.
    """

    def __init__(
        self,
        program: Program,
        inputs: Sequence[Values],
        *,
        weights: Mapping[str, Tensor] | None = None,
        training: bool = False,
    ) -> None:
        self.program, self.training = program, training
        self.weights = dict(weights or {})
        self.values: dict[fx.Node, Values] = dict(zip(program.inputs, inputs, strict=True))
        self.at = 0  # the next operator
        self._leaving: dict[int, list[fx.Node]] = {}
        for node, last in program.last_uses().items():
            if node not in program.constants:
                self._leaving.setdefault(last, []).append(node)

    @property
    def batches(self) -> int:
        """The number of batches."""
        return len(next(iter(self.values.values())))

    def constant(self, node: fx.Node) -> Tensor:
        """Return the current tensor of a constant's node."""
        name = self.program.names.get(node)
        replaced = None if name is None else self.weights.get(name)
        return self.program.constants[node] if replaced is None else replaced

    def named(self, name: str) -> Tensor:
        """Return the current parameter or buffer called `name`."""
        return self.constant(next(node for node, own in self.program.names.items() if own == name))

    def argument(self, node: fx.Node, batch: int) -> Any:
        """Return the value of an operator's argument in one batch."""
        return self.constant(node) if node in self.program.constants else self.values[node][batch]

    def step(self, *, free: bool = True) -> None:
        """Run the next operator on every batch."""
        node = self.program.nodes[self.at]
        training = self.training and operator(node) in NORMALISING
        self.values[node] = [
            call(node, lambda argument, i=i: self.argument(argument, i), training=training)  # type: ignore[misc]
            for i in range(self.batches)
        ]
        if free:
            self.free(self.at)
        self.at += 1

    def free(self, index: int) -> None:
        """Free the values whose last reader is the operator at `index`."""
        for node in self._leaving.get(index, ()):
            self.values.pop(node, None)

    def fork(self, weights: Mapping[str, Tensor]) -> Walk:
        """Return the same state with other weights from here on; values are shared, because no operator writes into
        them.
        """
        other = object.__new__(Walk)
        other.program, other.at, other._leaving = self.program, self.at, self._leaving
        other.training = self.training
        other.weights = {**self.weights, **weights}
        other.values = dict(self.values)
        return other

    def finish(self) -> list[Values]:
        """Run to the end and return the network's outputs, batch by batch."""
        while self.at < len(self.program.nodes):
            self.step()
        return [self.values.get(n) or [self.constant(n)] * self.batches for n in self.program.outputs]


def run(program: Program, inputs: Sequence[Values], *, weights: Mapping[str, Tensor] | None = None) -> list[Values]:
    """Return the network's outputs, each batch by batch, for inputs batch by batch."""
    with torch.no_grad():
        return Walk(program, inputs, weights=weights).finish()


def side_by_side(
    dense: nn.Module, small: nn.Module, example_inputs: Sequence[Tensor], *, batch: int
) -> tuple[Program, Program]:
    """Return the programs of the dense and the small network. Refused: programs with different steps."""
    if isinstance(small, RecordedProgram) and not isinstance(dense, RecordedProgram):
        dense = as_program(dense, example_inputs)
    both = program_of(dense, example_inputs, batch=batch), program_of(small, example_inputs, batch=batch)
    in_step(*both)
    return both


def in_step(dense: Program, small: Program) -> None:
    """Refuse two programs that have different steps."""
    same = len(dense.nodes) == len(small.nodes) and all(
        operator(a) == operator(b) or {operator(a), operator(b)} <= SPLITTING
        for a, b in zip(dense.nodes, small.nodes, strict=True)
    )
    if not same:
        raise RepairError(
            "the small network has other steps than the dense one",
            hint=AS_IT_IS,
        )


def readers(program: Program) -> Iterator[tuple[int, fx.Node]]:
    """Yield convolutions and linear layers, with index, whose weight is a parameter that no other operator reads."""
    for i, node in enumerate(program.nodes):
        weight = node.args[1] if len(node.args) > 1 else None
        is_parameter = isinstance(weight, fx.Node) and program.tensor_name(weight) is not None
        if operator(node) in READING and is_parameter and len(weight.users) == 1:  # type: ignore[union-attr]  # it is a node
            yield i, node


def calls(program: Program) -> Iterator[tuple[int, fx.Node]]:
    """Yield each call of such a layer, also of layers called several times, if their weights serve nothing else."""
    for i, node in enumerate(program.nodes):
        weight = node.args[1] if len(node.args) > 1 else None
        if operator(node) not in READING or not isinstance(weight, fx.Node) or program.tensor_name(weight) is None:
            continue
        if all(operator(u) in READING and u.args[1] is weight and u.args[0] is not weight for u in weight.users):
            yield i, node
