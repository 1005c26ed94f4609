"""Turn a plan into a physically smaller module."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.channels.groups import BATCH_NORMS, CONVOLUTIONS, INSTANCE_NORMS, ChannelGroup, Traced
from compressor.channels.open_sizes import Opened, opened
from compressor.channels.tracing import Trace
from compressor.errors import CompressError, InternalError, SurgeryError
from compressor.graph.recorded import RecordedProgram
from compressor.surgery.mending import mended
from compressor.surgery.plan import PruningPlan, gone_labels, gone_mask
from compressor.surgery.proof import TOLERANCE, difference, differing, reference_of
from compressor.surgery.surgery import Surgery, operate

CLOSE = 1e-3  # in float32, a first check; the proof decides


def surgery_of(module: nn.Module, groups: Sequence[ChannelGroup], plan: PruningPlan) -> Surgery:
    """Return the surgery of the plan on `module`, whose channel groups are `groups`."""
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    shapes = {name: tensor.shape for name, tensor in tensors}
    leaving: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    bare: dict[str, int] = defaultdict(int)
    for group in groups:
        if not plan.removed.get(group.root):
            continue
        gone = gone_mask(group, plan)
        for member in group.members:
            leaving[member.tensor, member.dim].append(member.positions[gone[member.channels]])
        for norm in group.bare_norms:
            bare[norm.layer] += int((torch.tensor(norm.positions) * gone).sum())
    slices: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for (tensor, dim), positions in leaving.items():
        keep = torch.ones(shapes[tensor][dim], dtype=torch.bool)
        keep[torch.cat(positions)] = False
        slices[tensor][dim] = keep.nonzero().flatten()
    attributes = {name: _narrower(module.get_submodule(name), count) for name, count in bare.items()}
    return Surgery(slices=dict(slices), attributes={**attributes, **_attributes(module, slices)})


def _narrower(norm: Any, count: int) -> dict[str, int]:
    """The attributes of a norm without tensors that loses `count` channels."""
    if isinstance(norm, nn.GroupNorm):
        narrow = {"num_channels": norm.num_channels - count}
        return narrow if norm.num_groups < norm.num_channels else {**narrow, "num_groups": norm.num_channels - count}
    if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": norm.normalized_shape[-1] - count}
    return {"num_features": norm.num_features - count} if hasattr(norm, "num_features") else {}


def shrink(
    module: nn.Module,
    traced: Traced,
    plan: PruningPlan,
    example_inputs: Sequence[Tensor],
    *,
    judge: Callable[[nn.Module], object] | None = None,
) -> tuple[nn.Module, Surgery]:
    """Return a smaller copy of `module`, and its surgery; the module stays unchanged.

    The copy is the first of `forms` that `judge` does not refuse with a `SurgeryError`. Without `judge`, a form must
    only be close, in float32, to the dense network with the removed channels silenced; `surgery.proved` judges by the
    proof. Refused: a plan for which every form is refused.
    """
    judge = judge or _closeness(module, traced, plan, example_inputs)
    last: SurgeryError | None = None
    for form in forms(module, traced, plan, example_inputs):
        try:
            small, surgery = form()
            judge(small)
        except SurgeryError as error:
            last = error
        else:
            return small, surgery
    assert last is not None
    raise last


def _closeness(
    module: nn.Module, traced: Traced, plan: PruningPlan, example_inputs: Sequence[Tensor]
) -> Callable[[nn.Module], None]:
    """The default judge: it refuses a network that is not close to the reference in float32."""
    reference = reference_of(module, traced, plan, example_inputs, dtype=torch.float32)

    def judge(small: nn.Module) -> None:
        worst = difference(small, reference)
        if not worst < CLOSE:
            raise differing(worst)

    return judge


def forms(
    module: nn.Module, traced: Traced, plan: PruningPlan, example_inputs: Sequence[Tensor]
) -> Iterator[Callable[[], tuple[nn.Module, Surgery]]]:
    """Yield the ways to build the small network, the plainest first; each builds when it is called.

    1. The user's own class with the new shapes.
    2. The same, with integer attributes mended that equal a narrowed width (`hidden_dim`, for example).
    3. The exported program with its numbers mended (`surgery.mending`) and every size open that can be
      (`channels.open_sizes`), compared at another size too.
    4. The same for the example's size.
    """
    plan.check(traced.groups)
    cut = surgery_of(module, traced.groups, plan)

    def of_class(surgery: Surgery) -> tuple[nn.Module, Surgery]:
        try:
            small = operate(module, surgery)
        except (AttributeError, TypeError, ValueError) as error:  # the class does not accept tensors of other shapes
            raise SurgeryError(
                f"`{type(module).__name__}` does not take smaller tensors", hint="protect the layer: `--protect NAME`"
            ) from error
        for layer, original in zip(nn.Module.modules(small), nn.Module.modules(module), strict=True):
            layer.training = original.training
        return small, surgery

    def of_program(ground: Trace) -> tuple[nn.Module, Surgery]:
        try:
            recorded = mended(ground, module, gone_labels(traced.groups, plan))
            surgery = dataclasses.replace(cut, attributes={}, program=recorded)
            return operate(module, surgery).train(module.training), surgery
        except CompressError:
            raise
        except Exception as error:  # none of the user's code runs here
            raise InternalError(f"a program cannot be mended: {type(error).__name__}: {error}") from error

    def of_open_program(program: Opened) -> tuple[nn.Module, Surgery]:
        small, surgery = of_program(program.trace)
        elsewhere = dataclasses.replace(traced, ground=program.trace)
        reference = reference_of(module, elsewhere, plan, program.elsewhere, dtype=torch.float32)
        worst = difference(small, reference)
        if not worst <= TOLERANCE[torch.float32]:
            raise differing(worst)
        return small, surgery

    if not isinstance(module, RecordedProgram):
        yield lambda: of_class(cut)
        integers = _integers_to_mend(module, traced.groups, plan)
        if integers:
            yield lambda: of_class(cut.then(Surgery(attributes=integers)))
    if not traced.ground.exported.choices:
        program = opened(traced.ground, module, example_inputs)
        if program is not None:
            yield lambda: of_open_program(program)
        yield lambda: of_program(traced.ground)


def _integers_to_mend(
    module: nn.Module, groups: Sequence[ChannelGroup], plan: PruningPlan
) -> dict[str, dict[str, int]]:
    """Integer attributes of containers that equal the dense width of groups which all have the same new width."""
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


def _attributes(module: nn.Module, slices: Mapping[str, Mapping[int, Tensor]]) -> dict[str, dict[str, int]]:
    """The integer attributes that follow from the new shapes."""
    attributes: dict[str, dict[str, int]] = {}
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        weight = slices.get(f"{prefix}weight", {})
        if isinstance(layer, nn.RNNBase):
            sizes = {"input_size": f"{prefix}weight_ih_l0", "hidden_size": f"{prefix}weight_hh_l0"}
            attributes[name] = {key: len(slices[w][1]) for key, w in sizes.items() if 1 in slices.get(w, {})}
        elif isinstance(layer, nn.MultiheadAttention):
            attributes |= _attention_attributes(name, layer, slices)
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
        elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
            attributes[name] = {"normalized_shape": len(weight[0])}
        elif isinstance(layer, nn.GroupNorm):
            attributes[name] = {"num_channels": len(weight[0])}
            if layer.num_groups == layer.num_channels:
                attributes[name]["num_groups"] = len(weight[0])
        elif isinstance(layer, nn.PReLU):
            attributes[name] = {"num_parameters": len(weight[0])}
    return attributes


def _attention_attributes(
    name: str, layer: nn.MultiheadAttention, slices: Mapping[str, Mapping[int, Tensor]]
) -> dict[str, dict[str, int]]:
    """The widths of an `nn.MultiheadAttention` whose embedding became narrower."""
    inner = slices.get(f"{name}.in_proj_weight" if name else "in_proj_weight", {})
    if 1 not in inner:
        return {}
    width = len(inner[1])
    return {name: {**dict.fromkeys(("embed_dim", "kdim", "vdim"), width), "head_dim": width // layer.num_heads}}


def _convolution_attributes(layer: Any, weight: Mapping[int, Tensor]) -> dict[str, int]:
    """The channels and groups of a narrower convolution."""
    out_dim, in_dim = (1, 0) if layer.transposed else (0, 1)
    shape = [len(weight[d]) if d in weight else n for d, n in enumerate(layer.weight.shape[:2])]
    groups = layer.groups
    if 0 in weight and groups > 1:  # a group stays if any of its rows does
        groups = len(torch.unique(weight[0] // (layer.weight.shape[0] // groups)))
    values = {"groups": groups} if groups != layer.groups else {}
    per_group = {in_dim: "in_channels", out_dim: "out_channels"}
    values[per_group[0]] = shape[0]
    values[per_group[1]] = shape[1] * groups
    return values
