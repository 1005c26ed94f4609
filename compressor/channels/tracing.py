"""Carry labels through a network's operators: which positions of which tensors are the same channel.

The network is exported (`torch.export`), and its operators run one by one on the example inputs; each value carries the
labels of each of its dimensions (`channels.labels`). `channels.rules` defines the effect of an operator on labels.
Operators that move data need no description: the operator itself runs on the labels.

For values computed from the inputs, usually only shapes are needed, and only those are computed (torch's `meta`
device). Values computed from the network's own tensors alone, such as index tables, are computed in full. Where shapes
are not enough (`ValuesNeeded`), a second walk computes all values.

Every parameter and buffer starts with labels of its own along each dimension. The inputs have none, so that nothing
that meets their width can be removed. What reaches the outputs is pinned.
"""

from __future__ import annotations

import contextlib
import enum
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from compressor.channels.constants import constants_of
from compressor.channels.destinations import destinations, labels_along, merged_sets, varies_along
from compressor.channels.labels import Dim, Ids, Labels
from compressor.errors import CompressError, InternalError
from compressor.graph.exported_program import Exported
from compressor.graph.precision import in_precision

PART_OF_A_TABLE = "a table is computed from it"
NOTHING = "nothing reaches it on the example input"


class Role(enum.StrEnum):
    """The relation of a tensor's positions to the channel: produced, read, passed on one by one, or normalised
    together.
    """

    PRODUCES = "produces"
    CONSUMES = "consumes"
    CARRIES = "carries"
    NORMALISES = "normalises"


@dataclass(slots=True, eq=False)
class Tracked:
    """A value, the labels of each of its dimensions, and the parameter that it comes from, if from one alone.

    `origin`: for each dimension, the parameter's dimensions that it came from.
    """

    value: Tensor
    dims: tuple[Dim, ...]
    source: str | None = None
    origin: tuple[frozenset[int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """An operator that sums over labelled positions of an argument: a removed channel must be zero there.

    `argument`: the argument's number, and the place in it where it is a list.
    """

    argument: tuple[int, ...]
    dim: int
    labels: Dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """An operator that looks at labelled positions together: it must not see removed channels.

    `arguments`: those that have the positions, with the dimension. `result`: the result's dimension, if it has them
    too.
    """

    arguments: tuple[tuple[int, int], ...]
    result: int | None
    labels: Dim


@dataclass(slots=True, eq=False)
class Trace:
    """The result of a walk: labels of every tensor and value, and the operators where they matter."""

    exported: Exported
    labels: Labels
    tensors: dict[str, tuple[Dim, ...]] = field(default_factory=dict)  # parameter or buffer → labels by dimension
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)  # weights that produce channels, in the order of the forward pass
    readings: dict[fx.Node, list[Reading]] = field(default_factory=dict)
    together: dict[fx.Node, list[Together]] = field(default_factory=dict)
    batched: list[Ids] = field(default_factory=list)  # labels along which products are batches: attention's heads
    bare: list[tuple[str, Dim]] = field(default_factory=list)  # norms without tensors, by module, with their channels
    tables: frozenset[fx.Node] = frozenset()  # constants (`channels.constants`): computed whole, and cut where read
    values: dict[fx.Node, Any] = field(default_factory=dict)  # node → labels by dimension, of each output tensor
    shapes: dict[fx.Node, Any] = field(default_factory=dict)
    opened: Any = None  # the same trace with more sizes open, once computed (`channels.open_sizes`)


Rule = Callable[["Tracer", Any, list[Any], dict[str, Any], Any], Any]
Patterns = dict[tuple[Any, ...], list[Ids]]  # where an operator moves positions, keyed by everything that decides it


class ValuesNeeded(Exception):  # not an error of the user: the walk is repeated with values
    """The labels of an operator's result cannot be derived from shapes alone."""


class NotFollowed(Exception):  # not an error of the user: the channels that meet at the operator stay
    """An operator whose channels stay, with the reason in words for the network's author."""


class Tracer:
    """One walk. `rule_of` returns the effect of an operator on labels.

    `heads`: the places at which a split-off dimension is a unit of its own; with `None`, all are. Without `values`,
    values that depend on the inputs have shapes only. `patterns` are shared between walks.
    """

    def __init__(
        self,
        graph: Exported,
        rule_of: Callable[[Any], Rule],
        *,
        heads: frozenset[tuple[str, int, int]] | None = None,
        values: bool = True,
        patterns: Patterns | None = None,
    ) -> None:
        self.trace = Trace(exported=graph, labels=Labels(), tables=constants_of(graph))
        self.labels = self.trace.labels
        self.rule_of, self.heads, self.values = rule_of, heads, values
        self.patterns: Patterns = {} if patterns is None else patterns
        self.split_at: list[tuple[tuple[str, int, int], Ids]] = []
        self.node: fx.Node = next(iter(graph.graph.nodes))
        self.env: dict[fx.Node, Any] = {}
        self._labels_by_tensor: dict[int, tuple[Dim, ...]] = {}
        self._from_inputs: set[fx.Node] = set()  # operators whose results depend on the inputs

    def walk(self, example_inputs: Sequence[Tensor]) -> Trace:
        """Run every operator on the example inputs, and on the labels. Raises `ValuesNeeded` where shapes are not
        enough.
        """
        graph = self.trace.exported
        inputs = iter(example_inputs)
        leaving = graph.last_uses()
        with torch.no_grad():
            for node in graph.graph.nodes:
                self.node = node
                if node.name in graph.inputs or not self._from_inputs.isdisjoint(node.all_input_nodes):
                    self._from_inputs.add(node)
                if node.op == "placeholder":
                    self.env[node] = self._placeholder(node, inputs)
                elif node.op == "call_function":
                    self.env[node] = self._call(node)
                elif node.op == "output":
                    for out in graph.outputs:
                        self.pin(self.env[out], "its channels are the network's output")
                self._keep(node)
                for done in leaving.get(node, ()):
                    self.env.pop(done, None)
        return self.trace

    def _keep(self, node: fx.Node) -> None:
        """Record a node's labels and shapes in the trace."""
        value = self.env.get(node)
        if isinstance(value, Tracked):
            self.trace.values[node], self.trace.shapes[node] = value.dims, tuple(value.value.shape)
        elif isinstance(value, list):
            self.trace.values[node] = [v.dims if isinstance(v, Tracked) else None for v in value]
            self.trace.shapes[node] = [tuple(v.value.shape) if isinstance(v, Tracked) else None for v in value]

    def _placeholder(self, node: fx.Node, inputs: Any) -> Any:
        """A parameter, buffer or constant with labels of its own, or the next input without labels."""
        graph = self.trace.exported
        if node.name in graph.tensors:
            name, tensor = graph.tensors[node.name]
            # a tied tensor has one set of labels
            dims = self._labels_by_tensor.setdefault(id(tensor), self.fresh(tensor.shape))
            for alias in graph.names_of(tensor):
                self.trace.tensors[alias] = dims
            return Tracked(tensor, dims, name, tuple(frozenset({d}) for d in range(tensor.ndim)))
        if node.name in graph.constants:
            return Tracked(graph.constants[node.name], self.fresh(graph.constants[node.name].shape))
        value = next(inputs)
        value = in_precision(value, torch.float32)
        return Tracked(value if self.values else value.to("meta"), ((),) * value.ndim)

    def from_weights_alone(self) -> bool:
        """True if the operator's output depends on no input: a weight that is computed from others, for example."""
        return self.node not in self._from_inputs

    def _call(self, node: fx.Node) -> Any:
        """Run an operator on its arguments, by shapes or with values, and derive its result's labels by its rule."""
        if node not in self.trace.tables:
            for table in self.trace.tables.intersection(node.all_input_nodes):
                self._label(table)
        args = fx.map_arg(node.args, lambda n: self.env[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: self.env[n])
        if node.target is operator.getitem:
            return operator.getitem(args[0], args[1])
        raw_args, raw_kwargs = pytree.tree_map(_raw, (tuple(args), dict(kwargs)))
        with self._by_shapes():
            if any(isinstance(v, Tensor) and v.is_meta for v in pytree.tree_leaves((raw_args, raw_kwargs))):
                result = _by_shapes_alone(node.target, raw_args, raw_kwargs)
            else:
                result = node.target(*raw_args, **raw_kwargs)  # type: ignore[operator]  # a `call_function` node's
        if not isinstance(result, (Tensor, tuple, list)) or not pytree.tree_any(
            lambda v: isinstance(v, Tensor), result
        ):
            return result
        if node in self.trace.tables:
            self.pin([v for n, v in self._arguments(node) if n not in self.trace.tables], PART_OF_A_TABLE)
            return pytree.tree_map(_unlabelled, list(result) if isinstance(result, tuple) else result)
        own = any(isinstance(v, Tracked) and v.source for v in pytree.tree_leaves((args, kwargs)))
        if own and isinstance(result, Tensor) and not result.numel():
            self.pin([list(args), dict(kwargs)], NOTHING)
        return self._ruled(node.target, list(args), dict(kwargs), result)

    def _label(self, table: fx.Node) -> None:
        """Give a constant labels of its own where it meets a value that is not constant, position by position, as a
        buffer has.
        """
        for tracked in pytree.tree_leaves(self.env[table]):
            if isinstance(tracked, Tracked) and not any(tracked.dims):
                tracked.dims = self.fresh(tracked.value.shape)
        self._keep(table)

    def _arguments(self, node: fx.Node) -> list[tuple[fx.Node, Any]]:
        """The nodes that an operator reads, with their values."""
        return [(n, self.env[n]) for n in node.all_input_nodes]

    @contextlib.contextmanager
    def _by_shapes(self) -> Iterator[None]:
        """Treat any error on tensors without values as `ValuesNeeded`, since the operator may well run with values."""
        try:
            yield
        except Exception as error:
            if self.values or isinstance(error, (ValuesNeeded, NotFollowed)):
                raise
            raise ValuesNeeded from error

    def _ruled(self, target: Any, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
        """The result with the labels of the operator's rule; unlabelled, with all arguments pinned, where no rule
        follows it.
        """
        try:
            with self._by_shapes():
                return self.rule_of(target)(self, target, args, kwargs, result)
        except (CompressError, ValuesNeeded):
            raise
        except NotFollowed as stop:
            # labels united before the exception stay united, which is safe; all others that meet here are pinned
            self.pin([args, kwargs], str(stop))
            bare = pytree.tree_map(_unlabelled, result)
            return list(bare) if isinstance(bare, tuple) else bare
        except Exception as error:  # a fault of the rule, and no reason for a channel to stay
            raise InternalError(
                f"the rule for the operator `{_short(target)}` fails: {type(error).__name__}: {error}"
            ) from error

    def fresh(self, shape: Sequence[int]) -> tuple[Dim, ...]:
        """Return new labels along every dimension that is longer than one."""
        return tuple((self.labels.fresh(n),) if n > 1 else () for n in shape)

    def pin(self, value: Any, reason: str) -> None:
        """Pin every dimension of a value: none of its positions is removed."""
        for tracked in pytree.tree_leaves(value):
            if isinstance(tracked, Tracked):
                for dim in tracked.dims:
                    self.labels.pin(dim, reason)

    def read(self, argument: int | tuple[int, int], tracked: Tracked, dim: int) -> None:
        """Note that the operator sums over this dimension of this argument, or of the one at this place of a list."""
        self.trace.readings.setdefault(self.node, []).append(
            Reading(
                argument=argument if isinstance(argument, tuple) else (argument,),
                dim=dim % tracked.value.ndim,
                labels=tracked.dims[dim],
            )
        )

    def look(self, arguments: Sequence[tuple[int, int]], labels: Dim, *, result: int | None = None) -> None:
        """Note that the operator looks at these positions together."""
        if labels:
            self.trace.together.setdefault(self.node, []).append(
                Together(arguments=tuple(arguments), result=result, labels=labels)
            )

    def plays(self, tracked: Tracked, dim: int, role: Role) -> None:
        """Note the role of a parameter's dimension; the strongest role counts."""
        if tracked.source is None:
            return
        rank = [Role.CARRIES, Role.NORMALISES, Role.CONSUMES, Role.PRODUCES]
        for own in tracked.origin[dim]:
            before = self.trace.roles.get((tracked.source, own), Role.CARRIES)
            self.trace.roles[tracked.source, own] = max(before, role, key=rank.index)
            if role is Role.PRODUCES and tracked.source not in self.trace.layers:
                self.trace.layers.append(tracked.source)

    def pointwise(self, values: Sequence[Any], shape: Sequence[int]) -> tuple[Dim, ...]:
        """Return the labels of a result that is computed position by position, with broadcasting; labels that meet are
        united.
        """
        dims: list[Dim] = []
        operands = [v for v in values if isinstance(v, Tracked)]
        for d in range(-len(shape), 0):
            there = [v.dims[d] for v in operands if v.value.ndim >= -d and v.value.shape[d] == shape[d] > 1]
            for other in there[1:]:
                self.labels.unify(there[0], other, self.reason())
            dims.append(self.labels.resolve(there[0]) if there else ())
        return tuple(dims)

    def bare_norm(self, labels: Dim) -> None:
        """Note that the operator is a norm without tensors, of these channels."""
        stack = self.node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        self.trace.bare.append((path, labels))

    def reason(self) -> str:
        """Return the reason for labels that this operator unites with pinned ones."""
        return f"`{_short(self.node.target)}` joins it with what cannot shrink"

    def moved(
        self,
        x: Tracked,
        result: Any,
        target: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        favour: int | None = None,
    ) -> list[tuple[tuple[Dim, ...], tuple[frozenset[int], ...]]]:
        """Return the labels of an operator that moves data, by running the operator itself on position numbers.

        `args` and `kwargs` are its arguments besides the value. One entry per tensor of `result`. Where a labelled
        dimension becomes several, its labels are factored: the longest factor (or `favour`) stays free, and the others
        are pinned unless they are heads.
        """
        rest, named = pytree.tree_map(_raw, (tuple(args), dict(kwargs or {})))
        beside = [v for v in pytree.tree_leaves((rest, named)) if isinstance(v, Tensor)]
        if any(v.is_meta for v in beside):  # without values the destinations are unknown
            raise ValuesNeeded
        bare = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
        if self.trace.exported.choices and not any(t.numel() for t in bare):  # with other inputs it may hold something
            self.pin(x, NOTHING)
        pieces: list[list[tuple[int, Ids]]] = [[] for _ in bare]
        for d, dim in enumerate(x.dims):
            labels_here = self.labels.resolve(dim)
            if not labels_here:
                continue
            key = None if beside else (str(target), repr(rest), repr(named), tuple(x.value.shape), d)
            went = self.patterns.get(key) if key else None
            if went is None:
                went = destinations(x.value.shape, d, lambda places: target(places, *rest, **named))
                if went is None:
                    raise NotFollowed(f"torch cannot run `{_short(target)}` on the numbers of its channels")
                if key:
                    self.patterns[key] = went
            for ids in labels_here:
                labels = np.concatenate([np.zeros(1, dtype=np.int64), ids])
                for k, places in enumerate(went):
                    pieces[k].append((d, labels[places]))
        return [self._assigned(x, k, tuple(t.shape), pieces[k], favour) for k, t in enumerate(bare)]

    def _assigned(
        self, x: Tracked, number: int, shape: tuple[int, ...], pieces: list[tuple[int, Ids]], favour: int | None
    ) -> tuple[tuple[Dim, ...], tuple[frozenset[int], ...]]:
        """The labels of each dimension of one result of a moving operator, and the parameter dimensions they come from.

        `pieces`: for each labelled dimension d of `x`, the labels at every position of the result, shape 1 along axes
        where they do not vary. There are three cases:

        - the labels vary along no axis: single channels were picked, which are pinned;
        - they vary along one axis, which no other dimension shares: they are that axis's labels;
        - they vary along several axes (64 channels viewed as `[batch, 4, 16, …]`): the dimension was split. Each axis
          gets fresh labels, and the old labels are factored into them.

        Of a split's axes one stays free and the others are pinned: free axes would make groups that partition the same
        positions differently, of which `channels.groups` keeps only one. The free axis is `favour` if it may be, else
        the longest, which offers the most channels. Axes that are heads (`self.heads`) stay free too, and then the free
        axis is one behind them, among the features of a head.
        """
        dims: list[Dim] = [() for _ in shape]
        origin: list[frozenset[int]] = [frozenset() for _ in shape]
        ranges: list[tuple[list[int], Ids]] = []
        for d, out in pieces:
            varies = varies_along(out)
            if not varies and out.any():
                single = np.unique(out).astype(np.int64)
                self.labels.pin((single,), f"`{_short(self.node.target)}` picks single channels")
                continue
            ranges.append((varies, np.broadcast_to(out, shape)))
            for e in varies:
                origin[e] |= x.origin[d] if x.source else frozenset()
        split = merged_sets([set(v) for v, _ in ranges if len(v) > 1])
        for varies, out in ranges:
            if len(varies) == 1 and not any(varies[0] in axes for axes in split):
                dims[varies[0]] = (*dims[varies[0]], labels_along(out, varies))
        for axes in map(sorted, split):
            joint = tuple(labels_along(out, axes) for varies, out in ranges if set(varies) & set(axes))
            lengths = [shape[e] for e in axes]
            sites = {e: (self.node.name, number, e) for e in axes}
            whole = [e for e in axes if self.heads is not None and sites[e] in self.heads]
            units = [e for e in axes if e not in whole and (not whole or e > whole[-1])] or axes  # what a head has
            stays = favour if favour in units else max(units, key=lambda e: (shape[e], e))
            new: list[Ids] = []
            for e in axes:
                ids = self.labels.fresh(shape[e])
                self.split_at.append((sites[e], ids))
                if self.heads is not None and e != stays and sites[e] not in self.heads:
                    self.labels.pin((ids,), f"`{_short(self.node.target)}` divides the channels")
                new.append(ids)
                dims[e] = (ids,)
            grid = [np.ascontiguousarray(g).reshape(-1) for g in np.meshgrid(*new, indexing="ij")]
            assert all(g.size == np.prod(lengths) for g in grid)
            self.labels.unify(joint, tuple(grid), f"`{_short(self.node.target)}` divides the channels")
        return tuple(self.labels.resolve(dim) for dim in dims), tuple(origin)


RECURRENT = ("aten.lstm.", "aten.gru.", "aten.rnn_")


def _by_shapes_alone(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operator's output without values. Raises `ValuesNeeded` for one that writes into a tensor with values."""
    for value, declared in zip(args, target._schema.arguments, strict=False):
        written = declared.alias_info is not None and declared.alias_info.is_write
        if written and isinstance(value, Tensor) and not value.is_meta:
            raise ValuesNeeded
    if str(target).startswith(RECURRENT):  # without values torch decomposes it step by step, slower than running it
        args, kwargs = pytree.tree_map(_zeros, (args, kwargs))
        return pytree.tree_map(_without_values, target(*args, **kwargs))
    args, kwargs = pytree.tree_map(_without_values, (args, kwargs))
    return target(*args, **kwargs)


def _zeros(value: Any) -> Any:
    return torch.zeros_like(value, device="cpu") if isinstance(value, Tensor) and value.is_meta else value


def _without_values(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("meta")
    return value.to("meta") if isinstance(value, Tensor) else value


def _unlabelled(value: Any) -> Any:
    return Tracked(value, ((),) * value.ndim) if isinstance(value, Tensor) else value


def _raw(value: Any) -> Any:
    return value.value if isinstance(value, Tracked) else value


def _short(target: Any) -> str:
    return str(target).removeprefix("aten.").split(".")[0]
