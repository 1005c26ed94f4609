"""What `compress quantize` does, for library users too: the int8 file of a network beside its float file.

Only measured results are reported: its size, its agreement and accuracy, and its speed against the float file, in turns
on one machine.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from compressor.checkpoint.artifact_writing import add_results, check_free, write_artifact
from compressor.checkpoint.artifacts import INT8, ONNX, SUFFIX, Artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.batches import batches, is_labelled
from compressor.data.classes import with_labels_of
from compressor.data.samples import first
from compressor.data.splits import Data, SplitName
from compressor.environment import environment
from compressor.errors import ArtifactError, CalibrationError, ExportError
from compressor.export.int8 import Int8, Quantized, quantize_onnx
from compressor.export.onnx import export_onnx
from compressor.files.leftovers import temporary
from compressor.files.names import file_name_from
from compressor.graph.outputs import outputs_of
from compressor.measuring.machine import conditions
from compressor.measuring.onnx_network import load_onnx
from compressor.measuring.pairs import timed_in_turns
from compressor.measuring.quality import agreement, evaluate_onnx
from compressor.measuring.setting import row_of
from compressor.measuring.turns import CONFIDENCE, Caveat, CaveatKind, caveats_of, caveats_of_machine
from compressor.planning.calibration import calibration_split
from compressor.progress import Say, quiet
from compressor.results.artifact import Results
from compressor.results.int8 import FloatAndInt8, Quantizing
from compressor.results.parity import Parity
from compressor.results.quality import Quality
from compressor.results.timing import TimedRow

RUNTIME = "onnxruntime-cpu"
BATCHES = (1, 64)
SECONDS = 4.0  # for one batch size
CALIBRATION_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How the two files are timed: batch sizes, threads (torch's own number by default), seconds for each size."""

    batch_sizes: tuple[int, ...] = BATCHES
    threads: int | None = None
    seconds: float = SECONDS


def default_folder(checkpoint: Checkpoint) -> Path:
    """Return the default folder of a checkpoint's int8 file: a new artifact, `NAME.int8.compressed`, here."""
    return Path(f"{file_name_from(checkpoint.name)}.int8{SUFFIX}")


def quantize_to(
    folder: Path | None,
    checkpoint: Checkpoint,
    data: Data,
    how: Int8,
    *,
    artifact: Artifact | None = None,
    timing: Timing | None = None,
    command: str = "",
    force: bool = False,
    trust_pickle: bool = False,
    say: Say = quiet,
) -> tuple[Path, Quantizing]:
    """Write `model.int8.onnx`, judge it and time it; return its file, and the `quantize` section of the results.

    The file is added to the `artifact`; with `folder`, or for a bare checkpoint, a new artifact is written with the
    unchanged network, its float ONNX file and the int8 file. Ranges come from the training split, agreement and
    accuracy from the tuning split; no labels are needed. Refused: what `quantize_onnx` and `export_onnx` refuse, a
    network that returns no class scores for images, data with only a test split, a folder with other content.
    """
    _check_scores(checkpoint)
    place = folder or (None if artifact is not None else default_folder(checkpoint))
    if place is not None:
        check_free(place, force=force)
    with temporary("int8") as scratch:
        exact, integer = Path(scratch) / ONNX, Path(scratch) / INT8
        exported = _float_file(exact, checkpoint, artifact, say)
        fixed = load_onnx(exact).batch_size
        quantized, images = _quantized(exact, integer, checkpoint, data, how, batch=fixed, say=say)
        close, accuracy = _judged(exact, integer, checkpoint, data, say)
        timed = _timed(exact, integer, checkpoint, timing or Timing(), fixed=fixed, say=say)
        section = Quantizing(
            command=command,
            environment=environment(),
            how=how.to_json(),
            data={"name": data.name, "images": images},
            weights=quantized.weights,
            left_float=quantized.left_float,
            float_bytes=quantized.float_bytes,
            int8_bytes=quantized.int8_bytes,
            agreement=close,
            accuracy=accuracy,
            runtime=RUNTIME,
            threads=timed.threads,
            confidence=CONFIDENCE,
            rows=timed.rows,
            caveats=timed.caveats,
        )
        say("writing")
        home = artifact if place is None else _written(place, checkpoint, artifact, command, force, trust_pickle)
        assert home is not None
        _put(exact, home.onnx)
        _put(integer, home.folder / INT8)
    add_results(home.folder, export=exported, quantizing=section)
    return home.folder / INT8, section


def required(data: Data | None) -> Data:
    """Return the data. Refused: no data, because the ranges of activations come from images."""
    if data is None:
        raise CalibrationError(
            "int8 needs images: they show the ranges of the activations", hint="labels are not needed: `--data DIR`"
        )
    return data


def _check_scores(checkpoint: Checkpoint) -> None:
    """Refuse a network that cannot be judged after quantisation, before anything is computed."""
    shapes = [list(t.shape) for t in outputs_of(checkpoint.module, checkpoint.example_inputs)]
    if len(checkpoint.example_inputs) != 1 or checkpoint.example_inputs[0].ndim != 4:
        raise ExportError("the network does not read one batch of images", hint="int8 is judged on images")
    if len(shapes) != 1 or len(shapes[0]) != 2:
        outputs = ", ".join(map(str, shapes))
        raise ExportError(
            f"the network returns {outputs}, not class scores", hint="int8 is judged by the class of each image"
        )


def _float_file(exact: Path, checkpoint: Checkpoint, artifact: Artifact | None, say: Say) -> Parity:
    """The float file, from the artifact or newly exported; returns the `export` section of the results."""
    exported = None if artifact is None or not artifact.onnx.exists() else artifact.results().export
    if artifact is not None and exported is not None:
        seen, known = checkpoint.preprocessing, load_onnx(artifact.onnx).preprocessing
        if (seen.mean, seen.std) == (known.mean, known.std):
            shutil.copyfile(artifact.onnx, exact)
            return exported
    say("exporting, and comparing in onnxruntime")
    return export_onnx(checkpoint, exact)


def _written(
    place: Path, checkpoint: Checkpoint, artifact: Artifact | None, command: str, force: bool, trust_pickle: bool
) -> Artifact:
    """A new artifact of the unchanged network, from another artifact or a bare checkpoint."""
    if artifact is None:
        source = checkpoint.source
        results = Results.of(checkpoint.name, command, checkpoint.lineage)
    else:
        source, results = dict(artifact.recipe["source"]), artifact.results()
    mask = None if artifact is None else artifact.mask()
    return write_artifact(
        place, checkpoint, source=source, results=results, force=force, trust_pickle=trust_pickle, mask=mask
    )


def _quantized(
    exact: Path, integer: Path, checkpoint: Checkpoint, data: Data, how: Int8, *, batch: int | None, say: Say
) -> tuple[Quantized, int]:
    """The int8 file, with ranges from images of the training split, and the number of these images.

    `batch`: the only size that the graph accepts, if fixed.
    """
    images = first(calibration_split(data), how.images, seed=how.seed)
    say(f"quantising, by the ranges on {len(images)} images")
    stream = batches(images, batch_size=batch or CALIBRATION_BATCH, preprocessing=checkpoint.preprocessing)
    inputs = (one.inputs for one in stream if batch in (None, len(one.inputs[0])))
    return quantize_onnx(exact, integer, inputs, how=how), len(images)


def _judged(
    exact: Path, integer: Path, checkpoint: Checkpoint, data: Data, say: Say
) -> tuple[Quality, FloatAndInt8 | None]:
    """Agreement with the network and, with labels, the accuracy of both files, on the tuning split."""
    data = with_labels_of(data, checkpoint.classes)
    name = SplitName.TRAIN if data.tune is None else SplitName.TUNE
    images, seen = data.split(name), checkpoint.preprocessing
    say(f"comparing on the {name} split")
    close = agreement(
        load_onnx(integer), checkpoint.module, images, split=str(name), preprocessing=seen, task=data.task
    )
    accuracy = None
    if is_labelled(images, preprocessing=seen):
        both = (evaluate_onnx(file, images, split=str(name), preprocessing=seen) for file in (exact, integer))
        accuracy = FloatAndInt8(float=next(both), int8=next(both))
    return close, accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    """Both files in turns at each batch size."""

    threads: int
    rows: tuple[TimedRow, ...]
    caveats: tuple[str, ...]


def _timed(
    exact: Path, integer: Path, checkpoint: Checkpoint, timing: Timing, *, fixed: int | None, say: Say
) -> _Timed:
    """Time both files in turns at each batch size, with every sample; `fixed` is the only size that they accept."""
    threads = torch.get_num_threads() if timing.threads is None else timing.threads
    rows: list[TimedRow] = []
    caveats: list[Caveat] = []
    before = conditions()
    for batch in dict.fromkeys(timing.batch_sizes):
        if fixed not in (None, batch):
            text = f"batch {batch}: the ONNX file takes batches of {fixed} only"
            caveats.append(Caveat(kind=CaveatKind.LEFT_OUT, text=text))
            continue
        say(f"timing float and int8 in turns, batch {batch}")
        pair = timed_in_turns(
            exact, integer, checkpoint.example_inputs, runtime=RUNTIME, batch=batch, threads=threads,
            seconds=timing.seconds,
        )  # fmt: skip
        dense, int8 = (replace(m, name=name) for m, name in zip(pair, ("float", "int8"), strict=True))
        shaky = caveats_of((dense, int8), null=None, where=f"batch {batch}")
        caveats += [c for c in shaky if c.kind is CaveatKind.UNSTABLE]
        for one, reference, file in ((dense, None, exact), (int8, dense, integer)):
            rows.append(row_of(one, reference, runtime=RUNTIME, file_bytes=file.stat().st_size))
    caveats += caveats_of_machine((before, conditions()))
    return _Timed(threads=threads, rows=tuple(rows), caveats=tuple(map(str, caveats)))


def _put(file: Path, home: Path) -> None:
    try:
        part = home.with_name(f".{home.name}.part")
        shutil.copyfile(file, part)
        part.replace(home)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {home}: {error.strerror or error}", hint="free some space and repeat the command"
        ) from error
