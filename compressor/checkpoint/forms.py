"""The forms of all JSON files that are read, field by field; `files.schema` checks them.

A new field of a writer must be added here too: a field without a form is refused, because nothing has checked it.
"""

from __future__ import annotations

import math
import re

from compressor.checkpoint.recipes import How, Optimiser, Shape, Start
from compressor.files.schema import (
    Form,
    Misfit,
    also,
    anything,
    between,
    count,
    either,
    flag,
    lengths_agree,
    listed,
    number,
    one_of,
    optional,
    path,
    record,
    table,
    text,
    tuple_of,
)

DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
    "complex128",
)  # fmt: skip
LARGEST_INPUT = 2**28  # numbers in an example: 1 GiB of float32
LONGEST_SIDE = 2**31 - 1


def _kind(value: object, place: str) -> None:
    """A kind of factors; its module imports torch, so it is imported only when needed."""
    from compressor.surgery.factors import Kind

    one_of(*map(str, Kind))(value, place)


def sha256(value: object, place: str) -> None:
    """Accept a hash in hexadecimal."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise Misfit(place, "a sha256", value)


def hash_or_none(value: object, place: str) -> None:
    """Accept a hash, or an empty text if there was no file."""
    if value != "":
        sha256(value, place)


def name(value: object, place: str) -> None:
    """Accept a text that can be part of a file name: no path, no control character."""
    text(value, place)
    assert isinstance(value, str)
    if not value or len(value) > 255 or value in (".", "..") or re.search(r"[/\\\0]", value):
        raise Misfit(place, "a name", value)


def identifier(value: object, place: str) -> None:
    """Accept the name of a public Python attribute."""
    if not isinstance(value, str) or not value.isidentifier() or value.startswith("_"):
        raise Misfit(place, "an attribute's name", value)


def argument(value: object, place: str) -> None:
    """Accept the name of a Python argument."""
    if not isinstance(value, str) or not value.isidentifier():
        raise Misfit(place, "an argument's name", value)


def decimal(value: object, place: str) -> None:
    """Accept a small whole number as text, as in keys of objects."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,3}", value):
        raise Misfit(place, "a dimension", value)


def shape(value: object, place: str) -> None:
    """Accept the sizes of a tensor that fits in memory."""
    listed(count(0, LONGEST_SIDE), most=12)(value, place)
    assert isinstance(value, (list, tuple))
    if math.prod(value) > LARGEST_INPUT:
        raise Misfit(place, f"a tensor of at most {LARGEST_INPUT:,} numbers", value)


ARCHITECTURE = record({"ref": text, "arguments": listed(tuple_of(argument, anything)), "sha256": optional(sha256)})

PREPROCESSING = also(
    record(
        {
            "mean": listed(number, most=4096),
            "std": listed(between(0, math.inf, open_low=True), most=4096),
            "size": optional(listed(count(1, 2**20), least=2, most=2)),
            "channels": optional(count(1, 2**20)),
        }
    ),
    "as many means as deviations",
    lengths_agree("mean", "std"),
)

share = between(0, 1)
TRAINING = record(
    {
        "budget": record({"epochs": count(1)}),
        "schedule": record(
            {
                "rate": between(0, math.inf, open_low=True),
                "shape": one_of(*map(str, Shape)),
                "milestones": listed(number),
            },
            may={"warmup": share, "skipped": share},
        ),
        "start": one_of(*map(str, Start)),
        "optimiser": one_of(*map(str, Optimiser)),
        "augment": listed(text),
    },
    may={
        "how": optional(one_of(*map(str, How))),
        "momentum": share,
        "weight_decay": between(0, math.inf),
        "batch_size": count(1),
        "label_smoothing": share,
        "temperature": between(0, math.inf, open_low=True),
        "bn_l1": between(0, math.inf),
        "mixed_precision": flag,
        "seed": count(-(2**63), 2**64),
        "notes": listed(text),
    },
)

CLASSES = optional(listed(text))

_odd = record({"float": one_of("inf", "-inf", "nan")})  # JSON has no such numbers
_part = either("a number", number, _odd)
numbers_of_constant = listed(either("a number", number, flag, _odd, tuple_of(_part, _part)))
PROGRAM = record(
    {
        "nodes": listed(
            either(
                "a step of a program",
                record({"name": text, "held": text}),
                record({"name": text, "input": one_of(True)}),
                record({"name": text, "call": text, "args": listed(anything), "kwargs": table(anything)}),
            ),
            least=1,
        ),
        "outputs": listed(text, least=1),
        "constants": table(record({"dtype": one_of(*DTYPES), "shape": shape, "values": numbers_of_constant})),
        "tied": table(text),
        "trainable": listed(text),
    },
    may={"takes": optional(anything), "returns": optional(anything)},  # checked when the program is built
)

SURGERY = record(
    {
        "slices": table(table(listed(count(0, LONGEST_SIDE), least=1), key=decimal)),
        "attributes": table(table(count(0, LONGEST_SIDE), key=identifier)),
    },
    may={
        "emptied": listed(text),
        "program": optional(PROGRAM),
        "factors": table(record({"kind": _kind, "rank": count(1, LONGEST_SIDE)})),
    },
)

_recipe: dict[str, Form] = {
    "name": name,
    "architecture": ARCHITECTURE,
    "source": record({"path": path, "sha256": hash_or_none}, may={"key": text}),
    "input": listed(shape, least=1),
    "dtypes": listed(one_of(*DTYPES), least=1),
    "preprocessing": PREPROCESSING,
    "classes": CLASSES,
    "training": optional(TRAINING),
    "surgery": SURGERY,
    "lineage": listed(table(anything)),
    "files": table(sha256),
}
_later = {
    "inputs": listed(
        record(
            {
                "name": optional(argument),
                "shape": shape,
                "dtype": optional(one_of(*DTYPES)),
                "low": optional(number),
                "below": optional(number),
            }
        ),
        least=1,
    ),
    "types": table(one_of(*DTYPES)),
}
_agree = lengths_agree("input", "dtypes")
RECIPE_1 = also(record({"schema": one_of(1), **_recipe}, may=_later), "as many inputs as types", _agree)
RECIPE_2 = also(
    record({"schema": one_of(2), **_recipe, **_later, "sha256": sha256}, may={"outputs": listed(text)}),
    "as many inputs as types",
    _agree,
)

positive = between(0, math.inf, open_low=True)
TABLE = record(
    {
        "target": record({"runtime": text, "batch": count(1), "threads": count(1), "hardware": text, "version": text}),
        "samples": table(
            listed(
                tuple_of(between(0, LONGEST_SIDE), between(0, LONGEST_SIDE), between(0, 1e18, open_low=True)), least=1
            )
        ),
        "alignments": listed(record({"multiple": count(1, LONGEST_SIDE), "excess": between(0, 1e9)})),
        "wholes": table(
            record(
                {
                    "factor": between(0, 1e9),
                    "starts": between(0, 1e9),
                    "networks": listed(tuple_of(between(0, 1e18), between(0, 1e18, open_low=True))),
                }
            )
        ),
    },
    may={"schema": count(1), "align": count(1), "environment": table(anything)},
)

nanoseconds = count(1, 10**18)
MEASURED = record(
    {
        "provider": text,
        "threads": count(1, 2**20),
        "hardware": text,
        "onnxruntime": text,
        "python": text,
        "platform": text,
        "rows": listed(
            record(
                {
                    "candidate": text,
                    "batch": count(1, 2**31),
                    "samples_ns": listed(listed(nanoseconds, least=1), least=2),
                    "file_bytes": count(1),
                    "params": count(0),
                    "macs": count(1),
                },
                may={"file": text},
            ),
            least=1,
        ),
    },
    may={
        "schema": one_of(1),
        "name": text,
        "networks": record(
            {
                "profiles": listed(
                    listed(listed(tuple_of(text, text, listed(nanoseconds, least=1))), least=1), least=1
                ),
                "walls": table(between(0, 1e18, open_low=True), key=decimal),
            }
        ),
    },
)

PACK = record(
    {
        "networks": record(
            {
                "batch": count(1),
                "files": listed(text),
                "aligns": listed(count(0, LONGEST_SIDE)),
                "reads": listed(listed(number)),
                "writes": listed(listed(number)),
                "keys": listed(text),
                "tensors": listed(text),
                "signature": text,
                "owners": listed(table(text), least=1),
            }
        )
    },
    others=True,
)

EVENTS = record(
    {
        "of": anything,
        "events": listed(
            record(
                {
                    "epoch": count(0),
                    "chosen": table(listed(count(0, LONGEST_SIDE))),
                    "before": count(0),
                    "after": count(0),
                    "total": count(1),
                }
            )
        ),
    }
)

CELL = record({"cell": table(anything), "result": table(anything), "data": table(anything)}, others=True)

ONNX_METADATA = record({"classes": CLASSES, "preprocessing": optional(PREPROCESSING)})
