"""Read the weights in a pickle of any classes, and run nothing: what the pickle names becomes a placeholder.

A placeholder is an empty object that keeps what the pickle passes to it: arguments, state, items. No class, function or
constructor of the file's choice is looked up. When all is read, tensors are built from raw bytes, within their bounds,
and each object that has a module's tables of weights becomes its state.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.errors import CheckpointError
from compressor.files.archives import open_archive
from compressor.files.names import printable
from compressor.files.raw_tensors import strided_tensor

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's first format
STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64, "Untyped": torch.uint8,
}  # fmt: skip
TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")
DICTS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")
HINT = "save the weights alone: `torch.save(model.state_dict(), …)`"


class Placeholder:
    """What a pickle makes of a class or function called `name`: its arguments, its state and its items, unread."""

    __slots__ = ("arguments", "items", "state")
    name = ""

    def __new__(cls, *arguments: Any, **_: Any) -> Placeholder:
        """Return an empty placeholder; the arguments are kept."""
        one = object.__new__(cls)
        one.arguments, one.state, one.items = arguments, None, []
        return one

    def __init__(self, *_: Any, **__: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.state: Any
        self.items: list[Any]

    def __call__(self, *arguments: Any, **_: Any) -> Placeholder:
        """Return another placeholder: a pickle may call what it got from a call."""
        return Placeholder(*arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, item: Any) -> None:
        """Keep the item of a list."""
        self.items.append(item)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Storage:
    """The numbers behind tensors, by their key in the file; a view begins at `first`."""

    key: str
    dtype: torch.dtype
    first: int = 0


class _Unpickler(pickle._Unpickler):  # the one in Python: its memo is no array, which a number could make huge
    """Builds placeholders, tuples, lists, dicts and plain values, and nothing else."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Return a placeholder class for any name, without looking it up."""
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        return type("Placeholder", (Placeholder,), {"__slots__": (), "name": full})

    def persistent_load(self, pid: Any) -> Any:
        """Return the description of a storage, or the class of a module, whose source the first format stores."""
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            raise CheckpointError("it refers to something outside that is no storage")
        kind = getattr(pid[1], "name", "").rpartition(".")[2].removesuffix("Storage")
        if kind not in STORAGES:
            raise CheckpointError(f"it has a storage of `{printable(kind)}`")
        view = pid[5] if len(pid) == 6 else None
        first = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
        return _Storage(key=str(pid[2]), dtype=STORAGES[kind], first=first if isinstance(first, int) else 0)

    def get_extension(self, code: int) -> Any:
        """Refuse the registry of extensions, which may have objects that are not placeholders."""
        raise CheckpointError(f"it names an extension of Python's by its number {code}")


def weights_in(file: Path) -> Any:
    """Return a torch file's content with states in place of modules, and placeholders for other unknown objects.

    Refused: a file that is not torch's, or that is damaged; tensors beyond the file's bytes.
    """
    try:
        with file.open("rb") as stream:
            zipped = stream.read(4) == b"PK\x03\x04"
        return _in_archive(file) if zipped else _in_first_format(file)
    except CheckpointError as error:
        raise CheckpointError(f"the weights in {file} cannot be read: {error}", hint=error.hint or HINT) from error
    except Exception as error:  # the unpickler can raise anything on broken bytes
        text = printable((str(error).strip().splitlines() or [""])[0], longest=160)
        raise CheckpointError(f"the weights in {file} cannot be read: {text}", hint=HINT) from error


def has_tensors(content: Any, depth: int = 20) -> bool:
    """Return true if a tensor lies somewhere in the content that `weights_in` returns."""
    if isinstance(content, Tensor):
        return True
    values = content.values() if isinstance(content, dict) else content if isinstance(content, (list, tuple)) else ()
    return depth > 0 and any(has_tensors(value, depth - 1) for value in values)


def _in_archive(file: Path) -> Any:
    """The content of an archive, as torch writes it now."""
    with open_archive(file) as archive:
        if "constants.pkl" in archive.members:
            raise CheckpointError("it is a TorchScript program")
        if "byteorder" in archive.members and archive.read("byteorder") != b"little":
            raise CheckpointError("it is of a machine with another byte order")
        content = _Unpickler(io.BytesIO(archive.read("data.pkl")), encoding="utf-8").load()
        return _Reader(lambda storage: archive.read(f"data/{storage.key}")).value(content)


def _in_first_format(file: Path) -> Any:
    """The content of a file of torch's first format: five pickles, then the storages, each behind its length."""
    stream = io.BytesIO(file.read_bytes())

    def load() -> Any:
        return _Unpickler(stream, encoding="utf-8").load()

    if load() != MAGIC or load() != PROTOCOL:
        raise CheckpointError("it is no file of torch's")
    system = load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("it is of a machine with another byte order")
    storages: dict[str, _Storage] = {}
    content, keys = _stored(stream, storages), load()
    raw: dict[str, bytes] = {}
    for key in map(str, keys):
        (count,) = struct.unpack("<q", stream.read(8))
        if key not in storages or count < 0:
            raise CheckpointError(f"it has a storage `{printable(key)}` of no tensor")
        raw[key] = stream.read(count * storages[key].dtype.itemsize)
        if len(raw[key]) < count * storages[key].dtype.itemsize:
            raise CheckpointError("it is cut short", hint="fetch or copy it again")
    return _Reader(lambda storage: raw[storage.key]).value(content)


def _stored(stream: io.BytesIO, storages: dict[str, _Storage]) -> Any:
    """The content's pickle; its storages are entered into `storages`, because their lengths count their numbers."""
    unpickler = _Unpickler(stream, encoding="utf-8")
    read = unpickler.persistent_load

    def persistent_load(pid: Any) -> Any:
        one = read(pid)
        if isinstance(one, _Storage):
            storages.setdefault(one.key, one)
        return one

    unpickler.persistent_load = persistent_load  # type: ignore[method-assign]
    return unpickler.load()


class _Reader:
    """Turns placeholders into tensors, states, dicts and sets, each once; others stay placeholders."""

    def __init__(self, raw: Callable[[_Storage], bytes]) -> None:
        self.raw = raw
        self.bytes: dict[str, bytearray] = {}
        self.done: dict[int, Any] = {}
        self.kept: list[Any] = []  # keeps what was read alive, so that ids stay unique
        self.above: list[int] = []

    def value(self, one: Any) -> Any:
        """Return what an object of the pickle stands for. Refused: an object that holds itself."""
        if not isinstance(one, (Placeholder, dict, list, tuple)):
            return one
        if id(one) not in self.done:
            if id(one) in self.above:
                raise CheckpointError("it holds an object that holds itself")
            self.above.append(id(one))
            self.kept.append(one)
            self.done[id(one)] = self._read(one)
            self.above.pop()
        return self.done[id(one)]

    def _read(self, one: Any) -> Any:
        """Read a container, or a placeholder by its name and state."""
        if isinstance(one, dict):
            return {self._key(key): self.value(value) for key, value in one.items()}
        if isinstance(one, (list, tuple)):
            return type(one)(map(self.value, one))
        home, _, leaf = one.name.rpartition(".")
        if home in ("torch._utils", "torch._tensor"):
            return self._tensor(leaf, one)
        if one.name in DICTS:
            pairs = one.arguments[-1] if one.arguments and isinstance(one.arguments[-1], list) else []
            return {self._key(key): self.value(value) for key, value in (*pairs, *one.items)}
        if one.name in ("builtins.set", "builtins.frozenset"):
            return {item for part in one.arguments for item in part if isinstance(item, str)}
        if self._tables(one) is not None:
            state: dict[str, Tensor] = {}
            self._gather(one, "", state, [])
            return state
        return one

    def _key(self, key: Any) -> Any:
        return key if isinstance(key, (str, int, float, bool, bytes)) else f"<{type(key).__name__}>"

    def _tensor(self, leaf: str, one: Placeholder) -> Any:
        """The tensor that torch's own function of this name would rebuild."""
        arguments = one.arguments
        if leaf in PARAMETERS and arguments:
            return self.value(arguments[0])
        if leaf == "_rebuild_from_type_v2" and len(arguments) == 4:  # a tensor with attributes, or of another type
            name = getattr(arguments[0], "name", "").rpartition(".")[2]
            inner = Placeholder(*arguments[2])
            self.kept.append(inner)
            return self._tensor(name, inner)
        if leaf not in TENSORS or len(arguments) < 4 or not isinstance(arguments[0], _Storage):
            return one
        storage, offset, shape, strides = arguments[:4]
        named = getattr(arguments[6], "name", "") if leaf == TENSORS[2] and len(arguments) > 6 else ""
        dtype = getattr(torch, named.removeprefix("torch."), None) if named.startswith("torch.") else storage.dtype
        if not isinstance(dtype, torch.dtype) or any(isinstance(a, dict) and a for a in arguments[6:]):
            return one  # with a conjugate or negative bit, say
        if storage.key not in self.bytes:
            self.bytes[storage.key] = bytearray(self.raw(storage))
        places = tuple(self.value(shape)), tuple(self.value(strides)), offset + storage.first
        try:
            return strided_tensor(self.bytes[storage.key], dtype, *places)
        except ValueError as error:
            raise CheckpointError(f"it has a tensor that {error}") from error

    def _tables(self, one: Any) -> Mapping[str, Any] | None:
        """A module's tables of parameters, buffers and layers; `None` for what is no module."""
        if not isinstance(one, Placeholder) or not isinstance(one.state, dict):
            return None
        tables = {name: one.state.get(name) for name in ("_parameters", "_buffers", "_modules")}
        kinds = (dict, Placeholder)
        return one.state if all(isinstance(table, kinds) for table in tables.values()) else None

    def _gather(self, one: Placeholder, prefix: str, state: dict[str, Tensor], above: list[int]) -> None:
        """Enter a module's tensors into `state` as `state_dict` does. Refused: a module that holds itself."""
        tables = self._tables(one)
        if tables is None or id(one) in above:
            raise CheckpointError(f"`{printable(prefix) or 'the network'}` in it is no module, or holds itself")
        unsaved = self.value(tables.get("_non_persistent_buffers_set") or ())
        for table in ("_parameters", "_buffers"):
            for name, tensor in self._entries(tables[table]):
                value = self.value(tensor)
                if value is None or (table == "_buffers" and name in unsaved):
                    continue
                if not isinstance(value, Tensor):
                    raise CheckpointError(f"`{printable(prefix + name)}` in it is no dense tensor of plain numbers")
                state[prefix + name] = value
        for name, inner in self._entries(tables["_modules"]):
            if inner is not None:
                self._gather(inner, f"{prefix}{name}.", state, [*above, id(one)])

    def _entries(self, table: Any) -> list[tuple[str, Any]]:
        """The entries of a table, which is a dict or the placeholder of an ordered one, as the pickle has them."""
        pairs = table.items() if isinstance(table, dict) else [i for i in table.items if isinstance(i, tuple)]
        return [(str(name), value) for name, value in pairs]
