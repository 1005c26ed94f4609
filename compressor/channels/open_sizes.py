"""The traced program of a network once more, with every size open that the network's own code leaves open.

Tracing has the batch alone open: sizes as numbers are what its labels and shapes want, and an export with more of them
open takes several times as long. It is made here, for a network that is kept as its program alone, and takes its labels
from the traced one, operator by operator, for both come from the same code.

`torch.export` fixes a size without a word where code asks for it as a number, and takes one way where code decides by
it. So the user's own module says which sizes are open, what torch asked on the way becomes a condition of the program,
and the two are compared at sizes that the export has not seen.
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

from compressor.channels.decomposition import take_apart_
from compressor.channels.silenced import silenced_outputs
from compressor.channels.tracing import Trace
from compressor.graph.choices import StoppedAtValues
from compressor.graph.exported_program import Exported, followed, named_tensors, read_program, twin_of
from compressor.graph.input_spec import random_like
from compressor.graph.lent import quiet_exporter
from compressor.graph.outputs import outputs_of, relative_difference, tensors_in
from compressor.graph.precision import in_precision
from compressor.graph.sizes import is_met, size_of

CLOSE = 1e-4  # in float32, as the proof's
INVOLVED = 24  # steps of arithmetic in one size; Swin's windows make hundreds, and torch takes minutes over them
SMALL = 64  # where something is one, sizes are small
TRIES = 4  # sizes that a condition excludes, before it is known to be needed or not

ALL = 2**63 - 1  # where a slice ends that has no end

Place = tuple[int, int]  # input, dimension
Sizes = Mapping[Place, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The program with open sizes, and example inputs of sizes that neither tracing nor export has seen."""

    trace: Trace
    elsewhere: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Sizes that are open, several where they are so together alone; and another size that the module takes."""

    places: tuple[Place, ...]
    size: int
    other: int

    def at(self, size: int) -> Sizes:
        return dict.fromkeys(self.places, size)


def opened(trace: Trace, module: nn.Module, example_inputs: Sequence[Tensor]) -> Opened | None:
    """The traced program of `module` with open sizes; `None` where its code leaves none open but the batch's.

    What is found is kept with the trace.
    """
    if trace.opened is None:
        trace.opened = (_opened(trace, module, example_inputs),)
    found: Opened | None = trace.opened[0]
    return found


def _opened(trace: Trace, module: nn.Module, examples: Sequence[Tensor]) -> Opened | None:
    if trace.exported.choices:
        return None
    twin, examples = twin_of(module), [in_precision(t, torch.float32) for t in examples]
    axes = _axes(twin, examples)
    fewer = [[axis] for axis in axes] if len(axes) > 1 else []
    try:
        tried = (_tried(trace, module, twin, examples, some) for some in ([axes, *fewer] if axes else []))
        return next((found for found in tried if found is not None), None)
    except _TooInvolvedError:  # one axis alone would not be less so
        return None


def _axes(twin: nn.Module, examples: Sequence[Tensor]) -> list[_Axis]:
    """The sizes that the module itself takes otherwise: each alone, else those that are equal together."""
    equal: dict[int, list[Place]] = defaultdict(list)
    for number, tensor in enumerate(examples):
        for dim in range(1, tensor.ndim):
            if tensor.shape[dim] > 1:  # torch keeps a size of one as it is
                equal[tensor.shape[dim]].append((number, dim))
    axes: list[_Axis] = []
    for size, places in equal.items():

        def other(*several: Place, size: int = size) -> int | None:
            return next((n for n in _others(size) if _said(twin, _resized(examples, dict.fromkeys(several, n)))), None)

        alone = {place: other(place) for place in places}
        axes += [_Axis(places=(place,), size=size, other=n) for place, n in alone.items() if n is not None]
        bound = [place for place, n in alone.items() if n is None]
        together = other(*bound) if len(bound) > 1 else None
        if together is not None:
            axes.append(_Axis(places=tuple(bound), size=size, other=together))
    return axes


def _others(size: int) -> tuple[int, int]:
    """Sizes to try in place of `size`: as often divisible by two, and twice as long."""
    return size + min(32, size & -size), 2 * size


def _tried(
    trace: Trace, module: nn.Module, twin: nn.Module, examples: Sequence[Tensor], axes: Sequence[_Axis]
) -> Opened | None:
    """The program with these axes open, if torch leaves them so and it agrees with the module; else `None`."""
    batch = 2 if trace.exported.open else len(examples[0])
    found = _exported(twin, random_like(_resized(examples, _distinct(axes)), batch=batch), trace.exported.open, axes)
    if found is None:
        return None
    graph = followed(found, module)
    nodes = _aligned(trace.exported, graph)
    conditions = _conditions(graph, examples, axes, open_batch=trace.exported.open)
    if nodes is None or conditions is None:
        return None
    graph = dataclasses.replace(graph, open=trace.exported.open)
    ours = _retold(trace, graph, nodes)
    elsewhere = _resized(examples, {k: v for axis in axes for k, v in axis.at(axis.other).items()})
    swapped = _resized(examples, {k: v for axis in axes[1:] for k, v in axis.at(axis.other).items()})
    seen = (random_like(elsewhere, batch=batch), random_like(swapped, batch=batch), random_like(examples, batch=1))
    if not all(_agrees(ours, twin, inputs) for inputs in seen if len(inputs[0]) == 1 or trace.exported.open):
        return None
    proved = [c for c in conditions if is_met(c, [t[:1].shape for t in examples])]  # as it was, just now
    needed = list(_needed(proved, ours, twin, examples, axes))
    assert graph.takes is not None
    ours.exported = dataclasses.replace(graph, takes={**graph.takes, "holds": needed})
    return Opened(trace=ours, elsewhere=tuple(elsewhere))


def _distinct(axes: Sequence[_Axis]) -> Sizes:
    """Sizes for the export, no two of them equal: code that compares two sizes finds them different, as a rule."""
    taken: set[int] = set()
    sizes: dict[Place, int] = {}
    for axis in axes:
        step = axis.other - axis.size
        size = next(n for n in itertools.chain((axis.other, axis.size), itertools.count(axis.other + step, step))
                    if n not in taken)  # fmt: skip
        taken.add(size)
        sizes |= axis.at(size)
    return sizes


def _resized(examples: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    """The examples in other sizes: values are repeated, or left out."""
    found = list(examples)
    for (number, dim), size in sizes.items():
        found[number] = found[number].index_select(dim, torch.arange(size) % examples[number].shape[dim])
    return found


def _said(twin: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor] | None:
    """What the module says; `None` where it does not take inputs of these sizes."""
    try:
        with quiet_exporter():
            return outputs_of(twin, inputs) or None
    except Exception:  # a network's own code raises whatever it raises
        return None


class _TooInvolvedError(Exception):
    """A size that takes too much arithmetic to be followed."""


class _NotInvolved(TorchFunctionMode):
    """While it lasts, `_TooInvolvedError` where a size has become an expression of many steps."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            if any(isinstance(n, SymInt) and n.node.expr.count_ops() > INVOLVED for n in tensor.shape):
                raise _TooInvolvedError
        return result


def _exported(twin: nn.Module, inputs: Sequence[Tensor], open_batch: bool, axes: Sequence[_Axis]) -> Exported | None:
    """The module as torch exports it with these axes open; `None` where it does not. `_TooInvolvedError` as it says."""
    auto, places = torch.export.Dim.AUTO, [place for axis in axes for place in axis.places]
    shapes = tuple(
        {d: auto for d in range(t.ndim) if (number, d) in places or (d == 0 and open_batch)} or None
        for number, t in enumerate(inputs)
    )
    try:
        with quiet_exporter(), torch.no_grad(), StoppedAtValues(), _NotInvolved():
            found = read_program(torch.export.export(twin, tuple(inputs), dynamic_shapes=shapes), named_tensors(twin))
            take_apart_(found)
            return found
    except _TooInvolvedError:
        raise
    except Exception:  # the exporter raises whatever the network's code made it stumble over
        return None


def _aligned(traced: Exported, other: Exported) -> dict[fx.Node, fx.Node] | None:
    """Which node of the traced graph does what a node of the other one does; `None` where they take other steps.

    A slice of everything, which torch leaves out where it knows the size, does what its source does.
    """
    ours, theirs = ([node for node in graph.graph.nodes if _makes_tensors(node)] for graph in (traced, other))
    found: dict[fx.Node, fx.Node] = {}
    waiting = iter(ours)
    mine = next(waiting, None)
    for node in theirs:
        if mine is not None and _alike(traced, mine, other, node):
            found[node], mine = mine, next(waiting, None)
        elif _is_whole_slice(node) and node.args[0] in found:
            found[node] = found[node.args[0]]
        else:
            return None
    return found if mine is None else None


def _alike(traced: Exported, mine: fx.Node, other: Exported, yours: fx.Node) -> bool:
    if mine.op != "placeholder" or yours.op != "placeholder":
        return mine.op == yours.op and mine.target == yours.target
    names = [graph.tensors[n.name][0] if n.name in graph.tensors else n.name in graph.constants
             for graph, n in ((traced, mine), (other, yours))]  # fmt: skip
    return names[0] == names[1]


def _is_whole_slice(node: fx.Node) -> bool:
    if node.target is not torch.ops.aten.slice.Tensor:
        return False
    given: tuple[Any, ...] = node.args[2:]
    start, end, step = (*given, None, None, None)[:3]
    return bool(start in (None, 0) and end in (None, ALL) and step in (None, 1))


def _makes_tensors(node: fx.Node) -> bool:
    made = any(isinstance(t, Tensor) for t in tensors_in(node.meta.get("val")))
    return node.op == "placeholder" or (node.op == "call_function" and made)


def _retold(trace: Trace, graph: Exported, nodes: Mapping[fx.Node, fx.Node]) -> Trace:
    """The trace as one of the other graph, whose open sizes are `None` among its shapes."""

    def told(known: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """A slice of everything sums over nothing, and what it is a slice of does so once."""
        return {node: known[mine] for node, mine in nodes.items() if mine in known and not _is_whole_slice(node)}

    return dataclasses.replace(
        trace,
        exported=graph,
        readings=told(trace.readings),
        together=told(trace.together),
        tables=frozenset(node for node, mine in nodes.items() if mine in trace.tables),
        values={node: trace.values[mine] for node, mine in nodes.items() if mine in trace.values},
        shapes={node: _shapes(node.meta["val"]) for node, mine in nodes.items() if mine in trace.shapes},
        opened=None,
    )


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(size_of(n) for n in value.shape)
    return [_shapes(one) for one in value] if isinstance(value, (list, tuple)) else None


def _conditions(
    graph: Exported, examples: Sequence[Tensor], axes: Sequence[_Axis], *, open_batch: bool
) -> list[Any] | None:
    """What the program asks of the sizes that are open; `None` where it has fixed one of them, or asks more."""
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
    found = [["ge", c[1], c[2] + 1] if c[0] == "gt" and isinstance(c[2], int) else c for c in takes["holds"]]
    for axis in axes:
        first = ["size", *axis.places[0]]
        found += [["eq", first, ["size", *place]] for place in axis.places[1:]]
        if not any(c[:2] == ["ge", first] and c[2] > 1 for c in found):
            found.append(["ge", first, 2])  # torch takes an open size for two or more, and says so nowhere
    sizes = [t.shape for t in examples]
    return [c for i, c in enumerate(found) if c not in found[:i]] if _met(found, sizes) else None


def _met(conditions: Sequence[Any], sizes: Sequence[Sequence[int]]) -> bool:
    return all(is_met(condition, sizes) or _of_one(condition) for condition in conditions)


def _of_one(condition: Any) -> bool:
    """Whether a condition says no more than that something is not one: torch keeps books of that by itself.

    It says so of a size, or of a product that is more than one, or more than one of its factors.
    """
    match condition:
        case ["ne", _, 1] | ["ge", _, 2] | ["lt", 1, _] | ["gt", _, 1]:
            return True
        case ["lt" | "ne", less, ["mul", *_] as product] | ["gt", ["mul", *_] as product, less]:
            return _bare(less) in (1, *_factors(product))
    return False


def _factors(product: Any) -> list[Any]:
    match _bare(product):
        case ["mul", *parts]:
            return [factor for part in parts for factor in _factors(part)]
        case other:
            return [other]


def _bare(expression: Any) -> Any:
    """What is not less than one, whether an expression says so or not."""
    match expression:
        case ["max", 1, inner] | ["max", inner, 1]:
            return inner
    return expression


def _needed(
    conditions: Sequence[Any], ours: Trace, twin: nn.Module, examples: Sequence[Tensor], axes: Sequence[_Axis]
) -> Iterator[Any]:
    """The conditions without those of small sizes that are not met where program and module agree all the same.

    Those say that something is not one, or how long a size is at least, which torch may have concluded from the former.
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
            found = agrees(i)
            if found is not None:
                ran.append((i, found))
        if not (ran and all(found for _, found in ran)):
            yield condition


def _small(conditions: Sequence[Any], examples: Sequence[Tensor], axes: Sequence[_Axis]) -> list[list[Tensor]]:
    """The example of one alone, and with one axis or all of them shorter, the longest first."""
    least = {c[2] - below for c in conditions if c[0] == "ge" and isinstance(c[2], int) for below in (1, 2)}
    single = [t[:1] for t in examples]
    groups = [axes, *([axis] for axis in axes)] if len(axes) > 1 else [axes]
    return [single] + [
        _resized(single, {place: size for axis in some if size < axis.size for place in axis.places})
        for size in sorted({n for n in (*range(1, SMALL), *least) if n > 0}, reverse=True)
        for some in groups
    ]


def _agrees(ours: Trace, twin: nn.Module, inputs: Sequence[Tensor]) -> bool | None:
    """Whether program and module say the same on these inputs; `None` where the module does not take them."""
    expected = _said(twin, inputs)
    if expected is None:
        return None
    try:
        answers = silenced_outputs(ours, twin, set(), inputs, {}, dtype=torch.float32)
    except (RuntimeError, IndexError, ValueError, AssertionError, TypeError, ZeroDivisionError):
        return False  # an operator breaks on what the export has as a number
    return [t.shape for t in answers] == [t.shape for t in expected] and all(
        relative_difference(a, b) <= CLOSE for a, b in zip(answers, expected, strict=True)
    )
