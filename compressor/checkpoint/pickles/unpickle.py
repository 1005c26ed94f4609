"""Unpickle only tensors, plain values, and networks of layers from torch, torchvision, timm and the samples.

torch's own restricted unpickler reads the file. It builds stand-ins (`checkpoint.pickles.standins`), so that nothing
that a pickle can call has an effect. Refused: a file that names anything else, with these names.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch._weights_only_unpickler import get_globals_in_pkl

from compressor.checkpoint.code.importing import importable
from compressor.checkpoint.pickles.placeholders import has_tensors, weights_in
from compressor.checkpoint.pickles.standins import built, check_tree, layer_class, standin_for
from compressor.errors import CheckpointError, UntrustedPickle
from compressor.files.archives import open_archive
from compressor.files.names import check_names_in, printable
from compressor.files.regular import check_regular

ZIP = b"PK\x03\x04"
PARTS_OF_OLD = 5  # pickles, one after the other, in a file of torch's first format
ALONE = "name the code that builds it, and its weights alone are read: `--arch net.py:Net`; or, if you made the file, "
MADE = "if you made the file, save the weights alone: `torch.save(model.state_dict(), …)`"
NOT_SPEAKING = 20  # characters: shorter errors, such as an unpickler's bare number, are not shown


def read_pickle(
    file: Path,
    *,
    trust_pickle: bool = False,
    only: frozenset[str] | None = None,
    code: Callable[[], ModuleType] | None = None,
) -> Any:
    """Return the object in a torch file. Refused: a pickle that could run code, unless the user trusts it.

    `only` are the keys of a mapping that may hold networks: the value of any other key is dropped unless it is plain.
    Where the user's `code` builds the network, modules of unknown classes are read as their states, and nothing runs;
    where that fails and the user trusts the file, the classes of `code` stand in for those of `__main__`.
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
        if code is not None:
            try:
                content = weights_in(file)
                if has_tensors(content) or not trust_pickle:
                    return content
            except CheckpointError as error:
                if isinstance(refusal, UntrustedPickle) and not trust_pickle:
                    raise UntrustedPickle(str(error), classes=refusal.classes, hint=MADE) from refusal
        if not trust_pickle:
            raise
        return _trusted(file, refusal, code)


def read_pickle_bytes(content: bytes, *, where: str) -> Any:
    """Return the object in bytes from inside another file; `where` names that file in errors."""
    return _restricted(content, where=where, only=None)


def _trusted(file: Path, refusal: CheckpointError, code: Callable[[], ModuleType] | None) -> Any:
    """The object as Python unpickles it, with the user's permission; `refusal` is why it is not read without."""
    try:
        with warnings.catch_warnings(), importable(last=[Path.cwd()]):
            warnings.simplefilter("ignore")  # about files of torch's first format
            return torch.load(file, map_location="cpu", weights_only=False, pickle_module=_standing_in(code))
    except (ImportError, AttributeError) as error:
        absent = printable(str(error).partition(" from '")[0].partition(" (")[0], longest=160)
        hint = "run where it can be imported, or name the file of its class: `--arch net.py:Net`"
        if isinstance(error, ModuleNotFoundError) and error.name:
            hint = f"install `{printable(error.name.partition('.')[0])}`, or {hint}"
        raise CheckpointError(
            f"{file} needs code that is not here: {absent}", hint=hint if code is None else MADE
        ) from error
    except Exception as error:  # the file's own code may raise anything
        if isinstance(refusal, UntrustedPickle):  # its form was right: it is not cut short
            text = printable((str(error).strip().splitlines() or [""])[0], longest=160)
            raise CheckpointError(f"{file} cannot be unpickled: {type(error).__name__}: {text}", hint=MADE) from error
        raise _broken(str(file), error) from refusal


def _standing_in(code: Callable[[], ModuleType] | None) -> Any:
    """The pickle module for torch, which finds classes of a script that is not running in the user's `code`."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            try:
                return super().find_class(module, name)
            except (ImportError, AttributeError):
                if module != "__main__" or code is None:
                    raise
                return getattr(code(), name)

    module = ModuleType("pickle")
    vars(module).update(Unpickler=Unpickler, load=pickle.load, UnpicklingError=pickle.UnpicklingError)
    return module


def _restricted(source: Path | bytes, *, where: str, only: frozenset[str] | None) -> Any:
    """The object as torch's restricted unpickler reads it. Refused: one that names other classes."""
    try:
        wanted = _globals_of(source)
    except Exception as error:  # the reader can raise anything on bytes that are not a pickle
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
            content = torch.load(_opened(source), map_location="cpu", weights_only=True)
        return _built(content, only)
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
    """The source in a form that torch reads."""
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _built(content: Any, only: frozenset[str] | None) -> Any:
    """The content with networks built; values of other keys that cannot be built are dropped."""
    if only is None or not isinstance(content, Mapping):
        return _checked(built(content))
    kept: dict[Any, Any] = {}
    entries: Any = dict.items(content)  # type: ignore[arg-type]  # torch's unpickler makes dicts
    for key, value in entries:
        try:
            kept[built(key)] = _checked(built(value))
        except CheckpointError:
            if not isinstance(key, str) or key in only:
                raise
    return kept


def _checked(value: Any) -> Any:
    """The value, if it is a network with its structure and names checked."""
    if isinstance(value, nn.Module):
        check_tree(value)
        check_names_in(value, where="the file")
    return value


def _globals_of(source: Path | bytes) -> set[str]:
    """The names that the pickles in a torch file look up, without those that torch's restricted unpickler allows."""
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
            break  # a single pickle, not torch's: its names are refused below, or the pickle itself
    allowed = torch._weights_only_unpickler._get_allowed_globals()
    return {name for name in names if name not in allowed}


def _broken(where: str, error: Exception) -> CheckpointError:
    """The error for a file that is not a readable checkpoint."""
    text = printable((str(error).strip().splitlines() or [""])[0], longest=160)
    why = f": {text}" if len(text) > NOT_SPEAKING else ""
    return CheckpointError(
        f"{where} is not a checkpoint that can be read, or is cut short{why}",
        hint="use a file that `torch.save` wrote, or .safetensors",
    )
