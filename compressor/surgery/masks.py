"""Unstructured masks: which single weights stay, exactly as many as asked.

A masked network has the shapes and the latency of the dense one; only its storage shrinks (`checkpoint.sparse`).
"""

from __future__ import annotations

import enum
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.channels.groups import CONVOLUTIONS
from compressor.errors import PlanError, named


class MaskScope(enum.StrEnum):
    """Where weights compete: all with all, or within each tensor at the same sparsity."""

    GLOBAL = "global"
    UNIFORM = "uniform"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMask:
    """The weights that stay: bool tensors by parameter name; a parameter without an entry stays whole."""

    kept: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if not self.kept:
            raise PlanError("a mask needs at least one parameter")
        for name, kept in self.kept.items():
            if kept.dtype is not torch.bool or not kept.numel():
                raise PlanError(f"the mask of `{name}` must be bool and not empty: {kept.dtype} {list(kept.shape)}")

    @property
    def weights(self) -> int:
        """The number of weights that the mask covers."""
        return sum(kept.numel() for kept in self.kept.values())

    @property
    def removed(self) -> int:
        """The number of these weights that are zero."""
        return self.weights - sum(int(kept.sum()) for kept in self.kept.values())

    @property
    def sparsity(self) -> float:
        """The share of these weights that are zero."""
        return self.removed / self.weights

    def nested_in(self, other: WeightMask) -> bool:
        """True if `other` keeps every weight that this mask keeps, as after another level of pruning."""
        return self.kept.keys() == other.kept.keys() and all(
            kept.shape == other.kept[name].shape and not bool((kept & ~other.kept[name]).any())
            for name, kept in self.kept.items()
        )


def maskable(module: nn.Module, *, protect: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Return the weights that a mask may remove, by name: those of convolutions, linear layers and attention
    projections.

    Norms, biases and embeddings are never among them; a weight shared by two layers occurs once. `protect`: globs of
    layers or parameters that stay whole. Refused: a glob that matches nothing, no weight left.
    """
    layers = (*CONVOLUTIONS, nn.Linear, nn.MultiheadAttention)
    holders = {name for name, layer in module.named_modules() if isinstance(layer, layers)}
    weights = {
        name: parameter
        for name, parameter in module.named_parameters()
        if name.rpartition(".")[0] in holders and name.endswith("weight") and parameter.ndim >= 2
    }
    chosen = dict(weights)
    for glob in protect:
        matched = _matched(list(weights), glob, option=f"--protect {glob}")
        chosen = {n: p for n, p in chosen.items() if n not in matched}
    if not chosen:
        raise PlanError("no convolution or linear weight is left to mask", hint="protect fewer layers")
    return chosen


def _matched(names: Sequence[str], glob: str, *, option: str) -> list[str]:
    """The weights that a glob of layers or parameters matches. Refused: a glob that matches none."""
    matched = [n for n in names if fnmatch.fnmatch(n, glob) or fnmatch.fnmatch(n.rpartition(".")[0], glob)]
    if not matched:
        raise PlanError(f"`{option}` matches no weight", hint=f"the weights are: {', '.join(list(names)[:4])}")
    return matched


def magnitude(
    module: nn.Module,
    *,
    sparsity: float,
    scope: MaskScope | str = MaskScope.GLOBAL,
    protect: Sequence[str] = (),
    within: WeightMask | None = None,
    keep_at_least: int = 1,
) -> WeightMask:
    """Return the mask that removes the smallest |w| (Han et al. 2015, arXiv:1506.02626): exactly ⌊sparsity × weights⌋.

    Among equal weights, the one with the lowest index is removed first. Every tensor keeps `keep_at_least` weights.
    With `within`, the mask of an earlier level, its removed weights stay removed. Refused: a sparsity outside (0, 1),
    one that removes nothing or leaves fewer than `keep_at_least`, weights that are not finite.
    """
    weights = maskable(module, protect=protect)
    return mask_from_scores(
        {name: weight.detach().abs() for name, weight in weights.items()},
        sparsity=sparsity,
        scope=scope,
        within=within,
        keep_at_least=keep_at_least,
    )


def mask_from_scores(
    scores: Mapping[str, Tensor],
    *,
    sparsity: float | Mapping[str, float],
    scope: MaskScope | str = MaskScope.GLOBAL,
    within: WeightMask | None = None,
    keep_at_least: int = 1,
) -> WeightMask:
    """Return the mask that removes the lowest scores; `scores` are tensors in the weights' shapes, by parameter name.

    Counts, ties, `within` and refusals are as in `magnitude`; a mapping sets a sparsity for each tensor.
    """
    shares = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(scores, sparsity)
    scope = MaskScope.UNIFORM if isinstance(sparsity, Mapping) else _scope_named(scope)
    for share in (*shares.values(), *(math.nan for name in scores if name not in shares)):
        if not 0 < share < 1:
            raise PlanError(
                f"sparsity must lie between 0 and 1, not {share}", hint="`--sparsity 0.9` removes nine weights of ten"
            )
    if within is not None and within.kept.keys() != scores.keys():
        raise PlanError("the earlier mask covers other weights", hint="protect the same layers at every level")
    ranked = {name: _ranked(name, score, within) for name, score in scores.items()}
    parts = [list(ranked)] if scope is MaskScope.GLOBAL else [[name] for name in ranked]
    kept: dict[str, Tensor] = {}
    for names in parts:
        count = math.floor(shares[names[0]] * sum(ranked[n].numel() for n in names) + 1e-9)  # 0.29 * 100 is 28.999…
        kept |= _smallest_removed({n: ranked[n] for n in names}, count, keep_at_least=keep_at_least)
    mask = WeightMask(kept={n: k.view(scores[n].shape) for n, k in kept.items()})
    if not mask.removed:
        raise PlanError(f"a sparsity of {sparsity} removes none of {mask.weights} weights", hint="ask for more")
    if within is not None and not mask.nested_in(within):
        raise PlanError(
            f"a sparsity of {sparsity} is less than the {within.sparsity:.4f} already there",
            hint="a level removes more",
        )
    return mask


def magnitude_round(
    module: nn.Module,
    *,
    rate: float,
    rates: Mapping[str, float] | None = None,
    scope: MaskScope | str = MaskScope.UNIFORM,
    within: WeightMask | None = None,
) -> WeightMask:
    """Return the mask of one more round of iterative pruning (Frankle & Carbin 2019, arXiv:1803.03635, sec. 2).

    The round removes the smallest |w|, exactly ⌊rate × remaining⌋: of each tensor (`uniform`) or of all together
    (`global`). `rates` sets other rates by globs of layers or parameters, where a later glob overrides an earlier one;
    0 leaves them whole, and other values need `uniform`. `within` is the mask after the previous round. Ties are as in
    `magnitude`; every tensor keeps one weight. Refused: a rate outside (0, 1), a glob that matches nothing, a round
    that removes nothing.
    """
    scope = _scope_named(scope)
    weights = maskable(module)
    each = dict.fromkeys(weights, _rate(rate, zero=False))
    for glob, own in (rates or {}).items():
        each |= dict.fromkeys(_matched(list(weights), glob, option=glob), _rate(own, zero=True))
    if scope is MaskScope.GLOBAL and set(each.values()) - {0.0, rate}:
        raise PlanError(
            "weights that compete with each other have one rate", hint="use 0 to spare a layer, or prune `uniform`"
        )
    if within is not None and within.kept.keys() != weights.keys():
        raise PlanError("the earlier mask covers other weights", hint="start from the same network in every round")
    ranked = {name: _ranked(name, weight.detach().abs(), within) for name, weight in weights.items()}
    parts = [[n for n in ranked if each[n]]] if scope is MaskScope.GLOBAL else [[name] for name in ranked]
    kept = {name: magnitudes >= 0 for name, magnitudes in ranked.items()}
    before = sum(int(k.sum()) for k in kept.values())
    for names in filter(None, parts):
        left = sum(int(kept[n].sum()) for n in names)
        gone = sum(ranked[n].numel() for n in names) - left
        count = gone + math.floor(max(each[n] for n in names) * left + 1e-9)
        kept |= _smallest_removed({n: ranked[n] for n in names}, count, keep_at_least=1)
    mask = WeightMask(kept={n: k.view(weights[n].shape) for n, k in kept.items()})
    if mask.weights - mask.removed == before:
        raise PlanError(f"a rate of {rate:g} removes none of the {before} weights left", hint="ask for more, or stop")
    return mask


def _rate(rate: float, *, zero: bool) -> float:
    """The rate, if it lies in (0, 1), or is 0 where `zero` allows that."""
    if not (0 < rate < 1 or (zero and rate == 0)):
        raise PlanError(
            f"a rate is the share of the remaining weights to remove: between 0 and 1, not {rate:g}",
            hint="`--rate 0.2` removes a fifth in every round",
        )
    return rate


def _scope_named(scope: MaskScope | str) -> MaskScope:
    """The mask scope called `scope`."""
    return named(MaskScope, scope, one="mask scope", many="mask scopes", refusal=PlanError)


def _ranked(name: str, scores: Tensor, within: WeightMask | None) -> Tensor:
    """The scores `[n]`, with minus infinity for weights that are removed already."""
    ranked = scores.detach().flatten().cpu()
    if not bool(ranked.isfinite().all()):
        raise PlanError(f"`{name}` holds values that are not finite", hint="mend the checkpoint: NaN has no rank")
    if within is None:
        return ranked
    if within.kept[name].shape != scores.shape:
        raise PlanError(f"the earlier mask of `{name}` is {list(within.kept[name].shape)}, not {list(scores.shape)}")
    return ranked.masked_fill(~within.kept[name].flatten().cpu(), -math.inf)


def _smallest_removed(ranked: Mapping[str, Tensor], count: int, *, keep_at_least: int) -> dict[str, Tensor]:
    """Bool tensors in the shapes of `ranked`, false for the `count` lowest scores."""
    safe = {name: m.argsort(stable=True)[max(0, len(m) - keep_at_least) :] for name, m in ranked.items()}
    movable = sum(len(m) - len(safe[name]) for name, m in ranked.items())
    if count > movable:
        raise PlanError(
            f"{count} weights cannot go: {movable} can, if every tensor keeps {keep_at_least}", hint="ask for less"
        )
    candidates = torch.cat([m.index_fill(0, safe[n], math.inf) for n, m in ranked.items()])
    kept = torch.ones(len(candidates), dtype=torch.bool)
    kept[candidates.argsort(stable=True)[:count]] = False
    return dict(zip(ranked, torch.split(kept, [len(m) for m in ranked.values()]), strict=True))


def apply_mask_(module: nn.Module, mask: WeightMask) -> nn.Module:
    """Set every removed weight of `module` to +0.0, in place. Refused: names or shapes that differ."""
    Masker(module, mask)()
    return module


class Masker:
    """A call that sets the removed weights to zero again; created once, called after every step of an optimiser.

    Momentum and weight decay may change a removed weight within a step, but no forward pass sees it.
    """

    def __init__(self, module: nn.Module, mask: WeightMask) -> None:
        parameters = dict(module.named_parameters())
        for name, kept in mask.kept.items():
            if name not in parameters or parameters[name].shape != kept.shape:
                shape = list(parameters[name].shape) if name in parameters else "no such parameter"
                raise PlanError(f"the mask of `{name}` is {list(kept.shape)}, the network has {shape}")
        self._pairs = [(parameters[n], ~kept.to(parameters[n].device)) for n, kept in mask.kept.items()]

    def __call__(self) -> None:
        """Set the removed weights to zero."""
        with torch.no_grad():
            for parameter, removed in self._pairs:
                parameter.masked_fill_(removed, 0)
