"""The quality of a network: its task's score with an interval; without labels, its agreement with the dense one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.data.batches import EVALUATION_BATCH, batches, first_batch
from compressor.data.items import Batch
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import UNLABELLED, Samples
from compressor.errors import CheckpointError, DataError
from compressor.graph.lent import evaluating
from compressor.graph.outputs import tensors_in
from compressor.measuring.onnx_network import OnnxNetwork, load_onnx
from compressor.results.quality import Accuracy, Agreement, Quality, Score
from compressor.tasks.finding import task_of_outputs, task_shown
from compressor.tasks.task import Rows, Task, together

ELEMENTS_PER_BATCH = 4_000_000  # of the input; keeps a batch of 224 x 224 images below a gigabyte of activations
RESAMPLES = 999  # of the samples, for an interval by bootstrap (Efron & Tibshirani 1993, ch. 13)

Answers = Callable[..., Any]
"""Inputs `[batch, ...]` to a network's outputs."""


def evaluate(
    network: nn.Module | OnnxNetwork,
    samples: Samples,
    *,
    split: str,
    preprocessing: Preprocessing,
    task: Task | None = None,
) -> Quality:
    """Return the network's score on labelled samples; a module stays unchanged.

    Without a `task`, the outputs and the targets show which it is: top-1 accuracy for class scores and labels. Refused:
    samples without labels, targets that fit no output, outputs that are not finite.
    """
    rows: list[Rows] = []
    with answering(network) as answer:
        for batch in _batches(samples, preprocessing):
            if not batch.labelled or _has_gaps(batch.target):
                raise DataError(
                    "these samples have no labels", hint="measure agreement with the dense network: `--dense PATH`"
                )
            outputs = _outputs(answer, batch)
            task = task or task_shown(outputs, batch.target)
            rows.append(task.rows(outputs, batch.target))
    assert task is not None  # a split is never empty
    every = together(rows)
    if task.name == "classification":
        return Accuracy(correct=int(sum(every)), total=len(every), split=split)
    return _score(task, every, split=split)


def agreement(
    network: nn.Module | OnnxNetwork,
    dense: nn.Module | OnnxNetwork,
    samples: Samples,
    *,
    split: str,
    preprocessing: Preprocessing,
    task: Task | None = None,
) -> Quality:
    """Return how closely the network follows the dense one, by the task's score with the dense network's outputs as the
    targets; labels are not read.
    """
    rows: list[Rows] = []
    error, size = 0.0, 0.0
    with answering(network) as answer, answering(dense) as reference:
        for batch in _batches(samples, preprocessing):
            ours, theirs = _outputs(answer, batch), _outputs(reference, batch)
            task = task if task is not None and task.as_target is not None else task_of_outputs(theirs)
            assert task.as_target is not None
            for one, other in _pairs(ours, theirs, detects=task.name == "detection"):
                error += float((one.double() - other.double()).square().sum())
                size += float(other.double().square().sum())
            rows.append(task.rows(ours, task.as_target(theirs)))
    assert task is not None  # a split is never empty
    relative = math.sqrt(error / size) if size else math.inf if error else 0.0
    every = together(rows)
    if task.name == "classification":
        return Agreement(agreeing=int(sum(every)), total=len(every), relative_error=relative, split=split)
    return _score(task, every, split=split, dense=True, relative_error=None if task.name == "detection" else relative)


def evaluate_onnx(file: Path, samples: Samples, *, split: str, preprocessing: Preprocessing | None = None) -> Quality:
    """Return the score of an ONNX file on onnxruntime's CPU provider, with its own preprocessing by default."""
    network = load_onnx(file)
    return evaluate(network, samples, split=split, preprocessing=preprocessing or network.preprocessing)


def _has_gaps(target: Any) -> bool:
    """True for class numbers of which one is missing."""
    whole = isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()
    return whole and int(target.min()) <= UNLABELLED


def _score(task: Task, rows: Rows, *, split: str, dense: bool = False, relative_error: float | None = None) -> Score:
    """The task's score of all samples, with its interval."""
    value = task.value(rows)
    if not math.isfinite(value):
        raise CheckpointError(f"the {task.metric} is not finite", hint="check the network's weights, and the targets")
    return Score(
        metric=task.metric, score=value, bounds=_bounds(task, rows, value), unit=task.unit, percent=task.percent,
        higher_is_better=task.higher_is_better, dense=dense, relative_error=relative_error, total=len(rows),
        split=split,
    )  # fmt: skip


def _bounds(task: Task, rows: Rows, value: float) -> tuple[float, float]:
    """The score's 95 % interval: percentiles of samples drawn anew, with the same draws for every network."""
    if len(rows) < 2:
        return value, value
    generator = np.random.default_rng(0)
    tensor = rows if isinstance(rows, Tensor) else None
    values = []
    for _ in range(RESAMPLES if tensor is not None else RESAMPLES // 5):
        drawn = generator.integers(len(rows), size=len(rows))
        values.append(task.value(tensor[torch.from_numpy(drawn)] if tensor is not None else [rows[i] for i in drawn]))
    low, high = np.percentile(values, [2.5, 97.5])
    return min(float(low), value), max(float(high), value)


def _pairs(ours: Any, theirs: Any, *, detects: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """The output tensors of both networks. Refused: other shapes, but for boxes, of which there may be any number."""
    for one, other in zip(tensors_in(ours), tensors_in(theirs), strict=not detects):
        if one.shape == other.shape:
            yield one, other
        elif not detects:
            raise DataError(
                f"the networks' outputs are {list(one.shape)} and {list(other.shape)}",
                hint="compare networks for the same task, with the same classes",
            )


@contextlib.contextmanager
def answering(network: nn.Module | OnnxNetwork) -> Iterator[Answers]:
    """Yield the network as a function from inputs to outputs on the CPU; a module is in eval mode meanwhile."""
    if isinstance(network, OnnxNetwork):
        yield network
        return
    first = next(network.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    dtype = torch.float32 if first is None or not first.is_floating_point() else first.dtype

    def answer(*inputs: Tensor) -> Any:
        moved = (part.to(device, dtype if part.is_floating_point() else None) for part in inputs)
        return _on_cpu(network(*moved))

    with evaluating(network), torch.no_grad():  # not inference_mode, whose tensors a network might keep
        yield answer


def _on_cpu(output: Any) -> Any:
    """The same structure with its tensors on the CPU, reals in float32."""
    if isinstance(output, Tensor):
        return output.float().cpu() if output.is_floating_point() else output.cpu()
    if isinstance(output, dict):
        return {name: _on_cpu(part) for name, part in output.items()}
    if isinstance(output, (list, tuple)):
        return [_on_cpu(part) for part in output]
    return output


def _batches(samples: Samples, preprocessing: Preprocessing) -> Iterator[Batch]:
    """Batches of a size that fits in memory."""
    numbers = sum(part.numel() for part in first_batch(samples, preprocessing=preprocessing).inputs)
    batch_size = max(1, min(EVALUATION_BATCH, ELEMENTS_PER_BATCH // numbers))
    return batches(samples, batch_size=batch_size, preprocessing=preprocessing)


def _outputs(answer: Answers, batch: Batch) -> Any:
    """The outputs for one batch. Refused: inputs that the network does not run on, outputs that are not finite."""
    try:
        outputs = answer(*batch.inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        # torch's and a network's own ways to refuse an input
        shapes = ", ".join(str(list(part.shape)[1:]) for part in batch.inputs)
        raise DataError(
            f"the network does not run on samples of {shapes}: {error}",
            hint="set the network's input, for example `--input 1x3x224x224`",
        ) from error
    if not all(bool(torch.isfinite(part).all()) for part in tensors_in(outputs)):
        raise CheckpointError("the network's outputs are not finite", hint="its weights may hold NaN")
    return outputs
