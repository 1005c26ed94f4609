"""Measure how far an ONNX file's outputs differ from the network's, over several batches of several sizes.

The file runs in onnxruntime with a user's settings: all graph optimisations are on (blocked convolutions, fused GELUs
and attention), so the measured difference contains their effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ExportError
from compressor.export.same_maxima import outputs_with, with_positions
from compressor.graph.input_spec import random_like
from compressor.graph.outputs import outputs_of, relative_difference

BATCHES = 3  # of each size
TOLERANCE = 1e-3


class BatchIsFixedError(Exception):
    """The graph only accepts batches of the traced size; the export is repeated with a fixed batch size."""


def first_cause(error: BaseException) -> str:
    """Return the type and first line of the innermost cause; the exporter wraps it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def largest_difference(
    module: nn.Module, examples: Sequence[Tensor], part: Path, sizes: tuple[int, ...], *, last: int | None = None
) -> tuple[float, int, bool]:
    """Return the largest relative difference, the number of outputs compared, and whether the maxima were replayed.

    Every output is compared (or the `last` ones alone), for several batches of each size. The last value is true if a
    batch was compared at the positions of the file's maxima.
    """
    session = _session(part)
    names = [i.name for i in session.get_inputs()]
    if len(names) != len(examples):
        raise ExportError(f"the ONNX file has {len(names)} inputs, the network {len(examples)}")
    worst, count, same_maxima = 0.0, 0, False
    for size in sizes:
        for index in range(BATCHES):
            inputs = random_like(examples, batch=size, seed=1000 * size + index)
            expected = outputs_of(module, inputs)
            if not expected:
                raise ExportError("the network returns no tensor", hint="its forward must return tensors")
            try:
                answers = session.run(None, {n: t.contiguous().numpy() for n, t in zip(names, inputs, strict=True)})
            except Exception as error:
                # onnxruntime's exceptions have no common base but Exception
                if len(sizes) > 1:
                    raise BatchIsFixedError(
                        f"its graph does not take a batch of {size}: {first_cause(error)}"
                    ) from error
                raise ExportError(f"onnxruntime cannot run the ONNX file: {first_cause(error)}") from error
            if len(answers) != len(expected):
                raise ExportError(f"the ONNX file has {len(answers)} outputs, the network {len(expected)}")
            start = 0 if last is None else len(expected) - last
            shapes = [[list(a.shape) for a in outputs[start:]] for outputs in (answers, expected)]
            if shapes[0] != shapes[1] and len(sizes) > 1:  # for example, `squeeze` drops a batch dimension of one
                raise BatchIsFixedError(f"for a batch of {size} it outputs {shapes[0]}, the network {shapes[1]}")
            count, difference = len(expected) - start, _difference(answers[start:], expected[start:])
            if difference > TOLERANCE and last is None:
                replayed = _with_its_maxima(module, part, names, inputs)
                difference, same_maxima = (difference, same_maxima) if replayed is None else (replayed, True)
            worst = max(worst, difference)
    return worst, count, same_maxima


def _with_its_maxima(module: nn.Module, part: Path, names: Sequence[str], inputs: Sequence[Tensor]) -> float | None:
    """Return the difference when the network uses the positions of the file's maxima; `None` if there are none."""
    import onnx

    proto = onnx.load(part)
    count = with_positions(proto)
    if not count:
        return None
    session = _session(proto.SerializeToString())
    answers = session.run(None, {n: t.contiguous().numpy() for n, t in zip(names, inputs, strict=True)})
    expected = outputs_with(module, inputs, [torch.as_tensor(a) for a in answers[-count:]])
    return None if expected is None else _difference(answers[:-count], expected)


def _session(file: Path | bytes) -> Any:
    """Return an onnxruntime session on the CPU; refused: a file that onnxruntime cannot load."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(
            file if isinstance(file, bytes) else str(file), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        # onnxruntime's exceptions have no common base but Exception; an opset that is too new raises here
        raise ExportError(
            f"onnxruntime cannot load the ONNX file: {first_cause(error)}", hint="try a lower `--opset`"
        ) from error


def _difference(answers: Sequence[Any], expected: Sequence[Tensor]) -> float:
    """Return the largest relative difference of any output; refused: another shape."""
    worst = 0.0
    for index, (answer, reference) in enumerate(zip(answers, expected, strict=True)):
        ours = torch.as_tensor(answer)
        if ours.shape != reference.shape:
            raise ExportError(
                f"output {index} of the ONNX file is {list(ours.shape)}, the network's {list(reference.shape)}"
            )
        if reference.numel():
            worst = max(worst, relative_difference(ours.double(), reference.double()))
    return worst
