"""What a checkpoint says beside its weights: its inputs, normalisation, classes and training, where they are ours.

Anybody's file may have such keys. What would change what the network computes (normalisation, inputs) is refused where
it cannot be read; a training that another program describes in its own way is left out, for it only spares an option.
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


def known_in(meta: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """Those keys of a checkpoint's dictionary that are read; every value of a kind that is read. Refused: others."""
    found = {key: value for key, value in meta.items() if isinstance(key, str) and key in READ}
    hint = f"leave the key out of {path.name}, or write it as the tool does"
    preprocessing = found.get("preprocessing")
    if isinstance(preprocessing, Mapping):
        check(dict(preprocessing), NORMALISATION, where=f"{path}, preprocessing", hint=hint, refusal=CheckpointError)
        found["preprocessing"] = {key: value for key, value in preprocessing.items() if value is not None}
    if isinstance(found.get("input"), (list, tuple)):
        shapes = list(found["input"])
        if shapes and all(isinstance(size, int) and not isinstance(size, bool) for size in shapes):
            shapes = [shapes]  # one input
        check(shapes, INPUTS, where=f"{path}, input", hint="give it: `--input 1x3x224x224`", refusal=CheckpointError)
        for one in shapes:
            check(list(one), listed(count(1)), where=f"{path}, input", hint=hint, refusal=CheckpointError)
        found["input"] = [list(shape) for shape in shapes]
    training = found.get("training")
    if isinstance(training, Mapping) and not {"budget", "schedule"} <= training.keys():
        del found["training"]
    elif isinstance(training, Mapping):
        check(_plain(training), forms.TRAINING, where=f"{path}, training", hint=hint, refusal=CheckpointError)
    return found


READ = ("preprocessing", "input", "classes", "training", "architecture")


def _plain(value: Any) -> Any:
    """Tuples as lists and text's own kinds as text, as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, str) else value
