"""A dense network on the channels that a small one kept: every operator passes over what is missing.

The network's own forward pass is recorded on the very inputs that it is asked about, as it runs (never by an exporter),
and run again operator by operator with a second tensor beside each value: which of its positions are there. Sums and
products add up what is there, norms, means and soft-maxima look at nothing else, and what moves positions moves both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
Present = Tensor | None  # bool, of the value's shape; `None` where everything is there
Rule = Callable[[dict[str, Any], dict[str, Any], Any], Any]  # values and presences by argument, the operator
MOVES = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "cat", "stack",
    "split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "chunk", "slice", "select", "clone", "alias", "detach",
    "unbind", "flip", "roll", "repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "index", "gather",
    "index_select", "diagonal", "unfold", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "narrow",
    "replication_pad2d", "im2col", "embedding", "constant_pad_nd", "lift_fresh_copy", "movedim", "_reshape_alias",
    "as_strided", "view_as_real", "view_as_complex", "tril", "triu",
}  # fmt: skip
INDEXED = {"index", "gather", "index_select", "embedding"}  # their other tensors say where
ALIKE = {  # position by position, though they are not marked so
    "_to_copy", "native_dropout", "contiguous", "copy", "zeros_like", "ones_like", "full_like", "hardswish",
    "hardsigmoid", "hardtanh", "relu6", "silu", "mish", "gelu", "elu", "leaky_relu", "softplus", "rsub",
    "_prelu_kernel", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "pow",
    "logical_and", "where", "masked_fill", "clamp",
}  # fmt: skip
POOLS = {
    "max_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d",
}  # fmt: skip


class Unjudged(Exception):
    """An operator of which nobody said what it does where positions are missing."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operator as it ran: what it was given and what it gave, tensors and all."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The operators of one forward pass in order, the tensors that came out, and how the output is built of them."""

    inputs: tuple[Tensor, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Tensor, ...]
    built: Any


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps = list[Step]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        if func is not aten.detach.default:  # autograd's own: what it keeps for the way back is the same value
            self.steps.append(Step(target=func, args=args, kwargs=kwargs or {}, result=result))
        return result


def recorded(module: nn.Module, inputs: Sequence[Tensor]) -> Recording:
    """The operators that the module runs on these inputs; attention by its products, whatever kernels there are."""
    given = tuple(t.clone().requires_grad_(t.is_floating_point()) for t in inputs)  # no fast path looks at it
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), _Recorder() as recorder:
        leaves, built = pytree.tree_flatten(module(*given))
    outputs = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
    return Recording(inputs=given, steps=tuple(recorder.steps), outputs=outputs, built=built)


Place = tuple[Any, ...]


def _place(tensor: Tensor) -> Place:
    """Which value it is: autograd hands on other objects for the same memory, and all of a recording's stays alive."""
    where = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return (*where, tensor.shape, tensor.stride(), tensor.dtype)


def on_survivors(
    recording: Recording, inputs: Sequence[Tensor], present_of: Callable[[Tensor], Present]
) -> tuple[list[Tensor], list[Present]]:
    """The recorded network's outputs, and which of their positions are there; `present_of` says it of its tensors."""
    values: dict[Place, Tensor] = {_place(t): x for t, x in zip(recording.inputs, inputs, strict=True)}
    presences: dict[Place, Present] = dict.fromkeys(values)

    def known(tensor: Any) -> Any:
        return values.get(_place(tensor), tensor) if isinstance(tensor, Tensor) else tensor

    def there(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return None
        place = _place(tensor)
        return presences[place] if place in presences else present_of(tensor)

    for step in recording.steps:
        if step.target._schema.is_mutable:
            _check_whole(step, values)
        given = pytree.tree_map(known, (step.args, step.kwargs))
        where = pytree.tree_map(there, (step.args, step.kwargs))
        result, present = _run(step.target, given, where)
        flat = zip(pytree.tree_leaves(step.result), pytree.tree_leaves(result), strict=True)
        held = present if isinstance(present, (tuple, list)) else [present] * len(pytree.tree_leaves(result))
        for (then, now), mask in zip(flat, held, strict=True):
            if isinstance(then, Tensor):
                values[_place(then)] = now
                presences[_place(then)] = None if mask is None or bool(mask.all()) else mask
    return [known(t) for t in recording.outputs], [there(t) for t in recording.outputs]


def _check_whole(step: Step, values: Mapping[Place, Tensor]) -> None:
    """What is written into a part of a value changes the value: that is followed here by nobody."""
    written = step.args[0]
    if any(place[0] == _place(written)[0] and place != _place(written) for place in values):
        raise Unjudged(f"{step.target} writes into a part")


def _run(target: Any, given: Any, where: Any) -> tuple[Any, Any]:
    """What an operator gives, and what of that is there."""
    if target in (aten.view.default, aten._unsafe_view.default):  # what was contiguous there may not be here
        target = aten.reshape.default
    name = target._schema.name.partition("::")[2]
    if target._schema.is_mutable and name.endswith("_"):
        name = name.removesuffix("_")
        target = getattr(getattr(aten, name), target._overloadname)
    (args, kwargs), (where_args, where_kwargs) = given, where
    if all(p is None for p in pytree.tree_leaves((where_args, where_kwargs))):
        return target(*args, **kwargs), None
    bound, there = _bound(target, args, kwargs), _bound(target, where_args, where_kwargs)
    if name in RULES:
        return RULES[name](bound, there, target)
    result = target(*args, **kwargs)
    if name in MOVES:
        return result, _moved(name, bound, there, target)
    if name in ALIKE or torch.Tag.pointwise in target.tags:
        return result, _every(bound, there, result)
    if name in POOLS:
        return result, _pooled(bound, there, target)
    raise Unjudged(name)


def _bound(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = [a.name for a in target._schema.arguments]
    defaults = {a.name: a.default_value if a.has_default_value() else None for a in target._schema.arguments}
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def _of(value: Tensor, present: Present) -> Tensor:
    return torch.ones(value.shape, dtype=torch.bool) if present is None else present


def _moved(name: str, given: dict[str, Any], where: dict[str, Any], target: Any) -> Any:
    """The same move on the presences; what is put in around them is there."""

    def swapped(value: Any, present: Any, *, first: bool) -> Any:
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            return [swapped(v, p, first=first) for v, p in zip(value, present, strict=True)]
        if not isinstance(value, Tensor) or (name in INDEXED and not first):
            return value
        return _of(value, present).float()

    entries = list(given)
    moved = {key: swapped(given[key], where[key], first=key == entries[0]) for key in entries}
    if name == "constant_pad_nd":
        moved["value"] = 1.0
    return pytree.tree_map(lambda t: t > 0.5 if isinstance(t, Tensor) else t, target(**moved))


def _every(given: dict[str, Any], where: dict[str, Any], result: Any) -> Any:
    """A position is there where it is in everything that it is made of; a norm's vectors are one number a channel."""
    shape = pytree.tree_leaves(result)[0].shape
    found = torch.ones(shape, dtype=torch.bool)
    x = next(v for v in given.values() if isinstance(v, Tensor))
    for key, present in where.items():
        if isinstance(present, Tensor):
            channels = given[key].ndim == 1 and key in ("weight", "bias", "running_mean", "running_var")
            found = found & (present.view(-1, *[1] * (x.ndim - 2)) if channels else present)
    return (
        found
        if isinstance(result, Tensor)
        else tuple(found if t is not None and t.shape == shape else None for t in result)
    )


def _pooled(given: dict[str, Any], where: dict[str, Any], target: Any) -> Any:
    """What a window gives is there where all of the window is; a window that sees half of it says nothing sure."""
    key = next(k for k, v in given.items() if isinstance(v, Tensor))
    there = _of(given[key], where[key]).float()
    every = [pytree.tree_leaves(target(**{**given, key: t}))[0] for t in (there, -there, torch.ones_like(there))]
    most, least, all_there = every[0], -every[1], every[2]
    if not torch.equal(most, least) or not bool(((most.abs() < 1e-6) | ((most - all_there).abs() < 1e-6)).all()):
        raise Unjudged("a pool over positions of which some are missing")
    found = most > 1e-6
    return found if isinstance(target(**given), Tensor) else (found, None)


# Operators that look at several positions


def _sums(of: Sequence[str], *, add: str | None = None) -> Rule:
    """Products that are added up: those of positions that are there, of which there must be one."""

    def rule(given: dict[str, Any], where: dict[str, Any], target: Any) -> tuple[Tensor, Present]:
        masks = {key: _of(given[key], where[key]) for key in of}
        seen = {**given, **{key: torch.where(masks[key], given[key], 0) for key in of}}
        counted = {**given, **{key: mask.to(torch.float64) for key, mask in masks.items()}}
        there = None
        if add is not None:
            there = where[add]
            counted[add] = (
                None if given[add] is None or add == "bias" else torch.zeros_like(given[add], dtype=torch.float64)
            )
        present = target(**counted) > 0.5
        if there is not None:
            present = present & (there.view(-1, *[1] * (present.ndim - 2)) if add == "bias" else there)
        return target(**seen), present

    return rule


def _dims(given: dict[str, Any], x: Tensor) -> list[int]:
    dims = given.get("dim")
    if dims is None or dims == []:
        return list(range(x.ndim))
    return [d % max(1, x.ndim) for d in ([dims] if isinstance(dims, int) else dims)]


def _reduced(fold: Callable[[Tensor, Tensor, list[int], dict[str, Any]], Tensor]) -> Rule:
    def rule(given: dict[str, Any], where: dict[str, Any], target: Any) -> tuple[Any, Present]:
        del target
        x, keepdim = given["self"], bool(given.get("keepdim", False))
        there, dims = _of(x, where["self"]), _dims(given, x)
        present = there.any(d) if (d := tuple(dims)) else there
        result = fold(x, there, dims, given)
        if keepdim:
            for d_ in sorted(dims):
                result, present = result.unsqueeze(d_), present.unsqueeze(d_)
        return result, present

    return rule


def _sum(x: Tensor, there: Tensor, dims: list[int], _: dict[str, Any]) -> Tensor:
    return torch.where(there, x, 0).sum(dims)


def _mean(x: Tensor, there: Tensor, dims: list[int], _: dict[str, Any]) -> Tensor:
    return torch.where(there, x, 0).sum(dims) / there.sum(dims).clamp(min=1)


def _var(x: Tensor, there: Tensor, dims: list[int], given: dict[str, Any]) -> Tensor:
    correction = given.get("correction", 1)
    correction = 1 if correction is None else correction
    mean = torch.where(there, x, 0).sum(dims, keepdim=True) / there.sum(dims, keepdim=True).clamp(min=1)
    square = torch.where(there, x - mean, 0).square().sum(dims)
    return square / (there.sum(dims) - correction).clamp(min=1)


def _std(x: Tensor, there: Tensor, dims: list[int], given: dict[str, Any]) -> Tensor:
    return _var(x, there, dims, given).sqrt()


def _amax(x: Tensor, there: Tensor, dims: list[int], _: dict[str, Any]) -> Tensor:
    return torch.where(there, x, x.detach().min() - 1).amax(dims)


def _amin(x: Tensor, there: Tensor, dims: list[int], _: dict[str, Any]) -> Tensor:
    return torch.where(there, x, x.detach().max() + 1).amin(dims)


def _length(x: Tensor, there: Tensor, dims: list[int], given: dict[str, Any]) -> Tensor:
    return torch.linalg.vector_norm(torch.where(there, x, 0), given.get("ord", given.get("p", 2)), dims)


def _logsumexp(x: Tensor, there: Tensor, dims: list[int], _: dict[str, Any]) -> Tensor:
    return torch.where(there, x, -torch.inf).logsumexp(dims)


def _softmax(log: bool) -> Rule:
    def rule(given: dict[str, Any], where: dict[str, Any], target: Any) -> tuple[Tensor, Present]:
        del target
        x, there, dim = given["self"], _of(given["self"], where["self"]), given["dim"]
        anything = there.any(dim, keepdim=True)  # where nothing is, nobody looks
        kept = torch.where(there | ~anything, x, -torch.inf)
        result = kept.log_softmax(dim) if log else kept.softmax(dim)
        return torch.where(there, result, 0), there

    return rule


def _cumsum(given: dict[str, Any], where: dict[str, Any], target: Any) -> tuple[Tensor, Present]:
    there = _of(given["self"], where["self"])
    return target(**{**given, "self": torch.where(there, given["self"], 0)}), there


def _glu(given: dict[str, Any], where: dict[str, Any], target: Any) -> tuple[Tensor, Present]:
    one, other = _of(given["self"], where["self"]).chunk(2, given["dim"])
    return target(**given), one & other


def _normed(x: Tensor, there: Tensor, dims: Sequence[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    count = there.sum(dims, keepdim=True).clamp(min=1)
    mean = torch.where(there, x, 0).sum(dims, keepdim=True) / count
    scale = (torch.where(there, x - mean, 0).square().sum(dims, keepdim=True) / count + eps).rsqrt()
    return (x - mean) * scale, mean, scale


def _layer_norm(given: dict[str, Any], where: dict[str, Any], target: Any) -> tuple[Any, Any]:
    del target
    x, there = given["input"], _of(given["input"], where["input"])
    dims = list(range(x.ndim - len(given["normalized_shape"]), x.ndim))
    result, mean, scale = _normed(x, there, dims, given["eps"])
    for key, put in (("weight", torch.mul), ("bias", torch.add)):
        if given[key] is not None:
            result, there = put(result, given[key]), there & _of(given[key], where[key])
    return (result, mean, scale), (there, None, None)


def _group_norm(given: dict[str, Any], where: dict[str, Any], target: Any) -> tuple[Any, Any]:
    del target
    x, there, groups = given["input"], _of(given["input"], where["input"]), given["group"]
    parts, there_parts = (t.reshape(len(x), groups, -1) for t in (x, there))
    result, mean, scale = _normed(parts, there_parts, [2], given["eps"])
    result = result.reshape(x.shape)
    for key, put in (("weight", torch.mul), ("bias", torch.add)):
        if given[key] is not None:
            at = (-1, *[1] * (x.ndim - 2))
            result, there = put(result, given[key].view(at)), there & _of(given[key], where[key]).view(at)
    return (result, mean, scale), (there, None, None)


def _rms_norm(given: dict[str, Any], where: dict[str, Any], target: Any) -> tuple[Any, Any]:
    del target
    x, there = given["input"], _of(given["input"], where["input"])
    dims = list(range(x.ndim - len(given["normalized_shape"]), x.ndim))
    eps = torch.finfo(x.dtype).eps if given["eps"] is None else given["eps"]
    square = torch.where(there, x, 0).square().sum(dims, keepdim=True) / there.sum(dims, keepdim=True).clamp(min=1)
    result = x * (square + eps).rsqrt()
    if given["weight"] is not None:
        result, there = result * given["weight"], there & _of(given["weight"], where["weight"])
    return (result, None), (there, None)


RULES: dict[str, Rule] = {
    "convolution": _sums(("input", "weight"), add="bias"),
    "mm": _sums(("self", "mat2")),
    "bmm": _sums(("self", "mat2")),
    "addmm": _sums(("mat1", "mat2"), add="self"),
    "baddbmm": _sums(("batch1", "batch2"), add="self"),
    "mv": _sums(("self", "vec")),
    "dot": _sums(("self", "tensor")),
    "sum": _reduced(_sum),
    "mean": _reduced(_mean),
    "var": _reduced(_var),
    "std": _reduced(_std),
    "amax": _reduced(_amax),
    "amin": _reduced(_amin),
    "linalg_vector_norm": _reduced(_length),
    "norm": _reduced(_length),
    "logsumexp": _reduced(_logsumexp),
    "_softmax": _softmax(log=False),
    "_safe_softmax": _softmax(log=False),
    "_log_softmax": _softmax(log=True),
    "cumsum": _cumsum,
    "glu": _glu,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_fused_rms_norm": _rms_norm,
}
