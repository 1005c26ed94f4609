"""The keys beside a checkpoint's weights: inputs, normalisation, classes and training, where they have our form.

Any program's file may have keys with these names. Keys that change what the network computes (normalisation, inputs)
are refused if they cannot be read. A training record in another program's form is ignored, because it only saves an
option.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.checkpoint import forms
from compressor.errors import CheckpointError
from compressor.files.schema import between, check, count, listed, number, optional, record

POSITIVE = between(0, float("inf"), open_low=True)
NORMALISATION = record({}, may={"mean": optional(listed(number)), "std": optional(listed(POSITIVE))}, others=True)
INPUTS = listed(forms.shape, least=1)


def metadata_of(meta: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """Return the known keys of a checkpoint's dictionary, with checked values. Refused: values of another form."""
    values = {key: value for key, value in meta.items() if isinstance(key, str) and key in READ}
    hint = f"remove the key from {path.name}, or write it as `compress` does"
    preprocessing = values.get("preprocessing")
    if isinstance(preprocessing, Mapping):
        check(dict(preprocessing), NORMALISATION, where=f"{path}, preprocessing", hint=hint, refusal=CheckpointError)
        values["preprocessing"] = {key: value for key, value in preprocessing.items() if value is not None}
    if isinstance(values.get("input"), (list, tuple)):
        shapes = list(values["input"])
        if shapes and all(isinstance(size, int) and not isinstance(size, bool) for size in shapes):
            shapes = [shapes]  # one input
        check(shapes, INPUTS, where=f"{path}, input", hint="set it: `--input 1x3x224x224`", refusal=CheckpointError)
        for one in shapes:
            check(list(one), listed(count(1)), where=f"{path}, input", hint=hint, refusal=CheckpointError)
        values["input"] = [list(shape) for shape in shapes]
    side = _side(meta)
    if "input" not in values and side is not None:
        values["side"] = side
    training = values.get("training")
    if isinstance(training, Mapping) and not {"budget", "schedule"} <= training.keys():
        del values["training"]
    elif isinstance(training, Mapping):
        check(_plain(training), forms.TRAINING, where=f"{path}, training", hint=hint, refusal=CheckpointError)
    return values


LARGEST_SIDE = 4096


def _side(meta: Mapping[Any, Any]) -> int | None:
    """The height and width of the images of a training, as Ultralytics records them; `None` without a record."""
    arguments = meta.get("train_args")
    side = arguments.get("imgsz") if isinstance(arguments, Mapping) else None
    return side if type(side) is int and 0 < side <= LARGEST_SIDE else None


READ = ("preprocessing", "input", "classes", "training", "architecture")


def _plain(value: Any) -> Any:
    """Tuples as lists and subclasses of text as text, as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, str) else value
