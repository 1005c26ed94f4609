"""Find the network or its weights in a file's content, below any key, without the prefixes of wrappers in names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.checkpoint.factored_weights import multiplied_out
from compressor.errors import CheckpointError
from compressor.files.names import check_names, printable

STATE_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "ema",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema_model",
    "network",
    "weights",
    "params_ema",
    "params",
    "generator",
    "g_ema",
    "G_ema",
    "netG",
    "net_g",
    "G",
    "module",
)
OTHERS = re.compile(r"optim|sched|scaler|rng|callback|loops", re.IGNORECASE)  # keys of training, whose tensors are none
DEEPEST = 5  # keys above the weights
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_fpw_module)\.")
SHARD = re.compile(r"(?:^|\.)_?flat_param(?:_\d+)?$")
PARALLEL = "module."  # DataParallel's and AveragedModel's, before all names
OWNERS = ("model.", "net.", "network.", "backbone.", "encoder.")  # a training class's attribute, or the network's own


def found_in(content: Any, *, path: Path, key: str | None = None) -> Any:
    """Return the network or the state in a file's content: below `key`, the usual keys, or the only key that has one.

    `key` has one name for each level, with dots between them; it may end in a prefix of the tensors' names. Refused:
    content without weights, with weights under several unusual keys, without `key`.
    """
    if key is not None:
        content = _below(content, key, path)
    weights = _usual(content)
    if weights is not None:
        return weights
    places = dict(_places(content))
    if len(places) == 1:
        return next(iter(places.values()))
    if places:
        names = ", ".join(f"`{printable(place)}`" for place in list(places)[:12])
        raise CheckpointError(
            f"{path} holds weights under several keys: {names}",
            hint=f"choose one: `--key {printable(next(iter(places)))}`",
        )
    raise CheckpointError(
        f"{path} holds no weights under a known key: {_keys(content)}", hint=f"known keys: {', '.join(STATE_KEYS)}"
    )


def _usual(content: Any, depth: int = 0) -> Any:
    """The content itself if it is a network or a state, or what the first of the usual keys has; `None` otherwise."""
    if _has_weights(content):
        return content
    if not isinstance(content, Mapping) or depth > DEEPEST:
        return None
    below = (_usual(content[name], depth + 1) for name in STATE_KEYS if name in content)
    return next((one for one in below if one is not None), None)


def _places(content: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every key below which a network or a state lies, with it."""
    if above and _has_weights(content):
        yield ".".join(above), content
        return
    if len(above) <= DEEPEST:
        for name, value in _entries(content).items():
            if not OTHERS.search(name):
                yield from _places(value, (*above, name))


def _entries(content: Any) -> dict[str, Any]:
    """The values of a mapping or a list, by key or number."""
    if isinstance(content, Mapping):
        return {name: value for name, value in content.items() if isinstance(name, str)}
    return {str(i): value for i, value in enumerate(content)} if isinstance(content, (list, tuple)) else {}


def _below(content: Any, key: str, path: Path) -> Any:
    """The value under a key whose levels are separated by dots. Refused: there is none."""
    rest = key
    while rest:
        if _has_weights(content):
            state = _tensors(content)
            content = {name[len(rest) + 1 :]: value for name, value in state.items() if name.startswith(f"{rest}.")}
            if content:
                return content
            raise CheckpointError(
                f"{path} has no `{printable(rest)}` in `{printable(key)}`",
                hint=f"its tensors begin with {_few(dict.fromkeys(name.partition('.')[0] for name in state))}",
            )
        entries = _entries(content)
        name = max((n for n in entries if f"{rest}.".startswith(f"{n}.")), key=len, default=None)
        if name is None:
            known = list(dict(_places(content))) or list(entries)
            hint = f"weights lie under {_few(known)}" if known else "it holds no keys: leave `--key` out"
            raise CheckpointError(f"{path} has no key `{printable(rest)}`", hint=hint)
        content, rest = entries[name], rest[len(name) + 1 :]
    return content


def _few(names: Any) -> str:
    """Some names, as a hint lists them."""
    names = list(names)
    return ", ".join(f"`{printable(name)}`" for name in names[:12]) + " …" * (len(names) > 12)


def _keys(content: Any) -> str:
    """The keys of the content, or its type, for an error."""
    if isinstance(content, Mapping):
        return ", ".join(printable(name) for name in list(content)[:8])
    return printable(type(content).__name__)


def _has_weights(content: Any) -> bool:
    """True for a network, and for a mapping of tensors and plain values only."""
    if isinstance(content, nn.Module):
        return True
    if not isinstance(content, Mapping):
        return False
    tensors = [v for v in content.values() if isinstance(v, Tensor)]
    return bool(tensors) and all(isinstance(v, (Tensor, int, float, str, type(None))) for v in content.values())


def _tensors(weights: Any) -> dict[str, Tensor]:
    """The tensors of a network or a state, by name."""
    content = plain(weights).state_dict() if isinstance(weights, nn.Module) else weights
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def state_of(weights: Any, *, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a network or a state by name, without the prefixes of wrappers.

    Refused: names that are none, quantised or sparse tensors, the shards of a network.
    """
    state = _tensors(weights)
    check_names(state, where=str(path))
    for name, tensor in state.items():
        if tensor.is_quantized or tensor.layout is not torch.strided:
            raise CheckpointError(f"`{name}` is a quantised or sparse tensor", hint="use the float checkpoint")
        if SHARD.search(name):
            raise CheckpointError(
                f"`{name}` in {path} is a shard of FSDP, not a layer's tensor",
                hint="save the whole state: `torch.distributed.checkpoint.state_dict.get_model_state_dict`",
            )
    state = {WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    for name in [n for n in state if n.rpartition(".")[2] == "n_averaged"]:
        state = _without_average(state, name)
    while state and all(name.startswith(PARALLEL) for name in state):
        state = {name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}
    return state


def _without_average(state: dict[str, Tensor], counter: str) -> dict[str, Tensor]:
    """The state without `AveragedModel`'s counter, and without its prefix behind the counter's."""
    above = counter.removesuffix("n_averaged")
    inner = f"{above}{PARALLEL}"
    if not any(name.startswith(inner) for name in state):
        return state
    return {
        above + name.removeprefix(inner) if name.startswith(inner) else name: tensor
        for name, tensor in state.items()
        if name != counter
    }


def plain(module: nn.Module) -> nn.Module:
    """Return the module inside `DataParallel` and compiled wrappers. Refused: a wrapper without one."""
    seen: list[nn.Module] = []
    while isinstance(module, nn.DataParallel) or hasattr(module, "_orig_mod"):
        inner = module.module if isinstance(module, nn.DataParallel) else module._orig_mod
        seen.append(module)
        if not isinstance(inner, nn.Module) or any(inner is one for one in seen):
            raise CheckpointError(
                f"a `{type(module).__name__}` in the file wraps no network", hint="save the network alone"
            )
        module = inner
    return module


def variants(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the state, then without prefixes that a training class, or a `DataParallel` inside, may have added."""
    yield from _unowned(state)
    inner = re.compile(r"(?:^|(?<=\.))module\.")
    bare = {inner.sub("", name): tensor for name, tensor in state.items()}
    if bare.keys() != state.keys() and len(bare) == len(state):
        yield from _unowned(bare)
    for owner in OWNERS:  # beside what is no part of the network: a loss, a metric, an average
        part = {name.removeprefix(owner): tensor for name, tensor in state.items() if name.startswith(owner)}
        if part and len(part) < len(state):
            yield from _unowned(part)


def _unowned(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state, then the state without each prefix that all of its names share."""
    yield state
    for owner in OWNERS:
        if all(name.startswith(owner) for name in state):
            yield from _unowned({name.removeprefix(owner): tensor for name, tensor in state.items()})


def fitted(state: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Return the state under the network's `own` names: the first variant that has all of them, else one that has some.

    Where a prefix is followed by all of the network's names, what has another prefix is no part of the network.
    """
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    some: dict[str, Tensor] | None = None
    for parts in (*variants(state), *_under_prefixes(state)):
        variant = multiplied_out(parts, own)
        if variant.keys() >= needed:
            return variant
        some = variant if some is None and variant.keys() & own else some
    return state if some is None else some


def _under_prefixes(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """What follows each prefix of up to three parts."""
    prefixes: dict[str, None] = {}
    for depth in (1, 2, 3):
        for name in state:
            parts = name.split(".")
            if len(parts) > depth:
                prefixes[".".join(parts[:depth]) + "."] = None
    for prefix in prefixes:
        yield {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
