"""The accuracy of a network, as correct of total with an interval; without labels, its agreement with the dense one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.checkpoint import forms
from compressor.data.batches import EVALUATION_BATCH, batches, first_batch
from compressor.data.items import Batch
from compressor.data.preprocessing import Preprocessing
from compressor.data.samples import UNLABELLED, Samples
from compressor.errors import CheckpointError, DataError
from compressor.files.json_files import parsed
from compressor.files.schema import check
from compressor.graph.lent import evaluating
from compressor.graph.outputs import class_scores
from compressor.results.quality import Accuracy, Agreement

ELEMENTS_PER_BATCH = 4_000_000  # of the input; keeps a batch of 224 x 224 images below a gigabyte of activations

Scorer = Callable[[Tensor], Tensor]
"""Inputs `[batch, ...]` to class scores `[batch, classes]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxNetwork:
    """An ONNX file on onnxruntime's CPU provider, with the preprocessing and the classes in its metadata."""

    name: str
    session: Any
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    batch_size: int | None  # None: any

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return class scores `[batch, classes]`; a network with a fixed batch size runs several times."""
        if self.batch_size is None:
            return self._run(inputs)
        parts = []
        for start in range(0, len(inputs), self.batch_size):
            part = inputs[start : start + self.batch_size]
            missing = self.batch_size - len(part)
            padded = torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part
            parts.append(self._run(padded)[: len(part)])
        return torch.cat(parts)

    def _run(self, inputs: Tensor) -> Tensor:
        wanted = self.session.get_inputs()[0]
        values = inputs.half() if wanted.type == "tensor(float16)" else inputs
        try:
            outputs = self.session.run(None, {wanted.name: values.contiguous().numpy()})
        except Exception as error:
            # onnxruntime's exceptions share no base but Exception
            raise DataError(
                f"{self.name} does not run on images of {list(inputs.shape)[1:]}: {error}",
                hint=f"its input is {wanted.shape}",
            ) from error
        return torch.from_numpy(outputs[0]).float()


def evaluate(
    network: nn.Module | OnnxNetwork, images: Samples, *, split: str, preprocessing: Preprocessing
) -> Accuracy:
    """Return the network's top-1 accuracy on labelled images; a module stays unchanged.

    Refused: images without labels, labels beyond the network's outputs, scores that are not finite.
    """
    correct = 0
    with scorer(network) as score:
        for (inputs,), labels in _batches(images, preprocessing):
            scores = _scores(score, inputs)
            if int(labels.min()) <= UNLABELLED:
                raise DataError(
                    "these images have no labels", hint="measure agreement with the dense network: `--dense PATH`"
                )
            if int(labels.max()) >= scores.shape[1]:
                raise DataError(
                    f"an image has the label {int(labels.max())}, the network {scores.shape[1]} classes",
                    hint="are these the data that the network was trained for?",
                )
            correct += int((scores.argmax(1) == labels).sum())
    return Accuracy(correct=correct, total=len(images), split=split)


def agreement(
    network: nn.Module | OnnxNetwork,
    dense: nn.Module | OnnxNetwork,
    images: Samples,
    *,
    split: str,
    preprocessing: Preprocessing,
) -> Agreement:
    """Return how closely the network follows the dense one; labels are not read."""
    agreeing, error, size = 0, 0.0, 0.0
    with scorer(network) as score, scorer(dense) as reference:
        for (inputs,), _ in _batches(images, preprocessing):
            ours, theirs = _scores(score, inputs), _scores(reference, inputs)
            if ours.shape != theirs.shape:
                raise DataError(
                    f"the networks have {ours.shape[1]} and {theirs.shape[1]} classes",
                    hint="compare networks of the same classes",
                )
            agreeing += int((ours.argmax(1) == theirs.argmax(1)).sum())
            error += float((ours.double() - theirs.double()).square().sum())
            size += float(theirs.double().square().sum())
    relative = math.sqrt(error / size) if size else math.inf if error else 0.0
    return Agreement(agreeing=agreeing, total=len(images), relative_error=relative, split=split)


def evaluate_onnx(file: Path, images: Samples, *, split: str, preprocessing: Preprocessing | None = None) -> Accuracy:
    """Return the accuracy of an ONNX file on onnxruntime's CPU provider, with its own preprocessing by default."""
    network = load_onnx(file)
    return evaluate(network, images, split=split, preprocessing=preprocessing or network.preprocessing)


def load_onnx(file: Path, *, threads: int | None = None) -> OnnxNetwork:
    """Return the classifier in an ONNX file, ready to run on the CPU.

    Preprocessing and classes come from `metadata_props`, where `compress export` writes them; another tool's file only
    has the input's size and channels. Refused: a file that onnxruntime cannot read, inputs that are not images.
    """
    import onnxruntime

    if not file.is_file():
        raise CheckpointError(f"{file} is not there", hint="check the path; `compress export --onnx` writes one")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime's exceptions share no base but Exception
        raise CheckpointError(
            f"onnxruntime cannot read {file}: {error}", hint="is it an ONNX file, and whole?"
        ) from error
    inputs = session.get_inputs()
    shape = list(inputs[0].shape)
    if len(inputs) != 1 or len(shape) != 4 or inputs[0].type not in ("tensor(float)", "tensor(float16)"):
        reads = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise DataError(
            f"{file} does not read one batch of images but: {reads}", hint="use a network of images with one input"
        )
    batch, channels, *size = (n if isinstance(n, int) else None for n in shape)
    try:
        metadata = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} has metadata that are no text: {error}", hint="export it again") from error
    fixed = (size[0], size[1]) if size[0] is not None and size[1] is not None else None
    try:
        where = f"the metadata of {file}, which make no sense"
        pairs = ", ".join(f'"{key}": {metadata.get(key) or "null"}' for key in ("classes", "preprocessing"))
        plain = parsed(f"{{{pairs}}}", where=where, refusal=CheckpointError, hint="export it again")
        check(plain, forms.ONNX_METADATA, where=where, hint="export it again", refusal=CheckpointError)
        classes, recorded = plain["classes"], plain["preprocessing"] or {}
        own = recorded.get("size") or fixed
        preprocessing = Preprocessing(
            mean=tuple(recorded.get("mean", ())),
            std=tuple(recorded.get("std", ())),
            size=(int(own[0]), int(own[1])) if own else None,
            channels=recorded.get("channels") or channels,
        )
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{file} has metadata that make no sense: {error}", hint="export it again") from error
    return OnnxNetwork(
        name=metadata.get("name") or file.stem,
        session=session,
        preprocessing=preprocessing,
        classes=tuple(map(str, classes)) if classes else None,
        batch_size=batch,
    )


@contextlib.contextmanager
def scorer(network: nn.Module | OnnxNetwork) -> Iterator[Scorer]:
    """Yield the network as a function from inputs to scores on the CPU; a module is in eval mode meanwhile."""
    if isinstance(network, OnnxNetwork):
        yield network
        return
    first = next(network.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    dtype = torch.float32 if first is None or not first.is_floating_point() else first.dtype
    with evaluating(network), torch.no_grad():  # not inference_mode, whose tensors a network might keep
        yield lambda inputs: class_scores(network(inputs.to(device, dtype))).float().cpu()


def _batches(images: Samples, preprocessing: Preprocessing) -> Iterator[Batch]:
    """Batches of a size that fits in memory."""
    numbers = sum(part.numel() for part in first_batch(images, preprocessing=preprocessing).inputs)
    batch_size = max(1, min(EVALUATION_BATCH, ELEMENTS_PER_BATCH // numbers))
    return batches(images, batch_size=batch_size, preprocessing=preprocessing)


def _scores(score: Scorer, inputs: Tensor) -> Tensor:
    """The scores of one batch, `[batch, classes]`. Refused: outputs that are not class scores."""
    try:
        scores = score(inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        # torch's and a network's own ways to refuse an input
        raise DataError(
            f"the network does not run on images of {list(inputs.shape)[1:]}: {error}",
            hint="set the network's input, for example `--input 1x3x224x224`",
        ) from error
    if scores.ndim != 2 or len(scores) != len(inputs):
        raise DataError(
            f"the network returns {list(scores.shape)} for {len(inputs)} images, not class scores",
            hint="only networks that classify images can be judged",
        )
    if not bool(torch.isfinite(scores).all()):
        raise CheckpointError("the network's scores are not finite", hint="its weights may hold NaN")
    return scores
