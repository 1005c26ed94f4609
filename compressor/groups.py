"""The channels that must leave together, as index maps into the tensors that hold them.

torch-pruning's dependency graph says which layers are coupled and how positions map through concatenations, splits and
flattening; only its graph is used, never its pruners or its surgery (README, "Why our own surgery"). What the graph
cannot group safely is left alone, with its reason.
"""

from __future__ import annotations

import copy
import enum
import fnmatch
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from compressor.errors import GroupError
from compressor.lent import plain_attention
from compressor.outputs import tensors_in

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class Role(enum.StrEnum):
    """What a member's positions are to the channel: made, read, passed on one by one, or normalised together."""

    PRODUCES = "produces"
    CONSUMES = "consumes"
    CARRIES = "carries"
    NORMALISES = "normalises"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One dimension of one tensor, and the group's channel at each of its positions that belongs to the group.

    `positions` and `channels` are int64 `[n]`. A grouped convolution's weight `[out, in / groups, ...]` has as many
    input positions as input channels: position `p` is column `p % (in / groups)` of block `p // (in / groups)`.
    """

    layer: str
    tensor: str
    dim: int
    role: Role
    positions: Tensor
    channels: Tensor
    blocks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """Coupled channels that leave together; the same number must leave from each of `blocks` contiguous runs."""

    root: str
    channels: int
    blocks: int
    members: tuple[Member, ...]
    bare_norms: tuple[str, ...] = ()  # norms that hold no tensors: only their number of channels follows

    def __post_init__(self) -> None:
        if not any(m.role is Role.PRODUCES for m in self.members):
            raise GroupError(f"the group of `{self.root}` has no producer")
        if self.channels % self.blocks:
            raise GroupError(f"the {self.channels} channels of `{self.root}` do not divide into {self.blocks} blocks")
        for member in self.members:
            if member.positions.shape != member.channels.shape or not len(member.positions):
                raise GroupError(
                    f"`{member.tensor}` has {len(member.positions)} positions, {len(member.channels)} channels"
                )
            if int(member.channels.min()) < 0 or int(member.channels.max()) >= self.channels:
                raise GroupError(f"`{member.tensor}` names a channel outside 0..{self.channels - 1}")

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that the group touches, each once, in the order they were found."""
        return tuple(dict.fromkeys(m.layer for m in self.members))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftAlone:
    """A layer whose channels stay, and why."""

    layer: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """Every group that can be pruned, and every producer that cannot."""

    groups: tuple[ChannelGroup, ...]
    left_alone: tuple[LeftAlone, ...]


class _Ungroupable(Exception):
    """Why one group is left alone; it never costs the others."""


_Pairs = set[tuple[int, int]]  # (position, channel)


def trace(module: nn.Module, example_inputs: Sequence[Tensor], *, protect: Sequence[str] = ()) -> Traced:
    """The channel groups of `module`, whose forward pass takes `example_inputs`; the module stays as it was.

    `protect` holds globs of layers whose outputs stay. The layers whose channels reach the network's output are
    protected by themselves. Refused: a glob that matches nothing, a network with no groups.
    """
    names = [name for name, _ in module.named_modules()]
    for glob in protect:
        if not fnmatch.filter(names, glob):
            raise GroupError(f"`--protect {glob}` matches no layer", hint=f"layers are named like `{names[-1]}`")
    graph = _Graph(module, example_inputs)
    claimed: dict[tuple[str, int, int], str] = {}
    groups: list[ChannelGroup] = []
    left_alone: list[LeftAlone] = []
    seen: set[str] = set()
    for root in graph.producers():
        if root in seen:
            continue
        reached: list[Any] = []
        try:
            reached = graph.reached_from(root)
            group = graph.group_of(root, reached)
            _check_protection(group, protect)
            _claim(group, claimed)
            groups.append(group)
            seen |= {m.layer for m in group.members if m.role is Role.PRODUCES}
        except _Ungroupable as reason:
            layers = [root, *(name for name in graph.producers_in(reached) if name != root)]
            left_alone += [LeftAlone(layer=name, reason=str(reason)) for name in layers if name not in seen]
            seen |= set(layers)
    order = {name: i for i, name in enumerate(names)}
    groups.sort(key=lambda g: order[g.root])
    left_alone.sort(key=lambda a: order[a.layer])
    if not groups:
        found = "; ".join(f"{a.layer or 'the network'}: {a.reason}" for a in left_alone[:4])
        raise GroupError(
            f"nothing in this network can be pruned ({found or 'it has no convolution or linear layer'})",
            hint="`compress inspect` lists every layer and what holds it",
        )
    return Traced(groups=tuple(groups), left_alone=tuple(left_alone))


def without(traced: Traced, roots: dict[str, str]) -> Traced:
    """The same, with the groups whose root is in `roots` left alone for the reason given there."""
    dropped = [g for g in traced.groups if g.root in roots]
    reasons = tuple(
        LeftAlone(layer=m.layer, reason=roots[g.root]) for g in dropped for m in g.members if m.role is Role.PRODUCES
    )
    groups = tuple(g for g in traced.groups if g.root not in roots)
    if not groups:
        raise GroupError(
            "nothing in this network can be pruned safely", hint="`compress inspect` says what holds each layer"
        )
    return Traced(groups=groups, left_alone=traced.left_alone + tuple(dict.fromkeys(reasons)))


def _check_protection(group: ChannelGroup, protect: Sequence[str]) -> None:
    for member in group.members:
        if member.role is Role.PRODUCES and any(fnmatch.fnmatch(member.layer, glob) for glob in protect):
            raise _Ungroupable(f"protected: `{member.layer}` shares its channels")


def _claim(group: ChannelGroup, claimed: dict[tuple[str, int, int], str]) -> None:
    """Every position of every tensor belongs to one group; a second claim means a layer that is used twice."""
    mine = {(m.tensor, m.dim, p): group.root for m in group.members for p in m.positions.tolist()}
    for key in mine:
        if key in claimed:
            raise _Ungroupable(f"`{key[0]}` reads channels of `{claimed[key]}` too: its layer is used more than once")
    claimed |= mine


class _Graph:
    """torch-pruning's graph of a copy of the module, walked by ourselves.

    Its own `get_pruning_group` re-derives every index map for every group and compares lists, which is quadratic in
    depth; this walk is near linear.
    """

    def __init__(self, module: nn.Module, example_inputs: Sequence[Tensor]) -> None:
        self.module = copy.deepcopy(module).float().requires_grad_(True)  # a frozen model traces to nothing
        self.names = {m: name for name, m in self.module.named_modules()}
        self.parameter_names = {id(p): name for name, p in self.module.named_parameters()}
        shared = defaultdict(list)
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            shared[id(parameter)].append(name)
        self.tied = {name: group for group in shared.values() if len(group) > 1 for name in group}
        self.tensors = dict(self.module.named_parameters(remove_duplicate=False)) | dict(self.module.named_buffers())
        outputs: list[Any] = []

        def forward(model: nn.Module, inputs: Any) -> Any:
            outputs.append(model(*inputs))
            return outputs[-1]

        self.graph = torch_pruning.DependencyGraph()
        inputs = [t.float() if t.is_floating_point() else t for t in example_inputs]
        try:
            with plain_attention(), torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "unwrapped parameters": they are Members like any other
                self.graph.build_dependency(self.module, inputs, forward_fn=forward, verbose=False)
        except Exception as error:
            # torch-pruning's shape inference raises whatever its walk ran into
            raise GroupError(
                f"torch-pruning cannot trace this network: {type(error).__name__}: {error}",
                hint="check that `--input` fits; a network whose graph depends on its data cannot be traced",
            ) from error
        self.output_functions = {t.grad_fn for t in tensors_in(outputs[-1]) if t.grad_fn is not None}

    def producers(self) -> Iterator[str]:
        """The names of the convolutions and linear layers that the forward pass ran, but for depthwise ones."""
        for layer in list(self.graph.module2node):
            if layer in self.names and _makes_channels(layer):
                yield self.names[layer]

    def producers_in(self, reached: Sequence[tuple[Any, bool, _Pairs]]) -> list[str]:
        """The producers among the layers that a walk reached by their outputs."""
        layers = [node.module for node, is_output, _ in reached if is_output]
        return [self.names[m] for m in layers if m in self.names and _makes_channels(m)]

    def reached_from(self, root: str) -> list[tuple[Any, bool, _Pairs]]:
        """Every node that the channels of `root` reach: (node, by its outputs?, pairs of position and channel)."""
        helpers = torch_pruning._helpers
        layer = self.module.get_submodule(root)
        node = self.graph.module2node[layer]
        pruner = self.graph.get_pruner_of_module(layer)
        channels = self.graph.get_out_channels(layer)
        start = [helpers._HybridIndex(idx=i, root_idx=i) for i in range(channels)]
        found: dict[tuple[Any, bool], _Pairs] = {}
        stack = [(node, pruner.prune_out_channels, start)]
        found[node, True] = {(i, i) for i in range(channels)}
        while stack:
            at, handler, indices = stack.pop()
            for dependency in at.dependencies:
                if not dependency.is_triggered_by(handler):
                    continue
                mapped = indices
                for mapping in dependency.index_mapping:
                    if mapping is not None:
                        mapped = mapping(mapped)
                key = (dependency.target, bool(self.graph.is_out_channel_pruning_fn(dependency.handler)))
                known = found.get(key, set())
                fresh = [i for i in mapped if (i.idx, i.root_idx) not in known]
                if fresh:
                    found[key] = known | {(i.idx, i.root_idx) for i in fresh}
                    stack.append((dependency.target, dependency.handler, fresh))
        return [(n, is_output, pairs) for (n, is_output), pairs in found.items()]

    def group_of(self, root: str, reached: Sequence[tuple[Any, bool, _Pairs]]) -> ChannelGroup:
        """The group that a walk from `root` found, checked."""
        channels = int(self.graph.get_out_channels(self.module.get_submodule(root)))
        members: list[Member] = []
        bare_norms: list[str] = []
        for node, is_output, pairs in reached:
            reads_only = not is_output and node.module in self.names
            if not reads_only and (node.grad_fn in self.output_functions or not node.outputs):
                raise _Ungroupable("its channels are the network's output")
            members += self._members(node, is_output, sorted(pairs))
            if isinstance(node.module, INSTANCE_NORMS) and not any(True for _ in node.module.buffers()):
                if not node.module.affine:
                    if {c for _, c in pairs} != set(range(channels)) or len(pairs) != node.module.num_features:
                        raise _Ungroupable(f"`{self._name(node)}` normalises channels of several groups")
                    bare_norms.append(self._name(node))
            elif isinstance(node.module, (nn.LayerNorm, nn.GroupNorm)) and node.module.weight is None:
                raise _Ungroupable(f"`{self._name(node)}` is a norm over channels without weights")
        blocks = math.lcm(*(m.blocks for m in members))
        for member in members:
            whole = torch.arange(channels).expand(max(1, len(member.channels) // channels), -1).flatten()
            if member.blocks > 1 and not torch.equal(member.channels, whole):
                raise _Ungroupable(f"`{member.layer}` works on blocks of channels that the group covers in part")
        if channels % blocks or channels // blocks < 2:
            raise _Ungroupable(f"{blocks} blocks of {channels / blocks:g} channels: no channel can leave every block")
        return ChannelGroup(
            root=root, channels=channels, blocks=blocks, members=tuple(members), bare_norms=tuple(bare_norms)
        )

    def _members(self, node: Any, is_output: bool, pairs: list[tuple[int, int]]) -> list[Member]:
        layer = node.module
        by_position = dict(pairs)
        if len(by_position) != len(pairs):
            raise _Ungroupable(f"one position of `{self._name(node)}` holds several of its channels")
        if isinstance(layer, nn.Parameter):
            name = self.parameter_names[id(layer)]
            owner = name.rpartition(".")[0]
            return self._of(owner, {name: (int(node.pruning_dim) % layer.ndim, Role.CARRIES)}, by_position)
        if layer not in self.names:
            return []  # an operator without parameters
        name = self.names[layer]
        if isinstance(layer, (nn.LSTM, nn.GRU, nn.RNN)):
            raise _Ungroupable(f"it meets the recurrent layer `{name}`")
        if isinstance(layer, nn.MultiheadAttention):
            return self._attention(name, layer, by_position)
        prefix = f"{name}." if name else ""
        if isinstance(layer, CONVOLUTIONS):
            return self._convolution(name, layer, is_output, by_position)
        if isinstance(layer, nn.Linear):
            if is_output:
                tensors = {f"{prefix}weight": (0, Role.PRODUCES), f"{prefix}bias": (0, Role.CARRIES)}
                return self._of(name, tensors, by_position)
            return self._of(name, {f"{prefix}weight": (1, Role.CONSUMES)}, by_position)
        if isinstance(layer, nn.Embedding):
            return self._of(name, {f"{prefix}weight": (1, Role.PRODUCES)}, by_position)
        if isinstance(layer, nn.LayerNorm):
            if len(layer.normalized_shape) != 1:
                raise _Ungroupable(f"`{name}` normalises over more than the channels")
            return self._of(name, {f"{prefix}{t}": (0, Role.NORMALISES) for t in ("weight", "bias")}, by_position)
        if isinstance(layer, nn.GroupNorm):
            tensors = {f"{prefix}{t}": (0, Role.NORMALISES) for t in ("weight", "bias")}
            return self._of(name, tensors, by_position, blocks=layer.num_groups)
        if isinstance(layer, (*BATCH_NORMS, *INSTANCE_NORMS, nn.PReLU)):
            if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
                return []
            return self._of(
                name,
                {f"{prefix}{t}": (0, Role.CARRIES) for t in ("weight", "bias", "running_mean", "running_var")},
                by_position,
            )
        held = any(True for _ in layer.parameters(recurse=False))
        if held:
            raise _Ungroupable(f"it meets `{name}`, a `{type(layer).__name__}` without a rule")
        return []

    def _convolution(self, name: str, layer: Any, is_output: bool, by_position: dict[int, int]) -> list[Member]:
        transposed, grouped = isinstance(layer, TRANSPOSED), layer.groups > 1
        out_dim, in_dim = (1, 0) if transposed else (0, 1)
        if grouped and layer.groups == layer.in_channels == layer.out_channels:
            tensors = {f"{name}.weight": (0, Role.CARRIES), f"{name}.bias": (0, Role.CARRIES)}
            return self._of(name, tensors, by_position)
        if grouped and transposed:
            raise _Ungroupable(f"`{name}` is a grouped transposed convolution")
        if is_output:
            tensors = {f"{name}.weight": (out_dim, Role.PRODUCES), f"{name}.bias": (0, Role.CARRIES)}
        else:
            tensors = {f"{name}.weight": (in_dim, Role.CONSUMES)}
        return self._of(name, tensors, by_position, blocks=layer.groups)

    def _attention(self, name: str, layer: nn.MultiheadAttention, by_position: dict[int, int]) -> list[Member]:
        """Embedding and inner channels alike: channel `c` is row `c` of query, key and value, and heads are blocks."""
        width = layer.embed_dim
        if layer.in_proj_weight is None:
            raise _Ungroupable(f"`{name}` reads keys or values of another width")
        if sorted(by_position) != list(range(width)):
            raise _Ungroupable(f"`{name}` shares only a part of its channels")
        rows = dict(by_position)
        others = {p + k * width: c for k in (1, 2) for p, c in by_position.items()}
        reads, makes = Role.CONSUMES, Role.PRODUCES
        heads = layer.num_heads
        members = self._of(name, {f"{name}.in_proj_weight": (1, reads)}, by_position)
        # the query's rows meet the key's: a channel whose query row is zero is silent in every attention score
        members += self._of(
            name, {f"{name}.in_proj_weight": (0, reads), f"{name}.in_proj_bias": (0, reads)}, rows, heads
        )
        members += self._of(name, {f"{name}.in_proj_weight": (0, makes)}, others)
        members += self._of(name, {f"{name}.in_proj_bias": (0, Role.CARRIES)}, others)
        members += self._of(
            name, {f"{name}.bias_k": (2, Role.CARRIES), f"{name}.bias_v": (2, Role.CARRIES)}, by_position
        )
        members += self._of(f"{name}.out_proj", {f"{name}.out_proj.weight": (1, reads)}, by_position)
        members += self._of(f"{name}.out_proj", {f"{name}.out_proj.weight": (0, makes)}, by_position)
        return members + self._of(f"{name}.out_proj", {f"{name}.out_proj.bias": (0, Role.CARRIES)}, by_position)

    def _of(
        self, layer: str, tensors: dict[str, tuple[int, Role]], by_position: dict[int, int], blocks: int = 1
    ) -> list[Member]:
        """Members for those of `tensors` that the layer has."""
        own = {t: spec for t, spec in tensors.items() if t in self.tensors}
        if not own and layer and torch.nn.utils.parametrize.is_parametrized(self.module.get_submodule(layer)):
            raise _Ungroupable(f"`{layer}` has a parametrised weight")
        members = []
        positions = torch.tensor(sorted(by_position), dtype=torch.int64)
        channels = torch.tensor([by_position[p] for p in sorted(by_position)], dtype=torch.int64)
        for tensor, (dim, role) in own.items():
            if tensor in self.tied:
                raise _Ungroupable(f"`{tensor}` is shared: {', '.join(self.tied[tensor])}")
            length = self.tensors[tensor].shape[dim] * (blocks if role is Role.CONSUMES and dim == 1 else 1)
            if positions[-1] >= length:
                raise _Ungroupable(f"position {int(positions[-1])} of `{tensor}` is outside its {length}")
            members.append(
                Member(
                    layer=layer,
                    tensor=tensor,
                    dim=dim,
                    role=role,
                    positions=positions,
                    channels=channels,
                    blocks=blocks,
                )
            )
        return members

    def _name(self, node: Any) -> str:
        return self.names.get(node.module) or str(node.name)


def _makes_channels(layer: Any) -> bool:
    if isinstance(layer, CONVOLUTIONS):
        return not (layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels)
    return isinstance(layer, nn.Linear)
