"""What may be unpickled: tensors, plain values, and networks of torch's, torchvision's, timm's and the samples' layers.

torch's own restricted unpickler does the reading; what it builds are stand-ins (`checkpoint.standins`), so that nothing
a pickle can call does anything. A file that names anything else is refused, with the names.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._weights_only_unpickler import get_globals_in_pkl

from compressor.checkpoint.standins import built, check_tree, layer_class, standin_for
from compressor.errors import CheckpointError, UntrustedPickle
from compressor.files.archives import open_archive
from compressor.files.names import check_names_in, printable
from compressor.files.regular import check_regular

ZIP = b"PK\x03\x04"
PARTS_OF_OLD = 5  # pickles, one behind the other, in a file of torch's first format
ALONE = "save the weights alone (`torch.save(model.state_dict(), …)`) and give `--arch`, or, if you made the file, "
NOT_SPEAKING = 20  # characters: an unpickler's bare number tells nobody anything


def read_pickle(file: Path, *, trust_pickle: bool = False, only: frozenset[str] | None = None) -> Any:
    """The object in a torch file; refused where building it could run code, unless the user trusts it.

    `only` are the keys of a mapping that may hold networks: what stands under another is left out if it is more than
    plain values.
    """
    check_regular(file, refusal=CheckpointError)
    with file.open("rb") as stream:
        zipped = stream.read(4) == ZIP
    if zipped:
        with open_archive(file) as archive:
            archive.check()
    try:
        return _restricted(file.read_bytes() if not zipped else file, where=str(file), only=only)
    except CheckpointError as refusal:
        if not trust_pickle:
            raise
        return _trusted(file, refusal)


def read_pickle_bytes(held: bytes, *, where: str) -> Any:
    """As `read_pickle`, of what lies inside another file; `where` says in which."""
    return _restricted(held, where=where, only=None)


def _trusted(file: Path, refusal: CheckpointError) -> Any:
    """The object as Python unpickles it, which the user allowed; `refusal` is why it is not read without."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files of torch's first format
            found = torch.load(file, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{file} needs code that is not here: {error}",
            hint="run where its package can be imported, or give `--arch`",
        ) from error
    except Exception as error:  # the file's own code may raise anything
        raise _broken(str(file), error) from refusal
    return found


def _restricted(source: Path | bytes, *, where: str, only: frozenset[str] | None) -> Any:
    try:
        wanted = _globals_of(source)
    except Exception as error:  # the reader follows the file's bytes: a file that is no pickle makes it raise anything
        raise _broken(where, error) from error
    standins = {name: standin_for(name) for name in wanted}
    refused = tuple(sorted(name for name, standin in standins.items() if standin is None))
    if refused:
        raise UntrustedPickle(
            f"{where} is a pickle that could run code on loading: it wants to build",
            classes=tuple(printable(name, longest=120) for name in refused),
            hint=f"{ALONE}add `--trust-pickle`",
        )
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(s, name) for name, s in standins.items()]):
            warnings.simplefilter("ignore")  # torch's notices about pickle protocols and old files
            found = torch.load(_opened(source), map_location="cpu", weights_only=True)
        return _built(found, only)
    except CheckpointError as error:
        raise UntrustedPickle(
            f"{where} cannot be read: {error}", classes=(), hint=error.hint or f"{ALONE}add `--trust-pickle`"
        ) from error
    except Exception as error:  # as above
        if isinstance(source, bytes) and source[:4] != ZIP and any(map(layer_class, wanted)):
            raise UntrustedPickle(
                f"{where} holds a whole network in torch's first format, which its restricted reader does not build",
                classes=tuple(sorted(wanted)),
                hint=f"{ALONE}add `--trust-pickle`",
            ) from error
        if isinstance(error, pickle.UnpicklingError) and wanted:
            first = printable((str(error).strip().splitlines() or [""])[-1], longest=160)
            raise UntrustedPickle(
                f"{where} holds more than torch's restricted reader builds: {first}",
                classes=tuple(sorted(wanted)),
                hint=f"{ALONE}add `--trust-pickle`",
            ) from error
        raise _broken(where, error) from error


def _opened(source: Path | bytes) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _built(found: Any, only: frozenset[str] | None) -> Any:
    if only is None or not isinstance(found, Mapping):
        return _checked(built(found))
    kept: dict[Any, Any] = {}
    entries: Any = dict.items(found)  # type: ignore[arg-type]  # torch's unpickler makes dicts
    for key, value in entries:
        try:
            kept[built(key)] = _checked(built(value))
        except CheckpointError:
            if not isinstance(key, str) or key in only:
                raise
    return kept


def _checked(found: Any) -> Any:
    if isinstance(found, nn.Module):
        check_tree(found)
        check_names_in(found, where="the file")
    return found


def _globals_of(source: Path | bytes) -> set[str]:
    """The names that the pickles in a torch file look up, but for those that torch's restricted unpickler knows."""
    if isinstance(source, Path) or source[:4] == ZIP:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(_opened(source)))
    stream = io.BytesIO(source)
    if tarfile.is_tarfile(stream):
        raise ValueError("it is a tar file, as torch wrote them before 2017")
    stream.seek(0)
    names: set[str] = set()
    for number in range(PARTS_OF_OLD):
        try:
            names |= get_globals_in_pkl(stream)
        except Exception:
            if number == 0 or not names:
                raise
            break  # a pickle alone, not of torch's: its names are refused below, or it is
    known = torch._weights_only_unpickler._get_allowed_globals()
    return {name for name in names if name not in known}


def _broken(where: str, error: Exception) -> CheckpointError:
    said = printable((str(error).strip().splitlines() or [""])[0], longest=160)
    why = f": {said}" if len(said) > NOT_SPEAKING else ""
    return CheckpointError(
        f"{where} is not a checkpoint that can be read, or is cut short{why}",
        hint="give a file that `torch.save` wrote, or .safetensors",
    )
