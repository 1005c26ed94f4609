"""From a plan to a physically smaller module, and the proof that it is the right one.

The proof compares the small network with the dense one in which exactly the removed channels are silenced where they
are *read*: a channel silenced where it is made can speak again behind a bias or a norm.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import SurgeryError
from compressor.groups import BATCH_NORMS, CONVOLUTIONS, INSTANCE_NORMS, ChannelGroup, Member, Role
from compressor.outputs import outputs_of, relative_difference
from compressor.plan import PruningPlan
from compressor.surgery import Surgery, operate

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """How far the small network's outputs lie from the silenced dense one's: the worst of max |a - b| / max |b|."""

    largest_relative_difference: float
    dtype: torch.dtype
    outputs: int
    inputs: str  # "random", or what they were taken from

    @property
    def holds(self) -> bool:
        """Whether the difference is one of rounding."""
        return self.largest_relative_difference <= TOLERANCE[self.dtype]


def surgery_of(module: nn.Module, groups: Sequence[ChannelGroup], plan: PruningPlan) -> Surgery:
    """What the plan cuts from `module`, whose channel groups are `groups`."""
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    leaving: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    blocks: dict[tuple[str, int], int] = {}
    for group in groups:
        if not plan.removed.get(group.root):
            continue
        gone = gone_mask(group, plan)
        for member in group.members:
            leaving[member.tensor, member.dim].append(member.positions[gone[member.channels]])
            if _block_columns(module, member):
                blocks[member.tensor, member.dim] = member.blocks
    slices: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for (tensor, dim), positions in leaving.items():
        count = blocks.get((tensor, dim), 1)
        keep = torch.ones(shapes[tensor][dim] * count, dtype=torch.bool)
        keep[torch.cat(positions)] = False
        if count > 1:
            columns = keep.view(count, -1)
            kept_columns = [row.nonzero().flatten() for row in columns]
            slices[tensor][dim] = torch.stack(kept_columns)
        else:
            slices[tensor][dim] = keep.nonzero().flatten()
    attributes, factors = _attributes(module, slices)
    for group in groups:
        for norm in group.bare_norms:
            if plan.removed.get(group.root):
                attributes[norm] = {"num_features": group.channels - len(plan.removed[group.root])}
    return Surgery(slices=dict(slices), attributes=attributes, factors=factors)


def shrink(
    module: nn.Module, groups: Sequence[ChannelGroup], plan: PruningPlan, example_inputs: Sequence[Tensor]
) -> tuple[nn.Module, Surgery]:
    """A smaller copy of `module` that runs, and the surgery that made it; the module stays as it was.

    Where the forward pass breaks on a width kept as a plain integer (`hidden_dim` of a vision transformer, say), the
    integers that equal a narrowed group's width are set to the new one; the proof judges whether that was right.
    """
    plan.check(groups)
    surgery = surgery_of(module, groups, plan)
    small = operate(module, surgery)
    try:
        outputs_of(small.eval(), random_like(example_inputs))
    except (RuntimeError, IndexError, ValueError, AssertionError):
        surgery = surgery.then(Surgery(attributes=_integers_to_mend(module, groups, plan)))
        small = operate(module, surgery)
        try:
            outputs_of(small.eval(), random_like(example_inputs))
        except (RuntimeError, IndexError, ValueError, AssertionError) as error:
            # a forward pass that breaks on the new shapes raises whatever its code raises
            raise SurgeryError(
                f"the small network does not run: {error}", hint="protect the layer: `--protect NAME`"
            ) from error
    for layer, original in zip(small.modules(), module.modules(), strict=True):
        layer.training = original.training
    return small, surgery


def _integers_to_mend(
    module: nn.Module, groups: Sequence[ChannelGroup], plan: PruningPlan
) -> dict[str, dict[str, int]]:
    """Integer attributes of containers that equal the dense width of groups which all became equally narrow."""
    widths: dict[int, set[int]] = defaultdict(set)
    for group in groups:
        widths[group.channels].add(group.channels - len(plan.removed.get(group.root, ())))
    mended: dict[str, dict[str, int]] = defaultdict(dict)
    for name, layer in module.named_modules():
        if any(True for _ in layer.children()) and not isinstance(layer, nn.MultiheadAttention):
            for attribute, value in vars(layer).items():
                if type(value) is int and len(widths.get(value, ())) == 1:
                    mended[name][attribute] = next(iter(widths[value]))
    return dict(mended)


def gone_mask(group: ChannelGroup, plan: PruningPlan) -> Tensor:
    """Which of the group's channels leave: bool `[channels]`."""
    gone = torch.zeros(group.channels, dtype=torch.bool)
    gone[list(plan.removed.get(group.root, ()))] = True
    return gone


def _block_columns(module: nn.Module, member: Member) -> bool:
    """Whether the member is the input dimension of a grouped convolution, where each block has columns of its own."""
    layer = module.get_submodule(member.layer)
    return isinstance(layer, CONVOLUTIONS) and member.role is Role.CONSUMES and member.blocks > 1


def _attributes(
    module: nn.Module, slices: dict[str, dict[int, Tensor]]
) -> tuple[dict[str, dict[str, int]], dict[str, tuple[int, float]]]:
    """The integer attributes that follow from the new shapes, and the factors that keep each attention's scale."""
    attributes: dict[str, dict[str, int]] = {}
    factors: dict[str, tuple[int, float]] = {}
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        weight = slices.get(f"{prefix}weight", {})
        if isinstance(layer, nn.MultiheadAttention):
            inner = slices.get(f"{prefix}in_proj_weight", {})
            if 1 in inner:
                width = len(inner[1])
                attributes[name] = dict.fromkeys(("embed_dim", "kdim", "vdim"), width)
                attributes[name]["head_dim"] = width // layer.num_heads
                # scores are divided by sqrt(head_dim), which shrank: the query makes up for it
                factor = math.sqrt(width / layer.embed_dim)
                factors[f"{prefix}in_proj_weight"] = (width, factor)
                if layer.in_proj_bias is not None:
                    factors[f"{prefix}in_proj_bias"] = (width, factor)
        elif not weight and not slices.get(f"{prefix}running_mean"):
            continue
        elif isinstance(layer, CONVOLUTIONS):
            attributes[name] = _convolution_attributes(layer, weight)
        elif isinstance(layer, nn.Linear):
            ends = {0: "out_features", 1: "in_features"}
            attributes[name] = {ends[dim]: len(kept) for dim, kept in weight.items()}
        elif isinstance(layer, nn.Embedding):
            attributes[name] = {"embedding_dim": len(weight[1])}
        elif isinstance(layer, (*BATCH_NORMS, *INSTANCE_NORMS)):
            kept = weight.get(0, slices.get(f"{prefix}running_mean", {}).get(0))
            assert kept is not None
            attributes[name] = {"num_features": len(kept)}
        elif isinstance(layer, nn.LayerNorm):
            attributes[name] = {"normalized_shape": len(weight[0])}
        elif isinstance(layer, nn.GroupNorm):
            attributes[name] = {"num_channels": len(weight[0])}
        elif isinstance(layer, nn.PReLU):
            attributes[name] = {"num_parameters": len(weight[0])}
    return attributes, factors


def _convolution_attributes(layer: Any, weight: dict[int, Tensor]) -> dict[str, int]:
    if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
        return dict.fromkeys(("in_channels", "out_channels", "groups"), len(weight[0]))
    out_dim, in_dim = (1, 0) if layer.transposed else (0, 1)
    values = {}
    if out_dim in weight:
        values["out_channels"] = weight[out_dim].numel()
    if in_dim in weight:
        values["in_channels"] = weight[in_dim].numel()
    return values


def silence(module: nn.Module, groups: Sequence[ChannelGroup], plan: PruningPlan) -> nn.Module:
    """A copy of the dense module in which the removed channels are zeroed where they are read.

    Norms over channels see the survivors alone, as the small network's do; heads keep the dense network's scale.
    """
    silent = copy.deepcopy(module)
    state = dict(silent.named_parameters(remove_duplicate=False)) | dict(silent.named_buffers())
    normed: dict[str, list[Tensor]] = defaultdict(list)
    with torch.no_grad():
        for group in groups:
            if not plan.removed.get(group.root):
                continue
            gone = gone_mask(group, plan)
            for member in group.members:
                positions = member.positions[gone[member.channels]]
                if member.role is Role.NORMALISES:
                    normed[member.layer].append(positions)
                if member.role is not Role.CONSUMES:
                    continue
                tensor = state[member.tensor]
                if _block_columns(module, member):
                    columns, rows = tensor.shape[1], tensor.shape[0] // member.blocks
                    for position in positions.tolist():
                        block = position // columns
                        tensor[block * rows : (block + 1) * rows, position % columns] = 0
                else:
                    tensor.index_fill_(member.dim, positions.to(tensor.device), 0)
    for name, gone_positions in normed.items():
        owner, _, leaf = name.rpartition(".")
        norm = silent.get_submodule(name)
        channels = norm.weight.shape[0] if isinstance(norm.weight, Tensor) else 0
        keep = torch.ones(channels, dtype=torch.bool)
        keep[torch.cat(gone_positions)] = False
        setattr(silent.get_submodule(owner), leaf, _NormOfSurvivors(norm, keep.nonzero().flatten()))
    return silent


class _NormOfSurvivors(nn.Module):
    """A layer or group norm whose statistics come from the surviving channels alone; the others become zero."""

    def __init__(self, norm: Any, kept: Tensor) -> None:
        super().__init__()
        self.channels = norm.weight.shape[0]
        self.norm = copy.deepcopy(norm)
        self.norm.weight = nn.Parameter(norm.weight.detach()[kept])
        if norm.bias is not None:
            self.norm.bias = nn.Parameter(norm.bias.detach()[kept])
        if isinstance(norm, nn.GroupNorm):
            self.norm.num_channels = len(kept)
        else:
            self.norm.normalized_shape = (len(kept),)
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        """`x` with its channels normalised, in `x`'s own shape."""
        first = isinstance(self.norm, nn.GroupNorm) or (
            type(self.norm) is not nn.LayerNorm and x.ndim > 3 and x.shape[1] == self.channels
        )
        dim = 1 if first else x.ndim - 1
        kept = self.kept.to(x.device)
        normed = self.norm(x.index_select(dim, kept))
        return torch.zeros_like(x).index_copy(dim, kept, normed)


def prove(
    dense: nn.Module,
    surgery: Surgery,
    groups: Sequence[ChannelGroup],
    plan: PruningPlan,
    example_inputs: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float64,
    inputs: Sequence[Tensor] | None = None,
    seed: int = 0,
) -> Proof:
    """The surgery proof in `dtype`, on `inputs` or on normal random ones shaped like the example, two of them.

    Refused: a small network that does not run, or whose outputs have another shape. A difference is for the caller to
    judge (`Proof.holds`), who knows what to do about it.
    """
    dense = copy.deepcopy(dense).to(dtype).eval()
    small = operate(dense, surgery)
    silent = silence(dense, groups, plan)
    given = random_like(example_inputs, seed=seed) if inputs is None else list(inputs)
    given = [t.to(dtype) if t.is_floating_point() else t for t in given]
    try:
        reference = outputs_of(silent, given)
        answers = outputs_of(small, given)
    except (RuntimeError, IndexError, ValueError, AssertionError) as error:
        # in float64, too, a forward pass raises whatever its code raises
        raise SurgeryError(f"the small network does not run in {dtype}: {error}") from error
    if [t.shape for t in reference] != [t.shape for t in answers]:
        raise SurgeryError(
            "the small network's outputs have another shape", hint="protect the last layer: `--protect NAME`"
        )
    return Proof(
        largest_relative_difference=max(map(relative_difference, answers, reference)),
        dtype=dtype,
        outputs=len(reference),
        inputs="random" if inputs is None else "data",
    )


def random_like(example_inputs: Sequence[Tensor], *, batch: int = 2, seed: int = 0) -> list[Tensor]:
    """Normal random tensors of the examples' shapes with another batch size; integer inputs are repeated."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, *t.shape[1:], generator=generator) if t.is_floating_point() else torch.cat([t[:1]] * batch)
        for t in example_inputs
    ]
