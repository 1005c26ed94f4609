"""Repair a small network before any retraining: fit its outputs to those of the dense network, without labels.

The repairs, from the cheapest to the strongest:

    mean            add the mean contribution of the removed channels to the biases of their readers
    batch-norm      estimate the batch norms' statistics again, on the small network
    least-squares   fit every layer behind the cut to the dense network's (`pruning.repair.least_squares`)
    distill         then train all weights together to match the dense network (`pruning.repair.distillation`)

They repair removed channels, and single weights that a mask set to zero; masked weights stay zero.

Without images, `mean` computes expected values from the batch norms (`pruning.repair.batch_norm_means`), and the
other repairs use synthetic images (`pruning.repair.synthetic`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.channels.groups import BATCH_NORMS
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.splits import Data
from compressor.errors import RepairError, named
from compressor.graph.copies import copy_of
from compressor.graph.lent import evaluating
from compressor.graph.outputs import outputs_of, relative_difference
from compressor.planning.affording import reserved
from compressor.planning.calibration import calibration_batches, calibration_split
from compressor.planning.moments import reader_of
from compressor.planning.sensitivity import real_outputs, rises, writable
from compressor.planning.walk import Walk, program_of, readers
from compressor.progress import Say, quiet
from compressor.pruning.repair.batch_norm_means import compensated
from compressor.pruning.repair.distillation import STEPS, distil
from compressor.pruning.repair.least_squares import LayerFit, reconstruct
from compressor.results.changes import LayerRepair, Repairing
from compressor.surgery.masks import Masker, WeightMask
from compressor.surgery.surgery import Surgery, operate

HELD_OUT_SHARE = 8  # one batch of this many is held out, to judge the repair


class Repair(enum.StrEnum):
    """The repairs of a small network before any retraining."""

    AUTO = "auto"  # depends on the data: `pruning.request`
    NONE = "none"
    MEAN = "mean"
    BATCH_NORM = "batch-norm"
    LEAST_SQUARES = "least-squares"
    DISTILL = "distill"


def repair_named(name: str) -> Repair:
    """Return the repair called `name`."""
    return named(Repair, name, one="repair", many="repairs", refusal=RepairError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """A repaired copy of the small network, the repair, and the distance of its output from the dense network's.

    `before` and `after` are `planning.sensitivity.rise` on `judged` images; `images` counts all images that were used.
    """

    module: nn.Module
    how: Repair
    images: int
    judged: int
    before: float | None
    after: float | None
    layers: tuple[LayerFit, ...] = ()
    distilled: tuple[float, ...] = ()
    kept: bool = True  # False if the repair increased the error, and the network stays as it was

    @property
    def result(self) -> Repairing:
        """The `repair` section of an artifact's results."""
        return Repairing(
            how=str(self.how),
            images=self.images,
            judged=self.judged,
            rise=tuple(None if error is None else writable(error) for error in (self.before, self.after)),
            kept=self.kept,
            layers=tuple(
                LayerRepair(
                    layer=fit.layer, before=writable(fit.before), after=writable(fit.after), ridge=_finite(fit.ridge)
                )
                for fit in self.layers
            ),
            distilled=tuple(writable(error) for error in self.distilled),
        )

    def step(self, *, seed: int) -> dict[str, object]:
        """Return the repair as a step of a lineage."""
        return {"step": "repair", "how": str(self.how), "images": self.images, "seed": seed}


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def repair(
    dense: nn.Module,
    small: nn.Module,
    surgery: Surgery,
    batches: Sequence[Sequence[Tensor]],
    *,
    how: Repair,
    silent: frozenset[str] = frozenset(),
    mask: WeightMask | None = None,
    steps: int = STEPS,
    memory_bytes: int | None = None,
    seed: int = 0,
    say: Say = quiet,
) -> Repaired:
    """Return a repaired copy of `small`, which `surgery` cut from `dense`; both networks are not modified.

    `batches` are inputs `[images, ...]`, all of one batch size. `silent` names the weights of layers that read no
    channel any more. Weights that `mask` removed, which are zero in `small`, stay zero. An eighth of the batches (at
    least one) is held out to judge: if the repair increases the error there, it is not kept. A covariance that does not
    fit into `memory_bytes` is not computed (`planning.affording`).

    Refused: `auto`, no images, networks that cannot be followed where the repair needs it, a mask that does not fit.
    """
    if how is Repair.AUTO:
        raise RepairError("the repair `auto` is not resolved", hint="call `Request.resolved`, which chooses one")
    if not batches:
        raise RepairError("no images to repair with", hint="give at least a few: `--data DIR`")
    if mask is not None:
        _check(small, mask)
    judges = batches[-max(1, len(batches) // HELD_OUT_SHARE) :]
    fitted = batches[: -len(judges)] or batches
    reference = _outputs(dense, judges)
    before = rises(reference, _outputs(small, judges))
    layers: tuple[LayerFit, ...] = ()
    distilled: tuple[float, ...] = ()
    repaired = small
    if how is Repair.BATCH_NORM:
        repaired = renormed(small, fitted)
    elif how is not Repair.NONE:
        fitted_copy = reconstruct(
            dense, small, surgery, fitted, mean_only=how is Repair.MEAN, silent=silent, mask=mask,
            memory_bytes=memory_bytes, seed=seed, say=say,
        )  # fmt: skip
        repaired, layers = fitted_copy.module, fitted_copy.layers
        if how is Repair.DISTILL:
            distilled_copy = distil(
                dense, repaired, surgery, fitted, judges, steps=steps, frozen=silent, mask=mask, seed=seed, say=say,
            )  # fmt: skip
            repaired, distilled = distilled_copy.module, distilled_copy.errors
    after = rises(reference, _outputs(repaired, judges))
    kept = how is Repair.NONE or bool(silent) or after <= before
    return Repaired(
        module=repaired if kept else copy_of(small),
        how=how,
        images=sum(len(b[0]) for b in batches),
        judged=sum(len(b[0]) for b in judges),
        before=before,
        after=after if kept else before,
        layers=layers,
        distilled=distilled,
        kept=kept,
    )


def _check(small: nn.Module, mask: WeightMask) -> None:
    """Raise where the mask does not fit the network, or a masked weight is not zero."""
    Masker(small, mask)  # raises for other names and shapes
    for name, kept in mask.kept.items():
        if bool(small.get_parameter(name).detach()[~kept].any()):
            raise RepairError(
                f"`{name}` has weights that the mask removed", hint="set them to zero first: `apply_mask_(small, mask)`"
            )


def repair_blind(dense: nn.Module, small: nn.Module, surgery: Surgery, example_inputs: Sequence[Tensor]) -> Repaired:
    """Compensate means without images, from the batch norms; the errors before and after stay unknown.

    Refused: a network in which no removed channel comes from a batch norm.
    """
    compensation = compensated(dense, small, surgery, example_inputs)
    if not compensation.layers:
        raise RepairError(
            "no removed channel comes from a batch norm, and only a batch norm gives its mean without images",
            hint="give images: `--data DIR`, or use `--repair least-squares`, which draws synthetic ones",
        )
    return Repaired(module=compensation.module, how=Repair.MEAN, images=0, judged=0, before=None, after=None)


def _outputs(module: nn.Module, batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The module's outputs of real numbers, over all batches."""
    with evaluating(module):
        each = [outputs_of(module, list(batch)) for batch in batches]
    return real_outputs([list(column) for column in zip(*each, strict=True)])


def renormed(small: nn.Module, batches: Sequence[Sequence[Tensor]]) -> nn.Module:
    """Return a copy whose batch norms have the statistics of the batches: the mean over all batches.

    This is EagleEye's adaptive batch norm (Li et al. 2020, arXiv:2007.02491, sec. 3.3). Refused: a network without
    batch norms.
    """
    module = copy_of(small)
    norms = [m for m in nn.Module.modules(module) if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    if not norms:
        raise RepairError("there is no batch norm in this network", hint="use `--repair least-squares` or `mean`")
    module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    with torch.no_grad():
        for batch in batches:
            if len(batch[0]) > 1:  # one image has no variance
                module(*batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for layer, original in zip(nn.Module.modules(module), nn.Module.modules(small), strict=True):
        layer.training = original.training
    return module


def emptied(module: nn.Module, layers: Sequence[str], example_inputs: Sequence[Tensor]) -> tuple[nn.Module, Surgery]:
    """Return a copy in which the layers, whose weights are zero, output their bias alone; and the surgery for it.

    Refused: a copy whose outputs differ from the module's.
    """
    cut = Surgery(emptied=tuple(layers))
    lighter = operate(module, cut)
    inputs = list(example_inputs)
    pairs = zip(*(outputs_of(copy_of(m).eval(), inputs) for m in (lighter, module)), strict=True)
    worst = max(relative_difference(a, b) for a, b in pairs)
    if worst > 1e-5:
        raise RepairError(
            f"the network without its empty branches differs by {worst:.2g}", hint="use `--min-channels 1`"
        )
    return lighter, cut


def images_to_repair_with(
    checkpoint: Checkpoint,
    data: Data,
    *,
    how: Repair,
    images: int,
    memory_bytes: int,
    seed: int,
    say: Say,
) -> list[tuple[Tensor, ...]]:
    """Return up to `images` inputs in batches of one size, drawn by `seed`; as many as fit into `memory_bytes`."""
    batches = calibration_batches(calibration_split(data), images, preprocessing=checkpoint.preprocessing, seed=seed)
    if how in (Repair.MEAN, Repair.LEAST_SQUARES, Repair.DISTILL):
        say("seeing how many images fit")
        size = len(batches[0][0])
        fits = affordable(checkpoint.module, batches[0], images=len(batches) * size, memory_bytes=memory_bytes)
        batches = batches[: max(1, fits // size)]
    return batches


def affordable(module: nn.Module, batch: Sequence[Tensor], *, images: int, memory_bytes: int) -> int:
    """Return how many of `images` fit into `memory_bytes` with two networks' live values; at least one batch.

    The memory of the largest fit that the layers may need (`planning.affording`) is subtracted first. Live values are
    those that a later operator still reads.
    """
    size = len(batch[0])
    program = program_of(module, batch, batch=size)
    peak = 0
    with torch.no_grad():
        walk = Walk(program, [[t] for t in batch])
        while walk.at < len(program.nodes):
            walk.step()
            live = [v[0] for v in walk.values.values() if isinstance(v[0], Tensor)]
            unique = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in live}
            peak = max(peak, sum(unique.values()))
    weights = [(node, program.constants[node.args[1]]) for _, node in readers(program)]  # type: ignore[index]  # a node
    memory_bytes -= reserved((reader_of(program, n, weight).matrix(weight) for n, weight in weights), memory_bytes)
    per_image = 2.5 * peak / size  # two networks, and the dense one a block ahead
    return max(size, min(images, int(memory_bytes / max(1.0, per_image)) // size * size))
