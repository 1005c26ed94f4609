"""Early exits: classifiers inside a network, at which images leave without running the rest of it.

Teerapittayanon, McDanel & Kung 2016 (BranchyNet, arXiv:1709.01686). A *branch* pools the output of a named layer and
outputs class scores; an image leaves at the first branch with enough certainty. `training.exits.threshold` chooses the
threshold of certainty, and `training.exits.onnx` writes a file that saves the time.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.checkpoint.recipes import Recipe
from compressor.data.preprocessing import Preprocessing
from compressor.data.splits import Data
from compressor.errors import GroupError, RetrainError, unknown
from compressor.graph.copies import copy_of
from compressor.graph.lent import evaluating
from compressor.graph.outputs import class_scores
from compressor.graph.recorded import check_has_layers
from compressor.planning.costs import count
from compressor.tasks.classes import classification_loss
from compressor.training.loop import Callback, Hooks, Trained, train

# Cells per side that a branch pools a feature map to, and features in all. On the sample ResNet-20, three epochs on the
# shipped sample, correct of 2,000 tuning images: after `stages.0` 1774 with 4 x 4 cells and 1815 with 7 x 7, after
# `stages.1.0` 1784 with 2 x 2 and 1833 with 7 x 7; dense 1876. With the norm, one learning rate fits all branches.
LARGEST_GRID, MOST_FEATURES = 8, 4096
NAMED_IN_HINTS = 30


class Certainty(enum.StrEnum):
    """Measures of the certainty of class scores, from 0 (all classes equally likely) to 1."""

    ENTROPY = "entropy"  # 1 - entropy / log(classes): BranchyNet's threshold T on the entropy is 1 - T / log(classes)
    PROBABILITY = "probability"  # of the most likely class


def certainty(scores: Tensor, kind: Certainty = Certainty.ENTROPY) -> Tensor:
    """Return the certainty of each image's scores: `[batch, classes]` to `[batch]`, never below 0."""
    if kind is Certainty.PROBABILITY:
        return scores.softmax(dim=1).amax(dim=1)
    logarithms = scores.log_softmax(dim=1)
    entropy = -(logarithms.exp() * logarithms).sum(dim=1)
    return (1 - entropy / math.log(scores.shape[1])).clamp(min=0)  # only rounding makes it negative


class EarlyExits(nn.Module):
    """A network and its branches; its outputs are the scores of the network, then those of each branch.

    `after` names the layers with a branch, in the order of a forward pass. While `frozen`, training mode applies to the
    branches only: the network's batch norms keep their statistics.
    """

    def __init__(self, network: nn.Module, after: Sequence[str], branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network, self.after, self.branches = network, tuple(after), nn.ModuleList(branches)
        self.frozen = False

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the network's scores `[batch, classes]`, then each branch's."""
        features: dict[str, Tensor] = {}
        hooks = [
            self.network.get_submodule(name).register_forward_hook(
                # a copy: the next layer may write into it
                lambda _, __, output, name=name: features.update({name: output.clone()})
            )
            for name in self.after
        ]
        try:
            scores = class_scores(self.network(*inputs))
        finally:
            for hook in hooks:
                hook.remove()
        return (scores, *(branch(features[name]) for name, branch in zip(self.after, self.branches, strict=True)))

    def train(self, mode: bool = True) -> EarlyExits:
        """Set training mode; the network itself stays in eval mode while it is frozen."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self


def with_exits(
    network: nn.Module, after: Sequence[str], example_inputs: Sequence[Tensor], *, seed: int = 0
) -> EarlyExits:
    """Return a copy of the network with a branch after each named layer; the branches' weights are drawn by `seed`.

    A branch averages `[batch, channels, h, w]` over a grid of at most 8 x 8 cells (`[batch, tokens, features]` over the
    tokens), followed by a norm and a linear layer. Refused: no layer; a layer that does not exist, does not output a
    tensor, runs twice or never, or after which no MACs are saved; a network that does not output class scores.
    """
    after = tuple(dict.fromkeys(after))
    if not after:
        raise GroupError(
            "no layer is named for an exit", hint="name one: `--after LAYER`; `compress inspect` lists them"
        )
    network = copy_of(network)
    _check_names(network, after)
    features, classes = _features_of(network, after, example_inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        branches = [_branch(name, feature, classes) for name, feature in features.items()]
    exits = EarlyExits(network, tuple(features), branches).eval()
    whole = count(network, example_inputs).macs
    for name, macs in zip(exits.after, macs_of_exits(exits, example_inputs)[:-1], strict=True):
        if macs >= whole:
            raise GroupError(
                f"an exit after `{name}` saves nothing: it needs {macs:,} of {whole:,} MACs",
                hint="name an earlier layer",
            )
    return exits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Branches:
    """The objective: the mean of the cross entropies of the network and its branches, weighted by `shares`."""

    shares: tuple[float, ...]
    label_smoothing: float

    @property
    def identity(self) -> Mapping[str, object]:
        """The weights, which a resumed run must share."""
        return {"exits": list(self.shares)}

    def __call__(self, module: nn.Module, inputs: Tensor, labels: Tensor, /, *, step: int, steps: int) -> Tensor:
        """Return the loss of a batch; it does not depend on the step."""
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
    """Train the branches of a copy of `exits` on `data` and return it; `exits` is not modified.

    The network itself is frozen, so its accuracy does not change. With `joint` it is trained too, as in BranchyNet
    (sec. III). The loss is the mean of the branches' cross entropies, with `joint` also of the network's, weighted by
    `weights` (the network's first; equal by default). Refused: what `train` refuses, another number of weights than
    exits.
    """
    shares = tuple(weights) if weights is not None else (1.0,) * (1 + len(exits.after))
    if len(shares) != 1 + len(exits.after) or min(shares) < 0 or sum(shares[1:]) <= 0:
        raise RetrainError(
            f"these weights do not fit a network with {len(exits.after)} branches: {shares}",
            hint="one for the network and one for each branch, none negative, one of the branches' positive",
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
    result = trained.module
    assert isinstance(result, EarlyExits)
    result.frozen = exits.frozen
    for name, parameter in result.named_parameters():
        parameter.requires_grad_(learns[name])
    return trained


def macs_of_exits(exits: EarlyExits, example_inputs: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the MACs of an image that leaves at each branch, earlier branches included; then the MACs of all exits.

    Everything that a forward pass computes before the layer counts.
    """
    way = [count(_Until(exits, number), example_inputs).macs for number in range(len(exits.after))]
    return (*way, count(exits, example_inputs).macs)


class _ReachedError(Exception):
    """Ends a forward pass at the requested exit."""


class _Until(nn.Module):
    """The network up to one of its exits; its outputs are the scores of the branches up to there."""

    def __init__(self, exits: EarlyExits, number: int) -> None:
        super().__init__()
        self.exits, self.number = exits, number

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Return the scores of the branches up to the exit; the rest of the network does not run."""
        features: list[Tensor] = []

        def reach(_: nn.Module, __: object, output: Tensor) -> None:
            features.append(output)
            if len(features) > self.number:
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
        return [branch(feature) for branch, feature in zip(self.exits.branches, features, strict=False)]


def _check_names(network: nn.Module, after: Sequence[str]) -> None:
    """Raise for a name that no layer has."""
    check_has_layers(network)
    names = [name for name, _ in network.named_modules() if name]
    for name in after:
        if name not in names:
            near = unknown("layers", name, names)
            if not near.startswith("did"):
                near = unknown("layers", name, sorted(names, key=lambda n: n.count("."))[:NAMED_IN_HINTS])
            raise GroupError(f"there is no layer called `{name}`", hint=near)


def _features_of(
    network: nn.Module, after: Sequence[str], example_inputs: Sequence[Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Return the output of each named layer on the example inputs, in the order of a forward pass; and the classes."""
    by_layer: dict[str, list[object]] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: by_layer.setdefault(name, []).append(output)
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
        raise GroupError(f"the network outputs {list(scores.shape)}, not class scores `[batch, classes]`")
    features: dict[str, Tensor] = {}
    for name in after:
        if name not in by_layer:
            raise GroupError(f"`{name}` does not run in a forward pass", hint="name a layer that runs")
    for name, outputs in by_layer.items():
        if len(outputs) > 1:
            raise GroupError(
                f"`{name}` runs {len(outputs)} times in a forward pass", hint="name a layer that runs once"
            )
        output = outputs[0]
        if not isinstance(output, Tensor):
            raise GroupError(
                f"`{name}` outputs a `{type(output).__name__}`, not a tensor",
                hint="name a layer inside it or behind it",
            )
        features[name] = output.detach()
    return features, scores.shape[1]


def _branch(name: str, feature: Tensor, classes: int) -> nn.Module:
    """Return a branch for outputs of the shape of `feature`; refused: other than 2, 3 or 4 dimensions."""
    if feature.ndim == 4:
        height, width = _grid(feature)
        pooled = feature.shape[1] * height * width
        return nn.Sequential(nn.AdaptiveAvgPool2d((height, width)), nn.Flatten(), *_linear(pooled, classes))
    if feature.ndim == 3:
        return nn.Sequential(_TokenMean(), *_linear(feature.shape[2], classes))
    if feature.ndim == 2:
        return nn.Sequential(*_linear(feature.shape[1], classes))
    raise GroupError(
        f"`{name}` outputs {list(feature.shape)}: a branch reads channels of images, tokens or vectors",
        hint="name another layer",
    )


def _linear(features: int, classes: int) -> list[nn.Module]:
    return [nn.BatchNorm1d(features, affine=False), nn.Linear(features, classes)]


def _grid(feature: Tensor) -> tuple[int, int]:
    """Return the largest grid that divides both sides evenly: every pixel counts once, and ONNX can express it."""
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
