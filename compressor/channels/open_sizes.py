"""Trace the program of a network once more, with every size open that the network's own code leaves open.

The first trace opens the batch alone: labels and shapes need sizes as numbers, and an export with more open sizes takes
several times as long. The second trace is for networks that are stored only as their program. It takes its labels from
the first one, operator by operator, because both come from the same code.

`torch.export` silently fixes a size where code reads it as a number, and follows one branch where code decides by it.
So the user's own module decides which sizes are open, what torch checked on the way becomes a condition of the program,
and both are compared at sizes that the export has not seen.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from compressor.channels.decomposition import decompose_
from compressor.channels.silenced import silenced_outputs
from compressor.channels.tracing import Trace
from compressor.graph.choices import StoppedAtValues
from compressor.graph.exported_program import Exported, followed, named_tensors, read_program, twin_of
from compressor.graph.input_spec import random_like
from compressor.graph.lent import quiet_exporter
from compressor.graph.outputs import outputs_of, relative_difference, tensors_in
from compressor.graph.precision import in_precision
from compressor.graph.sizes import is_met, size_of

CLOSE = 1e-4  # in float32, as in the proof
INVOLVED = 24  # arithmetic steps in one size; Swin's windows need hundreds, and torch takes minutes over them
SMALL = 64  # sizes at which something can become one are small
TRIES = 4  # sizes that a condition excludes are tried so often to find out whether it is needed

ALL = 2**63 - 1  # the end of a slice without an end

Place = tuple[int, int]  # input, dimension
Sizes = Mapping[Place, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The program with open sizes, and example inputs with sizes that neither tracing nor export has seen."""

    trace: Trace
    elsewhere: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Sizes that are open, several if only together; and another size that the module accepts."""

    places: tuple[Place, ...]
    size: int
    other: int

    def at(self, size: int) -> Sizes:
        return dict.fromkeys(self.places, size)


def opened(trace: Trace, module: nn.Module, example_inputs: Sequence[Tensor]) -> Opened | None:
    """Return the traced program of `module` with open sizes; `None` where its code leaves only the batch open.

    The result is stored in the trace.
    """
    if trace.opened is None:
        trace.opened = (_opened(trace, module, example_inputs),)
    result: Opened | None = trace.opened[0]
    return result


def _opened(trace: Trace, module: nn.Module, examples: Sequence[Tensor]) -> Opened | None:
    """The program with all axes open, or else with one of them; `None` where torch opens none."""
    if trace.exported.choices:
        return None
    twin, examples = twin_of(module), [in_precision(t, torch.float32) for t in examples]
    axes = _axes(twin, examples)
    fewer = [[axis] for axis in axes] if len(axes) > 1 else []
    try:
        tried = (_opened_along(trace, module, twin, examples, some) for some in ([axes, *fewer] if axes else []))
        return next((program for program in tried if program is not None), None)
    except _TooInvolvedError:  # one axis alone would be as involved
        return None


def _axes(twin: nn.Module, examples: Sequence[Tensor]) -> list[_Axis]:
    """The sizes at which the module also runs: each alone if possible, else equal ones together."""
    equal: dict[int, list[Place]] = defaultdict(list)
    for number, tensor in enumerate(examples):
        for dim in range(1, tensor.ndim):
            if tensor.shape[dim] > 1:  # torch never opens a size of one
                equal[tensor.shape[dim]].append((number, dim))
    axes: list[_Axis] = []
    for size, places in equal.items():

        def other(*several: Place, size: int = size) -> int | None:
            return next(
                (n for n in _others(size) if _outputs_if_any(twin, _resized(examples, dict.fromkeys(several, n)))), None
            )

        alone = {place: other(place) for place in places}
        axes += [_Axis(places=(place,), size=size, other=n) for place, n in alone.items() if n is not None]
        bound = [place for place, n in alone.items() if n is None]
        together = other(*bound) if len(bound) > 1 else None
        if together is not None:
            axes.append(_Axis(places=tuple(bound), size=size, other=together))
    return axes


def _others(size: int) -> tuple[int, int]:
    """Sizes to try in place of `size`: one as often divisible by two, and one twice as long."""
    return size + min(32, size & -size), 2 * size


def _opened_along(
    trace: Trace, module: nn.Module, twin: nn.Module, examples: Sequence[Tensor], axes: Sequence[_Axis]
) -> Opened | None:
    """The program with these axes open, if torch leaves them open and it agrees with the module; else `None`."""
    batch = 2 if trace.exported.open else len(examples[0])
    program = _exported(twin, random_like(_resized(examples, _distinct(axes)), batch=batch), trace.exported.open, axes)
    if program is None:
        return None
    graph = followed(program, module)
    nodes = _aligned(trace.exported, graph)
    conditions = _conditions(graph, examples, axes, open_batch=trace.exported.open)
    if nodes is None or conditions is None:
        return None
    graph = dataclasses.replace(graph, open=trace.exported.open)
    ours = _with_open_sizes(trace, graph, nodes)
    elsewhere = _resized(examples, {k: v for axis in axes for k, v in axis.at(axis.other).items()})
    swapped = _resized(examples, {k: v for axis in axes[1:] for k, v in axis.at(axis.other).items()})
    seen = (random_like(elsewhere, batch=batch), random_like(swapped, batch=batch), random_like(examples, batch=1))
    if not all(_agrees(ours, twin, inputs) for inputs in seen if len(inputs[0]) == 1 or trace.exported.open):
        return None
    proved = [c for c in conditions if is_met(c, [t[:1].shape for t in examples])]  # a batch of one has just agreed
    needed = list(_needed(proved, ours, twin, examples, axes))
    assert graph.takes is not None
    ours.exported = dataclasses.replace(graph, takes={**graph.takes, "holds": needed})
    return Opened(trace=ours, elsewhere=tuple(elsewhere))


def _distinct(axes: Sequence[_Axis]) -> Sizes:
    """Sizes for the export, all different: code that compares two sizes then usually finds them different."""
    used: set[int] = set()
    sizes: dict[Place, int] = {}
    for axis in axes:
        step = axis.other - axis.size
        size = next(n for n in itertools.chain((axis.other, axis.size), itertools.count(axis.other + step, step))
                    if n not in used)  # fmt: skip
        used.add(size)
        sizes |= axis.at(size)
    return sizes


def _resized(examples: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    """The examples in other sizes: values are repeated, or dropped."""
    resized = list(examples)
    for (number, dim), size in sizes.items():
        resized[number] = resized[number].index_select(dim, torch.arange(size) % examples[number].shape[dim])
    return resized


def _outputs_if_any(twin: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor] | None:
    """The module's outputs; `None` where it does not accept inputs of these sizes."""
    try:
        with quiet_exporter():
            return outputs_of(twin, inputs) or None
    except Exception:  # a network's own code can raise anything
        return None


class _TooInvolvedError(Exception):
    """A size whose arithmetic has too many steps to follow."""


class _NotInvolved(TorchFunctionMode):
    """While active, raises `_TooInvolvedError` where a size becomes an expression of many steps."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            if any(isinstance(n, SymInt) and n.node.expr.count_ops() > INVOLVED for n in tensor.shape):
                raise _TooInvolvedError
        return result


def _exported(twin: nn.Module, inputs: Sequence[Tensor], open_batch: bool, axes: Sequence[_Axis]) -> Exported | None:
    """The module exported with these axes open; `None` where torch cannot. Raises `_TooInvolvedError`."""
    auto, places = torch.export.Dim.AUTO, [place for axis in axes for place in axis.places]
    shapes = tuple(
        {d: auto for d in range(t.ndim) if (number, d) in places or (d == 0 and open_batch)} or None
        for number, t in enumerate(inputs)
    )
    try:
        with quiet_exporter(), torch.no_grad(), StoppedAtValues(), _NotInvolved():
            program = read_program(torch.export.export(twin, tuple(inputs), dynamic_shapes=shapes), named_tensors(twin))
            decompose_(program)
            return program
    except _TooInvolvedError:
        raise
    except Exception:  # the exporter can raise anything, from the network's own code
        return None


def _aligned(traced: Exported, other: Exported) -> dict[fx.Node, fx.Node] | None:
    """Map each node of the other graph to the node of the traced graph that computes the same; `None` where they
    differ.

    A slice of everything, which torch omits where it knows the size, maps to the node of its source.
    """
    ours, theirs = ([node for node in graph.graph.nodes if _makes_tensors(node)] for graph in (traced, other))
    matches: dict[fx.Node, fx.Node] = {}
    waiting = iter(ours)
    mine = next(waiting, None)
    for node in theirs:
        if mine is not None and _alike(traced, mine, other, node):
            matches[node], mine = mine, next(waiting, None)
        elif _is_whole_slice(node) and node.args[0] in matches:
            matches[node] = matches[node.args[0]]
        else:
            return None
    return matches if mine is None else None


def _alike(traced: Exported, mine: fx.Node, other: Exported, yours: fx.Node) -> bool:
    """True if two nodes are the same operator, or placeholders of the same tensor."""
    if mine.op != "placeholder" or yours.op != "placeholder":
        return mine.op == yours.op and mine.target == yours.target
    names = [graph.tensors[n.name][0] if n.name in graph.tensors else n.name in graph.constants
             for graph, n in ((traced, mine), (other, yours))]  # fmt: skip
    return names[0] == names[1]


def _is_whole_slice(node: fx.Node) -> bool:
    """True if the node slices everything."""
    if node.target is not torch.ops.aten.slice.Tensor:
        return False
    bounds: tuple[Any, ...] = node.args[2:]
    start, end, step = (*bounds, None, None, None)[:3]
    return bool(start in (None, 0) and end in (None, ALL) and step in (None, 1))


def _makes_tensors(node: fx.Node) -> bool:
    """True for placeholders and operators that return tensors."""
    returns_tensors = any(isinstance(t, Tensor) for t in tensors_in(node.meta.get("val")))
    return node.op == "placeholder" or (node.op == "call_function" and returns_tensors)


def _with_open_sizes(trace: Trace, graph: Exported, nodes: Mapping[fx.Node, fx.Node]) -> Trace:
    """The trace of the other graph: labels from `trace`, and `None` in its shapes where a size is open."""

    def moved(by_node: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """The entries for the other graph's nodes; a slice of everything shares its source's node, and has none."""
        return {node: by_node[mine] for node, mine in nodes.items() if mine in by_node and not _is_whole_slice(node)}

    return dataclasses.replace(
        trace,
        exported=graph,
        readings=moved(trace.readings),
        together=moved(trace.together),
        tables=frozenset(node for node, mine in nodes.items() if mine in trace.tables),
        values={node: trace.values[mine] for node, mine in nodes.items() if mine in trace.values},
        shapes={node: _shapes(node.meta["val"]) for node, mine in nodes.items() if mine in trace.shapes},
        opened=None,
    )


def _shapes(value: Any) -> Any:
    """The shapes of a value's tensors, with `None` for open sizes."""
    if isinstance(value, Tensor):
        return tuple(size_of(n) for n in value.shape)
    return [_shapes(one) for one in value] if isinstance(value, (list, tuple)) else None


def _conditions(
    graph: Exported, examples: Sequence[Tensor], axes: Sequence[_Axis], *, open_batch: bool
) -> list[Any] | None:
    """The program's conditions on open sizes; `None` where it fixes one of them, or has unreadable conditions."""
    takes = graph.takes
    if takes is None or takes["unread"]:
        return None
    places = {place for axis in axes for place in axis.places}
    for number, (entry, example) in enumerate(zip(takes["inputs"], examples, strict=True)):
        if entry["shape"] is None or len(entry["shape"]) != example.ndim:
            return None
        for dim, size in enumerate(entry["shape"]):
            may_be_open = (number, dim) in places or (dim == 0 and open_batch)
            if (size is None) != may_be_open or (size is not None and size != example.shape[dim]):
                return None
    conditions = [["ge", c[1], c[2] + 1] if c[0] == "gt" and isinstance(c[2], int) else c for c in takes["holds"]]
    for axis in axes:
        first = ["size", *axis.places[0]]
        conditions += [["eq", first, ["size", *place]] for place in axis.places[1:]]
        if not any(c[:2] == ["ge", first] and c[2] > 1 for c in conditions):
            conditions.append(["ge", first, 2])  # torch assumes that an open size is two or more, without a guard
    sizes = [t.shape for t in examples]
    return [c for i, c in enumerate(conditions) if c not in conditions[:i]] if _met(conditions, sizes) else None


def _met(conditions: Sequence[Any], sizes: Sequence[Sequence[int]]) -> bool:
    """True if the sizes meet all conditions, apart from those that only exclude one."""
    return all(is_met(condition, sizes) or _of_one(condition) for condition in conditions)


def _of_one(condition: Any) -> bool:
    """True if a condition only states that something is not one, which torch tracks by itself.

    It may state so of a size, or of a product that is more than one, or more than one of its factors.
    """
    match condition:
        case ["ne", _, 1] | ["ge", _, 2] | ["lt", 1, _] | ["gt", _, 1]:
            return True
        case ["lt" | "ne", less, ["mul", *_] as product] | ["gt", ["mul", *_] as product, less]:
            return _bare(less) in (1, *_factors(product))
    return False


def _factors(product: Any) -> list[Any]:
    """The factors of a product, nested products included."""
    match _bare(product):
        case ["mul", *parts]:
            return [factor for part in parts for factor in _factors(part)]
        case other:
            return [other]


def _bare(expression: Any) -> Any:
    """An expression without its lower bound of one, since sizes are at least one anyway."""
    match expression:
        case ["max", 1, inner] | ["max", inner, 1]:
            return inner
    return expression


def _needed(
    conditions: Sequence[Any], ours: Trace, twin: nn.Module, examples: Sequence[Tensor], axes: Sequence[_Axis]
) -> Iterator[Any]:
    """Yield the conditions that are needed.

    A condition that something is not one, or on a least size (which torch may derive from the former), is dropped if
    program and module agree at small sizes that do not meet it.
    """
    small = _small(conditions, examples, axes)
    shapes = [[t.shape for t in inputs] for inputs in small]
    rest = [condition for condition in conditions if not (_of_one(condition) or condition[0] == "ge")]
    lawful = [i for i, sizes in enumerate(shapes) if all(is_met(condition, sizes) for condition in rest)]
    proved: dict[int, bool | None] = {}

    def agrees(number: int) -> bool | None:
        if number not in proved:
            proved[number] = _agrees(ours, twin, random_like(small[number], batch=1))
        return proved[number]

    for condition in conditions:
        unmet = [] if condition in rest else [i for i in lawful if not is_met(condition, shapes[i])]
        others = {i: sum(not is_met(other, shapes[i]) for other in conditions) for i in unmet}
        ran: list[tuple[int, bool]] = []
        for i in sorted(unmet, key=others.__getitem__)[: 4 * TRIES]:  # by itself first, if it can be
            if len(ran) == TRIES or (ran and others[i] > others[ran[0][0]]):
                break
            agreed = agrees(i)
            if agreed is not None:
                ran.append((i, agreed))
        if not (ran and all(agreed for _, agreed in ran)):
            yield condition


def _small(conditions: Sequence[Any], examples: Sequence[Tensor], axes: Sequence[_Axis]) -> list[list[Tensor]]:
    """The example as a batch of one, then with one axis or all axes shorter, the longest first."""
    least = {c[2] - below for c in conditions if c[0] == "ge" and isinstance(c[2], int) for below in (1, 2)}
    single = [t[:1] for t in examples]
    groups = [axes, *([axis] for axis in axes)] if len(axes) > 1 else [axes]
    return [single] + [
        _resized(single, {place: size for axis in some if size < axis.size for place in axis.places})
        for size in sorted({n for n in (*range(1, SMALL), *least) if n > 0}, reverse=True)
        for some in groups
    ]


def _agrees(ours: Trace, twin: nn.Module, inputs: Sequence[Tensor]) -> bool | None:
    """True if program and module have the same outputs on these inputs; `None` where the module refuses them."""
    expected = _outputs_if_any(twin, inputs)
    if expected is None:
        return None
    try:
        answers = silenced_outputs(ours, twin, set(), inputs, {}, dtype=torch.float32)
    except (RuntimeError, IndexError, ValueError, AssertionError, TypeError, ZeroDivisionError):
        return False  # an operator fails where the export has fixed a size
    return [t.shape for t in answers] == [t.shape for t in expected] and all(
        relative_difference(a, b) <= CLOSE for a, b in zip(answers, expected, strict=True)
    )
