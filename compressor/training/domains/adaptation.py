"""Train on a labelled source domain, and adapt the features to an unlabelled target domain.

Deep adaptation networks (Long et al. 2015, arXiv:1502.02791): the loss is the source's cross entropy plus g times the
squared maximum mean discrepancy of both domains' features. g(p) = 2 / (1 + exp(-10 p)) - 1 rises with the progress p of
the run from 0 to 1 (Ganin & Lempitsky 2015, arXiv:1409.7495, sec. 4.1), so that features are useful before they are
compared.

Both domains go through the network in one batch, so the running statistics of batch norms describe half source and half
target. With `weight` zero, this is the only adaptation. Without a target, the network sees no target image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.recipes import Recipe
from compressor.data.batches import augmentation_named
from compressor.data.domains import TargetDomain
from compressor.data.preprocessing import Preprocessing
from compressor.data.splits import Data, SplitName
from compressor.errors import RetrainError
from compressor.graph.copies import copy_of
from compressor.graph.outputs import class_scores
from compressor.tasks.classes import classification_loss
from compressor.training.domains.features import features_in, last_linear, layer_named, reading
from compressor.training.domains.mmd import Kernels, mmd
from compressor.training.loop import Callback, Hooks, train
from compressor.training.retraining import device_named

STEEPNESS = 10.0


def domain_weight(progress: float) -> float:
    """Return the weight g at `progress` in [0, 1]: 0 at the start, 0.99 half-way."""
    return 2 / (1 + math.exp(-STEEPNESS * progress)) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """The comparison of two domains: `weight` times the discrepancy of the inputs of `layer`.

    A `rising` weight starts at zero and follows g; for a network that is already adapted, the weight is constant.
    """

    layer: str
    weight: float = 1.0
    rising: bool = True
    kernels: Kernels = dataclasses.field(default_factory=Kernels)

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise RetrainError(
                f"a domain weight must be at least 0, not {self.weight:g}", hint="for example `--weight 1`"
            )

    def at(self, progress: float) -> float:
        """Return the factor of the discrepancy at `progress` in [0, 1]."""
        return self.weight * (domain_weight(progress) if self.rising else 1.0)

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return dataclasses.asdict(self)


def alignment_of(
    checkpoint: Checkpoint, *, layer: str | None = None, weight: float = 1.0, rising: bool = True
) -> Alignment:
    """Return the alignment by the inputs of `layer`, by default the last linear layer; refused: no such layer."""
    if layer is None:
        layer = last_linear(checkpoint.module, checkpoint.example_inputs)
    layer_named(checkpoint.module, layer)
    return Alignment(layer=layer, weight=weight, rising=rising)


@dataclass(frozen=True, slots=True, kw_only=True)
class JointLoss:
    """An objective for `training.loop`: the source's cross entropy plus the weighted discrepancy of both domains."""

    target: TargetDomain
    alignment: Alignment
    recipe: Recipe
    preprocessing: Preprocessing
    size: tuple[int, int]

    @property
    def identity(self) -> Mapping[str, object]:
        """The target and the alignment, as plain values."""
        return {"target": self.target.to_json(), "alignment": self.alignment.to_json()}

    def __call__(self, module: nn.Module, inputs: Tensor, labels: Tensor, /, *, step: int, steps: int) -> Tensor:
        """Return the loss of source images `[n, c, h, w]` with labels `[n]` and of `n` target images for the step."""
        n = len(inputs)
        others = self.target.batch(
            step, size=n, preprocessing=self.preprocessing, seed=self.recipe.seed,
            augmentation=augmentation_named(self.recipe.augment, size=self.size),
        ).to(inputs.device)  # fmt: skip
        if others.shape != inputs.shape:
            raise RetrainError(
                f"source images are {list(inputs.shape)[1:]}, target images {list(others.shape)[1:]}",
                hint="give the network's input: `--input 1x3x224x224`",
            )
        with reading(module, self.alignment.layer) as read:
            scores = class_scores(module(torch.cat([inputs, others])))
        loss = classification_loss(scores[:n], labels, label_smoothing=self.recipe.label_smoothing)
        weight = self.alignment.at(step / steps)
        if weight:
            features = features_in(read, self.alignment.layer)  # [2 n, features]
            loss = loss + weight * mmd(features[:n], features[n:], kernels=self.alignment.kernels)
        return loss


def adapt(
    checkpoint: Checkpoint,
    source: Data,
    target: TargetDomain | None,
    *,
    recipe: Recipe,
    alignment: Alignment,
    callbacks: tuple[Callback, ...] = (),
    state_file: Path | None = None,
    device: str | None = None,
) -> Checkpoint:
    """Return the checkpoint with its network trained on `source` and adapted to `target`, and a new lineage entry.

    The checkpoint itself is not modified. `device` is used for training only; the result is on the checkpoint's device.
    Without a target, the network is trained on the source alone. The history has the accuracies on the source's tuning
    split. Refused: what `train` refuses, images of two shapes, batches of one image.
    """
    objective = None
    if target is not None:
        if recipe.batch_size < 2:
            raise RetrainError("a batch of one image has no discrepancy", hint="for example `--batch-size 32`")
        example = source.split(SplitName.TRAIN)[0][0]
        size = checkpoint.preprocessing.size or (int(example.shape[-2]), int(example.shape[-1]))
        objective = JointLoss(
            target=target, alignment=alignment, recipe=recipe, preprocessing=checkpoint.preprocessing, size=size
        )
    home = next(checkpoint.module.parameters()).device
    trained = train(
        checkpoint.module if device is None else copy_of(checkpoint.module).to(device_named(device)),
        source,
        recipe=recipe,
        preprocessing=checkpoint.preprocessing,
        objective=objective,
        hooks=Hooks(callbacks=callbacks),
        state_file=state_file,
    )
    entry: dict[str, object] = {
        "step": "adapt",
        "epochs": recipe.budget.epochs,
        "recipe": recipe.to_json(),
        "source": source.to_json(),
        "target": None if target is None else target.to_json(),
        "alignment": None if target is None else alignment.to_json(),
        "history": [record.to_json() for record in trained.history],
    }
    module = trained.module.to(home)
    return dataclasses.replace(checkpoint, module=module, lineage=(*checkpoint.lineage, entry))
