"""Early exits: classifiers on the way through a network, for images that need no more of it.

Teerapittayanon, McDanel & Kung 2016 (BranchyNet, arXiv:1709.01686). A *branch* reads what a named layer gives, pooled,
and says class scores; an image leaves at the first branch that is certain enough. Where that pays, and how certain is
enough, is `training.exits.threshold`'s matter, and a file that saves the time `training.exits.onnx`'s.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.checkpoint.recipes import Recipe
from compressor.data.splits import Data, Preprocessing
from compressor.errors import GroupError, RetrainError, unknown
from compressor.graph.copies import copy_of
from compressor.graph.lent import evaluating
from compressor.graph.outputs import class_scores
from compressor.graph.recorded import check_has_layers
from compressor.planning.costs import count
from compressor.training.loop import Callback, Hooks, Trained, classification_loss, train

# Places per side that a branch sees of an image, and features in all. On the sample ResNet-20, three epochs on the
# shipped sample, correct of 2,000 tuning images: after `stages.0` 1774 with 4 x 4 places and 1815 with 7 x 7, after
# `stages.1.0` 1784 with 2 x 2 and 1833 with 7 x 7; dense 1876. The norm lets one learning rate fit all.
LARGEST_GRID, MOST_FEATURES = 8, 4096
NAMED_IN_HINTS = 30


class Certainty(enum.StrEnum):
    """How sure scores are of their class, from 0 (all classes alike) to 1."""

    ENTROPY = "entropy"  # 1 - entropy / log(classes): BranchyNet's threshold T on the entropy is 1 - T / log(classes)
    PROBABILITY = "probability"  # that of the likeliest class


def certainty(scores: Tensor, kind: Certainty = Certainty.ENTROPY) -> Tensor:
    """The certainty of each image's scores: `[batch, classes]` to `[batch]`, never below 0."""
    if kind is Certainty.PROBABILITY:
        return scores.softmax(dim=1).amax(dim=1)
    logarithms = scores.log_softmax(dim=1)
    entropy = -(logarithms.exp() * logarithms).sum(dim=1)
    return (1 - entropy / math.log(scores.shape[1])).clamp(min=0)  # rounding apart it is no less


class EarlyExits(nn.Module):
    """A network and its branches; what it gives is every exit's scores, the network's own before the branches'.

    `after` names the layers, in the order in which a forward pass meets them. While the network is `frozen`, training
    mode is the branches' alone: its batch norms keep their statistics.
    """

    def __init__(self, network: nn.Module, after: Sequence[str], branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network, self.after, self.branches = network, tuple(after), nn.ModuleList(branches)
        self.frozen = False

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The network's scores `[batch, classes]`, then each branch's."""
        found: dict[str, Tensor] = {}
        hooks = [
            self.network.get_submodule(name).register_forward_hook(
                # a copy: the next layer may write into it
                lambda _, __, output, name=name: found.update({name: output.clone()})
            )
            for name in self.after
        ]
        try:
            scores = class_scores(self.network(*inputs))
        finally:
            for hook in hooks:
                hook.remove()
        return (scores, *(branch(found[name]) for name, branch in zip(self.after, self.branches, strict=True)))

    def train(self, mode: bool = True) -> EarlyExits:
        """Training mode; the network's own only while it is not frozen."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self


def with_exits(
    network: nn.Module, after: Sequence[str], example_inputs: Sequence[Tensor], *, seed: int = 0
) -> EarlyExits:
    """A copy of the network with a branch after each of the named layers; the branches' weights are drawn by `seed`.

    A branch averages `[batch, channels, h, w]` over a grid of at most 8 x 8 places (`[batch, tokens, features]` over
    the tokens); then come a norm and a linear layer. Refused: no layer named, one that there is not, that gives no
    tensor, that runs twice or never, or behind which nothing is saved; a network that gives no class scores.
    """
    after = tuple(dict.fromkeys(after))
    if not after:
        raise GroupError(
            "no layer is named for an exit", hint="name one: `--after LAYER`; `compress inspect` lists them"
        )
    network = copy_of(network)
    _check_names(network, after)
    features, classes = _looked_at(network, after, example_inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        branches = [_branch(name, feature, classes) for name, feature in features.items()]
    exits = EarlyExits(network, tuple(features), branches).eval()
    whole = count(network, example_inputs).macs
    for name, macs in zip(exits.after, macs_of_exits(exits, example_inputs)[:-1], strict=True):
        if macs >= whole:
            raise GroupError(
                f"an exit after `{name}` saves nothing: {macs:,} MACs of {whole:,} are spent by then",
                hint="name an earlier layer",
            )
    return exits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Branches:
    """The mean of the cross entropies of the network and its branches, by `shares`; what has none is left out."""

    shares: tuple[float, ...]
    label_smoothing: float

    @property
    def identity(self) -> Mapping[str, object]:
        """What a resumed run compares."""
        return {"exits": list(self.shares)}

    def __call__(self, module: nn.Module, inputs: Tensor, labels: Tensor, /, *, step: int, steps: int) -> Tensor:
        """Of a batch; the same at every step."""
        del step, steps
        each = [
            share * classification_loss(scores, labels, label_smoothing=self.label_smoothing)
            for share, scores in zip(self.shares, module(inputs), strict=True)
            if share
        ]
        return torch.stack(each).sum() / sum(self.shares)


def train_exits(
    exits: EarlyExits,
    data: Data,
    *,
    recipe: Recipe,
    preprocessing: Preprocessing,
    joint: bool = False,
    weights: Sequence[float] | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> Trained:
    """The branches, trained on `data`; the exits stay as they were, and a copy comes back.

    The network itself is frozen, so that its accuracy stays what it is. With `joint` it is trained as well, as
    BranchyNet is (sec. III). The loss is the mean of the cross-entropies of the branches, and with `joint` of the
    network, by `weights` (the network's first; all alike by default). Refused: what `train` refuses, other weights
    than exits.
    """
    shares = tuple(weights) if weights is not None else (1.0,) * (1 + len(exits.after))
    if len(shares) != 1 + len(exits.after) or min(shares) < 0 or sum(shares[1:]) <= 0:
        raise RetrainError(
            f"{len(shares)} weights for a network with {len(exits.after)} branches: {shares}",
            hint="one for the network and one for each branch, none negative",
        )
    working = copy_of(exits)
    learns = {name: p.requires_grad for name, p in working.named_parameters()}
    working.branches.requires_grad_(True)
    working.network.requires_grad_(joint)
    working.frozen = not joint

    objective = _Branches(shares=shares if joint else (0.0, *shares[1:]), label_smoothing=recipe.label_smoothing)
    trained = train(
        working, data, recipe=recipe, preprocessing=preprocessing, hooks=Hooks(callbacks=callbacks), objective=objective
    )
    made = trained.module
    assert isinstance(made, EarlyExits)
    made.frozen = exits.frozen
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(learns[name])
    return trained


def macs_of_exits(exits: EarlyExits, example_inputs: Sequence[Tensor]) -> tuple[int, ...]:
    """The MACs that are spent when each branch has spoken, those of the branches before it among them; then all.

    What a forward pass computes before the layer counts as needed for it.
    """
    way = [count(_Until(exits, number), example_inputs).macs for number in range(len(exits.after))]
    return (*way, count(exits, example_inputs).macs)


class _ReachedError(Exception):
    """Ends a forward pass where no more of it is wanted."""


class _Until(nn.Module):
    """The network up to one of its exits: the scores of the branches until there."""

    def __init__(self, exits: EarlyExits, number: int) -> None:
        super().__init__()
        self.exits, self.number = exits, number

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        found: list[Tensor] = []

        def reach(_: nn.Module, __: object, output: Tensor) -> None:
            found.append(output)
            if len(found) > self.number:
                raise _ReachedError

        hooks = [
            self.exits.network.get_submodule(name).register_forward_hook(reach)
            for name in self.exits.after[: self.number + 1]
        ]
        try:
            self.exits.network(*inputs)
        except _ReachedError:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return [branch(feature) for branch, feature in zip(self.exits.branches, found, strict=False)]


def _check_names(network: nn.Module, after: Sequence[str]) -> None:
    check_has_layers(network)
    names = [name for name, _ in network.named_modules() if name]
    for name in after:
        if name not in names:
            near = unknown("layers", name, names)
            if not near.startswith("did"):
                near = unknown("layers", name, sorted(names, key=lambda n: n.count("."))[:NAMED_IN_HINTS])
            raise GroupError(f"there is no layer called `{name}`", hint=near)


def _looked_at(
    network: nn.Module, after: Sequence[str], example_inputs: Sequence[Tensor]
) -> tuple[dict[str, Tensor], int]:
    """What each of the layers gives on the example inputs, in the order in which they run; and how many classes."""
    found: dict[str, list[object]] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.setdefault(name, []).append(output)
        )
        for name in after
    ]
    try:
        with evaluating(network), torch.no_grad():
            scores = class_scores(network(*example_inputs))
    finally:
        for hook in hooks:
            hook.remove()
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise GroupError(f"the network gives {list(scores.shape)}, not class scores `[batch, classes]`")
    features: dict[str, Tensor] = {}
    for name in after:
        if name not in found:
            raise GroupError(f"`{name}` does not run in a forward pass", hint="name a layer that does")
    for name, outputs in found.items():
        if len(outputs) > 1:
            raise GroupError(
                f"`{name}` runs {len(outputs)} times in a forward pass", hint="name a layer that runs once"
            )
        output = outputs[0]
        if not isinstance(output, Tensor):
            raise GroupError(
                f"`{name}` gives a `{type(output).__name__}`, not a tensor", hint="name a layer inside it, or behind it"
            )
        features[name] = output.detach()
    return features, scores.shape[1]


def _branch(name: str, feature: Tensor, classes: int) -> nn.Module:
    if feature.ndim == 4:
        height, width = _grid(feature)
        pooled = feature.shape[1] * height * width
        return nn.Sequential(nn.AdaptiveAvgPool2d((height, width)), nn.Flatten(), *_linear(pooled, classes))
    if feature.ndim == 3:
        return nn.Sequential(_TokenMean(), *_linear(feature.shape[2], classes))
    if feature.ndim == 2:
        return nn.Sequential(*_linear(feature.shape[1], classes))
    raise GroupError(
        f"`{name}` gives {list(feature.shape)}: a branch reads feature maps, tokens or vectors",
        hint="name another layer",
    )


def _linear(features: int, classes: int) -> list[nn.Module]:
    return [nn.BatchNorm1d(features, affine=False), nn.Linear(features, classes)]


def _grid(feature: Tensor) -> tuple[int, int]:
    """The most places into which the sides fall evenly: then every pixel counts once, and ONNX can say it."""
    channels, *sides = feature.shape[1:]
    for most in range(LARGEST_GRID, 1, -1):
        height, width = (max(n for n in range(1, most + 1) if side % n == 0) for side in sides)
        if channels * height * width <= MOST_FEATURES:
            return height, width
    return 1, 1


class _TokenMean(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, tokens, features]` to `[batch, features]`."""
        return x.mean(dim=1)
