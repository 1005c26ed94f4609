"""How far architectures get, with random weights that all take effect: pruned, trained, exported, read back.

The stages are what a user would do with a network; the first one that fails has the reason:

    plan      traced, scored and planned: ratio 0.5, l1-norm, uniform, no alignment
    prune     shrunk, and the surgery proof holds
    backward  one backward pass through the small network, as in the first step of training
    again     the small network pruned a second time, with its proof
    export    an ONNX file, with the network's outputs in onnxruntime
    reload    the artifact, read back in a fresh process
"""

from __future__ import annotations

import dataclasses
import enum
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.channels.groups import trace
from compressor.checkpoint.architectures import Architecture, architecture_from_user, build
from compressor.checkpoint.artifact_writing import write_artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.hugging_face import REGISTRY
from compressor.checkpoint.inputs import example_inputs
from compressor.checkpoint.model_inputs import examples_for
from compressor.data.preprocessing import Preprocessing
from compressor.errors import ArchitectureError, CompressError
from compressor.export.onnx import export_onnx
from compressor.files.leftovers import temporary
from compressor.graph.copies import copy_of
from compressor.graph.gradients import right_gradients
from compressor.graph.input_spec import spec_from_text
from compressor.graph.outputs import tensors_in
from compressor.progress import Say, quiet
from compressor.pruning.pipeline import prune
from compressor.pruning.request import Request
from compressor.results.artifact import Results
from compressor.surgery.plan import ChannelBudget

DEEP, DEEP_ATTENTION = 0.40, 0.55  # shares of the parameters; a uniform 0.5 leaves 0.25 to 0.3 where all is coupled


class Stage(enum.StrEnum):
    """The stages of an architecture, in order."""

    PLAN = "plan"
    PRUNE = "prune"
    BACKWARD = "backward"
    AGAIN = "again"
    EXPORT = "export"
    RELOAD = "reload"


@dataclass(slots=True, kw_only=True)
class Coverage:
    """How far one architecture got, with the values of each stage; `None` for stages that were not reached.

    `prune_s` is processor time, `plan_s` its part until there is a plan, `plan_bytes` the growth of the process's peak
    memory by then (if the system reports it), against `model_bytes`; `params` and `macs` are dense and small;
    `attention`: most of the weights belong to linear layers.
    """

    architecture: str
    until: Stage
    reached: Stage | None = None
    why: str | None = None
    traceback: str | None = None
    attention: bool = False
    prune_s: float | None = None
    plan_s: float | None = None
    plan_bytes: int | None = None
    model_bytes: int | None = None
    proof: float | None = None
    moved: float | None = None
    dtype: str | None = None
    form: str | None = None  # "class" or "program"
    params: tuple[int, int] | None = None
    macs: tuple[int, int] | None = None
    groups: int | None = None
    left_alone: tuple[dict[str, str], ...] = ()
    without_gradient: int | None = None  # parameters of the small network that a backward pass does not reach
    again_proof: float | None = None
    parity: float | None = None

    @property
    def through(self) -> bool:
        """True if it got to the requested stage."""
        return self.reached is self.until

    @property
    def left(self) -> float | None:
        """The share of the parameters that remains."""
        return None if self.params is None else self.params[1] / self.params[0]

    @property
    def deep(self) -> bool:
        """True if the remaining share is that of a network in which nearly every layer is narrowed."""
        return self.left is not None and self.left <= (DEEP_ATTENTION if self.attention else DEEP)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)


def coverage_of(
    architecture: Architecture, shapes: Sequence[str] = (), *, until: Stage = Stage.RELOAD, say: Say = quiet
) -> Coverage:
    """Return how far the architecture gets with random weights; a failure on the way is recorded, not raised.

    `shapes` are those of its inputs, `1x3x224x224`, where they do not follow from it.
    """
    say("building")
    try:
        checkpoint = checkpoint_of(architecture, shapes)
    except CompressError as error:
        return Coverage(architecture=architecture.ref, until=until, why=str(error))
    except Exception as error:  # as below
        return _with_reason(Coverage(architecture=architecture.ref, until=until), error)
    return coverage_of_checkpoint(checkpoint, until=until, say=say)


def coverage_of_checkpoint(checkpoint: Checkpoint, *, until: Stage = Stage.RELOAD, say: Say = quiet) -> Coverage:
    """Return how far a network gets; a failure on the way is recorded, not raised."""
    row = Coverage(architecture=checkpoint.architecture.ref, until=until)
    try:
        row.attention = _attends(checkpoint.module)
        _through(row, checkpoint, say)
    except CompressError as error:
        row.why = str(error)
    except Exception as error:  # the network's code and its exporters can raise anything: the row records it
        _with_reason(row, error)
    return row


def _with_reason(row: Coverage, error: Exception) -> Coverage:
    """The row itself, which records an error that is none of ours; called while it is handled."""
    row.why, row.traceback = f"{type(error).__name__}: {str(error)[:400]}", traceback.format_exc()[-2000:]
    return row


def _through(row: Coverage, checkpoint: Checkpoint, say: Say) -> None:
    """Run the stages, and fill the row."""
    request = Request(budget=ChannelBudget(ratio=0.5), align=1)
    row.model_bytes = sum(t.numel() * t.element_size() for t in checkpoint.module.state_dict().values())
    trace(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), (torch.zeros(1, 4),))  # loads what tracing loads
    started, peak = time.process_time(), _peak_bytes()

    def heard(step: str) -> None:
        if row.plan_s is None and step.startswith("shrinking"):
            row.plan_s, row.plan_bytes = time.process_time() - started, (_peak_bytes() - peak) or None
            row.reached = Stage.PLAN
            if row.until is Stage.PLAN:
                raise _FarEnough
        say(step)

    try:
        pruned = prune(checkpoint, request, say=heard)
    except _FarEnough:
        return
    small = pruned.checkpoint
    row.prune_s = time.process_time() - started
    row.proof, row.dtype = pruned.proof.largest_relative_difference, str(pruned.proof.dtype).removeprefix("torch.")
    row.moved = pruned.proof.moved
    row.form = pruned.kept_as
    row.params = pruned.dense_cost.params, pruned.small_cost.params
    row.macs = pruned.dense_cost.macs, pruned.small_cost.macs
    row.groups = len(pruned.traced.groups)
    row.left_alone = tuple(dataclasses.asdict(a) for a in pruned.traced.left_alone)
    if pruned.proof.vacuous:
        raise CompressError("the proof has seen nothing: with these weights the removed channels change no output")
    row.reached = Stage.PRUNE
    if row.until is Stage.PRUNE:
        return
    say("a backward pass")
    module = copy_of(small.module).requires_grad_(True)
    with right_gradients():
        outputs = [t for t in tensors_in(module(*small.example_inputs)) if t.requires_grad]
    torch.stack([t.square().mean() for t in outputs]).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    row.without_gradient = sum(p.grad is None for p in module.parameters())
    row.reached = Stage.BACKWARD
    if row.until is Stage.BACKWARD:
        return
    again = prune(dataclasses.replace(small, surgery=None), request, say=say)
    row.again_proof = again.proof.largest_relative_difference
    row.reached = Stage.AGAIN
    if row.until is Stage.AGAIN:
        return
    with temporary("coverage") as scratch:
        say("exporting")
        row.parity = export_onnx(small, Path(scratch) / "model.onnx").largest_relative_difference
        row.reached = Stage.EXPORT
        if row.until is Stage.EXPORT:
            return
        say("writing, and reading it back in a fresh process")
        write_artifact(
            Path(scratch) / "a.compressed",
            small,
            source={"path": "", "sha256": ""},
            results=Results(),
            trust_pickle=False,
        )
        row.reached = Stage.RELOAD


class _FarEnough(Exception):  # no error: the end of what was asked
    """There is a plan, and no more was requested."""


def _peak_bytes() -> int:
    """The peak memory of this process."""
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def checkpoint_of(architecture: Architecture, shapes: Sequence[str]) -> Checkpoint:
    """Return the architecture with random weights that all take effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = enliven_(build(architecture), seed=0)
    source, _, name = architecture.ref.rpartition(":")
    if source == REGISTRY:
        examples = examples_for(module, tuple(map(spec_from_text, shapes)))
    else:
        examples = example_inputs(module, inputs=shapes, stored=None, architecture=architecture)
    return Checkpoint(
        module=module,
        example_inputs=examples.tensors,
        input_specs=examples.specs,
        architecture=architecture,
        preprocessing=Preprocessing(),
        classes=None,
        name=name,
        path=name,
        sha256="",
    )


def enliven_(module: nn.Module, *, seed: int) -> nn.Module:
    """Draw batch-norm statistics, layer scales and zero-initialised parameters at random, in place; set eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in nn.Module.modules(module):
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.affine and layer.track_running_stats:
                layer.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]  # it tracks them
                layer.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]  # as above
                layer.weight.uniform_(0.5, 1.5, generator=generator)
                layer.bias.normal_(0, 0.1, generator=generator)
        for name, parameter in module.named_parameters():
            if "layer_scale" in name:
                parameter.uniform_(0.2, 1, generator=generator)
            elif not parameter.any():
                parameter.normal_(0, 0.05, generator=generator)
    return module.eval()


def _attends(module: nn.Module) -> bool:
    """True if most of the weights belong to linear layers."""
    linear = sum(m.weight.numel() for m in nn.Module.modules(module) if isinstance(m, nn.Linear))
    linear += sum(
        m.in_proj_weight.numel()
        for m in nn.Module.modules(module)
        if isinstance(m, nn.MultiheadAttention) and m.in_proj_weight is not None
    )
    return linear > 0.6 * sum(p.numel() for p in module.parameters())


def listed(file: Path) -> list[tuple[Architecture, tuple[str, ...]]]:
    """Return the architectures in a text file: one reference per line, with the shapes of its inputs if they do not
    follow.

    Refused: a file that is missing or lists nothing.
    """
    hint = "a text file, an architecture a line: `torchvision:resnet18`, with shapes behind it where need be"
    try:
        lines = [line.split("#")[0].split() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ArchitectureError(f"cannot read a list of architectures from {file}", hint=hint) from error
    architectures = [(architecture_from_user(words[0]), tuple(words[1:])) for words in lines if words]
    if not architectures:
        raise ArchitectureError(f"{file} lists no architecture", hint=hint)
    return architectures
