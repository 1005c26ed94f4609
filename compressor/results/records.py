"""Frozen dataclasses to JSON and back (`cattrs`): a value of the wrong kind is refused by its place in the file.

A key that no field has stays in `rest`: the figures of a newer writer are shown and written again, not dropped. `null`
reads as an absent key. Numbers are never converted: what was read is written again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar, Self, get_args, get_origin

from cattrs import ClassValidationError, Converter, IterableValidationError
from cattrs.errors import AttributeValidationNote, IterableValidationNote
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from compressor.errors import ArtifactError, CompressError

Plain = Mapping[str, Any]
"""Plain values by name, whatever a writer recorded."""

Pair = tuple[int, int]
"""Of the dense network, of the small one."""


class _Misfit(Exception):
    """A value of the wrong kind."""

    def __init__(self, wanted: str, value: object) -> None:
        self.wanted, self.value = wanted, value


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A value that results hold: `to_json` writes what `from_json` reads. Fields with a default may be absent."""

    KEYS: ClassVar[Mapping[str, str]] = {}
    """The keys of fields that are called otherwise in the file."""
    DERIVED: ClassVar[tuple[str, ...]] = ()
    """Properties that are written for other readers, and not read."""
    SPARE: ClassVar[frozenset[str]] = frozenset()
    """Fields that are left out of the file where they have their default value."""

    rest: Plain = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `json.dumps` takes them."""
        plain: dict[str, Any] = _converter().unstructure(self)
        return plain

    @classmethod
    def from_json(cls, plain: object, *, place: str = "results") -> Self:
        """The value; refused, by its place, where an entry is of the wrong kind or lacks what it must have."""
        try:
            return _converter().structure(plain, cls)
        except Exception as error:
            raise _refusal(error, place) from error

    @classmethod
    def prepared(cls, plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """Plain values as the fields take them, of those in the file: an older schema's, say."""
        return plain

    def finished(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Plain values as they stand in the file, of those of the fields."""
        return plain

    @classmethod
    def kind_of(cls, plain: Mapping[str, Any]) -> type[Record]:
        """The class that reads `plain`, where this one stands for several."""
        del plain
        return cls

    def facts(self, *, without: tuple[str, ...] = ()) -> tuple[tuple[str, Any], ...]:
        """All that was recorded, by the keys of the file, apart from the fields `without`."""
        hidden = {self.KEYS.get(name, name) for name in without}
        return tuple((k, v) for k, v in self.to_json().items() if k not in hidden and v not in (None, [], {}))


@cache
def _converter() -> Converter:
    converter = Converter()
    for kind, wanted in ((int, "a whole number"), (float, "a number"), (str, "a string"), (bool, "true or false")):
        converter.register_structure_hook(kind, _strict(kind, wanted))
    converter.register_structure_hook_func(lambda t: t == int | str | None, _count_or_word)
    converter.register_structure_hook_func(lambda t: t == Plain, _object)
    converter.register_unstructure_hook_func(lambda t: t == Plain, _written)
    converter.register_structure_hook_factory(_is_tuple, lambda t: _tuple(t, converter))
    converter.register_unstructure_hook_func(_is_tuple, lambda value: [converter.unstructure(one) for one in value])
    converter.register_structure_hook_factory(_is_record, lambda t: _reader(t, converter))
    converter.register_unstructure_hook_factory(_is_record, lambda t: _writer(t, converter))
    return converter


def _is_tuple(kind: Any) -> bool:
    return bool(get_origin(kind) is tuple)


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Record)


def _strict(kind: type, wanted: str) -> Callable[[object, object], object]:
    def read(value: object, _: object) -> object:
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise _Misfit(wanted, value)
        return value

    return read


def _count_or_word(value: object, _: object) -> object:
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise _Misfit("a whole number or a word", value)
    return value


def _object(value: object, _: object) -> Plain:
    if not isinstance(value, Mapping):
        raise _Misfit("an object", value)
    return dict(value)


def _written(value: Plain) -> dict[str, Any]:
    return {key: list(one) if isinstance(one, tuple) else one for key, one in value.items()}


def _tuple(kind: Any, converter: Converter) -> Callable[[object, object], object]:
    """Reads a list of any length, or the pair that `kind` is; one object stands for a list of it."""
    inner = get_args(kind)
    if inner[-1] is Ellipsis:
        read = converter.get_structure_hook(list[inner[0]])  # type: ignore[valid-type]  # known only now

        def several(value: object, _: object) -> object:
            if isinstance(value, Mapping) and _is_record(inner[0]):
                value = [value]
            if not isinstance(value, (list, tuple)):
                raise _Misfit("a list", value)
            return tuple(read(value, list[inner[0]]))  # type: ignore[valid-type]

        return several

    def pair(value: object, _: object) -> object:
        wanted = "a pair of whole numbers" if set(inner) == {int} else f"a list of {len(inner)}"
        if not isinstance(value, (list, tuple)) or len(value) != len(inner):
            raise _Misfit(wanted, value)
        try:
            return tuple(converter.structure(one, t) for one, t in zip(value, inner, strict=True))
        except _Misfit as error:
            raise _Misfit(wanted, value) from error

    return pair


def _names(kind: type[Record]) -> dict[str, str]:
    """The key of each field but `rest`."""
    return {f.name: kind.KEYS.get(f.name, f.name) for f in dataclasses.fields(kind) if f.name != "rest"}


def _reader(kind: type[Record], converter: Converter) -> Callable[[object, object], Record]:
    names = _names(kind)
    renamed: dict[str, Any] = {name: override(rename=key) for name, key in names.items()}
    read = make_dict_structure_fn(kind, converter, rest=override(omit=True), **renamed)

    def record(value: object, _: object) -> Record:
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise _Misfit("an object", value)
        chosen = kind.kind_of(value)
        if chosen is not kind:
            return converter.structure(value, chosen)
        value = kind.prepared(value)
        there = {key: one for key, one in value.items() if one is not None}
        made = read(there, kind)
        rest = {k: v for k, v in value.items() if k not in {*names.values(), *kind.DERIVED}}
        return dataclasses.replace(made, rest=rest) if rest else made

    return record


def _writer(kind: type[Record], converter: Converter) -> Callable[[Record], dict[str, Any]]:
    options: dict[str, Any] = {
        name: override(rename=key, omit_if_default=name in kind.SPARE) for name, key in _names(kind).items()
    }
    write = make_dict_unstructure_fn(kind, converter, rest=override(omit=True), **options)

    def plain(record: Record) -> dict[str, Any]:
        if type(record) is not kind:  # a field's type may stand for several
            written: dict[str, Any] = converter.unstructure(record)
            return written
        derived = {name: converter.unstructure(getattr(record, name)) for name in kind.DERIVED}
        return record.finished(write(record) | derived | dict(record.rest))

    return plain


def _refusal(error: BaseException, place: str) -> ArtifactError:
    """What does not fit, and where: the first of all that do not."""
    while isinstance(error, (ClassValidationError, IterableValidationError)):
        first = error.exceptions[0]
        for note in getattr(first, "__notes__", ()):
            if isinstance(note, IterableValidationNote):
                place += f"[{note.index}]"
            elif isinstance(note, AttributeValidationNote):
                keys: Mapping[str, str] = getattr(getattr(error, "cl", None), "KEYS", {})
                place += f".{keys.get(note.name, note.name)}"
        error = first
    if isinstance(error, _Misfit):
        shown = repr(error.value)
        return ArtifactError(
            f"`{place}` in the results is not {error.wanted}: {shown if len(shown) < 60 else shown[:57] + '...'}",
            hint="the file was edited, or another version wrote it; run the command that measures it again",
        )
    if isinstance(error, KeyError):
        return ArtifactError(
            f"`{place.rpartition('.')[0]}` in the results lacks its `{error.args[0]}`",
            hint="run the command that measures it again",
        )
    if isinstance(error, (CompressError, ValueError)):
        return ArtifactError(f"`{place}` in the results: {error}", hint="run the command that measures it again")
    raise error
