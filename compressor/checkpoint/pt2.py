"""Read a network that `torch.export.save` wrote (`.pt2`): its program becomes a plain module.

torch's own reader runs code from the file: it evaluates sizes as Python, unpickles, and loads native code. So it is
never called on a file that the user does not trust. Here the archive is read directly: the program from its JSON
(`checkpoint.program_json`), the weights from their raw bytes, and nothing else. The example inputs, which torch
pickles, are read by the restricted unpickler.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.checkpoint.pickles.unpickle import read_pickle_bytes
from compressor.checkpoint.program_json import (
    DTYPES,
    STRIDED,
    TRUST,
    MalformedError,
    ProgramInput,
    ReadProgram,
    program_in,
    sizes_in,
)
from compressor.errors import CheckpointError, CompressError, UntrustedPickle
from compressor.files.archives import DAMAGED, Archive, open_archive
from compressor.files.names import check_names, printable
from compressor.files.raw_tensors import LARGEST_EXPANDED, strided_tensor
from compressor.files.regular import check_regular
from compressor.graph.outputs import outputs_of, tensors_in
from compressor.graph.recorded import RecordedProgram, program_from
from compressor.surgery.mending import program_of_file

MODEL = re.compile(r"models/([\w-]+)\.json", re.ASCII)
MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|\.format_version|\.storage_alignment|models/[\w-]+\.json|"
    r"data/weights/(weight_\d+|[\w-]+_weights_config\.json)|data/constants/(tensor_\d+|[\w-]+_constants_config\.json)|"
    r"data/sample_inputs/[\w-]+\.pt|extra/[\w./ -]+",
    re.ASCII,
)
RUN_ERRORS = (RuntimeError, IndexError, ValueError, AssertionError, TypeError, KeyError, AttributeError, MemoryError,
              OverflowError, ZeroDivisionError)  # fmt: skip


def read_exported(path: Path, *, trust_pickle: bool = False) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the program at `path` as a module, and its example inputs, or random ones of the same shapes.

    A program that was exported in training mode is returned in eval mode. Refused: a file that is no such archive or is
    damaged, a program that only torch's own reader rebuilds (unless the user trusts the file), one for batches of a
    fixed size above one.
    """
    check_regular(path, refusal=CheckpointError)
    with path.open("rb") as stream:
        if stream.read(4) != b"PK\x03\x04":
            raise CheckpointError(
                f"{path} is no exported program: it is not an archive", hint="fetch or export it again"
            )
    try:
        program, examples = _read(path)
    except CompressError as error:
        if not trust_pickle:
            raise
        program, examples = _read_by_torch(path, error)
    single = tuple(t[:1] if t.ndim else t for t in examples)
    before = [buffer.clone() for buffer in program.buffers()]  # a program may count its calls
    try:
        outputs_of(program, single)
    except (*RUN_ERRORS, CompressError) as error:
        raise _does_not_run(path, program, examples, error) from error
    for buffer, value in zip(program.buffers(), before, strict=True):
        buffer.copy_(value)
    return program, single


def _read(path: Path) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The program and its example inputs, read without torch's reader."""
    with open_archive(path) as archive:
        _check_members(archive)
        model = _model(archive)
        try:
            program = program_in(_json(archive, f"models/{model}.json"))
            weights = _tensors(archive, "data/weights", f"{model}_weights_config.json", r"weight_\d+")
            constants = _tensors(archive, "data/constants", f"{model}_constants_config.json", r"tensor_\d+")
            module = _module(program, weights, constants)
        except (MalformedError, RecursionError) as error:
            raise CheckpointError(f"{path} holds no program that torch writes: {error}", hint=DAMAGED) from error
        except CompressError as error:
            kind = UntrustedPickle if isinstance(error, UntrustedPickle) else CheckpointError
            refusal = CheckpointError(f"{path} cannot be read: {error}", hint=error.hint or TRUST)
            raise (refusal if kind is CheckpointError else error) from error
        return module, _examples(archive, f"data/sample_inputs/{model}.pt", program.inputs)


def _check_members(archive: Archive) -> None:
    """Refuse members that could run code, or that belong to no exported program."""
    for name in archive.members:
        if name == "serialized_exported_program.json":
            raise CheckpointError(
                f"{archive.path} was exported with a torch older than 2.8",
                hint="export it again with torch 2.9 or newer",
            )
        if re.fullmatch(r"data/(weights|constants)/[\w-]+\.pt", name, re.ASCII):
            raise UntrustedPickle(
                f"{archive.path} holds its weights as a pickle that could run code: {printable(name)}",
                classes=(),
                hint=f"export it again with torch 2.9 or newer; {TRUST}",
            )
        if not MEMBERS.fullmatch(name) or ".." in name:
            raise UntrustedPickle(
                f"{archive.path} holds what could run code, or is not part of an exported program: {printable(name)}",
                classes=(),
                hint=TRUST,
            )


def _model(archive: Archive) -> str:
    """The name of the archive's single program."""
    if archive.read("archive_format") != b"pt2" or archive.read("byteorder") != b"little":
        raise CheckpointError(f"{archive.path} is no exported program", hint="fetch or export it again")
    models = [match[1] for match in map(MODEL.fullmatch, archive.members) if match]
    if len(models) != 1:
        what = f"{len(models)} programs: {', '.join(models[:4])}" if models else "no program"
        raise CheckpointError(f"{archive.path} holds {what}", hint="save one network to a file")
    return models[0]


def _json(archive: Archive, name: str) -> Any:
    """The JSON in a member."""
    try:
        return json.loads(archive.read(name), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{archive.path} holds broken JSON: {name}", hint=DAMAGED) from error


def _integer(digits: str) -> int:
    """An integer of at most 20 digits."""
    if len(digits) > 20:  # torch cannot use longer ones, and Python takes long over them
        raise ValueError("a number too long")
    return int(digits)


def _tensors(archive: Archive, folder: str, listed: str, allowed: str) -> dict[str, tuple[Tensor, object]]:
    """The tensors that a list in the archive names, each with a key that is equal for equal tensors."""
    config = _json(archive, f"{folder}/{listed}")
    config = config.get("config") if isinstance(config, dict) else None
    if not isinstance(config, dict):
        raise MalformedError("a list of weights that is none")
    check_names(config, where="the file")
    raw: dict[str, bytearray] = {}
    tensors: dict[str, tuple[Tensor, object]] = {}
    for name, meta in config.items():
        if not isinstance(meta, dict):
            raise MalformedError("a weight without its description")
        place = meta.get("path_name")
        raw_bytes = meta.get("use_pickle") is False
        if not raw_bytes or not isinstance(place, str) or not re.fullmatch(allowed, place, re.ASCII):
            raise UntrustedPickle(
                f"{archive.path} holds `{printable(name)}` as a pickle that could run code", classes=(), hint=TRUST
            )
        if place not in raw:
            raw[place] = bytearray(archive.read(f"{folder}/{place}"))
        tensors[name] = _tensor(name, raw[place], meta.get("tensor_meta"), place)
    return tensors


def _tensor(name: str, raw: bytearray, meta: object, place: str) -> tuple[Tensor, object]:
    """One tensor from raw bytes, with its key. Refused: sizes that do not fit the bytes."""
    if not isinstance(meta, dict) or meta.get("dtype") not in DTYPES or meta.get("layout") != STRIDED:
        raise MalformedError(f"`{printable(name)}` is no dense tensor of a known type")
    dtype: torch.dtype = getattr(torch, DTYPES[meta["dtype"]])
    shape, strides = sizes_in(meta.get("sizes")), sizes_in(meta.get("strides"))
    (offset,) = sizes_in([meta.get("storage_offset")])
    try:
        tensor = strided_tensor(raw, dtype, shape, strides, offset)
    except ValueError as error:
        raise MalformedError(f"`{printable(name)}` {error}") from error
    return tensor, (place, dtype, shape, strides, offset) if tensor.numel() else object()


def _module(
    program: ReadProgram, weights: Mapping[str, tuple[Tensor, object]], constants: Mapping[str, tuple[Tensor, object]]
) -> RecordedProgram:
    """The module of the program, with the tensors behind their names; tied parameters stay one."""
    trainable = [stored.name for stored in program.tensors.values() if stored.parameter]
    first: dict[object, str] = {}
    tied: dict[str, str] = {}
    state: dict[str, Tensor] = {}
    for name, (tensor, same) in weights.items():
        if same in first and name in trainable:
            tied[name] = first[same]
        elif name in trainable or not trainable:
            first.setdefault(same, name)
        state[name] = tensor
    state |= {name: tensor for name, (tensor, _) in constants.items() if not _constant(name, program)}
    nodes = []
    for node in program.nodes:
        stored = program.tensors.get(node["name"])
        if stored is None:
            nodes.append(node)
            continue
        if stored.name not in (constants if stored.constant else state):
            raise MalformedError(f"the tensor `{printable(stored.name)}` is not there")
        name = tied.get(stored.name, stored.name)
        if stored.constant:
            name = f"constants.{node['name']}"
            state[name] = constants[stored.name][0]
        nodes.append({**node, "held": name})
    recorded = {
        "nodes": nodes,
        "outputs": list(program.outputs),
        "returns": program.returns,
        "takes": program.takes,
        "constants": {},
        "tied": tied,
        "trainable": trainable,
    }
    return program_from(recorded, state)


def _constant(name: str, program: ReadProgram) -> bool:
    """True if the program reads the tensor only as a constant."""
    return not any(one.name == name and not one.constant for one in program.tensors.values())


def _examples(archive: Archive, name: str, inputs: tuple[ProgramInput, ...]) -> tuple[Tensor, ...]:
    """The inputs that the program was exported with; random ones of their types and shapes if the file has none."""
    pair: Any = None
    if name in archive.members:
        content = archive.read(name)
        try:
            pair = read_pickle_bytes(content, where=f"{archive.path}: {name.rpartition('/')[2]}") if content else None
        except UntrustedPickle as error:
            raise UntrustedPickle(
                f"{archive.path} holds a pickle that could run code: {name.rpartition('/')[2]}",
                classes=error.classes,
                hint=TRUST,
            ) from error
    if isinstance(pair, tuple) and len(pair) == 2:
        tensors = tuple(tensors_in(pair[0])) + tuple(tensors_in(pair[1]))
        kinds = [(str(t.dtype).removeprefix("torch."), t.ndim) for t in tensors]
        if kinds == [(one.dtype, len(one.shape)) for one in inputs]:
            return tensors
    return tuple(_drawn(one) for one in inputs)


def _drawn(described: ProgramInput) -> Tensor:
    """A random input."""
    dtype: torch.dtype = getattr(torch, described.dtype)
    if math.prod(described.shape) * dtype.itemsize > LARGEST_EXPANDED:
        raise CheckpointError(f"its program takes an input of {described.shape}", hint=DAMAGED)
    if dtype.is_floating_point:
        return torch.randn(described.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return torch.zeros(described.shape, dtype=dtype)


def _read_by_torch(path: Path, refusal: CompressError) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The program as torch reads it, with the user's permission; `refusal` is why it is not read without."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's notices about its own reader
            program = torch.export.load(path)
    except Exception as error:
        # the reader can raise anything on broken bytes
        raise refusal from error
    inputs = program.example_inputs
    examples = (*tensors_in(inputs[0]), *tensors_in(inputs[1])) if inputs else ()
    return program_of_file(program), examples


def _does_not_run(path: Path, program: nn.Module, examples: tuple[Tensor, ...], error: Exception) -> CheckpointError:
    """The error for a program that does not run on one image: exported for another batch size, or broken."""
    batch = len(examples[0]) if examples and examples[0].ndim else 1
    try:
        outputs_of(program, examples)
    except (*RUN_ERRORS, CompressError):
        text = printable((str(error).splitlines() or [""])[0], longest=160)
        return CheckpointError(
            f"{path} holds a program that does not run: {type(error).__name__}: {text}",
            hint=f"export it again with torch {torch.__version__.partition('+')[0]}",
        )
    return CheckpointError(
        f"{path} was exported for batches of {batch} alone",
        hint="export it with an open batch: `dynamic_shapes=({0: torch.export.Dim.AUTO},)`, or for one image",
    )
