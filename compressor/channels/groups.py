"""Channel groups: channels that must be removed together, as index maps into the tensors that hold them.

They come from labels that follow the exported program (`channels.tracing`). torch-pruning's dependency graph, used in
an earlier version, is right on the convolutional networks of the tests, which still compare with it; it fails on half
of timm's architectures (docs/explanation/groups-and-surgery.md). Layers that cannot shrink are left alone, with the
reason.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx, nn

from compressor.channels.agreement import check_agreement
from compressor.channels.decomposition import decompose_
from compressor.channels.labels import Ids
from compressor.channels.rules import rule_of
from compressor.channels.tracing import Patterns, Role, Trace, Tracer, ValuesNeeded
from compressor.errors import GroupError
from compressor.graph.exported_program import Exported, exported

__all__ = ["ChannelGroup", "LeftAlone", "Member", "Role", "Traced", "trace", "without"]

UNREACHED = "no input reached it, so it stays as it is: where it reads what was cut, it would not run any more"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One dimension of one tensor, with the group's channel at each position that belongs to the group.

    `positions` and `channels` are int64 `[n]`. A channel has several positions after a flattening, and where it is a
    head or one feature of every head. A grouped convolution's weight is `[out, in / groups, ...]`: a position removed
    from its second dimension is removed from every group.
    """

    layer: str
    tensor: str
    dim: int
    role: Role
    positions: Tensor
    channels: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class BareNorm:
    """A norm without tensors: only its number of channels changes."""

    layer: str
    positions: tuple[int, ...]  # `[channels]`: the positions of each of the group's channels in this norm


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """Coupled channels: each is a unit that can be removed, from all members at once.

    `labels` `[channels]` are those of the group's trace. With `heads`, a channel is a whole head of an attention.
    """

    root: str
    channels: int
    members: tuple[Member, ...]
    labels: tuple[int, ...] = ()
    heads: bool = False
    bare_norms: tuple[BareNorm, ...] = ()

    def __post_init__(self) -> None:
        if not any(m.role is Role.PRODUCES for m in self.members):
            raise GroupError(f"the group of `{self.root}` has no producer")
        for member in self.members:
            if member.positions.shape != member.channels.shape or not len(member.positions):
                raise GroupError(
                    f"`{member.tensor}` has {len(member.positions)} positions, {len(member.channels)} channels"
                )
            if int(member.channels.min()) < 0 or int(member.channels.max()) >= self.channels:
                raise GroupError(f"`{member.tensor}` names a channel outside 0..{self.channels - 1}")

    @property
    def size(self) -> int:
        """The positions of a channel in the group's first layer: the features of a head, for example."""
        return len(self.members[0].positions) // self.channels

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of the group, each once, in the order of its members."""
        return tuple(dict.fromkeys(m.layer for m in self.members))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftAlone:
    """A layer whose channels stay, with the reason."""

    layer: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """Every group that can be pruned, every producer that cannot, and the trace behind both."""

    groups: tuple[ChannelGroup, ...]
    left_alone: tuple[LeftAlone, ...]
    ground: Trace = field(repr=False, compare=False)


def trace(
    module: nn.Module, example_inputs: Sequence[Tensor], *, protect: Sequence[str] = (), heads: bool = True
) -> Traced:
    """Return the channel groups of `module`, which is called with `example_inputs` and stays unchanged.

    `protect`: globs of layers whose outputs stay. Layers whose channels reach the network's output are protected
    anyway. Attention loses whole `heads`, or else the same features of every head. A grouped convolution loses whole
    groups, or the same channels of every group, whichever are more. Refused: a glob that matches nothing, a network
    without groups.
    """
    names = [name for name, _ in module.named_modules()]
    for glob in protect:
        if not fnmatch.filter(names, glob):
            raise GroupError(f"`--protect {glob}` matches no layer", hint=f"layers are named like `{names[-1]}`")
    ground = _walked(module, example_inputs)
    for (tensor, dim), role in ground.roles.items():
        layer = tensor.rpartition(".")[0]
        if role is Role.PRODUCES and any(fnmatch.fnmatch(layer, glob) for glob in protect):
            ground.labels.pin(ground.tensors[tensor][dim], f"protected: `{layer}` shares its channels")
    groups = _chosen(_groups(ground), heads=heads)
    left_alone = _left_alone(ground, groups)
    if not groups:
        raise _nothing_left("nothing in this network can be pruned", left_alone)
    order = {name: i for i, name in enumerate(names)}
    groups.sort(key=lambda g: order.get(g.members[0].layer, 0))
    return Traced(groups=tuple(groups), left_alone=left_alone, ground=ground)


def _walked(module: nn.Module, example_inputs: Sequence[Tensor]) -> Trace:
    """Trace the labels of a module's tensors; the module stays unchanged.

    Where dimensions are split, it traces twice: the first walk finds which parts are batches of a product, as
    attention's heads are.
    """
    graph = exported(module, example_inputs)
    decompose_(graph)
    check_agreement(graph, module, example_inputs)
    if _has_a_group_for_every_image(graph):
        example_inputs = [torch.cat([t, t]) if t.ndim and len(t) == 1 else t for t in example_inputs]
    patterns: Patterns = {}
    first = _walk(graph, example_inputs, patterns)
    if not first.split_at:
        return first.trace
    heads, values = _heads(first), first.values
    del first  # frees its labels
    return _walk(graph, example_inputs, patterns, heads=heads, values=values).trace


def _has_a_group_for_every_image(graph: Exported) -> bool:
    """True if a convolution's number of groups depends on the batch size, as with weights computed from its input.

    Channels and images are then one dimension, and a single image does not show their order.
    """
    return graph.open and any(
        isinstance(argument, fx.Node) and declared.name == "groups"
        for node in graph.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        for argument, declared in zip(node.args, node.target._schema.arguments, strict=False)
    )


def _heads(walk: Tracer) -> frozenset[tuple[str, int, int]]:
    """The places of split-off dimensions that are batches of a product."""
    batched = {int(i) for ids in walk.trace.batched for i in np.unique(walk.labels.find(ids)) if i}
    return frozenset(site for site, ids in walk.split_at if batched & {int(i) for i in walk.labels.find(ids).tolist()})


def _walk(
    graph: Exported,
    example_inputs: Sequence[Tensor],
    patterns: Patterns,
    *,
    heads: frozenset[tuple[str, int, int]] | None = None,
    values: bool = False,
) -> Tracer:
    """Trace by shapes where possible, else with values."""
    tracer = Tracer(graph, rule_of, heads=heads, values=values, patterns=patterns)
    try:
        tracer.walk(example_inputs)
    except ValuesNeeded:
        tracer = Tracer(graph, rule_of, heads=heads, patterns=patterns)
        tracer.walk(example_inputs)
    return tracer


def _groups(ground: Trace) -> list[ChannelGroup]:
    """Group the labels that occur in the same dimensions of the same tensors, equally often."""
    resolve = ground.labels.resolve
    vectors = {(t, d): list(resolve(dim)) for t, dims in ground.tensors.items() for d, dim in enumerate(dims)}
    keys_of = list(vectors)
    batched = {int(i) for ids in ground.batched for i in ground.labels.find(ids).tolist()}
    together = _alike([vectors[key] for key in keys_of], batched)
    making = [(w, d) for w in ground.layers for d in (0, 1, 2) if ground.roles.get((w, d)) is Role.PRODUCES]
    rank = {key: i for i, key in enumerate(making)}
    groups: list[ChannelGroup] = []
    roots: dict[str, int] = defaultdict(int)
    drafts = []
    for labels, places in together:
        keys = [keys_of[place] for place in places]
        producers = sorted((rank[key], key) for key in keys if key in rank)
        if not producers or len(labels) == 1:  # the only channel cannot be removed
            continue
        drafts.append((producers[0][0], producers[0][1], labels, keys))
    for _, first, labels, keys in sorted(drafts, key=lambda d: (d[0], min(d[2]))):
        order = _ordered(vectors[first], labels)
        channel = {label: i for i, label in enumerate(order)}
        members = [_member(ground, key, vectors[key], channel) for key in sorted(keys, key=lambda k: (k != first,))]
        layer = first[0].rpartition(".")[0]
        roots[layer] += 1
        groups.append(
            ChannelGroup(
                root=layer if roots[layer] == 1 else f"{layer}/{roots[layer]}",
                channels=len(order),
                members=tuple(members),
                labels=tuple(order),
                heads=order[0] in batched,
                bare_norms=_bare_norms(ground, order),
            )
        )
    return groups


def _alike(vectors_at: Sequence[Sequence[Ids]], batched: set[int]) -> list[tuple[list[int], list[int]]]:
    """Group labels that occur in the same places equally often, heads apart from others; with the places' numbers.

    `places` holds, for each place (one dimension of one tensor), its label vectors. For each label it lists the places
    where the label occurs, and how often; labels with the same list form one group. The lists are compared as rows of
    one array, for all labels with the same number of places at once, because a network has up to millions of labels.
    """
    columns = []
    for place, vectors in enumerate(vectors_at):
        if vectors:
            ids = np.concatenate(vectors)
            label, count = np.unique(ids[ids > 0], return_counts=True)
            columns.append(np.stack([label, np.full_like(label, place), count]))
    if not columns:
        return []
    label, place, count = np.concatenate(columns, axis=1)
    order = np.argsort(label, kind="stable")  # by label; the places of each label stay in ascending order
    label, place, count = label[order], place[order], count[order]
    labels_here, start, places = np.unique(label, return_index=True, return_counts=True)
    is_head = np.isin(labels_here, list(batched))
    alike = []
    for n in np.unique(places):
        here = (places == n).nonzero()[0]
        at = start[here, None] + np.arange(n)
        rows = np.concatenate([place[at], count[at], is_head[here, None]], axis=1)
        kinds, kind = np.unique(rows, axis=0, return_inverse=True)
        by_kind = np.split(
            labels_here[here][np.argsort(kind, kind="stable")], np.cumsum(np.bincount(kind.ravel()))[:-1]
        )
        alike += [(labels.tolist(), row[:n].tolist()) for labels, row in zip(by_kind, kinds, strict=True)]
    return alike


def _ordered(vectors: Sequence[Ids], labels: Sequence[int]) -> list[int]:
    """The labels in the order of their first positions."""
    places: dict[int, int] = {}
    for ids in vectors:
        here, first = np.unique(ids, return_index=True)
        for label, place in zip(here.tolist(), first.tolist(), strict=True):
            places[label] = min(place, places.get(label, place))
    return sorted(labels, key=lambda label: places[label])


def _member(ground: Trace, key: tuple[str, int], vectors: Sequence[Ids], channel: dict[int, int]) -> Member:
    """The positions of the group's channels in one dimension of one tensor, ascending."""
    positions: list[int] = []
    channels: list[int] = []
    for ids in vectors:
        for p in np.isin(ids, list(channel)).nonzero()[0].tolist():
            positions.append(p)
            channels.append(channel[int(ids[p])])
    tensor, dim = key
    order = sorted(range(len(positions)), key=positions.__getitem__)
    return Member(
        layer=tensor.rpartition(".")[0],
        tensor=tensor,
        dim=dim,
        role=ground.roles.get(key, Role.CARRIES),
        positions=torch.tensor([positions[i] for i in order], dtype=torch.int64),
        channels=torch.tensor([channels[i] for i in order], dtype=torch.int64),
    )


def _bare_norms(ground: Trace, labels: Sequence[int]) -> tuple[BareNorm, ...]:
    """The norms without tensors that the labels pass through."""
    norms: dict[str, BareNorm] = {}
    for layer, dim in ground.bare:
        vectors = ground.labels.resolve(dim)
        counts = tuple(sum(int((ids == label).sum()) for ids in vectors) for label in labels)
        if any(counts):
            norms[layer] = BareNorm(layer=layer, positions=counts)
    return tuple(norms.values())


def _chosen(groups: list[ChannelGroup], *, heads: bool) -> list[ChannelGroup]:
    """If groups partition the same positions differently, keep only one of each two.

    Groups of the wanted kind (`heads`) come first, then those with more channels.
    """
    at: dict[tuple[str, int], list[tuple[int, Tensor]]] = defaultdict(list)
    for i, group in enumerate(groups):
        for member in group.members:
            at[member.tensor, member.dim].append((i, member.positions))
    against: dict[int, set[int]] = defaultdict(set)
    for here in at.values():
        positions = np.concatenate([p.numpy() for _, p in here])
        owners = np.repeat([i for i, _ in here], [len(p) for _, p in here])
        pairs = np.unique(np.stack([positions, owners]), axis=1)
        ends = np.flatnonzero(np.diff(pairs[0], append=-1)) + 1
        starts = np.concatenate([[0], ends[:-1]])
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            sharing = set(pairs[1, start:end].tolist())
            for i in sharing:
                against[i] |= sharing - {i}
    chosen: set[int] = set()
    for i in sorted(range(len(groups)), key=lambda i: (groups[i].heads is not heads, -groups[i].channels, i)):
        if not against[i] & chosen:
            chosen.add(i)
    return [group for i, group in enumerate(groups) if i in chosen]


def _left_alone(ground: Trace, groups: Sequence[ChannelGroup]) -> tuple[LeftAlone, ...]:
    """The producers that belong to no group, with the reasons, and the parts that no input reached."""
    shrinking = {(m.tensor, m.dim) for g in groups for m in g.members}
    reasons_of: dict[str, str] = {}
    for (tensor, dim), role in ground.roles.items():
        if role is not Role.PRODUCES or (tensor, dim) in shrinking or ground.tensors[tensor][dim] == ():
            continue
        ids = ground.tensors[tensor][dim][0]
        reasons = [r for r in (ground.labels.reason(int(i)) for i in ids[:: max(1, len(ids) // 8)]) if r]
        reasons_of.setdefault(
            tensor.rpartition(".")[0], reasons[0] if reasons else "its channels are one with other groups'"
        )
    pinned = tuple(LeftAlone(layer=layer, reason=reason) for layer, reason in reasons_of.items())
    return (*pinned, *_unreached(ground))


def _unreached(ground: Trace) -> tuple[LeftAlone, ...]:
    """The largest parts of the network whose parameters the program of the example input does not read."""
    exported = ground.exported
    reading = {node.name for node in exported.graph.nodes if node.op == "placeholder" and node.users}
    reached = {id(tensor) for placeholder, (_, tensor) in exported.tensors.items() if placeholder in reading}
    idle = {name for name, tensor in exported.named.items() if isinstance(tensor, nn.Parameter) and tensor.numel()}
    active = {name for name in idle if id(exported.named[name]) in reached}
    parts = dict.fromkeys(_largest(name, active) for name in exported.named if name in idle - active)
    return tuple(LeftAlone(layer=part, reason=UNREACHED) for part in parts)


def _largest(name: str, active: set[str]) -> str:
    """The largest part around a parameter in which no parameter is read; its own name where its layer reads another
    one.
    """
    path = name.split(".")
    for depth in range(1, len(path)):
        part = ".".join(path[:depth])
        if not any(other.startswith(f"{part}.") for other in active):
            return part
    return name


def without(traced: Traced, roots: dict[str, str]) -> Traced:
    """Return the same trace, with the groups whose root is in `roots` left alone for the reason in `roots`."""
    dropped = [g for g in traced.groups if g.root in roots]
    reasons = tuple(
        LeftAlone(layer=m.layer, reason=roots[g.root]) for g in dropped for m in g.members if m.role is Role.PRODUCES
    )
    left_alone = _by_layer((*traced.left_alone, *reasons))
    groups = tuple(g for g in traced.groups if g.root not in roots)
    if not groups:
        raise _nothing_left("nothing in this network can be pruned safely", left_alone)
    return Traced(groups=groups, left_alone=left_alone, ground=traced.ground)


def _by_layer(left_alone: Sequence[LeftAlone]) -> tuple[LeftAlone, ...]:
    """One entry per layer, with all its reasons: a layer that is split in parts can produce several groups."""
    reasons: dict[str, dict[str, None]] = defaultdict(dict)
    for alone in left_alone:
        reasons[alone.layer][alone.reason] = None
    return tuple(LeftAlone(layer=layer, reason="; ".join(of_layer)) for layer, of_layer in reasons.items())


def _nothing_left(what: str, left_alone: Sequence[LeftAlone]) -> GroupError:
    """The error for a network in which every layer is left alone: each reason once, with its layers."""
    layers: dict[str, list[str]] = defaultdict(list)
    for alone in left_alone:
        layers[alone.reason].append(f"`{alone.layer}`" if alone.layer else "the network")
    lines = [f"{', '.join(named)}: {reason}" for reason, named in layers.items()]
    return GroupError(
        "\n  ".join([f"{what}:", *(lines or ["it has no convolution or linear layer"])]),
        hint="a layer stays because of what reads its channels; `--input` and `--data` decide which layers run",
    )
