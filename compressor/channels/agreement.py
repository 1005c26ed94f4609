"""Check that the traced program computes what the user's module computes, always and before anything is cut.

The exporter freezes what it cannot see: a feature that a hook keeps outside the network would stay the example image's
for ever. So the program and the module run on fresh inputs, and on another batch size where the module takes one. The
outputs are compared, and a sample of the output of every layer that is a single operator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.channels.labels import Labels
from compressor.channels.silenced import silenced_outputs, small_outputs
from compressor.channels.tracing import Trace
from compressor.errors import GroupError
from compressor.graph.exported_program import Exported, exported
from compressor.graph.input_spec import random_like
from compressor.graph.lent import evaluating, plain_attention, state_kept
from compressor.graph.outputs import relative_difference
from compressor.graph.precision import copy_in_precision, in_precision, types_in

ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-6}
FRESH = 40_361  # a seed that draws no example input: the same values would show nothing
SAMPLED = 4096  # values of one layer and image: comparing all of them would cost as much as the layer itself
SMALL = 0.05  # a larger difference is not rounding
UNSURE = 1e-3  # the limit of rounding in float32, for networks that do not run in float64
SIMPLE = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.Embedding,
)  # fmt: skip
BY_SELF = "let its `forward` take parameters and features from `self`, from its layers or from its inputs"


def traced_program(module: nn.Module, example_inputs: Sequence[Tensor]) -> Exported:
    """Return the module's program (`graph.exported_program`), checked to have the module's outputs.

    The module stays unchanged. Refused: a network that cannot be exported, a program whose outputs differ by more than
    rounding, and a network whose parameters are constants of its program.
    """
    graph = exported(module, example_inputs)
    check_agreement(graph, module, example_inputs)
    return graph


def check_agreement(graph: Exported, module: nn.Module, example_inputs: Sequence[Tensor]) -> None:
    """Refuse a program whose outputs on fresh inputs differ from the module's by more than rounding.

    A program with a detector's fixed choices is compared with the module under the same choices. Where the program's
    batch size is open and the module takes another size than the traced one, one batch of that size is enough: a second
    pass would cost as much as tracing. A module in other types is compared in float32.
    """
    subject = copy_in_precision(module, torch.float32) if types_in(module) else module
    examples = [in_precision(t, torch.float32) for t in example_inputs]
    with evaluating(subject), state_kept(subject), plain_attention():
        for inputs in _fresh(graph, examples):
            another = bool(inputs) and inputs[0].shape != examples[0].shape
            try:
                expected = _module_outputs(graph, subject, inputs)
            except Exception as error:  # from the user's code, which need not accept these inputs
                if another:
                    continue
                expected = _outputs_on_example(graph, subject, examples, error)
                inputs = examples
            difference = _differences(graph, subject, inputs, expected)
            if difference is not None and not _is_rounding(graph, subject, inputs, difference, expected):
                raise _refusal(graph, subject, inputs, difference)
            if another:
                return


def _fresh(graph: Exported, examples: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return random inputs with values other than the example's: one batch of another size if that is open, two of its
    own.

    A single sample is traced as two, so that a batch of one is another size.
    """
    batch = len(examples[0]) if examples and examples[0].ndim else 1
    if graph.open and batch == 1:
        return [random_like(examples, batch=1, seed=FRESH)]
    other = [random_like(examples, batch=batch + 1, seed=FRESH)] if graph.open else []
    return [*other, *(random_like(examples, batch=batch, seed=FRESH + n) for n in (1, 2))]


@dataclass(slots=True, kw_only=True)
class _Outputs:
    """The outputs of one pass, and a sample of the output of each call of a simple layer."""

    outputs: list[Tensor] = field(default_factory=list)
    layers: dict[str, list[Tensor]] = field(default_factory=dict)


def _sampled(value: Tensor) -> Tensor:
    """Every n-th position along each dimension: about `SAMPLED` values for each index of the first dimension."""
    of_each = int(SAMPLED ** (1 / max(1, value.ndim - 1)))
    steps = [1, *(max(1, size // of_each) for size in value.shape[1:])]
    return value.detach()[tuple(slice(None, None, step) for step in steps[: value.ndim])].clone()


def _simple(subject: nn.Module) -> dict[str, nn.Module]:
    """The layers that are a single operator, by name: no user's code decides what they return."""
    return {
        name: layer
        for name, layer in subject.named_modules()
        if type(layer) in SIMPLE and not layer._forward_hooks and "forward" not in vars(layer)
    }


def _module_outputs(
    graph: Exported, subject: nn.Module, inputs: Sequence[Tensor], *, dtype: Any = torch.float32
) -> _Outputs:
    """The module's outputs, under the program's choices."""
    outputs, hooks = _Outputs(), []

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            outputs.layers.setdefault(name, []).append(_sampled(output))

    try:
        for name, layer in _simple(subject).items():
            hooks.append(layer.register_forward_hook(lambda _, __, output, name=name: note(name, output)))
        with _seeded():
            outputs.outputs = small_outputs(_bare(graph), subject, [t.clone() for t in inputs], {}, dtype=dtype)
    finally:
        for hook in hooks:
            hook.remove()
    if graph.choices:  # `small_outputs` ran it twice, and replayed the choices in the second pass
        outputs.layers = {n: calls[len(calls) // 2 :] for n, calls in outputs.layers.items() if len(calls) % 2 == 0}
    return outputs


def _program_outputs(
    graph: Exported, subject: nn.Module, inputs: Sequence[Tensor], *, dtype: Any = torch.float32
) -> _Outputs:
    """The program's outputs, with the weights of the module."""
    nodes = _layer_nodes(graph, _simple(subject))
    outputs = _Outputs()

    def note(node: fx.Node, value: Any) -> None:
        name = nodes.get(node)
        if name is not None and isinstance(value, Tensor) and value.is_floating_point():
            outputs.layers.setdefault(name, []).append(_sampled(value))

    with _seeded():
        copies = [t.clone() for t in inputs]
        outputs.outputs = silenced_outputs(_bare(graph), subject, set(), copies, {}, dtype=dtype, note=note)
    return outputs


def _bare(graph: Exported) -> Trace:
    return Trace(exported=graph, labels=Labels())


def _layer_nodes(graph: Exported, simple: Mapping[str, nn.Module]) -> dict[fx.Node, str]:
    """The operators that read a simple layer's weight, with the layer's name."""
    layers: dict[fx.Node, str] = {}
    for node in graph.graph.nodes:
        for argument in node.all_input_nodes:
            name = graph.tensors[argument.name][0] if argument.name in graph.tensors else ""
            layer, _, leaf = name.rpartition(".")
            if leaf == "weight" and layer in simple:
                layers[node] = layer
    return layers


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Fix the random numbers, for a network that draws some."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class _Difference:
    """How far the outputs differ, and where the difference begins, as far as the layers show it."""

    worst: float
    where: str
    layers: float = 0.0

    @property
    def largest(self) -> float:
        """The largest difference of outputs or of layers."""
        return max(self.worst, self.layers)


def _differences(
    graph: Exported, subject: nn.Module, inputs: Sequence[Tensor], expected: _Outputs, *, dtype: Any = torch.float32
) -> _Difference | None:
    """Where the program's outputs differ from the module's; `None` where they agree within rounding."""
    try:
        actual = _program_outputs(graph, subject, inputs, dtype=dtype)
    except Exception as error:  # a program's operators can raise anything
        text = " ".join(str(error).split())[:120]
        return _Difference(worst=float("inf"), where=f"the network runs, but the program raises: {text}")
    if [t.shape for t in actual.outputs] != [t.shape for t in expected.outputs]:
        shapes = [" and ".join(str(list(t.shape)) for t in one.outputs) for one in (expected, actual)]
        return _Difference(
            worst=float("inf"), where=f"outputs are {shapes[0]} in the network, {shapes[1]} in the program"
        )
    worst = [_difference(a, b) for a, b in zip(actual.outputs, expected.outputs, strict=True)]
    far = max(worst, default=0.0)
    names = [n for n, calls in actual.layers.items() if len(calls) == len(expected.layers.get(n, ()))]
    apart = {n: max(_between(actual.layers[n], expected.layers[n])) for n in names}
    beyond = [n for n in names if not apart[n] <= 10 * ROUNDING[dtype]]
    if far <= ROUNDING[dtype] and not beyond:
        return None
    where = f"layer `{beyond[0]}` returns something else" if beyond else f"output {worst.index(far)}"
    return _Difference(worst=far, where=where, layers=max((apart[n] for n in beyond), default=0.0))


def _between(answers: Sequence[Tensor], references: Sequence[Tensor]) -> list[float]:
    """The differences of samples, call by call; 0 where the shapes differ or the reference is not finite."""
    return [
        relative_difference(a, b) if a.shape == b.shape and bool(torch.isfinite(b).all()) else 0.0
        for a, b in zip(answers, references, strict=True)
    ]


def _difference(answer: Tensor, reference: Tensor) -> float:
    """The relative difference over values that are finite in both; infinite where only one is finite."""
    if answer.dtype != reference.dtype or not (reference.is_floating_point() or reference.is_complex()):
        answer, reference = answer.double(), reference.double()
    finite = torch.isfinite(reference)
    if not torch.equal(finite, torch.isfinite(answer)):
        return float("inf")
    return relative_difference(answer[finite], reference[finite]) if finite.any() else 0.0


def _is_rounding(
    graph: Exported, subject: nn.Module, inputs: Sequence[Tensor], difference: _Difference, expected: _Outputs
) -> bool:
    """True if a small difference is only rounding: in float64 it vanishes, where both run in float64."""
    again = _module_outputs(graph, subject, inputs).outputs
    if not difference.largest < SMALL or any(map(_difference, again, expected.outputs)):
        return False
    wide = [in_precision(t, torch.float64) for t in inputs]
    try:
        twin = copy_in_precision(subject, torch.float64)
        expected = _module_outputs(graph, twin, wide, dtype=torch.float64)
        return _differences(graph, twin, wide, expected, dtype=torch.float64) is None
    except Exception:  # from the user's code, which need not run in this type
        return difference.largest <= UNSURE


def _outputs_on_example(graph: Exported, subject: nn.Module, examples: Sequence[Tensor], before: Exception) -> _Outputs:
    """The module's outputs on the example, where it does not run on fresh inputs."""
    try:
        return _module_outputs(graph, subject, examples)
    except Exception as error:
        raise GroupError(
            f"this network does not run twice: {type(error).__name__}: {str(error).splitlines()[:1]}", hint=BY_SELF
        ) from before


def _refusal(graph: Exported, subject: nn.Module, inputs: Sequence[Tensor], difference: _Difference) -> GroupError:
    """The error for a program that differs from its network."""
    size = f" at batch size {len(inputs[0])}" if inputs and inputs[0].ndim else ""
    far = f" by {difference.largest:.2g}" if difference.largest < float("inf") else ""
    why = _why(graph, subject, inputs)
    return GroupError(
        f"the traced program is not this network: on other inputs{size} they differ{far} ({difference.where})"
        + (f"; {why}" if why else ""),
        hint=BY_SELF,
    )


def _why(graph: Exported, subject: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """The cause of the difference, where it can be found: the module's state, or a constant that should depend on the
    input.
    """
    other = random_like(inputs, batch=len(inputs[0]), seed=FRESH + 2)
    try:
        first = _module_outputs(graph, subject, inputs).outputs
        here = {path: t.detach().clone() for path, t in _kept_tensors(subject).items()}
        again = _module_outputs(graph, subject, inputs).outputs
        if [t.shape for t in first] != [t.shape for t in again] or any(map(_difference, again, first)):
            return "the network itself returns something else when it is called again"
        _module_outputs(graph, subject, other)
    except Exception:  # from the user's code: then the cause stays unknown
        return None
    shapes = {tuple(t.shape[1:]) for t in graph.constants.values()}
    for path, tensor in _kept_tensors(subject).items():
        before = here.get(path)
        moved = before is not None and (before.shape != tensor.shape or not torch.equal(before, tensor))
        if moved and tuple(tensor.shape[1:]) in shapes:
            return f"`{path}` follows the input in the network, and is a constant in the program"
    return None


PLUMBING = {"_parameters", "_buffers", "_modules"}


def _kept_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that a network stores outside its parameters and buffers, by their paths."""
    tensors: dict[str, Tensor] = {}

    def look(path: str, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            tensors[path] = value
        elif isinstance(value, dict) and depth:
            for key, inner in value.items():
                look(f"{path}[{key!r}]", inner, depth - 1)
        elif isinstance(value, (list, tuple)) and depth:
            for number, inner in enumerate(value):
                look(f"{path}[{number}]", inner, depth - 1)

    for name, layer in module.named_modules():
        for attribute, value in vars(layer).items():
            if attribute not in PLUMBING:
                look(f"{name}.{attribute}" if name else attribute, value, 2)
    return tensors
