"""A network in an ONNX file, on onnxruntime's CPU provider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.checkpoint import forms
from compressor.data.preprocessing import Preprocessing
from compressor.errors import CheckpointError, DataError
from compressor.files.json_files import parsed
from compressor.files.schema import check


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxNetwork:
    """An ONNX file on onnxruntime's CPU provider, with the preprocessing and the classes in its metadata."""

    name: str
    session: Any
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    batch_size: int | None  # None: any

    def __call__(self, *inputs: Tensor) -> Any:
        """Return the output, or a tuple of several; a network with a fixed batch size runs several times."""
        if self.batch_size is None:
            outputs = self._run(inputs)
        else:
            parts = []
            for start in range(0, len(inputs[0]), self.batch_size):
                some = [part[start : start + self.batch_size] for part in inputs]
                count = len(some[0])
                parts.append([out[:count] for out in self._run([self._filled(part) for part in some])])
            outputs = [torch.cat(column) for column in zip(*parts, strict=True)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _filled(self, part: Tensor) -> Tensor:
        """The samples, with copies of the first where the batch is too small."""
        assert self.batch_size is not None
        missing = self.batch_size - len(part)
        return torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        wanted = self.session.get_inputs()
        values = {
            entry.name: (part.half() if entry.type == "tensor(float16)" else part).contiguous().numpy()
            for entry, part in zip(wanted, inputs, strict=False)
        }
        try:
            outputs = self.session.run(None, values)
        except Exception as error:
            # onnxruntime's exceptions share no base but Exception
            shapes = ", ".join(str(list(part.shape)[1:]) for part in inputs)
            raise DataError(
                f"{self.name} does not run on samples of {shapes}: {error}",
                hint=f"it reads {', '.join(f'{entry.name} {entry.shape}' for entry in wanted)}",
            ) from error
        arrays = (torch.from_numpy(array) for array in outputs)
        return [array.float() if array.is_floating_point() else array for array in arrays]


def load_onnx(file: Path, *, threads: int | None = None) -> OnnxNetwork:
    """Return the network in an ONNX file, ready to run on the CPU.

    Preprocessing and classes come from `metadata_props`, where `compress export` writes them; another tool's file only
    has the inputs' names, and an image's size and channels. Refused: a file that onnxruntime cannot read.
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
    if not inputs:
        raise CheckpointError(f"{file} reads nothing", hint="is it a part of a network?")
    batch, *sizes = (n if isinstance(n, int) else None for n in inputs[0].shape or [None])
    image = len(sizes) == 3 and inputs[0].type in ("tensor(float)", "tensor(float16)")
    channels, *size = sizes if image else (None, None, None)
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
            takes=tuple(entry.name for entry in inputs),
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
